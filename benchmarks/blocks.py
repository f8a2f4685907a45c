"""Blocks of training steps, timed in processes that take turns.

What is compared may need different Pythons, and never runs at once: a process waits on its stdin
while another works. This file needs the standard library alone.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
_ANSWER = "answer: "  # libraries print to stdout too


def serve(step: Callable[[], float], parameters: int, steps_a_call: int = 1) -> None:
    """Prints `parameters`, then for every number n on stdin the seconds that n steps take.

    Args:
        step: takes a step and returns its loss, which is read after a block's last step, so that
            no work is left behind.
        parameters: number of weights under training, by which networks are compared.
        steps_a_call: how many `step` takes at once; every n is a multiple of it.
    """
    print(f"{_ANSWER}{parameters}", flush=True)
    for line in sys.stdin:
        start = time.perf_counter()
        for _ in range(int(line) // steps_a_call):
            loss = step()
        float(loss)
        print(f"{_ANSWER}{time.perf_counter() - start}", flush=True)


class Worker:
    """A process that runs `serve`, ended on leaving the context.

    Attributes:
        parameters: of its network.

    Raises:
        RuntimeError: it ended by itself, having said why on stderr.
    """

    def __init__(self, command: list[str]):
        self._process = subprocess.Popen(
            command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.parameters = int(self._answer())

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *error) -> None:
        self._process.kill()
        self._process.communicate()

    def seconds(self, steps: int) -> float:
        """Returns what so many steps take."""
        self._process.stdin.write(f"{steps}\n")
        self._process.stdin.flush()
        return float(self._answer())

    def _answer(self) -> str:
        for line in self._process.stdout:
            if line.startswith(_ANSWER):
                return line.removeprefix(_ANSWER)
        raise RuntimeError(f"exit code {self._process.wait()} of {' '.join(self._process.args)}")


def alternate(workers: dict[str, Worker], steps: int, repeats: int) -> dict[str, list[float]]:
    """Times blocks of all workers in turns, after one of each for warming up.

    Args:
        workers: by name.
        steps: in a block.
        repeats: timed blocks of each.

    Returns:
        Seconds of every block, by name.
    """
    for worker in workers.values():
        worker.seconds(steps)
    seconds = {name: [] for name in workers}
    for _ in range(repeats):
        for name, worker in workers.items():
            seconds[name].append(worker.seconds(steps))
    return seconds
