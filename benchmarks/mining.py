r"""Time and memory of triplet mining beside tensorflow-addons, which ends with Python 3.11.

    python -m benchmarks.mining
    python -m benchmarks.mining --sizes=128,256 --time_limit=30

One row for each batch size B: the loss and its gradient, compiled with `tf.function`, by
`refilled_tf.losses.triplets.triplet_kl` and by `tfa.losses.triplet_semihard_loss`, on the same
seeded random embeddings. Ours mines, and also normalises and computes the teacher's distances;
theirs mines and takes the hinge.

Each measurement runs in a process of its own, because the peak of a process's memory never
falls. What is printed is that peak minus the memory in use before the first call, when the
libraries are loaded and the inputs made; it thus includes tracing. The time is the median of
up to `--repeats` calls after that first one, fewer where they are slow. A process may not use
more address space than `--memory_limit_gb` allows, so that a method which needs more fails by
itself instead of taking the machine with it.
"""

from __future__ import annotations

import json
import os
import re
import resource
import statistics
import subprocess
import sys
import time

from absl import app, flags

# TensorFlow is imported only where a measurement is made: a process is started with the peak
# memory of the one that starts it in some of the kernel's counters.

_SIZES = flags.DEFINE_list("sizes", ["128", "256", "512", "1024", "2048", "4096"], "Batch sizes.")
_WIDTH = flags.DEFINE_integer("width", 256, "Width of the embeddings.", lower_bound=1)
_CLASSES = flags.DEFINE_integer("classes", 100, "Number of classes.", lower_bound=1)
_REPEATS = flags.DEFINE_integer("repeats", 5, "Timed calls.", lower_bound=1)
_TIME_LIMIT = flags.DEFINE_float("time_limit", 120.0, "Seconds for one measurement.")
_MEMORY_LIMIT = flags.DEFINE_float(
    "memory_limit_gb", 0.0, "GB a measurement may allocate; 0: 80% of what is available."
)
_WORKER = flags.DEFINE_enum(
    "worker", None, ["ours", "tfa"], "Internal: measure one method at one size, print JSON."
)

METHODS = ("ours", "tfa")


def _kilobytes(path: str, key: str) -> int:
    """The value of a line "key:  123 kB" in one of the files of /proc."""
    with open(path) as file:
        return int(re.search(rf"^{key}:\s+(\d+)", file.read(), re.MULTILINE).group(1))


def _current_and_peak_mb() -> tuple[float, float]:
    """Resident memory of this process, now and at its highest since it was started."""
    if os.path.exists("/proc/self/status"):
        now, peak = (_kilobytes("/proc/self/status", key) for key in ("VmRSS", "VmHWM"))
        return now / 1024, peak / 1024
    # Elsewhere only the peak is known; before the first call it stands for the present.
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    peak /= 2**20 if sys.platform == "darwin" else 2**10
    return peak, peak


def _limit_memory(gigabytes: float) -> None:
    """Lets this process allocate so much more, beyond which allocation fails."""
    if os.path.exists("/proc/self/status"):
        if not gigabytes:
            gigabytes = 0.8 * _kilobytes("/proc/meminfo", "MemAvailable") / 2**20
        limit = _kilobytes("/proc/self/status", "VmSize") * 1024 + int(gigabytes * 2**30)
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def measure(
    method: str,
    size: int,
    width: int,
    classes: int,
    repeats: int,
    limit_gb: float,
    time_limit: float,
) -> dict[str, float]:
    """Measures one method in this process, which should be fresh.

    Returns:
      {"ms": median milliseconds of a call, "mb": megabytes added at the peak}.
    """
    import refilled_tf.losses  # noqa: F401  # isort: skip  # TensorFlow without its notices
    import numpy as np
    import tensorflow as tf

    if method == "tfa":
        import tensorflow_addons as tfa

    from refilled_tf.losses.triplets import triplet_kl

    rng = np.random.default_rng(0)
    student, teacher = (tf.constant(rng.normal(size=(size, width)), tf.float32) for _ in range(2))
    labels = tf.constant(rng.integers(0, classes, size), tf.int32)

    @tf.function
    def step(student, teacher, labels):
        with tf.GradientTape() as tape:
            tape.watch(student)
            if method == "ours":
                loss, _ = triplet_kl(student, teacher, labels)
            else:
                loss = tfa.losses.triplet_semihard_loss(labels, student)
        return loss, tape.gradient(loss, student)

    def call() -> float:
        start = time.perf_counter()
        for result in step(student, teacher, labels):
            result.numpy()  # waits for the result
        return 1e3 * (time.perf_counter() - start)

    _limit_memory(limit_gb)
    before, _ = _current_and_peak_mb()
    start = time.perf_counter()
    call()
    times = [call()]
    # A slow method is called less often, rather than not reported for want of time.
    while len(times) < repeats and time.perf_counter() - start < time_limit / 4:
        times.append(call())
    _, peak = _current_and_peak_mb()
    return {"ms": statistics.median(times), "mb": peak - before}


