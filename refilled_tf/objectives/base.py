"""The custom train step, written once, and what an objective has to say."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import ClassVar, NamedTuple, Protocol

import numpy as np
import tensorflow as tf

from refilled_tf.common.errors import require, require_positive
from refilled_tf.data import resizing
from refilled_tf.data.recipe import Recipe
from refilled_tf.models import networks

# The shapes of features by name: (None, height, width, channels), or (None, d) of an embedding.
Shapes = dict[str, tuple[None, int, int, int] | tuple[None, int]]


class GlobalBatch(NamedTuple):
    """The batch of a step over all replicas, as objectives see it.

    Attributes:
        labels: [B] int32; -1 of unlabelled images.
        student: the student's outputs, "embedding" [B, d_S] and maybe "logits" [B, C], and the
            features [B, h, w, c] that the objective asks for; float32.
        teacher: the frozen teacher's, {} without a teacher; of several teachers, the further ones'
            under the names that `networks.numbered` gives.
        fitted: what `Objective.fit_teacher` has returned.
        epoch: scalar float32, the number of finished epochs.
        adapted: what the objective's adapter makes of the student's features; {} without one.
        head: the objective's head; None without one.
        rows: [B] int32, which of the training images these are; labelled ones come first.
    """

    labels: tf.Tensor
    student: dict[str, tf.Tensor]
    teacher: dict[str, tf.Tensor]
    fitted: dict[str, tf.Tensor]
    epoch: tf.Tensor
    adapted: Mapping[str, tf.Tensor] = MappingProxyType({})
    head: tf.keras.Model | None = None
    rows: tf.Tensor | None = None

    @property
    def labelled(self) -> GlobalBatch:
        """The labelled images alone."""
        known = self.labels >= 0

        def keep(x: tf.Tensor) -> tf.Tensor:
            return tf.boolean_mask(x, known)

        def keep_all(outputs: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
            return {name: keep(x) for name, x in outputs.items()}

        return self._replace(
            labels=keep(self.labels),
            student=keep_all(self.student),
            teacher=keep_all(self.teacher),
            adapted=keep_all(self.adapted),
            rows=None if self.rows is None else keep(self.rows),
        )

    @property
    def teacher_embeddings(self) -> list[tf.Tensor]:
        """The embeddings of each teacher, [B, d_T]."""
        names = (networks.numbered("embedding", i) for i in range(len(self.teacher)))
        return [self.teacher[name] for name in names if name in self.teacher]


@dataclasses.dataclass(frozen=True)
class TeacherEmbeddings:
    """Embeddings of the teachers that an objective may ask for before training.

    Attributes:
        labels: [N] int32, of the labelled training images.
        keys: [N + M] of all training images, the labelled ones first; an image may be among the
            unlabelled ones too, under the same key.
        num_classes: C.
        seed: of the stage.
        labelled: given a number of views V, returns of each teacher [N, 1 + V, d] float32: what it
            makes of the labelled images as they are scored, and of V augmentations of each.
        sample: given a count, returns of each teacher [count, d] float32: what it makes of images
            drawn from all training images, as they are scored.
    """

    labels: np.ndarray
    keys: np.ndarray
    num_classes: int
    seed: int
    labelled: Callable[[int], list[np.ndarray]]
    sample: Callable[[int], list[np.ndarray]]


class Objective:
    """A loss to minimise: a frozen dataclass of hyper-parameters with a pure `__call__`.

    A new distillation method is one file with one such class.

    Attributes:
        classifies: whether the network it trains has a classifier on top of the embedding.
        trains: whether there is anything to train, step by step.
        refits: whether the network is that of Stage.start, with a last layer that is fitted anew.
        needs_teacher: whether it looks at a teacher.
        runs_alone: whether the network it trains is of use as it is, and so worth scoring; not
            where it must first adapt to a task.
    """

    classifies: ClassVar[bool] = True
    trains: ClassVar[bool] = True
    refits: ClassVar[bool] = False
    needs_teacher: ClassVar[bool] = False
    runs_alone: ClassVar[bool] = True

    @property
    def parts(self) -> tuple[str, ...]:
        """Names of the scalars it reports beside the loss."""
        return ()

    @property
    def shares_classes(self) -> bool:
        """Whether the teacher must have learnt the student's very classes."""
        return False

    @property
    def takes_unlabelled(self) -> bool:
        """Whether unlabelled images are of use to it."""
        return False

    def fit_teacher(self, known: TeacherEmbeddings) -> dict[str, np.ndarray]:
        """Works out, once before training, what the loss needs to know of the teachers.

        Args:
            known: their embeddings, computed only where they are asked for.

        Returns:
            Arrays by name, for `GlobalBatch.fitted`. They are kept with the stage, so that a
            resumed run has the very same; single numbers among them are reported in its result.
        """
        return {}

    @property
    def features(self) -> tuple[str, ...]:
        """Names of the hidden layers that it looks at, of student and teacher alike."""
        return ()

    def adapter(self, student: Shapes, teacher: Shapes) -> tf.keras.Model | None:
        """Builds the layers, trained along, that bring the student's features to the teacher's.

        They see the global batch, so that a batch norm among them needs no synchronising.

        Args:
            student: shapes of the student's `features`.
            teacher: shapes of the teacher's.

        Returns:
            {name: [B, h, w, c]} of the student to what `GlobalBatch.adapted` is to hold; None
            where nothing is to be trained but the student.

        Raises:
            InputError: naming both shapes, where they cannot be compared.
        """
        return None

    def head(self, embedding_size: int) -> tf.keras.Model | None:
        """Builds the layers, trained along and saved beside the network, that go on its embedding.

        Args:
            embedding_size: d.

        Returns:
            A network of whatever the objective hands it; None where there is none.
        """
        return None

    def check_batches(self, recipe: Recipe, replicas: int) -> None:
        """Rejects batches that the objective cannot work on.

        Raises:
            InputError: naming the option.
        """

    def check_teachers(self, count: int) -> None:
        """Rejects so many teachers.

        Raises:
            InputError: naming the option.
        """
        require(
            count <= 1,
            f"{type(self).__name__} takes one teacher, but Stage.teacher names {count}",
        )

    def __call__(self, batch: GlobalBatch) -> tuple[tf.Tensor, dict[str, tf.Tensor]]:
        """Returns the scalar loss of the global batch, and its reported parts."""
        raise NotImplementedError(f"{type(self).__name__} must say its loss")

    def loss_of(self, learner: Learner, *data) -> tuple[tf.Tensor, dict[str, tf.Tensor]]:
        """Returns what `__call__` does, of the arguments of `Learner.global_batch`.

        For an objective that needs more than outputs, such as the weights themselves. The mean of
        what the replicas return must be the loss of the global batch.
        """
        return self(learner.global_batch(*data))


