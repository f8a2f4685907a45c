"""A version in memory: TensorFlow Serving's messages in, its messages out."""

from __future__ import annotations

import dataclasses
import math
import re
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
import tensorflow as tf
from tensorflow.core.framework.tensor_pb2 import TensorProto
from tensorflow.core.framework.types_pb2 import DataType
from tensorflow.core.protobuf.meta_graph_pb2 import SignatureDef, TensorInfo
from tensorflow_serving.apis.classification_pb2 import (
    ClassificationRequest,
    ClassificationResponse,
)
from tensorflow_serving.apis.get_model_metadata_pb2 import (
    GetModelMetadataRequest,
    GetModelMetadataResponse,
    SignatureDefMap,
)
from tensorflow_serving.apis.input_pb2 import Input
from tensorflow_serving.apis.model_pb2 import ModelSpec
from tensorflow_serving.apis.predict_pb2 import PredictRequest, PredictResponse
from tensorflow_serving.apis.prediction_log_pb2 import PredictionLog
from tensorflow_serving.apis.regression_pb2 import RegressionRequest

from export import WARMUP
from export.serving import images, json_reader, metrics
from export.serving.batching import Call
from export.serving.errors import Code, RequestError, require_valid

DEFAULT_SIGNATURE = "serving_default"
REGRESS_METHOD_NAME = "tensorflow/serving/regress"

# Messages, objects, strings and short lists for a row: an Example may have features of all sorts.
VALUES = 256

# TensorFlow numbers its errors as gRPC does.
_CODES = {code.value[0]: code for code in Code}


Arrays = dict[str, np.ndarray]
Answer = TypeVar("Answer")


class Inputs(NamedTuple):
    """Inputs of a signature, by name."""

    signature: str
    arrays: Arrays


@dataclasses.dataclass(frozen=True)
class Limits:
    """Limits of a request.

    Attributes:
        rows: the most examples or images.
        pixels: the most pixels of all its encoded images together, as they are sent.
        bytes: the most of all its examples together, each with the context that they have in
            common.
    """

    rows: int
    pixels: int
    bytes: int

    @property
    def values(self) -> int:
        """The most messages, objects and strings that a request may consist of."""
        return VALUES * self.rows


class Threads(NamedTuple):
    """The threads of TensorFlow. The first model of a process decides for all.

    Attributes:
        intra_op: of one operation.
        inter_op: in which operations of one run may be; -1 keeps a run in its caller's thread: to
            hand the operations of a small network from thread to thread takes longer than to
            compute them.
    """

    intra_op: int = 1
    inter_op: int = -1


ONE_THREAD = Threads()