def _failure(stderr: str, returncode: int) -> str:
    """A few words on why a measurement failed."""
    if re.search(r"ResourceExhausted|OOM when|bad_alloc|MemoryError|allocate memory", stderr):
        return "out of memory"
    if "No module named 'tensorflow_addons'" in stderr:
        return "not installed"
    if returncode < 0:
        return f"killed by signal {-returncode}"
    lines = stderr.strip().splitlines()
    return f"failed: {lines[-1][:60]}" if lines else f"failed: exit code {returncode}"


def measure_apart(method: str, size: int, time_limit: float, options: list[str]) -> dict:
    """Runs `measure` in a process of its own.

    Returns:
      What `measure` returns, or {"failure": why there is nothing to return}.
    """
    root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    command = [sys.executable, "-m", "benchmarks.mining"]
    command += [f"--worker={method}", f"--sizes={size}", f"--time_limit={time_limit}"]
    command += options
    try:
        done = subprocess.run(
            command, cwd=root, capture_output=True, text=True, timeout=time_limit, check=False
        )
    except subprocess.TimeoutExpired:
        return {"failure": f"over {time_limit:g} s"}
    if done.returncode:
        return {"failure": _failure(done.stderr, done.returncode)}
    return json.loads(done.stdout.strip().splitlines()[-1])


def row(size: int, results: dict[str, dict]) -> list[str]:
    """The cells of one batch size; a ratio is tfa's figure divided by ours."""
    ours, theirs = (results[method] for method in METHODS)
    cells = [str(size)]
    for key, digits in (("ms", 1), ("mb", 0)):
        for result in (ours, theirs):
            value = result.get(key)
            cells.append(result["failure"] if value is None else f"{value:,.{digits}f}")
        if key in ours and key in theirs and ours[key] > 0:
            cells.append(f"{theirs[key] / ours[key]:.1f}x")
        else:
            cells.append("-")
    return cells


HEADER = ["B", "ours ms", "tfa ms", "tfa/ours", "ours MB", "tfa MB", "tfa/ours"]


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"Unknown arguments: {argv[1:]}")
    sizes = [int(size) for size in _SIZES.value]
    if _WORKER.value:
        others = (_WIDTH, _CLASSES, _REPEATS, _MEMORY_LIMIT, _TIME_LIMIT)
        arguments = (flag.value for flag in others)
        print(json.dumps(measure(_WORKER.value, sizes[0], *arguments)))
        return
    print(f"Loss and gradient, {_WIDTH.value}-d embeddings, {_CLASSES.value} classes.\n")
    options = [f"--{flag.name}={flag.value}" for flag in (_WIDTH, _CLASSES, _REPEATS)]
    options.append(f"--{_MEMORY_LIMIT.name}={_MEMORY_LIMIT.value}")
    print("| " + " | ".join(f"{cell:>13}" for cell in HEADER) + " |")
    print("|" + f"{'-' * 14}:|" * len(HEADER))
    for size in sizes:
        results = {m: measure_apart(m, size, _TIME_LIMIT.value, options) for m in METHODS}
        print("| " + " | ".join(f"{cell:>13}" for cell in row(size, results)) + " |", flush=True)


if __name__ == "__main__":
    app.run(main)
