"""The embedded server as a process of its own."""

import contextlib
import re
import subprocess
import sys
import tempfile
from typing import NamedTuple

from digits import ROOT

COMMAND = [sys.executable, "-m", "export.serve"]


class Server(NamedTuple):
    process: subprocess.Popen
    http: str  # http://localhost:PORT
    grpc: str  # localhost:PORT


@contextlib.contextmanager
def server(base, *flags):
    """Runs export.serve on free ports; it must end well when it is told to."""
    with (
        tempfile.TemporaryFile("w+") as log,
        subprocess.Popen(
            [*COMMAND, f"--export_dir={base}", "--port=0", "--grpc_port=0", *flags],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        ) as process,
    ):
        try:
            line = process.stdout.readline()
            found = re.fullmatch(r"Serving refilled at (http://\S+) and grpc://(\S+)\n", line)
            log.seek(0)
            assert found, line + log.read()
            yield Server(process, *found.groups())
        finally:
            process.terminate()
        assert process.wait(timeout=60) == 0
