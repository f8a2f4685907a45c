"""Serves this page on this machine, and shows it if there is a screen.

python3 export/web/serve.py [PORT] [PAGE], with PORT 0 for any that is free, PAGE "?draw" to begin
with the canvas. Python's own library is all it needs.
"""

from __future__ import annotations

import functools
import http.server
import os
import sys
import webbrowser
from pathlib import Path

HOST = "localhost"  # browsers give the camera to a page from there


def main(port: str = "8000", page: str = "") -> None:
    """Serves until it is interrupted."""
    handler = functools.partial(
        http.server.SimpleHTTPRequestHandler, directory=str(Path(__file__).parent)
    )
    with http.server.ThreadingHTTPServer((HOST, int(port)), handler) as server:
        address = f"http://{HOST}:{server.server_address[1]}/{page}"
        print(f"Open {address} (Ctrl-C ends it)", flush=True)
        if has_screen():
            webbrowser.open(address)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            print()


def has_screen() -> bool:
    """Whether a browser would have a window; without one some open in the terminal."""
    return sys.platform in ("darwin", "win32") or any(
        os.environ.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY")
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
