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

from refilled_tf.common import stack, storage
from refilled_tf.common.errors import DivergedError, InputError, OutOfTimeError, require
from refilled_tf.common.progress import bar_interval
from refilled_tf.data import batches, unlabelled
from refilled_tf.data.task import Examples, TaskData, load
from refilled_tf.evaluation import linear_probe
from refilled_tf.evaluation.embedding import embedding_quality
from refilled_tf.experiment import predictions, teacher_cache
from refilled_tf.experiment.loading import load_network, outputs, read_history
from refilled_tf.experiment.run import Run, check_folder, recorded_versions, write_facts
from refilled_tf.experiment.stage import Stage
from refilled_tf.experiment.teacher_embeddings import teacher_embeddings
from refilled_tf.few_shot.base import Networks, Selection
from refilled_tf.models import networks
from refilled_tf.objectives.base import Learner, TeacherEmbeddings
from refilled_tf.objectives.cross_entropy import accuracy
from refilled_tf.objectives.refit import Refit

# Steps between two checkpoints, at least: to write one takes as long as several steps of a small
# network. Counted and not timed, so that all workers save the same epochs.
SAVE_STEPS = 200
# What an objective has learnt about its teachers before training.
FITTED = "fitted.npz"


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
    _warn_of_other_versions(stage, run)
    if run.is_finished(stage):
        return storage.read_json(folder / "result.json")

    data = load(stage.task, run.data_dir)
    if run.is_chief:
        write_facts(
            stage,
            run,
            digest=stage.digest(),
            class_names=data.class_names,
            training_images=len(data.train.labels),
            **_unlabelled_facts(stage, run),
        )
    way = _fit if stage.objective.trains else _refit if stage.objective.refits else _take
    trained, facts = way(stage, run, data)
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


def _warn_of_other_versions(stage: Stage, run: Run) -> None:
    """Warns of a stage that other versions have made or begun."""
    for then in recorded_versions(stage, run)[-1:]:
        if changes := stack.changes(then):
            logging.warning(
                "%s: %s since it was made; results may differ in their last digits",
                run.folder(stage),
                changes,
            )


def _take(stage: Stage, run: Run, data: TaskData) -> tuple[dict[str, tf.keras.Model], dict]:
    """Returns what `_fit` does, of a stage whose weights or embeddings are already known."""
    started, trained = time.monotonic(), {}
    if networks.in_keras(stage.backbone):
        size = stage.task.data.crop_size
        trained["model.keras"] = networks.copied(networks.embedding_network(stage.backbone, size))
    return trained, {"seconds": round(time.monotonic() - started, 1)}


def pace(stage: Stage, run: Run, steps: int = 20) -> float:
    """Measures how many seconds a step of a stage takes on this machine.

    Args:
        stage: whose teachers are finished. Its own folder is not looked at, but what the teacher
            says of its views stays cached.
        run: where.
        steps: over how many.
    """
    data = load(stage.task, run.data_dir)
    examples = _examples(stage, run, data)
    views = teacher_cache.views(stage, run, examples)
    fitted = stage.objective.fit_teacher(teacher_embeddings(stage, run, data, examples, views))
    learner, _ = _build(stage, run, data, examples, fitted)
    dataset = _distributed_batches(stage, run, examples, views, 0, steps)
    clock = _Clock()
    learner.fit(dataset, steps_per_epoch=steps, epochs=2, callbacks=[clock], verbose=0)
    # The first epoch holds the tracing.
    return clock.seconds[1] / steps


class _Clock(tf.keras.callbacks.Callback):
    """Times epochs."""

    def __init__(self):
        super().__init__()
        self.seconds: list[float] = []

    def on_epoch_begin(self, epoch: int, logs=None) -> None:
        self._started = time.monotonic()

    def on_epoch_end(self, epoch: int, logs=None) -> None:
        self.seconds.append(time.monotonic() - self._started)


def _unlabelled_facts(stage: Stage, run: Run) -> dict[str, Any]:
    """Returns what stage.json says of unlabelled images, where there are some."""
    if not stage.task.unlabelled:
        return {}
    further = unlabelled.load(stage.task, run.data_dir)
    return {"unlabelled_images": len(further.examples.labels), "left_out": further.scored}


def _examples(stage: Stage, run: Run, data: TaskData) -> Examples:
    """Returns the training images, the labelled ones first."""
    if not stage.task.unlabelled:
        return data.train
    return unlabelled.joined([data.train, unlabelled.load(stage.task, run.data_dir).examples])


def _refit(stage: Stage, run: Run, data: TaskData) -> tuple[dict[str, tf.keras.Model], dict]:
    """Returns what `_fit` does, of a stage that has only its last layer fitted."""
    started, objective, start = time.monotonic(), stage.objective, stage.start
    assert isinstance(objective, Refit)
    assert start is not None, "Stage sees to it that Refit has a start"
    embedding = networks.embedding_part(load_network(start, run))
    known = [outputs(start, run, stage.task, "train")["embedding"][:, np.newaxis]]
    if views := objective.views:
        known.append(
            teacher_cache.of_views(embedding, data.train, views, stage.seed, stage.task.data)
        )
    probe = linear_probe.fit_raw(np.concatenate(known, axis=1), data.train.labels, stage.seed)
    network = networks.with_classifier(embedding, len(data.class_names))
    network.get_layer("logits").set_weights([probe.weights[-1], probe.bias[-1]])
    facts = {"seconds": round(time.monotonic() - started, 1), "fitted": {"c": probe.c}}
    return {"model.keras": network}, facts


