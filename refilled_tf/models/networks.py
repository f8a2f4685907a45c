"""Backbones as networks with named outputs, and the classifier on top of them.

Every network takes images in [0, 255] and returns a dict: "embedding" [B, d], and "logits"
[B, C] where it classifies, both float32 whatever precision the layers compute in. Networks are
plain functional Keras models of standard layers: whoever has a saved file needs Keras alone.

Hidden layers have names too. Every backbone of our own marks the ends of three groups of its
layers as "f1", "f2" and "f3", each at half the resolution of the one before, so that distillation
methods can attach there.
"""

from __future__ import annotations

import functools
from collections.abc import Hashable, Sequence
from typing import Any, Protocol, TypeGuard, runtime_checkable

import numpy as np
import tensorflow as tf

from refilled_tf.common.errors import InputError, require
from refilled_tf.data.resizing import resized
from refilled_tf.models.batch_norm import BatchNorm


@runtime_checkable
class Backbone(Hashable, Protocol):
    """Builds an embedding network from images of a given size."""

    def build(self, image_size: int) -> tf.keras.Model:
        """Returns a functional model: images [B, S, S, 3] to embeddings [B, d]."""


@runtime_checkable
class Lookup(Hashable, Protocol):
    """Stands in a backbone's place where a teacher cannot be run here."""

    @property
    def file(self) -> str:
        """Where its embeddings are kept, for messages."""

    def embeddings(self, keys: np.ndarray) -> np.ndarray:
        """Returns [n, d] float32 of the images of these keys, [n] strings."""


def looks_up(backbone: Backbone | Lookup) -> TypeGuard[Lookup]:
    """Whether it only knows the embeddings of certain images."""
    return isinstance(backbone, Lookup)


def in_keras(backbone: Backbone | Lookup) -> bool:
    """Whether Keras can save its network and go on with it."""
    return not looks_up(backbone) and getattr(backbone, "in_keras", True)


def mark(features: tf.Tensor, name: str) -> tf.Tensor:
    """Gives a hidden tensor a name, by a layer that leaves it as it is."""
    return tf.keras.layers.Activation("linear", name=name)(features)


def embedding_network(backbone: Backbone | Lookup, image_size: int) -> tf.keras.Model:
    """Returns φ: images to {"embedding"}.

    Raises:
        InputError: there is no network, or none for images of this size.
    """
    images, embedding = _ends(backbone, image_size)
    return tf.keras.Model(images, {"embedding": embedding}, name="embedding_network")


def classifier(backbone: Backbone | Lookup, image_size: int, num_classes: int) -> tf.keras.Model:
    """Returns f = Wᵀφ + b: images to {"embedding", "logits"}.

    Raises:
        InputError: there is no network, or none for images of this size.
    """
    images, embedding = _ends(backbone, image_size)
    logits = tf.keras.layers.Dense(num_classes, name="logits", dtype="float32")(embedding)
    return tf.keras.Model(images, {"embedding": embedding, "logits": logits}, name="classifier")


def embedding_part(network: tf.keras.Model) -> tf.keras.Model:
    """Returns a network on the same weights that has no output but the embedding."""
    return tf.keras.Model(
        network.input, {"embedding": network.output["embedding"]}, name="embedding_network"
    )


def with_classifier(network: tf.keras.Model, num_classes: int) -> tf.keras.Model:
    """Returns a copy of an embedding network, with a top layer of zeros: {"embedding", "logits"}.

    Args:
        network: images to {"embedding" [B, d]}.
        num_classes: C.
    """
    copy = copied(network)
    embedding = copy.output["embedding"]
    top = tf.keras.layers.Dense(
        num_classes, kernel_initializer="zeros", name="logits", dtype="float32"
    )
    outputs = {"embedding": embedding, "logits": top(embedding)}
    return tf.keras.Model(copy.input, outputs, name="classifier")


def _ends(backbone: Backbone | Lookup, image_size: int):
    if isinstance(backbone, Lookup):
        raise InputError(
            f"{type(backbone).__name__}.file={backbone.file} holds embeddings and no network: it "
            "can teach (Stage.teacher) and be probed, but neither be trained, fine-tuned or "
            "exported nor teach tasks of few images (trials.teacher)"
        )
    network = backbone.build(image_size)
    # Distances lose their meaning in half precision: the embedding leaves as float32.
    to_float32 = tf.keras.layers.Activation("linear", dtype="float32", name="embedding")
    return network.input, to_float32(network.output)


def numbered(name: str, number: int) -> str:
    """Returns the name of an output of one of several teachers, the first of which has number 0."""
    return f"{name}_{number + 1}" if number else name


