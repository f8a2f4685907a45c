"""Networks in ONNX files, as PyTorch exports them: teachers that onnxruntime runs.

onnxruntime is an extra: pip install -r requirements-onnx.txt.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
from pathlib import Path
from typing import Any, ClassVar, Literal

import gin
import numpy as np
import tensorflow as tf

from refilled_tf.common import settings
from refilled_tf.common.errors import InputError, one_line, require
from refilled_tf.data.resizing import resized
from refilled_tf.models import keras_files

# As for Keras's networks, and what OpenAI's CLIP and its kin were trained with.
PREPROCESSING = (*keras_files.PREPROCESSING, "clip")
# Mean and standard deviation of RGB in [0, 1].
CLIP = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
LAYOUTS = ("NCHW", "NHWC")
_TYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16}


@gin.register
@dataclasses.dataclass(frozen=True)
class OnnxFile:
    """A network in an ONNX file, frozen.

    Its metadata may say what it wants done to images, so that nobody has to: "mean" and "std",
    three numbers each with commas between them, of RGB in [0, 1].

    Attributes:
        file: the .onnx file.
        layer: name of the graph's output that is the embedding, [B, d], or a feature map to be
            averaged over space. None takes the only one, or the one named "embedding".
        preprocessing: what the network wants done to RGB in [0, 255]: "none", "tf", "torch",
            "caffe" or "clip"; None leaves it to the file's metadata.
        layout: "NCHW" or "NHWC"; None tells by where the three colours are.
        input_size: side in pixels that images are resized to, where the graph takes any; None for
            the graph's, or ours.
        content: hash of the file, which is part of a stage's settings where the path is not.
    """

    in_keras: ClassVar[bool] = False  # another library runs it; see `networks.in_keras`

    file: str = dataclasses.field(metadata=settings.NEVER)
    layer: str | None = None
    preprocessing: Literal["none", "tf", "torch", "caffe", "clip"] | None = None
    layout: Literal["NCHW", "NHWC"] | None = None
    input_size: int | None = None
    content: str = settings.read_once(lambda self: self._content_hash())

    def __post_init__(self):
        for option, accepted in (("preprocessing", PREPROCESSING), ("layout", LAYOUTS)):
            value = getattr(self, option)
            require(
                value is None or value in accepted,
                f"OnnxFile.{option}={value!r} must be one of {', '.join(accepted)}",
            )
        require(
            self.input_size is None or (isinstance(self.input_size, int) and self.input_size > 0),
            f"OnnxFile.input_size={self.input_size!r} must be a number of pixels, such as 224",
        )

    def _content_hash(self) -> str:
        # PyTorch puts weights into a second file beside it, unless told not to.
        files = [self.file, *(f for f in (f"{self.file}.data",) if Path(f).expanduser().exists())]
        return "-".join(keras_files.content_hash(f"OnnxFile.file={self.file}", f) for f in files)

    def build(self, image_size: int) -> tf.keras.Model:
        """Opens the file and asks it about a black image, so that what it cannot do shows now.

        Args:
            image_size: side of our images in pixels; they are resized where the graph was made
                for another one.

        Returns:
            Functional model without weights: images [B, S, S, 3] in [0, 255] to embeddings [B, d].

        Raises:
            InputError: onnxruntime is not installed or cannot run the file, or the graph does not
                lead from images to embeddings.
        """
        graph = _graph(self, image_size)
        images = tf.keras.Input((image_size, image_size, 3), name="images")
        layer = OnnxLayer(self, graph, name="pretrained")
        return tf.keras.Model(images, layer(resized(images, graph.input_size)))

    def settings(self) -> dict[str, Any]:
        """Returns what shapes the embedding."""
        return {
            field.name: getattr(self, field.name)
            for field in dataclasses.fields(self)
            if field.name != "file"
        }


class OnnxLayer(tf.keras.layers.Layer):
    """Images [B, R, R, 3] in [0, 255] to embeddings [B, d], by onnxruntime.

    It is asked within the step, like every other teacher, and not in the input pipeline: there it
    would run ahead of the student, but what a pipeline captures belongs to no replica, so that
    several teachers, of which others are of Keras, could not be asked there together. A Python
    call in a step keeps nothing, so it works under several replicas, each of which asks about its
    own images, and a resumed run gets the same answers. (A model that is saved could not take it
    along: a stage of such a network saves none.)
    """

    def __init__(self, file: OnnxFile, graph: Graph, **options):
        """Makes the layer of an opened file."""
        super().__init__(trainable=False, dtype="float32", **options)
        self.file, self._graph = file, graph

    def call(self, images: tf.Tensor) -> tf.Tensor:
        """Asks the graph; no gradient flows through."""
        # Stateless, as op determinism would otherwise let one replica wait for the other.
        answer = tf.numpy_function(self._graph, (images,), tf.float32, stateful=False)
        return tf.ensure_shape(answer, (images.shape[0], self._graph.embedding_size))


class Graph:
    """An ONNX graph from images to embeddings, both as NumPy arrays.

    Attributes:
        input_size: side R of the images that it takes.
        embedding_size: d.
    """

    def __init__(self, file: OnnxFile, image_size: int):
        """Opens the file; see `OnnxFile.build`."""
        self._what = f"OnnxFile.file={file.file}"
        self._session = _session(self._what, file.file)
        self._input = self._only_input()
        self._layout = self._layout_of(file.layout)
        self.input_size = self._size(file.input_size) or image_size
        self._output = self._output_of(file.layer)
        self._slopes, self._offset = self._normalisation(file.preprocessing)
        black = np.zeros((1, self.input_size, self.input_size, 3), np.float32)
        self.embedding_size = self(black).shape[1]

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """Returns embeddings [B, d] float32 of images [B, R, R, 3] float32 in [0, 255]."""
        pixels = (images @ self._slopes + self._offset).astype(_TYPES[self._input.type])
        if self._layout == "NCHW":
            pixels = pixels.transpose(0, 3, 1, 2)
        # Exports that fix the batch fix it at 1.
        parts = [pixels] if self._input.shape[0] != 1 else np.split(pixels, len(pixels))
        answers = []
        for part in parts:
            try:
                feed = {self._input.name: np.ascontiguousarray(part)}
                (answer,) = self._session.run([self._output], feed)
            except Exception as error:  # onnxruntime raises classes of its C++ code.
                raise InputError(
                    f"{self._what} cannot be run on images of {self.input_size}×{self.input_size} "
                    f"pixels: {one_line(error)}"
                ) from error
            answers.append(answer)
        answer = np.concatenate(answers).astype(np.float32)
        if answer.ndim == 4:
            answer = answer.mean((2, 3) if self._layout == "NCHW" else (1, 2))
        require(
            answer.ndim == 2 and len(answer) == len(images),
            f"{self._what}: its output {self._output!r} is {list(answer.shape)} for "
            f"{len(images)} images, but an embedding is [B, d] or a feature map; "
            f"{self._outputs()}",
        )
        return answer

    def _only_input(self):
        inputs = self._session.get_inputs()
        found = ", ".join(f"{each.name} {each.shape} {each.type}" for each in inputs)
        require(
            len(inputs) == 1 and len(inputs[0].shape or []) == 4 and inputs[0].type in _TYPES,
            f"{self._what} takes {found or 'nothing'}; a teacher takes one batch of RGB images, "
            "[B, 3, S, S] or [B, S, S, 3] float32 or float16. Of a model of images and texts, "
            "export the image encoder alone",
        )
        return inputs[0]

    def _layout_of(self, given: str | None) -> str:
        shape = self._input.shape
        colours = {"NCHW": shape[1], "NHWC": shape[3]}
        fitting = [name for name in LAYOUTS if colours[name] == 3]
        possible = fitting or [name for name in LAYOUTS if not isinstance(colours[name], int)]
        require(
            len(possible) > 0 and (given is None or given in possible),
            f"{self._what} takes {shape}, and not RGB images in the layout {given or 'NCHW'} "
            f"{'' if given else 'or NHWC'}".rstrip(),
        )
        require(
            given is not None or len(possible) == 1,
            f"{self._what} takes {shape}: one cannot see where the three colours are; give "
            "OnnxFile.layout (--teacher_layout=NCHW or --teacher_layout=NHWC)",
        )
        return given or possible[0]

    def _size(self, given: int | None) -> int | None:
        sides = self._input.shape[2:4] if self._layout == "NCHW" else self._input.shape[1:3]
        fixed = {side for side in sides if isinstance(side, int)}
        require(
            len(fixed) <= 1,
            f"{self._what} takes {self._input.shape}; a teacher takes square images",
        )
        known = next(iter(fixed), None)
        require(
            given is None or known in (None, given),
            f"{self._what} takes {known} pixels, and not OnnxFile.input_size={given}",
        )
        return given or known

    def _output_of(self, given: str | None) -> str:
        names = [each.name for each in self._session.get_outputs()]
        require(
            given is None or given in names,
            f"{self._what} has no output {given!r}; {self._outputs()}",
        )
        require(
            given is not None or len(names) == 1 or "embedding" in names,
            f"{self._what} has several outputs; {self._outputs()}",
        )
        return given or (names[0] if len(names) == 1 else "embedding")

    def _outputs(self) -> str:
        found = ", ".join(f"{each.name} {each.shape}" for each in self._session.get_outputs())
        return f"there are {found}; choose one by OnnxFile.layer (--teacher_layer)"

    def _normalisation(self, name: str | None) -> tuple[np.ndarray, np.ndarray]:
        """Returns it as `keras_files.affine` does."""
        if name is not None and name in keras_files.PREPROCESSING:
            return keras_files.affine(keras_files.preprocess(name))
        mean, std = CLIP if name == "clip" else self._metadata()
        slopes, offset = np.diag(1 / (255 * np.array(std))), -np.array(mean) / std
        return slopes.astype(np.float32), offset.astype(np.float32)

    def _metadata(self) -> list[list[float]]:
        known = self._session.get_modelmeta().custom_metadata_map
        require(
            "mean" in known and "std" in known,
            f"{self._what} does not say what it wants done to images: it has no metadata 'mean' "
            f"and 'std'; give OnnxFile.preprocessing (--teacher_preprocessing), one of "
            f"{', '.join(PREPROCESSING)}. Networks of timm and DINOv2 mostly want torch",
        )
        numbers = []
        for key in ("mean", "std"):
            try:
                numbers.append([float(part) for part in known[key].split(",")])
            except ValueError:
                numbers.append([])
        require(
            all(len(each) == 3 for each in numbers) and all(x > 0 for x in numbers[1]),
            f"{self._what}: its metadata mean={known['mean']!r} and std={known['std']!r} must be "
            "three numbers each, such as '0.485, 0.456, 0.406', and std above zero",
        )
        return numbers


# Stages and rows ask for the same graph again, and a large one takes its time to open.
_graph = functools.lru_cache(maxsize=8)(Graph)


def _session(what: str, file: str):
    """Opens a file with onnxruntime, on a GPU where there is a build for it."""
    try:
        runtime = importlib.import_module("onnxruntime")
    except ImportError as error:
        raise InputError(
            f"{what} needs onnxruntime, which is not installed: pip install -r "
            "requirements-onnx.txt"
        ) from error
    options = runtime.SessionOptions()
    options.log_severity_level = 4  # what goes wrong is raised as well
    options.use_deterministic_compute = True
    wanted = ("CUDAExecutionProvider", "CPUExecutionProvider")
    providers = [name for name in wanted if name in runtime.get_available_providers()]
    try:
        return runtime.InferenceSession(str(Path(file).expanduser()), options, providers)
    except Exception as error:  # onnxruntime raises classes of its C++ code.
        raise InputError(f"{what}: onnxruntime cannot open it: {one_line(error)}") from error
