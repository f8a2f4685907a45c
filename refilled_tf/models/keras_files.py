"""Networks of known weights, from a file or from Keras, as backbones.

A network here may want images of another size, range and colour order than ours. What `build`
returns takes ours, [B, S, S, 3] RGB in [0, 255], like every other backbone, and starts with
what turns the one into the other.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import logging
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal, get_args

import gin
import numpy as np
import tensorflow as tf

from refilled_tf.common import settings, storage
from refilled_tf.common.errors import InputError, listed, one_line, require, require_choice
from refilled_tf.common.quiet import muted
from refilled_tf.common.stack import load_keras
from refilled_tf.data.resizing import resized
from refilled_tf.models.batch_norm import BatchNorm
from refilled_tf.models.networks import checkpointed, rebuilt

# As tf.keras.applications.imagenet_utils.preprocess_input means them: [-1, 1]; mean and standard
# deviation of ImageNet in [0, 1]; BGR minus ImageNet's mean.
Preprocessing = Literal["none", "tf", "torch", "caffe"]
PREPROCESSING = get_args(Preprocessing)

# RGB [B, h, w, 3] float32 in [0, 255] to the range and the colour order that a network takes.
Preprocess = Callable[[np.ndarray], np.ndarray]

_AFTER_A_CLASSIFIER = (
    tf.keras.layers.Activation,
    tf.keras.layers.Dropout,
    tf.keras.layers.Softmax,
)


@gin.register
@dataclasses.dataclass(frozen=True)
class KerasFile:
    """A network that somebody has saved with Keras 2, this one or an earlier one.

    Attributes:
        file: a .keras or .h5 file, or a folder in TensorFlow's SavedModel format that Keras wrote.
        layer: whose output is the embedding, [B, d], or [B, h, w, d] to be averaged over space.
            None takes what feeds the Dense layer that the network ends with (an activation may
            follow), or, without such a classifier, what the network returns.
        preprocessing: what the network wants done to RGB in [0, 255]: "none", if it takes that or
            does it itself, "tf", "torch" or "caffe".
        trusted: whether the file may hold code, such as Lambda layers, which then runs here.
        content: hash of the file, which is part of a stage's settings where the path is not.
    """

    file: str = dataclasses.field(metadata=settings.NEVER)
    layer: str | None = None
    preprocessing: Preprocessing = "none"
    trusted: bool = dataclasses.field(default=False, metadata=settings.NEVER)
    content: str = settings.read_once(
        lambda self: content_hash(f"KerasFile.file={self.file}", self.file)
    )

    def __post_init__(self):
        require_choice(self, "preprocessing")

    def build(self, image_size: int) -> tf.keras.Model:
        """Loads the network and cuts it at the embedding.

        Args:
            image_size: side of our images in pixels; they are resized where the network was made
                for another one.

        Returns:
            Functional model: images [B, S, S, 3] in [0, 255] to embeddings [B, d].

        Raises:
            InputError: Keras cannot read the file, it holds no graph of layers from one image to
                an embedding, it has no such layer, or Keras cannot save and load the result.
        """
        _require_round_trip(self, image_size)
        return self._backbone(image_size)

    def embedding_layer(self) -> str:
        """Returns the name of the layer that the network is cut at; see `layer`."""
        network, embedding = self._cut()
        return tf.keras.Model(network.input, embedding).output_names[0]

    def _backbone(self, image_size: int) -> tf.keras.Model:
        network, embedding = self._cut()
        return as_backbone(network.input, embedding, image_size, preprocess(self.preprocessing))

    def _cut(self) -> tuple[tf.keras.Model, tf.Tensor]:
        """Returns the network as it is saved, and its embedding."""
        network = _read(self.file, self.trusted)
        return network, embedding_of(network, self.layer, f"KerasFile.file={self.file}")


@gin.register
@dataclasses.dataclass(frozen=True)
class Application:
    """A network of `tf.keras.applications`, trained on ImageNet, with what it wants done to images.

    Attributes:
        name: of the class, such as "MobileNetV2".
        weights: a file of its weights, with or without the classifier, as Keras publishes them or
            `save_weights` writes them; None lets Keras download them.
        layer: as in `KerasFile`; None averages the last feature map over space.
        input_size: side in pixels that images are resized to; None for what it was trained on.
        content: hash of the weights' file.
    """

    name: str
    weights: str | None = dataclasses.field(default=None, metadata=settings.NEVER)
    layer: str | None = None
    input_size: int | None = None
    content: str | None = settings.read_once(
        lambda self: (
            self.weights and content_hash(f"Application.weights={self.weights}", self.weights)
        )
    )

    def __post_init__(self):
        # Of a ConvNeXt, Keras 2.15 cannot load what it has saved.
        known = [
            name
            for name in dir(tf.keras.applications)
            if name[0].isupper() and not name.startswith("ConvNeXt")
        ]
        require(
            self.name in known,
            f"Application.name={self.name!r} is no network of tf.keras.applications; there are "
            f"{', '.join(known)}",
        )

    def build(self, image_size: int) -> tf.keras.Model:
        """Builds the network with its weights; see `KerasFile.build`.

        Raises:
            InputError: the weights can neither be read nor downloaded, or there is no such layer.
        """
        make = getattr(tf.keras.applications, self.name)
        whole = make(weights=None)
        # Networks without a size of their own were trained on 224×224.
        size = self.input_size or whole.input_shape[1] or 224
        network = make(weights=None, include_top=False, pooling="avg", input_shape=(size, size, 3))
        if self.weights is None:
            network.set_weights(self._downloaded(make, size))
        else:
            network.set_weights(self._read(self.weights, whole, network))
        what = f"Application.name={self.name!r}"
        embedding = embedding_of(network, self.layer or network.layers[-1].name, what)
        own = sys.modules[make.__module__].preprocess_input
        return as_backbone(network.input, embedding, image_size, own)

    def embedding_layer(self) -> str:
        """Returns the name of the layer whose output, averaged over space, is the embedding."""
        if self.layer is not None:
            return self.layer
        make = getattr(tf.keras.applications, self.name)
        return make(weights=None, include_top=False).output_names[0]

    def _downloaded(self, make: Callable[..., tf.keras.Model], size: int) -> list[np.ndarray]:
        try:
            return make(include_top=False, pooling="avg", input_shape=(size, size, 3)).get_weights()
        except Exception as error:  # Keras raises what it finds, mostly a bare Exception.
            reason = one_line(error)
            raise InputError(
                f"the weights of Application.name={self.name!r} cannot be downloaded ({reason}); "
                "where there is no network, name their file by Application.weights "
                "(--teacher_weights)"
            ) from error

    def _read(
        self, weights: str, whole: tf.keras.Model, network: tf.keras.Model
    ) -> list[np.ndarray]:
        """Reads the file, with the classifier or without; the weights below it come first."""
        reasons = []
        for each in (network, whole):
            try:
                each.load_weights(Path(weights).expanduser())
            except Exception as error:  # Keras raises whatever the file's reader raised.
                reasons.append(one_line(error))
            else:
                return each.get_weights()[: len(network.weights)]
        raise InputError(
            f"Application.weights={weights} holds no weights of {self.name}, neither without "
            f"its classifier ({reasons[0]}) nor with it ({reasons[1]})"
        )


def preprocess(name: str) -> Preprocess:
    """Returns what one of `PREPROCESSING` does to images [B, h, w, 3] float32, RGB in [0, 255]."""
    if name == "none":
        return lambda images: images
    return functools.partial(tf.keras.applications.imagenet_utils.preprocess_input, mode=name)


def affine(preprocess: Preprocess) -> tuple[np.ndarray, np.ndarray]:
    """Finds out what preprocessing calculates, from four colours.

    All of Keras's kinds are affine in a pixel's colours.

    Returns:
        A [3, 3] and b [3] float32: colours [3] become colours @ A + b.
    """
    offset = preprocess(np.zeros((1, 1, 1, 3), np.float32))
    slopes = (preprocess(255 * np.eye(3, dtype=np.float32).reshape(3, 1, 1, 3)) - offset) / 255
    return slopes.reshape(3, 3), offset.reshape(3)


def content_hash(option: str, path: str) -> str:
    """Returns a short hash of a file, or of a folder's files and their names.

    Raises:
        InputError: there is no such file; `option` names it.
    """
    root = Path(path).expanduser()
    require(root.exists(), f"{option} does not exist")
    files = sorted(p for p in root.rglob("*") if p.is_file()) if root.is_dir() else [root]
    stats = [file.stat() for file in files]
    return _hash(root, tuple(files), tuple((s.st_size, s.st_mtime_ns) for s in stats))


# Gin makes an object anew wherever it is referred to; files are read when they have changed.
@functools.lru_cache(maxsize=64)
def _hash(root: Path, files: tuple[Path, ...], stats: tuple[tuple[int, int], ...]) -> str:
    digest = hashlib.sha256()
    for file in files:
        digest.update(os.fsencode(file.relative_to(root)))
        with file.open("rb") as content:
            for block in storage.blocks(content):
                digest.update(block)
    return digest.hexdigest()[:16]


# A stage saves its network and others load it, which some layers do not survive.
@functools.lru_cache(maxsize=8)
def _require_round_trip(teacher: KerasFile, image_size: int) -> None:
    """Rejects a network that Keras cannot build anew from its layers, or save and load again.

    Raises:
        InputError: naming its layers that are not Keras's own.
    """
    images = np.random.default_rng(0).uniform(0, 255, (1, image_size, image_size, 3))
    images = images.astype(np.float32)
    try:
        network = teacher._backbone(image_size)
        with tempfile.TemporaryDirectory() as folder, muted(logging.WARNING):
            path = Path(folder) / "model.keras"
            network.save(path)
            again = tf.keras.models.load_model(path, compile=False, safe_mode=not teacher.trusted)
        wanted, found = (np.asarray(each(images)) for each in (network, again))
        np.testing.assert_allclose(found, wanted, rtol=1e-3, atol=1e-3)
    except (InputError, OSError):
        raise
    except Exception as error:  # Keras raises what the layer at fault does.
        known = _read(teacher.file, teacher.trusted)
        foreign = dict.fromkeys(
            f"{type(each).__name__} ({each.name})"
            for each in known.submodules
            if isinstance(each, tf.keras.layers.Layer)
            and not isinstance(each, tf.keras.Model)
            and not hasattr(tf.keras.layers, type(each).__name__)
        )
        raise InputError(
            f"KerasFile.file={teacher.file} cannot be built anew from its layers, saved and loaded "
            f"again ({type(error).__name__}: {one_line(error)}); not Keras's own are "
            f"{listed(list(foreign)) or 'none'}. Let it teach through a file of its embeddings, or "
            "write it as ONNX (tf2onnx), without its classifier"
        ) from error


def _read(file: str, trusted: bool) -> tf.keras.Model:
    network = load_keras(
        Path(file).expanduser(),
        f"KerasFile.file={file}",
        "what is accepted is a .keras or .h5 file or a SavedModel folder that Keras wrote, of "
        "Keras's own layers. Any other network can teach through a file of its embeddings",
        trusted,
    )
    require(
        isinstance(network, tf.keras.Model) and getattr(network, "input_shape", None) is not None,
        f"KerasFile.file={file} holds no graph of Keras layers (a {type(network).__name__}), so it "
        "cannot be cut at the embedding; save it as a functional or Sequential model, or let it "
        "teach through a file of its embeddings",
    )
    shape = network.input_shape
    require(
        isinstance(shape, tuple) and len(shape) == 4 and shape[3] == 3 and shape[1] == shape[2],
        f"KerasFile.file={file} takes {_text(shape)}; a teacher takes one batch of square RGB "
        "images, [None, S, S, 3]",
    )
    return network


def embedding_of(network: tf.keras.Model, layer: str | None, what: str) -> tf.Tensor:
    """Finds the embedding in a network.

    Args:
        network: a functional or Sequential model.
        layer: the layer's name; None for the default, see `KerasFile`.
        what: names the network in messages.

    Returns:
        Symbolic tensor [B, d] or [B, h, w, d].

    Raises:
        InputError: there is no such layer, or its output is no embedding.
    """
    known = {each.name: each for each in network.layers}
    require(
        layer is None or layer in known,
        f"{what} has no layer {layer!r}; candidates: {', '.join(_candidates(known.values()))}",
    )
    ends = [each for each in network.layers if not isinstance(each, _AFTER_A_CLASSIFIER)]
    if layer is not None:
        tensor = known[layer].output
    elif isinstance(ends[-1], tf.keras.layers.Dense):
        tensor = ends[-1].input
    else:
        tensor = network.output
        tensor = tensor.get("embedding", tensor) if isinstance(tensor, dict) else tensor
    require(
        tf.is_tensor(tensor) or tf.keras.backend.is_keras_tensor(tensor),
        f"{what} has several outputs and no Dense layer at its end; name the embedding's "
        f"layer, one of {', '.join(_candidates(known.values()))}",
    )
    require(
        len(tensor.shape) in (2, 4),
        f"{what}: layer {layer or tensor.name!r} gives {_text(tensor.shape)}, but an embedding "
        f"is [None, d] or [None, h, w, d]; candidates: {', '.join(_candidates(known.values()))}",
    )
    return tensor


def _candidates(layers) -> Iterator[str]:
    """Yields the names of the layers, the last ones first, whose output is a vector or a map."""
    for each in reversed(list(layers)):
        shape = getattr(each, "output_shape", None)
        if isinstance(shape, tuple) and len(shape) in (2, 4):
            yield each.name


def as_backbone(
    inputs: tf.Tensor,
    embedding: tf.Tensor,
    image_size: int,
    preprocess: Preprocess,
) -> tf.keras.Model:
    """Lets a network take our images.

    Args:
        inputs: its symbolic input [B, R, R, 3], R maybe None, in its own range and colour order.
        embedding: what it makes of it, [B, d] or [B, h, w, d].
        image_size: S.
        preprocess: RGB in [0, 255] to that range and order: [B, h, w, 3] float32 to the same.

    Returns:
        Functional model: images [B, S, S, 3] RGB in [0, 255] to [B, d] on a copy of the weights,
        all of which train. Batch norm is synchronised, as in every backbone.
    """
    network = tf.keras.Model(inputs, embedding, name="pretrained")
    copy = tf.keras.models.clone_model(network, clone_function=_synchronised)
    copy.set_weights(network.get_weights())
    copy.trainable = True  # whatever whoever has trained it has frozen
    images = tf.keras.Input((image_size, image_size, 3), name="images")
    x = resized(images, inputs.shape[1] or image_size)
    x = copy(_preprocessing_layer(preprocess)(x))
    if len(x.shape) == 4:
        x = tf.keras.layers.GlobalAveragePooling2D(name="average")(x)
    return tf.keras.Model(images, x)


def _preprocessing_layer(preprocess: Preprocess) -> tf.keras.layers.Layer:
    """Returns a layer that does the same, a 1×1 convolution, which every Keras can load."""
    slopes, offset = affine(preprocess)
    layer = tf.keras.layers.Conv2D(3, 1, trainable=False, dtype="float32", name="preprocessing")
    layer.build((None, None, None, 3))
    layer.set_weights([slopes.reshape(1, 1, 3, 3), offset])
    return layer


def _synchronised(layer: tf.keras.layers.Layer) -> tf.keras.layers.Layer:
    """Returns a layer of the same kind for training on several devices, in one or more runs."""
    if isinstance(layer, tf.keras.Model):
        return tf.keras.models.clone_model(layer, clone_function=_synchronised)
    if isinstance(layer, tf.keras.layers.BatchNormalization):
        return BatchNorm.from_config(layer.get_config())
    if isinstance(layer, tf.keras.layers.Dropout):
        return checkpointed(rebuilt(layer, rng_type="stateful"))
    return rebuilt(layer)


def _text(shape) -> str:
    """Returns such as [None, 32, 32, 3]; of several inputs or outputs all."""
    return str([tuple(each) for each in shape] if isinstance(shape, list) else list(shape))