OF_EACH_TEACHER = ("tau_teacher", "teacher_weights")


class ToldOfEach(Protocol):
    """An objective that may be told something of each teacher."""

    @property
    def tau_teacher(self) -> float | tuple[float, ...]:
        """One temperature for all, or of each."""

    @property
    def teacher_weights(self) -> tuple[float, ...] | None:
        """The weight of each in their average; None for equal ones."""


def take_each(objective: ToldOfEach) -> None:
    """Checks an objective's per-teacher options, which gin may give as lists.

    Args:
        objective: whose options become tuples where they are several.

    Raises:
        InputError: naming the option that is not above zero, or not of each teacher.
    """
    for name in OF_EACH_TEACHER:
        value = getattr(objective, name)
        if isinstance(value, list):
            object.__setattr__(objective, name, tuple(value))
        if value is not None:
            require_positive(objective, name)
    weights = objective.teacher_weights
    require(
        weights is None or isinstance(weights, tuple),
        f"{type(objective).__name__}.teacher_weights={weights} must be one for each teacher, such "
        "as (2.0, 1.0), or None for equal ones",
    )


def check_each(objective: ToldOfEach, count: int) -> None:
    """Rejects temperatures or weights that are not one for each teacher.

    Args:
        objective: as of `take_each`.
        count: of teachers.

    Raises:
        InputError: naming the option.
    """
    for name in OF_EACH_TEACHER:
        value = getattr(objective, name)
        require(
            not isinstance(value, tuple) or len(value) == count,
            f"{type(objective).__name__}.{name}={value} must be one for each of {count} teachers",
        )


