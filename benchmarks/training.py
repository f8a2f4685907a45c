r"""Images a second of full training steps, beside the same networks in PyTorch.

    python3 -m venv .venv-torch
    .venv-torch/bin/pip install -r benchmarks/requirements-torch.txt
    python -m benchmarks.training
    python -m benchmarks.training --networks=mobilenet_25,wrn_16_1 --steps=student,KD

A step is forward pass (of the teacher too), loss, backward pass and SGD with momentum and L2, on a
batch that lies ready in memory; ours is `Learner.train_step`, compiled as for training. Only the
step "pipeline" differs: it is "student" with batches from the training's input pipeline.

Ours and PyTorch's run in a process each and take turns block by block; what is printed comes from
the median block. "of student" compares a step with our student alone. PyTorch's threads spin while
they wait for each other, so other work on the machine slows it more than ours: where there is any,
compare with `--threads=1`.

TF_ENABLE_ONEDNN_OPTS=0 in the environment shows what TensorFlow does without oneDNN's kernels,
which refilled_tf turns on.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import shutil
import statistics
import sys
from collections.abc import Iterable

import refilled_tf.models  # noqa: F401  # isort: skip  # TensorFlow without its notices
import numpy as np
import tensorflow as tf
from absl import flags

from benchmarks import blocks
from refilled_tf.common.entry import run_main
from refilled_tf.common.errors import require
from refilled_tf.data import batches
from refilled_tf.data.recipe import Recipe
from refilled_tf.data.sources import Digits
from refilled_tf.data.splits import SharedClasses
from refilled_tf.data.task import Data, Examples
from refilled_tf.experiment import experiment
from refilled_tf.models import networks
from refilled_tf.models.mobilenet import MobileNet
from refilled_tf.models.resnet import CifarResNet
from refilled_tf.models.wide_resnet import WideResNet
from refilled_tf.objectives.attention import AttentionTransfer
from refilled_tf.objectives.base import Learner
from refilled_tf.objectives.cross_entropy import CrossEntropy
from refilled_tf.objectives.distillation import Distillation
from refilled_tf.objectives.fitnet import FitNet
from refilled_tf.objectives.local import LocalDistillation
from refilled_tf.objectives.nst import NeuronSelectivity
from refilled_tf.objectives.relationship import RelationshipMatching
from refilled_tf.objectives.rkd import RelationalDistillation
from refilled_tf.objectives.vid import VariationalInformation


@dataclasses.dataclass(frozen=True)
class Pair:
    """A student and a teacher of its family, on images of one size."""

    student: networks.Backbone
    teacher: networks.Backbone
    image_size: int = 32


PAIRS = {
    "mobilenet_25_64": Pair(MobileNet(0.25), MobileNet(0.5), 64),
    "mobilenet_25": Pair(MobileNet(0.25, stem_stride=1), MobileNet(0.5, stem_stride=1)),
    "mobilenet_50": Pair(MobileNet(0.5, stem_stride=1), MobileNet(1.0, stem_stride=1)),
    "wrn_16_1": Pair(WideResNet(16, 1), WideResNet(40, 2)),
    "wrn_16_2": Pair(WideResNet(16, 2), WideResNet(40, 2)),
    "wrn_40_2": Pair(WideResNet(40, 2), WideResNet(40, 2)),
    "resnet_20": Pair(CifarResNet(20), CifarResNet(56)),
}
STAGES = {
    "student": CrossEntropy(),
    "pipeline": CrossEntropy(),
    "stage 1": RelationshipMatching(),
    "stage 2": LocalDistillation(),
}
METHODS = {
    "KD": Distillation(cross_entropy_weight=0.1, kd_weight=0.9),
    "FitNet": Distillation(FitNet()),
    "AT": Distillation(AttentionTransfer()),
    "NST": Distillation(NeuronSelectivity()),
    "VID-I": Distillation(VariationalInformation()),
    "RKD": Distillation(RelationalDistillation()),
}
OBJECTIVES = STAGES | METHODS
METHODS_ON = "wrn_16_1"
# What may make steps faster, each alone.
LEVERS = ("none", "xla", "lone_operations", "ten_steps_a_call")
STEPS_A_CALL = 10
IN_TORCH = ("student", "stage 1", "stage 2", "KD")
HEADER = ("network", "step", "ours", "torch", "ours / torch", "of student")
CLASSES = 100

FLAGS = flags.FLAGS


def main(_: list[str]) -> None:
    require_known("networks", FLAGS.networks, PAIRS)
    require_known("steps", FLAGS.steps or [], OBJECTIVES)
    if FLAGS.serve:
        _serve(PAIRS[FLAGS.networks[0]], FLAGS.steps[0])
        return
    require(
        not FLAGS.torch_python or shutil.which(FLAGS.torch_python) is not None,
        f"--torch_python={FLAGS.torch_python} is no program; install "
        "benchmarks/requirements-torch.txt there, or leave PyTorch out by --torch_python=",
    )
    loads = ", ".join(f"{load:.1f}" for load in os.getloadavg())
    print(
        f"Images/s at batch size {FLAGS.batch_size} on {FLAGS.threads} of {os.cpu_count()} cores; "
        f"load before the start {loads} (1, 5, 15 minutes); "
        f"TF_ENABLE_ONEDNN_OPTS={os.environ['TF_ENABLE_ONEDNN_OPTS']}.\n"
    )
    print(line(HEADER))
    print("| --- | --- |" + " ---: |" * (len(HEADER) - 2))
    for name in FLAGS.networks:
        alone = None
        for step in FLAGS.steps or (OBJECTIVES if name == METHODS_ON else STAGES):
            speeds = measure(name, step)
            if step == "student":
                alone = speeds["ours"]
            print(line(row(name, step, speeds, alone)), flush=True)


def require_known(option: str, given: Iterable[str], known: Iterable[str]) -> None:
    """Raises InputError unless all that an option lists is known."""
    unknown = sorted(set(given) - set(known))
    require(not unknown, f"--{option}: {', '.join(unknown)}; there are {', '.join(known)}")


def measure(name: str, step: str) -> dict[str, float]:
    """Returns images/s of "ours" and, where it has this step, of "torch"."""
    options = [f"--networks={name}", f"--steps={step}"]
    options += [f"--batch_size={FLAGS.batch_size}", f"--threads={FLAGS.threads}"]
    commands = {"ours": [sys.executable, "-m", "benchmarks.training", "--serve", *options]}
    if FLAGS.torch_python and step in IN_TORCH:
        what = json.dumps(_described(PAIRS[name], step))
        commands["torch"] = [FLAGS.torch_python, "-m", "benchmarks.training_torch", what]
    with contextlib.ExitStack() as stack:
        workers = {
            side: stack.enter_context(blocks.Worker(command)) for side, command in commands.items()
        }
        parameters = {side: worker.parameters for side, worker in workers.items()}
        require(len(set(parameters.values())) == 1, f"{name} differs: {parameters} parameters")
        seconds = blocks.alternate(workers, FLAGS.block, FLAGS.repeats)
    images = FLAGS.batch_size * FLAGS.block
    return {side: images / statistics.median(times) for side, times in seconds.items()}


def row(name: str, step: str, speeds: dict[str, float], alone: float | None) -> list[str]:
    """Returns the cells of a line.

    Args:
        name: of the networks.
        step: name of the step.
        speeds: images/s, "ours" and maybe "torch".
        alone: our images/s of the student alone, where measured.
    """
    ours, torch = speeds["ours"], speeds.get("torch")
    theirs = ["-", "-"] if torch is None else [f"{torch:,.0f}", f"{ours / torch:.2f}"]
    return [name, step, f"{ours:,.0f}", *theirs, "-" if alone is None else f"{ours / alone:.2f}"]


def line(cells) -> str:
    """Returns a line of a Markdown table."""
    return f"| {' | '.join(cells)} |"


def in_torch(backbone: networks.Backbone) -> tuple[str, dict[str, float]]:
    """Returns the network's name and options on the PyTorch side."""
    options = dataclasses.asdict(backbone)
    del options["batch_norm_momentum"]  # .9 in both, which PyTorch calls .1
    return type(backbone).__name__, options


