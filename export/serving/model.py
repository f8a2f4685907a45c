"""A version in memory: TensorFlow Serving's messages in, its messages out."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

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

from export import WARMUP
from export.serving.errors import Code, RequestError, require_valid

DEFAULT_SIGNATURE = "serving_default"

# TensorFlow numbers its errors as gRPC does.
_CODES = {code.value[0]: code for code in Code}


class Model:
    """A SavedModel in a session, as the C++ server loads it. Its methods may run in threads.

    Attributes:
        signatures: what can be asked, by name.
    """

    def __init__(self, folder: Path, name: str, max_batch_size: int):
        """Loads a version.

        Args:
            folder: BASE/NUMBER, a SavedModel.
            name: of the model in addresses and answers.
            max_batch_size: the most examples or images that a request may hold.

        Raises:
            Exception: whatever TensorFlow finds wrong with the folder.
        """
        v1 = tf.compat.v1
        self._spec = {"name": name, "version": {"value": int(folder.name)}}
        self._max_batch_size = max_batch_size
        self._session = v1.Session(graph=tf.Graph())
        graph = v1.saved_model.loader.load(
            self._session, [tf.saved_model.SERVING], str(folder.resolve())
        )
        # What begins so is TensorFlow's own, such as the operation that fills the tables.
        self.signatures: dict[str, SignatureDef] = {
            key: value for key, value in graph.signature_def.items() if not key.startswith("__")
        }
        self._warm_up(folder / WARMUP)

    def predict(self, request: PredictRequest) -> PredictResponse:
        """Answers a Predict call.

        Raises:
            RequestError: the request does not fit the signature, or its content cannot be read.
        """
        name, signature = self.signature(request.model_spec.signature_name)
        wanted = list(request.output_filter) or list(signature.outputs)
        unknown = sorted(set(wanted) - set(signature.outputs))
        require_valid(
            not unknown,
            f"signature {name!r} has no output {_listed(unknown)}; it has "
            f"{_listed(signature.outputs)}",
        )
        response = PredictResponse(model_spec=ModelSpec(signature_name=name, **self._spec))
        for output, value in self._run(signature, self._inputs(request, name), wanted).items():
            response.outputs[output].CopyFrom(_to_proto(value, signature.outputs[output].dtype))
        return response

    def classify(self, request: ClassificationRequest) -> ClassificationResponse:
        """Answers a Classify call.

        Raises:
            RequestError: the signature is none for this call, or an example cannot be read.
        """
        name, signature = self.signature(request.model_spec.signature_name)
        require_valid(
            signature.method_name == tf.saved_model.CLASSIFY_METHOD_NAME,
            "Expected classification signature method_name to be "
            f"{tf.saved_model.CLASSIFY_METHOD_NAME}. Was: {signature.method_name} "
            f"(signature {name!r})",
        )
        examples = _serialized(request.input)
        require_valid(len(examples) > 0, "Input is empty.")
        self._require_small(len(examples))
        inputs = {"inputs": np.array(examples, object)}
        answer = self._run(signature, inputs, ["classes", "scores"])
        response = ClassificationResponse(model_spec=ModelSpec(signature_name=name, **self._spec))
        for labels, scores in zip(answer["classes"], answer["scores"], strict=True):
            row = response.result.classifications.add().classes
            for label, score in zip(labels, scores, strict=True):
                row.add(label=label, score=score)
        return response

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
        require_valid(
            name in self.signatures,
            f'Serving signature name: "{name}" not found in signature def; there are '
            f"{_listed(self.signatures)}",
        )
        return name, self.signatures[name]

    def close(self) -> None:
        """Frees the memory. Calls that are still running end with an error."""
        self._session.close()

    def _warm_up(self, path: Path) -> None:
        """Replays the requests that came with the version."""
        if path.exists():
            for record in tf.data.TFRecordDataset(str(path)).as_numpy_iterator():
                log = PredictionLog.FromString(record)
                if log.HasField("classify_log"):
                    self.classify(log.classify_log.request)
                else:
                    self.predict(log.predict_log.request)

    def _inputs(self, request: PredictRequest, name: str) -> dict[str, np.ndarray]:
        """Returns the tensors of a request, if they are what its signature takes.

        Shapes are looked at before anything is unpacked: a few bytes can claim to be terabytes.
        """
        infos = self.signatures[name].inputs
        require_valid(
            set(infos) == set(request.inputs),
            f"signature {name!r} takes the inputs {_listed(infos)}, not "
            f"{_listed(request.inputs) or 'none'}",
        )
        for key, info in infos.items():
            given = request.inputs[key]
            require_valid(
                _fits(given, info),
                f"input {key!r} takes {_described(info)}, not {_described(given)}",
            )
            self._require_small(given.tensor_shape.dim[0].size)
        return {key: _to_array(request.inputs[key], key) for key in infos}

    def _require_small(self, batch_size: int) -> None:
        require_valid(
            batch_size <= self._max_batch_size,
            f"a batch of {batch_size} is larger than --max_batch_size={self._max_batch_size}",
        )

    def _run(
        self, signature: SignatureDef, inputs: dict[str, np.ndarray], outputs: list[str]
    ) -> dict[str, np.ndarray]:
        fetches = {output: signature.outputs[output].name for output in outputs}
        feeds = {signature.inputs[key].name: value for key, value in inputs.items()}
        try:
            return self._session.run(fetches, feeds)
        except tf.errors.OpError as error:
            raise RequestError(_CODES[error.error_code], readable(error.message)) from error


def _serialized(examples: Input) -> list[bytes]:
    """Returns the serialized tf.Examples of a Classify request, each with the common context."""
    if examples.HasField("example_list_with_context"):
        context = examples.example_list_with_context.context.SerializeToString()
        # One message behind another is, by protobuf's rules, the two merged.
        return [
            context + example.SerializeToString()
            for example in examples.example_list_with_context.examples
        ]
    return [example.SerializeToString() for example in examples.example_list.examples]


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


def _described(tensor: TensorProto | TensorInfo) -> str:
    """Returns such as "DT_FLOAT [-1, 32, 32, 3]", in the words of the signatures' metadata."""
    name = DataType.Name(tensor.dtype) if tensor.dtype in DataType.values() else "no type"
    if tensor.tensor_shape.unknown_rank:
        return f"{name} of unknown shape"
    return f"{name} {[dim.size for dim in tensor.tensor_shape.dim]}"


def _to_array(proto: TensorProto, key: str) -> np.ndarray:
    try:
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