class Learner(tf.keras.Model):
    """Trains a student on an objective over the global batch, with coupled L2.

    Every replica gathers the outputs of all replicas, computes the same global loss and divides
    it by the number of replicas; the optimizer sums the gradients over replicas. Gathering is
    differentiable, so the sum is the gradient of the global loss: one device and several take
    the same step.
    """

    def __init__(
        self,
        student: tf.keras.Model,
        objective: Objective,
        teacher: tf.keras.Model | None = None,
        fitted: dict[str, np.ndarray] | None = None,
        weight_decay: float = 0.0,
        steps_per_epoch: int = 1,
        embedding_rate: float = 1.0,
    ):
        """Puts the pieces together.

        Args:
            student: network with named outputs; all its weights train.
            objective: what to minimise.
            teacher: network with named outputs; frozen, in inference mode. None where there is no
                teacher, or every step is told what it says.
            fitted: what the objective's `fit_teacher` has returned.
            weight_decay: λ of the penalty ½·λ·‖w‖² on all trainable weights; coupled, that is,
                part of the gradient that momentum accumulates, as in torch's SGD.
            steps_per_epoch: turns the optimizer's step count into epochs.
            embedding_rate: share of the learning rate at which the student's layers below the
                top one learn.
        """
        super().__init__()
        self.student = student
        self.objective = objective
        self.teacher = teacher
        self.adapter = None
        self.head = objective.head(student.output_shape["embedding"][-1])
        self._student = networks.with_features(student, objective.features)
        if teacher is not None:
            teacher.trainable = False
            self._teacher = networks.with_features(teacher, objective.features)
            self.adapter = objective.adapter(
                *(networks.feature_shapes(n, objective.features) for n in (student, teacher))
            )
        self.fitted = {name: tf.constant(x) for name, x in (fitted or {}).items()}
        self.weight_decay = weight_decay
        self.steps_per_epoch = steps_per_epoch
        self.embedding_rate = embedding_rate
        names = ("loss", *objective.parts, "weight_penalty")
        self.means = {name: tf.keras.metrics.Mean(name=name) for name in names}

    @property
    def metrics(self) -> list[tf.keras.metrics.Metric]:
        """The running means, which Keras resets at every epoch."""
        return list(self.means.values())

    @property
    def trained(self) -> dict[str, tf.keras.Model]:
        """The networks under training, by name: the student and what the objective adds."""
        networks = {"student": self.student, "adapter": self.adapter, "head": self.head}
        return {name: network for name, network in networks.items() if network is not None}

    def call(self, images: tf.Tensor, training: bool = False) -> dict[str, tf.Tensor]:
        """Returns the student's outputs."""
        return self.student(images, training=training)

    def global_batch(
        self,
        images: tf.Tensor,
        labels: tf.Tensor,
        rows: tf.Tensor,
        taught: dict[str, tf.Tensor] | None = None,
        training: bool = True,
    ) -> GlobalBatch:
        """Runs the networks on this replica's images and gathers the outputs of all replicas.

        Args:
            images: [b, S, S, 3] float32, this replica's share; every network gets them resized to
                its input.
            labels: [b] int32.
            rows: [b] int32.
            taught: [b, …] float32, the teacher's outputs where they are known; None runs it.
            training: mode of the student's batch norm.

        Returns:
            The batch as all replicas together see it, B = Σ b.
        """
        student = _gather_all(self._student(_for(self._student, images), training))
        teacher, adapted = {}, {}
        if self.objective.needs_teacher:
            if taught is None:
                taught = self._teacher(_for(self._teacher, images), training=False)
            teacher = {name: tf.stop_gradient(x) for name, x in _gather_all(taught).items()}
        if self.adapter is not None:
            features = {name: student[name] for name in self.objective.features}
            adapted = _in_float32(self.adapter(features, training))
        epoch = tf.cast(self.optimizer.iterations // self.steps_per_epoch, tf.float32)
        return GlobalBatch(
            _gather(labels),
            student,
            teacher,
            self.fitted,
            epoch,
            adapted,
            self.head,
            _gather(rows),
        )

    def train_step(self, data: tuple) -> dict[str, tf.Tensor]:
        """Takes one optimizer step on this replica's share, the arguments of `global_batch`."""
        weights = self.trainable_variables
        with tf.GradientTape() as tape:
            loss, parts = self.objective.loss_of(self, *data)
            # ½·λ·‖w‖²: tf.nn.l2_loss holds the half.
            penalty = self.weight_decay * tf.add_n(
                [tf.nn.l2_loss(tf.cast(weight, tf.float32)) for weight in weights]
            )
            replicas = tf.distribute.get_strategy().num_replicas_in_sync
            replica_loss = (loss + penalty) / replicas
        gradients = self.optimizer.compute_gradients(replica_loss, weights, tape)
        self.optimizer.apply_gradients([(self._rate(w) * g, w) for g, w in gradients])
        for name, value in {"loss": loss, **parts, "weight_penalty": penalty}.items():
            self.means[name].update_state(value)
        return {name: mean.result() for name, mean in self.means.items()}

    def _rate(self, weight: tf.Variable) -> float:
        """Returns a weight's share of the learning rate: SGD, momentum too, scales with it."""
        below = (layer for layer in self.student.layers if layer.name != "logits")
        slow = any(weight is each for layer in below for each in layer.trainable_weights)
        return self.embedding_rate if slow else 1.0


def _for(network: tf.keras.Model, images: tf.Tensor) -> tf.Tensor:
    return resizing.resized(images, network.input_shape[1])


def _gather_all(outputs: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
    return {name: _gather(x) for name, x in _in_float32(outputs).items()}


def _in_float32(outputs: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
    """Losses are computed in single precision, whatever the layers compute in."""
    return {name: tf.cast(x, tf.float32) for name, x in outputs.items()}


def _gather(x: tf.Tensor) -> tf.Tensor:
    """Concatenates a [b, …] tensor of every replica to [B, …], in the order of replicas."""
    if tf.distribute.get_strategy().num_replicas_in_sync == 1:
        return x
    # Several workers gather by a tensor's device, which a step's inputs lack until copied.
    gathered = tf.distribute.get_replica_context().all_gather(tf.identity(x), axis=0)
    return tf.ensure_shape(gathered, (None, *x.shape[1:]))  # gathering forgets it
