r"""Images a second of full training steps with several Pythons, such as those of two TensorFlows.

    make test PYTHON=python3.11 VENV=.venv-3.11 TESTS=tests/test_environment.py
    python -m benchmarks.stacks --pythons=.venv-3.11/bin/python,.venv/bin/python
    python -m benchmarks.stacks --pythons=.venv/bin/python --precisions=float32,mixed_bfloat16
    python -m benchmarks.stacks --pythons=.venv/bin/python --levers=none,xla,lone_operations

The steps are those of benchmarks.training. Every Python does them with every precision and every
lever, in a process each; these take turns block by block. What is printed comes from the median
block; behind it stands how many times as fast it is as the first column, turn by turn: median,
least and most.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import statistics
import subprocess

from absl import flags

from benchmarks import blocks
from benchmarks.training import LEVERS, OBJECTIVES, PAIRS, STEPS_A_CALL, line, require_known
from refilled_tf.common.entry import run_main
from refilled_tf.common.errors import require

PRECISIONS = ("float32", "mixed_bfloat16", "mixed_float16")

FLAGS = flags.FLAGS


def main(_: list[str]) -> None:
    require_known("networks", FLAGS.networks, PAIRS)
    require_known("steps", FLAGS.steps, OBJECTIVES)
    require_known("precisions", FLAGS.precisions, PRECISIONS)
    require_known("levers", FLAGS.levers, LEVERS)
    require(
        FLAGS.block % STEPS_A_CALL == 0 or "ten_steps_a_call" not in FLAGS.levers,
        f"--block={FLAGS.block} is no multiple of {STEPS_A_CALL}, as ten_steps_a_call wants",
    )
    variants = {
        " ".join([tensorflow(python), precision, *([lever] if lever != "none" else [])]): [
            python,
            *("-m", "benchmarks.training", "--serve"),
            f"--precision={precision}",
            f"--lever={lever}",
        ]
        for python in FLAGS.pythons
        for precision in FLAGS.precisions
        for lever in FLAGS.levers
    }
    count = len(FLAGS.pythons) * len(FLAGS.precisions) * len(FLAGS.levers)
    require(len(variants) == count, f"--pythons={','.join(FLAGS.pythons)}: two of one TensorFlow")
    loads = ", ".join(f"{load:.1f}" for load in os.getloadavg())
    print(
        f"Images/s at batch size {FLAGS.batch_size} on {FLAGS.threads} of {os.cpu_count()} cores; "
        f"load before the start {loads} (1, 5, 15 minutes).\n"
    )
    print(line(["network", "step", *variants]))
    print("| --- | --- |" + " ---: |" * len(variants))
    for network in FLAGS.networks:
        for step in FLAGS.steps:
            seconds = measure(network, step, variants)
            images = FLAGS.batch_size * FLAGS.block
            print(line([network, step, *cells(seconds, images)]), flush=True)


def tensorflow(python: str) -> str:
    """Returns the version of TensorFlow that a Python has."""
    program = "from importlib.metadata import version; print(version('tensorflow'))"
    wanted = f"--pythons: {python} is no Python with what requirements.txt names"
    require(shutil.which(python) is not None, wanted)
    run = subprocess.run([python, "-c", program], capture_output=True, text=True, check=False)
    require(run.returncode == 0 and run.stdout != "", wanted)
    return run.stdout.strip()


def measure(network: str, step: str, variants: dict[str, list[str]]) -> dict[str, list[float]]:
    """Returns the seconds of every block, by name of the command that serves it."""
    options = [f"--networks={network}", f"--steps={step}"]
    options += [f"--batch_size={FLAGS.batch_size}", f"--threads={FLAGS.threads}"]
    with contextlib.ExitStack() as stack:
        workers = {
            name: stack.enter_context(blocks.Worker([*command, *options]))
            for name, command in variants.items()
        }
        return blocks.alternate(workers, FLAGS.block, FLAGS.repeats)


def cells(seconds: dict[str, list[float]], images: int) -> list[str]:
    """Returns a cell for each variant.

    Args:
        seconds: of every block by variant, the first being what the others are compared with.
        images: of a block.
    """
    first, *_ = seconds.values()
    texts = []
    for times in seconds.values():
        text = f"{images / statistics.median(times):,.0f}"
        if times is not first:
            ratios = [ours / theirs for ours, theirs in zip(first, times, strict=True)]
            middle = statistics.median(ratios)
            text += f" ({middle:.2f}, {min(ratios):.2f} to {max(ratios):.2f})"
        texts.append(text)
    return texts


if __name__ == "__main__":
    flags.DEFINE_list("pythons", None, "Paths or names, the first to compare with.", required=True)
    flags.DEFINE_list("precisions", ["float32"], f"Of {', '.join(PRECISIONS)}.")
    flags.DEFINE_list("levers", ["none"], f"Of {', '.join(LEVERS)}.")
    flags.DEFINE_list("networks", ["mobilenet_25", "wrn_16_1"], f"Of {', '.join(PAIRS)}.")
    flags.DEFINE_list("steps", ["student", "stage 1", "stage 2"], f"Of {', '.join(OBJECTIVES)}.")
    flags.DEFINE_integer("batch_size", 64, "Images a step.", lower_bound=1)
    flags.DEFINE_integer("threads", os.cpu_count(), "Of each process.", lower_bound=1)
    flags.DEFINE_integer("block", 10, "Steps that are timed as one.", lower_bound=1)
    flags.DEFINE_integer("repeats", 7, "Timed blocks, after one of warming up.", lower_bound=1)
    run_main(main)
