r"""Where a command's time goes: imports, data, tracing, steps, scoring, conversion.

    python -m benchmarks.phases refilled_tf.train --gin_file=gin/quickstart.gin --work_dir=runs/t

Runs a module as `python -m` does and looks at its main thread every few milliseconds. The time
since the last look counts for the phase of the innermost function that belongs to one; what a
process of its own does, such as a check in TensorFlow's C library, counts for who waits for it.
"""

from __future__ import annotations

import collections
import runpy
import sys
import threading
import time
from types import FrameType

LOOK = 0.005  # seconds
TRACES = "_create_concrete_function"  # of TensorFlow

# The innermost frame whose file holds one of these words decides; the first that fits.
PHASES = {
    "<frozen importlib": "imports",
    "tensorflow/lite/": "conversion",
    "saved_model/": "SavedModel",
    "refilled_tf/data/": "data",
    "refilled_tf/evaluation/": "scoring: classifiers on embeddings",
    "refilled_tf/reporting/": "pictures and pages",
    "refilled_tf/experiment/teacher_cache": "teacher's answers",
    "refilled_tf/experiment/loading": "scoring: networks loaded and run",
    "src/saving/": "networks saved and loaded",
    "export/": "checks and files of the exports",
    "keras/src/engine/training": "steps",
    "keras/src/engine": "networks built and called",
}


def main(argv: list[str]) -> None:
    """Runs the module that the first argument names, with the others as its arguments."""
    if len(argv) < 2:
        print(__doc__, file=sys.stderr)
        sys.exit(1)
    spent: collections.Counter[str] = collections.Counter()
    done = threading.Event()
    thread = threading.Thread(target=look, args=(threading.get_ident(), spent, done), daemon=True)
    thread.start()
    sys.argv = argv[1:]
    try:
        runpy.run_module(argv[1], run_name="__main__", alter_sys=True)
    finally:
        done.set()
        print_table(spent)


def look(thread: int, spent: collections.Counter[str], done: threading.Event) -> None:
    """Adds up the seconds of each phase of a thread until told to stop."""
    before = time.perf_counter()
    while not done.wait(LOOK):
        frame = sys._current_frames().get(thread)
        now = time.perf_counter()
        spent[phase(frame)] += now - before
        before = now


def phase(frame: FrameType | None) -> str:
    """Returns the phase that a stack is in."""
    found = None
    while frame is not None:
        if frame.f_code.co_name == TRACES:  # whatever is called meanwhile
            return "tracing"
        path = frame.f_code.co_filename
        if found is None:
            found = next((name for word, name in PHASES.items() if word in path), None)
        frame = frame.f_back
    return found or "other"


def print_table(spent: collections.Counter[str]) -> None:
    """Prints seconds and shares, the longest phase first."""
    total = sum(spent.values())
    print("\n| phase | seconds | share |\n| --- | ---: | ---: |")
    for name, seconds in spent.most_common():
        print(f"| {name} | {seconds:.1f} | {100 * seconds / total:.0f} % |")
    print(f"| all | {total:.1f} | |", flush=True)


if __name__ == "__main__":
    main(sys.argv)
