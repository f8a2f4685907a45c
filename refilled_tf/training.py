"""Trains one stage: builds its learner, goes on from its last epoch, scores and saves it."""

from __future__ import annotations

import contextlib
import math
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from absl import logging
from tqdm.keras import TqdmCallback

from refilled_tf import predictions, storage, teacher_cache
from refilled_tf.data import batches
from refilled_tf.data.task import Examples, TaskData, load
from refilled_tf.errors import DivergedError, InputError, OutOfTimeError, require
from refilled_tf.evaluation.embedding import embedding_quality
from refilled_tf.few_shot.base import Networks
from refilled_tf.learners.base import Learner
from refilled_tf.learners.cross_entropy import accuracy
from refilled_tf.losses.local import class_centers
from refilled_tf.models import networks
from refilled_tf.models.embedding_files import EmbeddingFile
from refilled_tf.models.onnx_files import OnnxFile
from refilled_tf.progress import bar_interval
from refilled_tf.stage import Run, Stage, check_folder, load_network, outputs, read_history

# Steps between two checkpoints, at least: to write one takes as long as several steps of a small
# network. Counted and not timed, so that all workers save the same epochs.
SAVE_STEPS = 200


def train(stage: Stage, run: Run) -> dict[str, Any]:
    """Trains a stage whose parents are finished, or goes on with it, or finds it finished.

    Args:
        stage: what to train.
        run: where.

    Returns:
        What result.json holds: see `score`, plus seconds, parameters and training figures.

    Raises:
        InputError: the folder is another stage's, a file is unreadable, or the loss is not
            finite.
    """
    folder = run.folder(stage)
    check_folder(stage, run)
    if run.is_finished(stage):
        return storage.read_json(folder / "result.json")

    data = load(stage.task, run.data_dir)
    if run.is_chief:
        facts = {"settings": stage.settings(), "digest": stage.digest()}
        facts |= {"class_names": data.class_names, "training_images": len(data.train.labels)}
        storage.write_json(folder / "stage.json", facts)
    trained, facts = (_fit if stage.objective.trains else _take)(stage, run, data)
    if run.is_chief:
        for file, network in trained.items():
            with storage.replacing(folder / file) as path:
                network.save(path)
    run.wait_for_all()
    result = score(stage, run, data) | facts
    result["parameters"] = count_parameters(trained.get("model.keras"))
    if run.is_chief:
        if "accuracy" in result:
            logits = outputs(stage, run, stage.task, "test")["logits"]
            predictions.write(folder, data, logits)
        storage.write_json(folder / "result.json", result)
        shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    run.wait_for_all()
    return result


def _take(stage: Stage, run: Run, data: TaskData) -> tuple[dict[str, tf.keras.Model], dict]:
    """Does what `_fit` does, for a stage whose weights, or embeddings, are known already."""
    started, trained = time.monotonic(), {}
    if not isinstance(stage.backbone, EmbeddingFile | OnnxFile):
        size = stage.task.data.crop_size
        trained["model.keras"] = networks.embedding_network(stage.backbone, size)
    return trained, {"seconds": round(time.monotonic() - started, 1)}


def _fit(stage: Stage, run: Run, data: TaskData) -> tuple[dict[str, tf.keras.Model], dict]:
    """Trains; returns networks by the names of their files, and what result.json says of them."""
    learner, steps = _build(stage, run, data)
    progress = _Progress(stage, run, learner, steps)
    first, total = progress.finished_epochs, stage.recipe.total_epochs
    if first < total:
        learner.fit(
            _distributed_batches(stage, run, data.train, first, steps),
            initial_epoch=first,
            epochs=total,
            steps_per_epoch=steps,
            callbacks=_callbacks(stage, run, progress),
            verbose=0,
        )
    progress.choose()
    trained = {"model.keras": _without_strategy(learner.student)}
    if learner.head is not None:
        trained["head.keras"] = _without_strategy(learner.head)
    facts = {
        "seconds": round(float(progress.seconds.numpy()), 1),
        "epochs": total,
        "training": _last_logs(run.folder(stage)) if run.is_chief else {},
    }
    if stage.selection:
        facts["selection"] = progress.best_selection
    return trained, facts


def _last_logs(folder: Path) -> dict[str, float]:
    """Returns the loss and its parts in the last epoch, which may be of an earlier process."""
    history = read_history(folder / "history.csv")
    return {name: float(values[-1]) for name, values in history.items() if name != "epoch"}


def score(stage: Stage, run: Run, data: TaskData) -> dict[str, Any]:
    """Scores a stage's saved network on its task's test (or validation) images.

    Returns:
        "scored_on", "images", and "accuracy" for a classifier or "embedding" (see
        `embedding_quality`) for an embedding network that is of use alone.
    """
    result = {"scored_on": data.scored_on, "images": len(data.test.labels)}
    if not stage.objective.runs_alone:
        return result
    test = outputs(stage, run, stage.task, "test")
    if stage.objective.classifies:
        return result | {"accuracy": float(accuracy(test["logits"], data.test.labels))}
    quality = embedding_quality(
        outputs(stage, run, stage.task, "train")["embedding"],
        data.train.labels,
        test["embedding"],
        data.test.labels,
        stage.seed,
    )
    return result | {"embedding": quality}