class Model:
    """A SavedModel in a session, as the C++ server loads it. Its methods may run in threads.

    A request takes two steps, so that several can share the second: `predict` or `classify` reads
    it into a call, and `run` answers calls.

    Attributes:
        signatures: what can be asked, by name.
        json: what a body in JSON may hold.
    """

    def __init__(
        self,
        folder: Path,
        version: int,
        name: str,
        limits: Limits,
        batch_sizes: Sequence[int] = (),
        threads: Threads = ONE_THREAD,
    ):
        """Loads a version.

        Args:
            folder: a SavedModel.
            version: its number.
            name: of the model in addresses and answers.
            limits: what a request may hold.
            batch_sizes: to which batches are filled up, ascending; as they are if empty.
            threads: of TensorFlow.

        Raises:
            Exception: whatever TensorFlow finds wrong with the folder.
        """
        self._name = name
        self._spec = {"name": name, "version": {"value": version}}
        self._limits = limits
        self._batch_sizes = batch_sizes
        config = tf.compat.v1.ConfigProto(
            intra_op_parallelism_threads=threads.intra_op,
            inter_op_parallelism_threads=threads.inter_op,
        )
        self._session = tf.compat.v1.Session(graph=tf.Graph(), config=config)
        try:
            self._load(folder)
        except BaseException:
            self._session.close()
            raise

    def predict(self, request: PredictRequest) -> Call[PredictResponse]:
        """Reads a Predict request.

        Raises:
            RequestError: it does not fit the signature, or holds more than it may.
        """
        name, signature = self.signature(request.model_spec.signature_name)
        wanted = list(request.output_filter) or list(signature.outputs)
        unknown = sorted(set(wanted) - set(signature.outputs))
        require_valid(
            not unknown,
            f"signature {name!r} has no output {_listed(unknown)}; it has "
            f"{_listed(signature.outputs)}",
        )

        def response(outputs: Arrays) -> PredictResponse:
            answer = PredictResponse(model_spec=ModelSpec(signature_name=name, **self._spec))
            for output in wanted:
                dtype = signature.outputs[output].dtype
                answer.outputs[output].CopyFrom(_to_proto(outputs[output], dtype))
            return answer

        return self._call(name, self._inputs(request, name), response)

    def classify(self, request: ClassificationRequest) -> Call[ClassificationResponse]:
        """Reads a Classify request.

        Raises:
            RequestError: the signature is none for this call, or an example cannot be read.
        """
        name = self._require_method(request, "classification", tf.saved_model.CLASSIFY_METHOD_NAME)
        examples = self._examples(request.input)

        def response(outputs: Arrays) -> ClassificationResponse:
            answer = ClassificationResponse(model_spec=ModelSpec(signature_name=name, **self._spec))
            for labels, scores in zip(outputs["classes"], outputs["scores"], strict=True):
                row = answer.result.classifications.add().classes
                for label, score in zip(labels, scores, strict=True):
                    row.add(label=label, score=score)
            return answer

        return self._call(name, {"inputs": np.array(examples, object)}, response)

    def regress(self, request: RegressionRequest) -> Call:
        """Rejects a Regress request as TensorFlow Serving does where no signature is for it.

        Raises:
            RequestError: always; the models classify.
        """
        self._require_method(request, "regression", REGRESS_METHOD_NAME)
        raise RequestError(Code.UNIMPLEMENTED, "this server only classifies")

    def run(self, calls: Sequence[Call]) -> list[Arrays]:
        """Answers calls that are of one kind.

        Returns:
            All outputs of the signature, for each call.

        Raises:
            RequestError: the content of one of them cannot be read.
        """
        name, first = calls[0].inputs
        if calls[0].kind is None:
            (_,) = calls
            return [self._outputs(name, [first[key] for key in sorted(first)])]
        ((key, _),) = first.items()
        column = np.concatenate([call.inputs.arrays[key] for call in calls])
        outputs = self._outputs(name, [_filled_up(column, self._batch_sizes)])
        ends = np.cumsum([call.rows for call in calls])
        return [
            {key: value[end - call.rows : end] for key, value in outputs.items()}
            for call, end in zip(calls, ends, strict=True)
        ]

    def answer(self, call: Call[Answer]) -> Answer:
        """Answers a single call."""
        return call.finish(self.run([call])[0])

    def metadata(self, request: GetModelMetadataRequest) -> GetModelMetadataResponse:
        """Answers a GetModelMetadata call.

        Raises:
            RequestError: it asks for anything but "signature_def", the one thing there is.
        """
        require_valid(
            set(request.metadata_field) == {"signature_def"},
            "metadata_field must be 'signature_def', the only one there is",
        )
        response = GetModelMetadataResponse(model_spec=ModelSpec(**self._spec))
        response.metadata["signature_def"].Pack(SignatureDefMap(signature_def=self.signatures))
        return response

    def signature(self, name: str) -> tuple[str, SignatureDef]:
        """Returns a signature with its name; an empty name means the default.

        Raises:
            RequestError: there is none of that name.
        """
        name = name or DEFAULT_SIGNATURE
        if name not in self.signatures:
            raise RequestError(
                Code.INVALID_ARGUMENT,
                f'Serving signature name: "{name}" not found in signature def; there are '
                f"{_listed(self.signatures)}",
            )
        return name, self.signatures[name]

    def require_inputs(self, request: PredictRequest) -> None:
        """Raises RequestError unless the inputs of a request are those of its signature."""
        name, signature = self.signature(request.model_spec.signature_name)
        given = set(request.inputs)
        if given != set(signature.inputs):
            message = f"signature {name!r} takes the inputs {_listed(signature.inputs)}, not "
            message += _listed(given) or "none"
            others = [key for key, each in self.signatures.items() if set(each.inputs) == given]
            if others:
                message += f"; signatures that take {_listed(given)}: {_listed(others)}"
            raise RequestError(Code.INVALID_ARGUMENT, message)

    def require_few(self, rows: int) -> None:
        """Raises RequestError if a batch has more rows than a request may hold."""
        require_valid(
            rows <= self._limits.rows,
            f"a batch of {rows} is larger than --max_batch_size={self._limits.rows}",
        )

    def close(self) -> None:
        """Frees the memory. Calls that are still running end with an error."""
        self._session.close()

    def _load(self, folder: Path) -> None:
        load = tf.compat.v1.saved_model.loader.load
        graph = load(self._session, [tf.saved_model.SERVING], str(folder.resolve()))
        # What begins so is TensorFlow's own, such as the operation that fills the tables.
        self.signatures: dict[str, SignatureDef] = {
            key: value for key, value in graph.signature_def.items() if not key.startswith("__")
        }
        self.json = _json_limits(self.signatures.values(), self._limits)
        # All outputs, whatever a request wants, so that requests of a signature can be joined.
        self._runners = {
            name: self._session.make_callable(
                {key: info.name for key, info in signature.outputs.items()},
                [signature.inputs[key].name for key in sorted(signature.inputs)],
            )
            for name, signature in self.signatures.items()
        }
        self._warm_up(folder / WARMUP)

    def _warm_up(self, path: Path) -> None:
        """Replays the requests that came with the version."""
        if path.exists():
            for record in tf.data.TFRecordDataset(str(path)).as_numpy_iterator():
                log = PredictionLog.FromString(record)
                if log.HasField("classify_log"):
                    self.answer(self.classify(log.classify_log.request))
                else:
                    self.answer(self.predict(log.predict_log.request))

    def _call(self, signature: str, arrays: Arrays, finish: Callable[[Arrays], Answer]) -> Call:
        """Makes a call of arrays that fit a signature, once their images are looked at."""
        found = {
            name: images.read(name, array)
            for name, array in arrays.items()
            if name in images.PLAIN + images.EXAMPLES
        }
        pixels = sum(each.pixels for each in found.values())
        require_valid(
            pixels <= self._limits.pixels,
            f"the request's images have {pixels} pixels together, the limit is "
            f"--max_request_pixels={self._limits.pixels}; send fewer at a time, or smaller ones",
        )
        for name, each in found.items():
            arrays[name] = np.array(images.for_graph(name, each), object)
        # The rows of several inputs belong to each other, and not to those of other callers.
        return Call(
            kind=signature if len(arrays) == 1 else None,
            inputs=Inputs(signature, arrays),
            rows=sum(map(len, arrays.values())),
            pixels=pixels,
            finish=finish,
        )

    def _require_method(
        self, request: ClassificationRequest | RegressionRequest, kind: str, method: str
    ) -> str:
        """Returns the name of the signature that is asked, if it is for this method."""
        name, signature = self.signature(request.model_spec.signature_name)
        require_valid(
            signature.method_name == method,
            f"Expected {kind} signature method_name to be {method}. Was: {signature.method_name} "
            f"(signature {name!r})",
        )
        return name

    def _inputs(self, request: PredictRequest, name: str) -> Arrays:
        """Returns the tensors of a request, if they are what its signature takes.

        Shapes are looked at before anything is unpacked: a few bytes can claim to be terabytes.
        """
        self.require_inputs(request)
        infos = self.signatures[name].inputs
        for key, info in infos.items():
            given = request.inputs[key]
            if not _fits(given, info):  # else the description would cost more than the look
                message = f"input {key!r} takes {_described(info)}, not {_described(given)}"
                raise RequestError(Code.INVALID_ARGUMENT, message + _hint(given, info))
            self.require_few(given.tensor_shape.dim[0].size)
        return {key: _to_array(request.inputs[key], key) for key in infos}

    def _examples(self, given: Input) -> list[bytes]:
        """Returns the serialized tf.Examples of a Classify request, each with the context."""
        has_context = given.HasField("example_list_with_context")
        part = given.example_list_with_context if has_context else given.example_list
        count = len(part.examples)
        require_valid(count > 0, "Input is empty.")
        self.require_few(count)
        context = part.context.SerializeToString() if has_context else b""
        # Before they are put together: a message of kilobytes can spell gigabytes.
        require_valid(
            part.ByteSize() + (count - 1) * len(context) <= self._limits.bytes,
            f"{count} examples, each with a context of {len(context)} bytes, are more than "
            f"--max_request_bytes={self._limits.bytes}",
        )
        # One message behind another is, by protobuf's rules, the two merged.
        return [context + example.SerializeToString() for example in part.examples]

    def _outputs(self, signature: str, columns: Sequence[np.ndarray]) -> Arrays:
        start = time.perf_counter()
        try:
            return self._runners[signature](*columns)
        except tf.errors.OpError as error:
            raise RequestError(_CODES[error.error_code], readable(error.message)) from error
        finally:
            metrics.ran(self._name, time.perf_counter() - start)