def joined(several: Sequence[tf.keras.Model], image_size: int) -> tf.keras.Model:
    """Returns several networks as one, which lets each see the images at the size of its input.

    Args:
        several: with named outputs.
        image_size: side S of what they see.

    Returns:
        Functional model on the same weights: images [B, S, S, 3] to the outputs of all under
        `numbered` names. A single network stays as it is.
    """
    if len(several) == 1:
        return several[0]
    images = tf.keras.Input((image_size, image_size, 3), name="images")
    outputs: dict[str, tf.Tensor] = {}
    for number, network in enumerate(several):
        # Networks of one kind have one name, which a model may hold only once.
        named = tf.keras.Model(network.input, network.output, name=numbered("teacher", number))
        given = named(resized(images, network.input_shape[1]))
        outputs |= {numbered(name, number): x for name, x in given.items()}
    return tf.keras.Model(images, outputs, name="teachers")


def with_features(network: tf.keras.Model, names: Sequence[str]) -> tf.keras.Model:
    """Returns the same network with hidden layers among its outputs.

    Args:
        network: with named outputs.
        names: of its layers.

    Returns:
        Functional model on the same weights: images to the outputs of `network` and {name:
        [B, h, w, c]}.

    Raises:
        InputError: there is no such layer.
    """
    features = {name: layer.output for name, layer in _layers(network, names).items()}
    return tf.keras.Model(network.input, {**network.output, **features}, name=network.name)


def feature_shapes(network: tf.keras.Model, names: Sequence[str]) -> dict[str, tuple]:
    """Returns the shapes (None, h, w, c) of hidden layers.

    Raises:
        InputError: there is no such layer.
    """
    layers = _layers(network, names)
    return {name: tuple(layer.output_shape) for name, layer in layers.items()}


def _layers(network: tf.keras.Model, names: Sequence[str]) -> dict[str, tf.keras.layers.Layer]:
    known = {layer.name: layer for layer in network.layers}
    for name in names:
        require(
            name in known,
            f"the network has no layer {name!r} to distil; it has {', '.join(known)}",
        )
    return {name: known[name] for name in names}


def copy_embedding_weights(source: tf.keras.Model, target: tf.keras.Model) -> None:
    """Copies the weights of all layers but the top one, which stays fresh.

    Raises:
        InputError: the networks are of another kind or width.
    """
    require_same_weights(source, target)
    for layer in _embedding_layers(target):
        layer.set_weights(source.get_layer(layer.name).get_weights())


def require_same_weights(source: tf.keras.Model, target: tf.keras.Model) -> None:
    """Rejects a network whose embedding cannot start from the weights of another.

    Raises:
        InputError: the networks are of another kind or width.
    """
    known = {layer.name: [tuple(w.shape) for w in layer.weights] for layer in source.layers}
    for layer in _embedding_layers(target):
        shapes, wanted = known.get(layer.name, []), [tuple(w.shape) for w in layer.weights]
        require(
            shapes == wanted,
            f"layer {layer.name!r} has weights {wanted}, but {shapes} in the stage to start "
            "from; both stages need the same backbone",
        )


def _embedding_layers(network: tf.keras.Model) -> list[tf.keras.layers.Layer]:
    return [layer for layer in network.layers if layer.weights and layer.name != "logits"]


def checkpointed(dropout: tf.keras.layers.Dropout) -> tf.keras.layers.Dropout:
    """Makes the random state of a dropout layer, of rng_type "stateful", part of checkpoints.

    Keras keeps it out of them: a resumed run would drop what its first steps have dropped.
    """
    dropout.random_state = dropout._random_generator
    return dropout


def rebuilt(layer: tf.keras.layers.Layer, **changes: Any) -> tf.keras.layers.Layer:
    """Returns a layer of the same kind and options, but for `changes`, with fresh weights.

    A `BatchNorm` becomes the layer of Keras's that it stands for, which every Keras can load.
    """
    if isinstance(layer, tf.keras.layers.Lambda):
        # From its options Keras would make one only where files may hold code.
        options = {"name": layer.name, "dtype": layer.dtype} | changes
        return tf.keras.layers.Lambda(layer.function, arguments=layer.arguments, **options)
    if isinstance(layer, tf.keras.Model) and any(
        isinstance(each, tf.keras.layers.Lambda | BatchNorm) for each in layer.submodules
    ):
        again = functools.partial(rebuilt, **changes)
        return tf.keras.models.clone_model(layer, clone_function=again)
    kind = tf.keras.layers.BatchNormalization if isinstance(layer, BatchNorm) else type(layer)
    return kind.from_config(layer.get_config() | changes)


def copied(network: tf.keras.Model) -> tf.keras.Model:
    """Returns a copy of a network in variables of its own."""
    copy = tf.keras.models.clone_model(network, clone_function=rebuilt)
    copy.set_weights(network.get_weights())
    return copy


def outputs_of(network: tf.keras.Model, batches) -> dict[str, np.ndarray]:
    """Runs a network in inference mode over batches of images, resized to its input.

    Args:
        network: with named outputs.
        batches: iterable of [b, S, S, 3] float32.

    Returns:
        For each output name the [N, …] array of all batches.
    """
    size = network.input_shape[1]
    parts = [network(resized(tf.constant(images), size), training=False) for images in batches]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