def _fit(stage: Stage, run: Run, data: TaskData) -> tuple[dict[str, tf.keras.Model], dict]:
    """Trains; returns networks by the names of their files, and what result.json says of them."""
    examples = _examples(stage, run, data)
    views = teacher_cache.views(stage, run, examples)
    fitted = _fitted(stage, run, teacher_embeddings(stage, run, data, examples, views))
    learner, steps = _build(stage, run, data, examples, fitted)
    progress = _Progress(stage, run, learner, steps)
    first, total = progress.finished_epochs, stage.training_recipe.total_epochs
    if first < total:
        learner.fit(
            _distributed_batches(stage, run, examples, views, first, steps),
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
    if found := {name: float(x) for name, x in learner.fitted.items() if x.shape.rank == 0}:
        facts["fitted"] = found
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
    return networks.copied(network)


def _copies(learner: Learner) -> dict[str, tf.keras.Model]:
    """Returns copies of all networks under training, to keep other weights in."""
    return {name: networks.copied(network) for name, network in learner.trained.items()}


def _build(
    stage: Stage, run: Run, data: TaskData, examples: Examples, fitted: dict[str, np.ndarray]
) -> tuple[Learner, int]:
    """Builds the learner in the strategy's scope; returns it and the steps of an epoch."""
    recipe, size = stage.training_recipe, stage.task.data.image_size
    # Initial weights come from the seed alone, not from what ran before in this process.
    tf.keras.utils.set_random_seed(stage.seed)
    with run.strategy.scope(), _precision(recipe.precision):
        if stage.objective.classifies:
            student = networks.classifier(stage.backbone, size, len(data.class_names))
        else:
            student = networks.embedding_network(stage.backbone, size)
        if stage.start:
            networks.copy_embedding_weights(load_network(stage.start, run), student)
        teacher = None
        if stage.teachers and not stage.looks_up:
            several = [load_network(each, run) for each in stage.teachers]
            teacher = networks.joined(several, stage.task.data.crop_size)
        steps = _steps_per_epoch(stage, examples)
        learner = Learner(
            student,
            stage.objective,
            teacher,
            fitted,
            recipe.weight_decay,
            steps,
            recipe.embedding_rate,
        )
        learner.compile(optimizer=recipe.optimizer(steps))
        learner.optimizer.build(learner.trainable_variables)
    return learner, steps


def _steps_per_epoch(stage: Stage, examples: Examples) -> int:
    recipe = stage.training_recipe
    if recipe.steps is not None:
        return recipe.steps // recipe.epochs
    labels = examples.labels[examples.labels >= 0]
    labelled = recipe.batch_size - (recipe.unlabelled if len(labels) < len(examples.labels) else 0)
    return len(batches.epoch_order(labels, labelled, stage.seed, 0, recipe.classes_per_batch))


def _fitted(stage: Stage, run: Run, known: TeacherEmbeddings) -> dict[str, np.ndarray]:
    """Has the objective learn about its teachers, or finds what it has learnt before."""
    path = run.folder(stage) / FITTED
    if run.is_chief and not path.exists() and (found := stage.objective.fit_teacher(known)):
        with storage.replacing(path) as file:
            np.savez(file, **found)  # type: ignore[arg-type]  # of its flag too, think the stubs
    run.wait_for_all()
    if not path.exists():
        return {}
    try:
        with np.load(path) as archive:
            return dict(archive)
    except Exception as error:  # NumPy raises whatever the zip reader raised.
        raise InputError(
            f"{path} is unreadable ({type(error).__name__}); delete {path.parent} to train the "
            "stage again"
        ) from error


@contextlib.contextmanager
def _precision(name: str) -> Iterator[None]:
    """Sets the mixed-precision policy within a block and restores it."""
    before = tf.keras.mixed_precision.global_policy()
    tf.keras.mixed_precision.set_global_policy(name)
    try:
        yield
    finally:
        tf.keras.mixed_precision.set_global_policy(before)


def _distributed_batches(
    stage: Stage,
    run: Run,
    examples: Examples,
    views: batches.Views | None,
    first: int,
    steps: int,
):
    """Returns the batches of all epochs from `first` on, dealt out to workers and replicas."""
    recipe, data = stage.training_recipe, stage.task.data
    # A teacher that is asked in every step sees the crop before it is resized for the student.
    size = data.crop_size if stage.teachers and views is None else data.image_size
    labels = examples.labels[examples.labels >= 0]
    order = batches.order(
        labels,
        len(examples.labels) - len(labels),
        recipe,
        stage.seed,
        first * steps,
        (recipe.total_epochs - first) * steps,
    )
    return run.strategy.distribute_datasets_from_function(
        lambda context: batches.training_batches(
            examples, data, order, stage.seed, first * steps, context, views, size, recipe.mixup
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
            self._select(self._stage.selection, epoch + 1)
        now = time.monotonic()
        self.seconds.assign_add(now - self._started)
        self._started = now
        self._epochs.assign(epoch + 1)
        self._unsaved_steps += self._steps
        is_last = epoch + 1 == self._stage.training_recipe.total_epochs
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

    def _select(self, selection: Selection, epoch: int) -> None:
        """Keeps the weights if they do better than those of every epoch before."""
        known = Networks(_without_strategy(self._learner.student), self._learner.head)
        score = selection.score(known, self._run.data_dir)
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