def _filled_up(column: np.ndarray, sizes: Sequence[int]) -> np.ndarray:
    """Repeats the first row until a batch has one of the sizes; larger ones stay as they are."""
    size = next((size for size in sizes if size >= len(column)), len(column))
    return np.concatenate([column, np.repeat(column[:1], size - len(column), axis=0)])


def _json_limits(signatures: Iterable[SignatureDef], limits: Limits) -> json_reader.Most:
    """Returns what a body may hold: a batch for the signature that takes the most lists."""
    lists = max(
        sum(_lists(info, limits.rows) for info in signature.inputs.values())
        for signature in signatures
    )
    return json_reader.Most(lists + limits.values, limits.values)


def _lists(info: TensorInfo, rows: int) -> int:
    """Returns of how many lists a tensor consists; sizes that are open are those of a batch."""
    sizes = [dim.size if dim.size >= 0 else rows for dim in info.tensor_shape.dim]
    return 1 + sum(math.prod(sizes[:axis]) for axis in range(1, len(sizes)))


def _fits(given: TensorProto, taken: TensorInfo) -> bool:
    """Tells whether a tensor has the type of an input, and its sizes where those are fixed."""
    sizes, wanted = (tensor.tensor_shape.dim for tensor in (given, taken))
    return (
        given.dtype == taken.dtype
        and not given.tensor_shape.unknown_rank
        and len(sizes) == len(wanted)
        and all(
            size.size >= 0 and want.size in (-1, size.size)
            for size, want in zip(sizes, wanted, strict=True)
        )
    )


