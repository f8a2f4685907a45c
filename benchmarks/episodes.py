r"""Tasks a second of few-shot learners that adapt by gradient, beside a plain loop over tasks.

    python -m benchmarks.episodes
    python -m benchmarks.episodes --learners=fine_tune_top,maml --shots=1,5

The plain loop is what one would write without stacked weights: for each task a fresh copy of the
weights in one Keras network, and one compiled training step, which is traced once for all tasks.
Both learn the same tasks of random 32×32 images with a ConvNet-4, and take turns block by block;
what is printed comes from the median block. "difference" is the largest between the logits of both,
for all queries.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable

import refilled_tf.models  # noqa: F401  # isort: skip  # TensorFlow without its notices
import numpy as np
import tensorflow as tf
from absl import flags

from benchmarks.training import line
from refilled_tf.common.entry import run_main
from refilled_tf.common.errors import require
from refilled_tf.data.episodes import Episodes, Facts, Tasks
from refilled_tf.data.task import Examples
from refilled_tf.few_shot.adaptation import Adaptation
from refilled_tf.few_shot.base import Networks, Pool, merge_classes
from refilled_tf.few_shot.fine_tune import FineTune
from refilled_tf.few_shot.maml import InnerLoop
from refilled_tf.few_shot.refilled import Refilled
from refilled_tf.losses.prototypes import task_cross_entropy
from refilled_tf.models.convnet import ConvNet
from refilled_tf.models.networks import embedding_network, with_classifier

SIZE, CLASSES, PER_CLASS = 32, 10, 60
LEARNERS = {
    "fine_tune_top": FineTune("logits", steps=100),
    "fine_tune_block4": FineTune("block4_conv", steps=50, learning_rate=0.01),
    "fine_tune_all": FineTune("rescale", steps=10, learning_rate=0.001, group=10),
    "refilled_top": Refilled("logits", steps=100),
    "refilled_block4": Refilled("block4_conv", steps=50, learning_rate=0.01),
    "maml": InnerLoop(steps=10),
}
HEADER = ("learner", "shots", "batched, tasks/s", "loop, tasks/s", "batched / loop", "difference")

FLAGS = flags.FLAGS


def main(_: list[str]) -> None:
    unknown = sorted(set(FLAGS.learners) - set(LEARNERS))
    require(not unknown, f"--learners: {', '.join(unknown)}; there are {', '.join(LEARNERS)}")
    tf.keras.utils.set_random_seed(0)
    pool, facts = random_pool()
    known = random_networks()
    loads = ", ".join(f"{load:.1f}" for load in os.getloadavg())
    print(
        f"{FLAGS.tasks} tasks of 5 classes with 15 queries each on {os.cpu_count()} cores; "
        f"load before the start {loads} (1, 5, 15 minutes).\n"
    )
    print(line(HEADER))
    print("| --- |" + " ---: |" * (len(HEADER) - 1))
    for name in FLAGS.learners:
        for shots in map(int, FLAGS.shots):
            tasks = Episodes(count=FLAGS.tasks).draw(facts, shots)
            print(line(row(name, LEARNERS[name], known, pool, tasks)), flush=True)


def row(name: str, learner, known: Networks, pool: Pool, tasks: Tasks) -> list[str]:
    """Returns the cells of a line."""
    ways = {
        "batched": lambda: learner.logits(known, pool, tasks),
        "loop": loop_of(learner, known, pool, tasks),
    }
    # The first block of each warms up, and traces.
    difference = np.abs(ways["batched"]() - ways["loop"]()).max()
    seconds = {way: [] for way in ways}
    for _ in range(FLAGS.repeats):
        for way, learn in ways.items():
            start = time.perf_counter()
            learn()
            seconds[way].append(time.perf_counter() - start)
    batched, loop = (len(tasks.classes) / statistics.median(s) for s in seconds.values())
    cells = [f"{batched:.1f}", f"{loop:.1f}", f"{batched / loop:.2f}", f"{difference:.1e}"]
    return [name, str(tasks.support.shape[2]), *cells]


def random_pool() -> tuple[Pool, Facts]:
    """Returns images of random blotches, those of a class of one colour, and what to draw by.

    Of mere noise all images have the same means, and batch norm would blow rounding up.
    """
    random, count = np.random.default_rng(0), CLASSES * PER_CLASS
    labels = np.repeat(np.arange(CLASSES, dtype=np.int32), PER_CLASS)
    colours = random.uniform(60, 200, (CLASSES, 1, 1, 3))[labels]
    blotches = random.normal(0, 60, (count, 8, 8, 3)).repeat(SIZE // 8, 1).repeat(SIZE // 8, 2)
    images = colours + blotches + random.normal(0, 10, (count, SIZE, SIZE, 3))
    keys = np.arange(count).astype(str)
    examples = Examples(np.clip(images, 0, 255).astype(np.uint8), labels, keys)
    return Pool(examples, SIZE), Facts(labels, keys, tuple(map(str, range(CLASSES))))


def random_networks() -> Networks:
    """Returns ConvNet-4s with fresh weights; what is timed does not depend on their values."""
    student, teacher = (embedding_network(ConvNet(), SIZE) for _ in range(2))
    return Networks(student, with_head(student), teacher)


def with_head(student: tf.keras.Model) -> tf.keras.Model:
    """Returns a classifier of 5 classes on the student's embedding, as MAML has it."""
    top = tf.keras.layers.Dense(5, name="logits")
    return tf.keras.Sequential([tf.keras.Input(student.output["embedding"].shape[1:]), top])


