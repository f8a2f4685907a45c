"""The embedded server as a process of its own."""

import contextlib
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple, TextIO

from digits import ROOT

COMMAND = [sys.executable, "-m", "export.serve"]


class Server(NamedTuple):
    process: subprocess.Popen
    http: str  # http://localhost:PORT
    grpc: str  # localhost:PORT
    log_file: TextIO

    def log(self):
        """Returns what the server has written to stderr so far."""
        return os.pread(self.log_file.fileno(), 2**24, 0).decode()

    def wait_for_log(self, pattern, seconds=30):
        end = time.monotonic() + seconds
        while not re.search(pattern, self.log()):
            assert time.monotonic() < end, self.log()
            time.sleep(0.05)

    def memory(self):
        """Returns the megabytes that the process holds."""
        return self._status("VmRSS")

    def peak(self):
        """Returns the most megabytes that the process has held since the last call of this."""
        peak = self._status("VmHWM")
        Path(f"/proc/{self.process.pid}/clear_refs").write_text("5")
        return peak

    def _status(self, key):
        text = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.search(rf"{key}:\s+(\d+) kB", text)[1]) / 1024


@contextlib.contextmanager
def server(base, *flags, under=()):
    """Runs export.serve on free ports; it must end well when it is told to.

    Args:
        base: the folder of the versions.
        flags: further ones.
        under: a command that starts the server's.
    """
    with (
        tempfile.TemporaryFile("w+") as log,
        subprocess.Popen(
            [*under, *COMMAND, f"--export_dir={base}", "--port=0", "--grpc_port=0", *flags],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        ) as process,
    ):
        try:
            line = process.stdout.readline()
            found = re.fullmatch(r"Serving refilled at (http://\S+) and grpc://(\S+)\n", line)
            assert found, line + os.pread(log.fileno(), 2**24, 0).decode()
            yield Server(process, *found.groups(), log)
        finally:
            process.terminate()
        assert process.wait(timeout=60) == 0