def count_parameters(network: tf.keras.Model | None) -> dict[str, int]:
    """Returns the numbers of trainable weights and of batch-norm statistics."""
    if network is None:
        return {"trainable": 0, "batch_norm": 0}
    norms = [m for m in network.submodules if isinstance(m, tf.keras.layers.BatchNormalization)]
    count = {
        "trainable": network.trainable_weights,
        "batch_norm": [w for norm in norms for w in (norm.moving_mean, norm.moving_variance)],
    }
    return {name: int(sum(np.prod(w.shape) for w in ws)) for name, ws in count.items()}


def _without_strategy(network: tf.keras.Model) -> tf.keras.Model:
    """Returns a copy in ordinary variables.

    Batch norm's statistics are reduced over all workers on reading, so every worker comes here,
    and the copy can then be read by one of them alone.
    """
    copy = tf.keras.models.clone_model(network)
    copy.set_weights(network.get_weights())
    return copy


def _copies(learner: Learner) -> dict[str, tf.keras.Model]:
    """Returns copies of all networks under training, to keep other weights in."""
    copies = {n: tf.keras.models.clone_model(network) for n, network in learner.trained.items()}
    for name, network in learner.trained.items():
        copies[name].set_weights(network.get_weights())
    return copies


def _build(stage: Stage, run: Run, data: TaskData) -> tuple[Learner, int]:
    """Builds the learner in the strategy's scope; returns it and the steps of an epoch."""
    recipe, size = stage.recipe, stage.task.data.image_size
    order = batches.epoch_order(
        data.train.labels, recipe.batch_size, stage.seed, 0, recipe.classes_per_batch
    )
    steps = len(order)
    # Initial weights come from the seed alone, not from what ran before in this process.
    tf.keras.utils.set_random_seed(stage.seed)
    with run.strategy.scope(), _precision(recipe.precision):
        if stage.objective.classifies:
            student = networks.classifier(stage.backbone, size, len(data.class_names))
        else:
            student = networks.embedding_network(stage.backbone, size)
        if stage.start:
            networks.copy_embedding_weights(load_network(stage.start, run), student)
        teacher = centers = None
        if stage.teachers and not stage.looks_up:
            several = [load_network(each, run) for each in stage.teachers]
            teacher = networks.joined(several, stage.task.data.crop_size)
        if stage.objective.needs_teacher_centers:
            known = [outputs(each, run, stage.task, "train") for each in stage.teachers]
            centers = [
                class_centers(each["embedding"], data.train.labels, len(data.class_names))[0]
                for each in known
            ]
        learner = Learner(
            student,
            stage.objective,
            teacher,
            centers,
            recipe.weight_decay,
            steps,
            recipe.embedding_rate,
        )
        learner.compile(optimizer=recipe.optimizer(steps))
        learner.optimizer.build(learner.trainable_variables)
    return learner, steps


@contextlib.contextmanager
def _precision(name: str) -> Iterator[None]:
    """Layers made within compute so; what other stages make is not to depend on it."""
    before = tf.keras.mixed_precision.global_policy()
    tf.keras.mixed_precision.set_global_policy(name)
    try:
        yield
    finally:
        tf.keras.mixed_precision.set_global_policy(before)


def _distributed_batches(stage: Stage, run: Run, examples: Examples, first: int, steps: int):
    """Returns the batches of all epochs from `first` on, dealt out to workers and replicas."""
    recipe, data = stage.recipe, stage.task.data
    views = teacher_cache.views(stage, run, examples)
    # A teacher that is asked in every step sees the crop before it is resized for the student.
    size = data.crop_size if stage.teachers and views is None else data.image_size
    order = np.concatenate(
        [
            batches.epoch_order(
                examples.labels, recipe.batch_size, stage.seed, epoch, recipe.classes_per_batch
            )
            for epoch in range(first, recipe.total_epochs)
        ]
    )
    return run.strategy.distribute_datasets_from_function(
        lambda context: batches.training_batches(
            examples, data, order, stage.seed, first * steps, context, views, size
        )
    )


def _callbacks(stage: Stage, run: Run, progress: _Progress) -> list:
    if not run.is_chief:
        return [progress]
    bar = TqdmCallback(verbose=0, desc=stage.name, mininterval=bar_interval())
    board = tf.keras.callbacks.TensorBoard(
        run.folder(stage) / "logs", write_graph=False, profile_batch=0
    )
    history = tf.keras.callbacks.CSVLogger(run.folder(stage) / "history.csv", append=True)
    return [history, progress, bar, board]