def _described(pair: Pair, step: str) -> dict:
    """Returns what the PyTorch side is to do."""
    return {
        "student": in_torch(pair.student),
        "teacher": in_torch(pair.teacher) if OBJECTIVES[step].needs_teacher else None,
        "image_size": pair.image_size,
        "batch_size": FLAGS.batch_size,
        "threads": FLAGS.threads,
        "step": step,
    }


def _serve(pair: Pair, step: str) -> None:
    """Takes steps as a training does, when asked to."""
    several = FLAGS.lever != "lone_operations"  # threads in an operation, and not only in all
    tf.config.threading.set_intra_op_parallelism_threads(FLAGS.threads if several else 1)
    tf.config.threading.set_inter_op_parallelism_threads(FLAGS.threads)
    tf.keras.utils.set_random_seed(0)
    tf.config.experimental.enable_op_determinism()
    strategy = experiment.make_strategy("mirrored")
    objective, size = OBJECTIVES[step], pair.image_size
    with strategy.scope():
        teacher = None
        if objective.needs_teacher:
            # As if it had been saved and loaded, the clone has batch norms for one device.
            teacher = tf.keras.models.clone_model(networks.classifier(pair.teacher, size, CLASSES))
        # Random images are not learnt at a rate of .1.
        recipe = Recipe(learning_rate=0.01, precision=FLAGS.precision)
        tf.keras.mixed_precision.set_global_policy(recipe.precision)
        if objective.classifies:
            student = networks.classifier(pair.student, size, CLASSES)
        else:
            student = networks.embedding_network(pair.student, size)
        learner = Learner(student, objective, teacher, weight_decay=recipe.weight_decay)
        steps = STEPS_A_CALL if FLAGS.lever == "ten_steps_a_call" else 1
        learner.compile(
            optimizer=recipe.optimizer(1),
            jit_compile=FLAGS.lever == "xla",
            steps_per_execution=steps,
        )
        learner.optimizer.build(learner.trainable_variables)

    dataset = _augmented_batches(size) if step == "pipeline" else _one_batch(size)
    iterator = iter(strategy.distribute_datasets_from_function(lambda context: dataset))
    train_step = learner.make_train_function()
    parameters = sum(int(np.prod(w.shape)) for w in student.trainable_weights)
    blocks.serve(lambda: train_step(iterator)["loss"], parameters, steps)