def loop_of(learner, known: Networks, pool: Pool, tasks: Tasks) -> Callable[[], np.ndarray]:
    """Returns what learns one task after another and answers with logits [T, C·Q, C]."""
    if isinstance(learner, Adaptation):
        return _adaptation_loop(learner, known, pool, tasks)
    return _maml_loop(learner, known, pool, tasks)


def _adaptation_loop(learner, known, pool, tasks):
    network = with_classifier(known.student, tasks.classes.shape[1])
    names = [layer.name for layer in network.layers]
    above = network.layers[names.index(learner.first) :]
    top = tf.keras.Sequential([tf.keras.Input(above[0].input.shape[1:]), *above])
    start = [v.numpy() for v in top.trainable_variables]
    optimizer = tf.keras.optimizers.SGD(learner.learning_rate, momentum=0.9)
    optimizer.build(top.trainable_variables)

    @tf.function
    def step(number, support, *taught):
        with tf.GradientTape() as tape:
            logits = top(support, training=False)[tf.newaxis]
            loss = tf.reduce_sum(learner.losses(logits, number, *taught))
            weights = top.trainable_variables
            loss += learner.weight_decay * tf.add_n([tf.nn.l2_loss(w) for w in weights])
        optimizer.apply_gradients(zip(tape.gradient(loss, weights), weights, strict=True))

    answer = tf.function(lambda query: top(query, training=False))

    def learn():
        inputs = (
            pool.embeddings(known.student)
            if learner.first == "logits"
            else pool.inputs_of(known.student, learner.first)
        )
        answers = []
        for task in range(len(tasks.classes)):
            one = Tasks(*(part[task : task + 1] for part in tasks))
            for variable, value in zip(top.trainable_variables, start, strict=True):
                variable.assign(value)
            for variable in optimizer.variables:
                variable.assign(tf.zeros_like(variable))
            optimizer.learning_rate = learner.learning_rate
            support, query = (merge_classes(inputs[rows])[0] for rows in one[1:])
            taught = [tf.constant(x) for x in learner.known(known, pool, one)]
            for number in range(learner.steps):
                step(tf.constant(number), support, *taught)
            answers.append(answer(query))
        return np.stack(answers)

    return learn


def _maml_loop(learner, known, pool, tasks):
    student = tf.keras.models.clone_model(known.student)
    head = tf.keras.models.clone_model(known.head)
    variables = [*student.trainable_variables, *head.trainable_variables]
    first = [w.numpy() for n in (known.student, known.head) for w in n.trainable_variables]

    def logits(images):
        return head(student(images, training=True)["embedding"])

    @tf.function
    def step(support):
        with tf.GradientTape() as tape:
            losses, _ = task_cross_entropy(logits(support)[tf.newaxis])
        for variable, gradient in zip(variables, tape.gradient(losses, variables), strict=True):
            variable.assign_sub(learner.learning_rate * gradient)

    answer = tf.function(logits)

    def learn():
        images = pool.inputs_of(known.student, known.student.layers[0].name)
        answers = []
        for rows in zip(tasks.support, tasks.query, strict=True):
            for variable, value in zip(variables, first, strict=True):
                variable.assign(value)
            support, query = (tf.constant(images[part.ravel()]) for part in rows)
            for _ in range(learner.steps):
                step(support)
            answers.append(answer(query))
        return np.stack(answers)

    return learn


# Here, so that the module can be imported beside others with flags of these names.
if __name__ == "__main__":
    flags.DEFINE_list("learners", list(LEARNERS), f"Of {', '.join(LEARNERS)}.")
    flags.DEFINE_list("shots", ["1", "5", "30"], "Labelled images a class.")
    flags.DEFINE_integer("tasks", 100, "Learnt in a block.", lower_bound=1)
    flags.DEFINE_integer("repeats", 3, "Timed blocks, after one of warming up.", lower_bound=1)
    run_main(main)