class _Progress(tf.keras.callbacks.Callback):
    """Keeps finished epochs on disk, goes on from the last, stops at a non-finite loss.

    Two epochs are kept: the older one is deleted only when the newer is whole. Where a stage has a
    selection, the best epoch so far is kept with each of them. Short epochs are not all saved, see
    SAVE_STEPS.
    """

    def __init__(self, stage: Stage, run: Run, learner: Learner, steps: int):
        """Restores the newest checkpoint, if there is one."""
        super().__init__()
        self._stage, self._run, self._learner, self._steps = stage, run, learner, steps
        folder = run.folder(stage) / "checkpoints"
        with run.strategy.scope():
            self.seconds = tf.Variable(0.0, dtype=tf.float64, trainable=False)
            self._epochs = tf.Variable(0, dtype=tf.int64, trainable=False)
            self._best_score = tf.Variable(-1.0, dtype=tf.float64, trainable=False)
            self._best_epoch = tf.Variable(0, dtype=tf.int64, trainable=False)
            self._best = _copies(learner) if stage.selection else {}
        kept = learner.trained | {"optimizer": learner.optimizer, "epochs": self._epochs}
        kept |= {"seconds": self.seconds, "score": self._best_score, "best": self._best_epoch}
        kept |= {f"best_{name}": network for name, network in self._best.items()}
        checkpoint = tf.train.Checkpoint(**kept)
        newest = tf.train.latest_checkpoint(folder)
        require(
            newest is not None or not (folder / "checkpoint").exists(),
            f"{folder / 'checkpoint'}, which names the checkpoints, is unreadable or names missing "
            f"ones; delete {folder.parent} to train the stage again",
        )
        if newest:
            try:
                with run.strategy.scope():
                    checkpoint.restore(newest).assert_existing_objects_matched()
            except Exception as error:  # TensorFlow raises anything down to IndexError.
                raise InputError(
                    f"checkpoint {newest} is unreadable ({type(error).__name__}); delete "
                    f"{folder.parent} to train the stage again"
                ) from error
            logging.info("%s goes on after epoch %d", stage.name, self.finished_epochs)
        # Every worker takes part in saving, since batch norm's statistics are reduced on reading.
        self._elsewhere = None if run.is_chief else tempfile.TemporaryDirectory()
        where = folder if self._elsewhere is None else self._elsewhere.name
        self._manager = tf.train.CheckpointManager(checkpoint, str(where), max_to_keep=2)
        self._unsaved_steps = 0
        self._started = time.monotonic()

    @property
    def finished_epochs(self) -> int:
        """Epochs that need not be trained again."""
        return int(self._epochs.numpy())

    def on_train_batch_end(self, batch: int, logs=None) -> None:
        """Stops the run at the step that made the loss NaN or infinite."""
        if not math.isfinite(logs["loss"]):
            step = self.finished_epochs * self._steps + batch + 1
            self._diverged(f"the loss is {logs['loss']} at step {step}")

    def on_epoch_end(self, epoch: int, logs=None) -> None:
        """Saves the epoch, if it is time to, unless its last step has spoilt the weights."""
        if self._stage.selection:
            self._select(epoch + 1)
        now = time.monotonic()
        self.seconds.assign_add(now - self._started)
        self._started = now
        self._epochs.assign(epoch + 1)
        self._unsaved_steps += self._steps
        is_last = epoch + 1 == self._stage.recipe.total_epochs
        is_over = self._run.deadline is not None and now > self._run.deadline
        if self._unsaved_steps >= SAVE_STEPS or is_last or is_over:
            self._save(epoch + 1)
        if is_over and not is_last:
            raise OutOfTimeError

    def _save(self, epoch: int) -> None:
        weights = self._learner.trainable_variables
        if not all(bool(tf.reduce_all(tf.math.is_finite(w))) for w in weights):
            self._diverged(f"a weight is not finite after step {epoch * self._steps}")
        self._manager.save(checkpoint_number=epoch)
        self._unsaved_steps = 0

    @property
    def best_selection(self) -> dict[str, float]:
        """The best epoch, counted from 1, and its accuracy on the tasks that chose it."""
        return {
            "epoch": int(self._best_epoch.numpy()),
            "accuracy": float(self._best_score.numpy()),
        }

    def choose(self) -> None:
        """Gives the learner the weights of the best epoch, where a selection has looked for it."""
        for name, network in self._best.items():
            self._learner.trained[name].set_weights(network.get_weights())

    def _select(self, epoch: int) -> None:
        """Keeps the weights if they do better than those of every epoch before."""
        known = Networks(_without_strategy(self._learner.student), self._learner.head)
        score = self._stage.selection.score(known, self._run.data_dir)
        if score > self._best_score.numpy():
            self._best_score.assign(score)
            self._best_epoch.assign(epoch)
            for name, network in self._learner.trained.items():
                self._best[name].set_weights(network.get_weights())

    def _diverged(self, what: str) -> None:
        kept = self._manager.latest_checkpoint
        raise DivergedError(
            f"stage {self._stage.name!r}: {what}; the last good checkpoint is {kept}. A lower "
            "Recipe.learning_rate or loss weight may help"
        )
