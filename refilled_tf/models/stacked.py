"""A chain of layers computed for many tasks at once, each task with weights of its own.

Adapting hundreds of small networks one after another leaves a processor waiting between small
operations. Here the weights of T networks are stacked, [T, …], and one graph computes them all,
differentiably as often as one likes.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence

import tensorflow as tf

from refilled_tf.common.errors import require
from refilled_tf.models.batch_norm import BatchNorm

Weights = list[tf.Tensor]
# (layer, its weights, x [N, …], whether batch norm takes the batch's statistics) to y [N, …].
Computed = Callable[[tf.keras.layers.Layer, Weights, tf.Tensor, bool], tf.Tensor]

PATCHES_MB = 2.0  # of a task's patches up to which a convolution is a product: a core's cache


class Chain:
    """The layers of networks that follow one another, as a function of stacked weights.

    Attributes:
        variables: the trainable weights of its layers, in the order in which `__call__` takes
            their values.
    """

    def __init__(self, networks: Sequence[tf.keras.Model], first: str | None = None):
        """Lists the layers.

        Args:
            networks: one takes what the one before it returns.
            first: name of the layer with which the chain begins; None begins with the images.

        Raises:
            InputError: there is no such layer, a layer has several inputs, or is of a kind that
                is not known here.
        """
        layers = [layer for network in networks for layer in network.layers]
        starts = [network.layers[0] for network in networks]
        names = [layer.name for layer in layers]
        if first is not None:
            require(first in names, f"the network has no layer {first!r}; it has {names}")
            layers = layers[names.index(first) :]
        for before, layer in itertools.pairwise(layers):
            require(
                layer in starts or layer.input is before.output,
                f"layer {layer.name!r} does not follow {before.name!r} alone: only layers without "
                "branches can be stacked",
            )
        unknown = [layer for layer in layers if type(layer) not in _LAYERS]
        require(
            not unknown,
            f"layer {unknown[0].name if unknown else ''!r} cannot be stacked; known are "
            + ", ".join(kind.__name__ for kind in _LAYERS),
        )
        self._layers = layers
        self.variables = [w for layer in layers for w in layer.trainable_weights]

    def stacked(self, tasks: int) -> Weights:
        """Returns the present value of every variable for so many tasks, [T, …]."""
        return [tf.repeat(w[tf.newaxis], tasks, axis=0) for w in self.variables]

    def __call__(self, weights: Weights, x: tf.Tensor, batch_statistics: bool = False) -> tf.Tensor:
        """Computes the chain.

        Args:
            weights: values of `variables`, [T, …] each.
            x: [T, N, …], N inputs of every task.
            batch_statistics: whether batch norm takes mean and variance over a task's N inputs,
                instead of the running ones, which all tasks share.

        Returns:
            [T, N, …].
        """
        # Vectorised, products become batched ones, but convolutions loops: those are products of
        # patches where these are few, and T branches of the graph elsewhere. (A grouped convolution
        # has no gradient on a CPU.)
        products = not batch_statistics and all(
            _patches_fit(layer, x.shape[1]) for layer in self._layers
        )
        kinds = _LAYERS | ({tf.keras.layers.Conv2D: _product_of_patches} if products else {})

        def one(task):
            weights, x = task
            return self._one_task(weights, x, batch_statistics, kinds)

        if products:
            return tf.vectorized_map(one, (weights, x))
        tasks = zip(zip(*map(tf.unstack, weights), strict=True), tf.unstack(x), strict=True)
        return tf.stack([one(task) for task in tasks])

    def _one_task(
        self,
        weights: Weights,
        x: tf.Tensor,
        batch_statistics: bool,
        kinds: Mapping[type, Computed],
    ) -> tf.Tensor:
        """Computes the chain for one task: x [N, …]."""
        following = iter(weights)
        for layer in self._layers:
            own = [next(following) for _ in layer.trainable_weights]
            # Stacked weights are float32, whatever the layers themselves compute in.
            x = tf.cast(kinds[type(layer)](layer, own, x, batch_statistics), tf.float32)
        return x


def _patches_fit(layer: tf.keras.layers.Layer, images: int) -> bool:
    """Tells whether all that a convolution's kernel sees of so many images is small."""
    if not isinstance(layer, tf.keras.layers.Conv2D):
        return True
    values = images * math.prod(layer.output.shape[1:3]) * math.prod(layer.kernel.shape[:3])
    return 4 * values <= PATCHES_MB * 1e6


def _convolution(
    layer: tf.keras.layers.Conv2D, weights: Weights, x: tf.Tensor, _: bool
) -> tf.Tensor:
    y = tf.nn.conv2d(x, weights[0], layer.strides, layer.padding.upper())
    return y + weights[1] if layer.use_bias else y


def _product_of_patches(
    layer: tf.keras.layers.Conv2D, weights: Weights, x: tf.Tensor, _: bool
) -> tf.Tensor:
    """Computes a convolution as a product [N·h·w, k·k·c] · [k·k·c, d]."""
    sizes, strides = (1, *layer.kernel_size, 1), (1, *layer.strides, 1)
    patches = tf.image.extract_patches(x, sizes, strides, (1, 1, 1, 1), layer.padding.upper())
    y = tf.tensordot(patches, tf.reshape(weights[0], (-1, weights[0].shape[-1])), 1)
    return y + weights[1] if layer.use_bias else y


def _dense(layer: tf.keras.layers.Dense, weights: Weights, x: tf.Tensor, _: bool) -> tf.Tensor:
    y = x @ weights[0]
    return layer.activation(y + weights[1] if layer.use_bias else y)


def _batch_norm(
    layer: tf.keras.layers.BatchNormalization,
    weights: Weights,
    x: tf.Tensor,
    batch_statistics: bool,
) -> tf.Tensor:
    if batch_statistics:
        mean, variance = tf.nn.moments(x, axes=(0, 1, 2))
    else:
        mean, variance = layer.moving_mean, layer.moving_variance
    # In sums and products. The fused operation's gradient has a wrong gradient of its own, and with
    # running statistics GPUs have no reproducible one, which TensorFlow refuses where it is told to
    # be deterministic.
    scale = weights[0] * tf.math.rsqrt(variance + layer.epsilon)
    return x * scale + (weights[1] - mean * scale)


def _without_weights(
    layer: tf.keras.layers.Layer, weights: Weights, x: tf.Tensor, _: bool
) -> tf.Tensor:
    return layer(x)


_LAYERS = {
    tf.keras.layers.InputLayer: _without_weights,
    tf.keras.layers.Rescaling: _without_weights,
    tf.keras.layers.Activation: _without_weights,
    tf.keras.layers.ReLU: _without_weights,
    tf.keras.layers.MaxPooling2D: _without_weights,
    tf.keras.layers.GlobalMaxPooling2D: _without_weights,
    tf.keras.layers.GlobalAveragePooling2D: _without_weights,
    tf.keras.layers.Flatten: _without_weights,
    tf.keras.layers.Conv2D: _convolution,
    tf.keras.layers.Dense: _dense,
    tf.keras.layers.BatchNormalization: _batch_norm,
    BatchNorm: _batch_norm,
}