def _one_batch(size: int) -> tf.data.Dataset:
    """Repeats a batch that holds four images of each class in it."""
    images = tf.random.uniform((FLAGS.batch_size, size, size, 3), maxval=255.0)
    rows = tf.range(FLAGS.batch_size)
    return tf.data.Dataset.from_tensors((images, rows // 4 % CLASSES, rows)).repeat()


def _augmented_batches(size: int) -> tf.data.Dataset:
    """Draws, pads, crops and flips a training's images."""
    random = np.random.default_rng(0)
    count = 20 * CLASSES
    examples = Examples(
        random.integers(0, 256, (count, size, size, 3), np.uint8),
        np.arange(count, dtype=np.int32) % CLASSES,
        np.arange(count).astype(str),
    )
    data = Data(Digits(), SharedClasses(), image_size=size, load_size=size, pad=size // 8)
    steps = FLAGS.block * (FLAGS.repeats + 1)
    order = random.integers(0, count, (steps, FLAGS.batch_size), np.int32)
    return batches.training_batches(examples, data, order, seed=0).repeat()


# Here, so that the module can be imported beside others with flags of these names.
if __name__ == "__main__":
    flags.DEFINE_list("networks", list(PAIRS), f"Of {', '.join(PAIRS)}.")
    flags.DEFINE_list(
        "steps", None, f"Of {', '.join(OBJECTIVES)}; if unset, methods are for {METHODS_ON} alone."
    )
    flags.DEFINE_integer("batch_size", 64, "Images a step.", lower_bound=1)
    flags.DEFINE_integer("threads", os.cpu_count(), "Of each process.", lower_bound=1)
    flags.DEFINE_integer("block", 10, "Steps that are timed as one.", lower_bound=1)
    flags.DEFINE_integer("repeats", 7, "Timed blocks, after one of warming up.", lower_bound=1)
    flags.DEFINE_string("precision", "float32", "Of the student, with --serve.")
    flags.DEFINE_enum("lever", "none", LEVERS, "What may make steps faster, with --serve.")
    flags.DEFINE_string("torch_python", ".venv-torch/bin/python", "Has torch; empty: ours alone.")
    flags.DEFINE_bool("serve", False, "Internal: time one step of one network for another process.")
    run_main(main)