def _hint(given: TensorProto, taken: TensorInfo) -> str:
    """Returns the rest of an error's line, if another signature takes such a tensor."""
    is_string, takes_strings = (
        tensor.dtype == tf.string.as_datatype_enum for tensor in (given, taken)
    )
    if is_string and not takes_strings:
        return f"; {images.TAKES_IMAGES}"
    if takes_strings and not is_string and len(given.tensor_shape.dim) > 1:
        return f"; {images.TAKES_PIXELS}"
    return ""


def _described(tensor: TensorProto | TensorInfo) -> str:
    """Returns such as "DT_FLOAT [-1, 32, 32, 3]", in the words of the signatures' metadata."""
    name = DataType.Name(tensor.dtype) if tensor.dtype in DataType.values() else "no type"
    if tensor.tensor_shape.unknown_rank:
        return f"{name} of unknown shape"
    return f"{name} {[dim.size for dim in tensor.tensor_shape.dim]}"


def _to_array(proto: TensorProto, key: str) -> np.ndarray:
    try:
        if proto.dtype == tf.string.as_datatype_enum:
            # make_ndarray would fill up with the last one, or with what is no bytes.
            sizes = [dim.size for dim in proto.tensor_shape.dim]
            return np.array(list(proto.string_val), object).reshape(sizes)
        return tf.make_ndarray(proto)
    except (TypeError, ValueError) as error:
        raise RequestError(
            Code.INVALID_ARGUMENT, f"input {key!r} does not hold what its shape promises: {error}"
        ) from error


def _to_proto(value: np.ndarray, dtype: int) -> TensorProto:
    """Packs an output. Floats go into `float_val`, where callers of the real server find them."""
    if dtype == tf.float32.as_datatype_enum:
        shape = tf.TensorShape(value.shape).as_proto()
        return TensorProto(dtype=dtype, tensor_shape=shape, float_val=value.ravel())
    return tf.make_tensor_proto(value, dtype)


def readable(message: str) -> str:
    """Reduces TensorFlow's message to its first error, without the nodes of the graph."""
    text = message.removeprefix("Graph execution error:").strip()
    # What fails at the same time in several threads comes as a list.
    text = re.sub(r"^\d+ root error\(s\) found\.\s*\(0\) \w+: ", "", text)
    return re.sub(r"\s*\[\[.*", "", text.splitlines()[0]) if text else "TensorFlow failed"


def _listed(names: Iterable[str]) -> str:
    return ", ".join(sorted(names))
