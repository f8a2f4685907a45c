"""TensorFlow Serving's REST bodies: JSON to the official messages, and those to JSON."""

from __future__ import annotations

import base64
import dataclasses
import inspect
import json
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import tensorflow as tf
from google.protobuf import json_format
from google.protobuf.message import Message
from tensorflow.core.framework.tensor_pb2 import TensorProto
from tensorflow.core.protobuf.meta_graph_pb2 import TensorInfo
from tensorflow_serving.apis.classification_pb2 import (
    ClassificationRequest,
    ClassificationResponse,
)
from tensorflow_serving.apis.get_model_metadata_pb2 import (
    GetModelMetadataRequest,
    SignatureDefMap,
)
from tensorflow_serving.apis.predict_pb2 import PredictRequest
from tensorflow_serving.apis.regression_pb2 import RegressionRequest

from export.serving import images, json_reader
from export.serving.batching import Call
from export.serving.errors import Code, RequestError, require_valid
from export.serving.model import Arrays, Model

Infos = Mapping[str, TensorInfo]  # what a signature says of its inputs

# Protobuf 5 has given the option a new name.
_DEFAULTS_TOO = "always_print_fields_with_no_presence"
if _DEFAULTS_TOO not in inspect.signature(json_format.MessageToDict).parameters:
    _DEFAULTS_TOO = "including_default_value_fields"


def predict(model: Model, body: bytes) -> Call[bytes]:
    """Reads a :predict call.

    Args:
        model: what is asked.
        body: {"instances": rows} or {"inputs": columns}, and perhaps a "signature_name".

    Returns:
        A call with the answer {"predictions": rows} or {"outputs": columns}, as asked. The name of
        an only output is left out.

    Raises:
        RequestError: the body is not as above, or `model` refuses it.
    """
    document = json_reader.parsed(body, model.json)
    request = PredictRequest()
    request.model_spec.signature_name = _signature_name(document)
    _, signature = model.signature(request.model_spec.signature_name)
    by_row = "instances" in document
    require_valid(
        by_row != ("inputs" in document),
        "the body must have either 'instances' or 'inputs'",
    )
    columns = (
        _columns_of_rows(document["instances"], signature.inputs)
        if by_row
        else _columns(document["inputs"], signature.inputs)
    )
    for name in columns:  # the names first, whatever the values
        request.inputs[name].SetInParent()
    model.require_inputs(request)
    for name, value in columns.items():
        dtype = tf.as_dtype(signature.inputs[name].dtype)
        request.inputs[name].CopyFrom(_tensor(value, dtype, name))

    def answer(outputs: Arrays) -> dict[str, Any]:
        values = {name: _values(name, array) for name, array in outputs.items()}
        if len(values) == 1:
            (content,) = values.values()
        elif by_row:
            rows = zip(*values.values(), strict=True)
            content = [dict(zip(values, row, strict=True)) for row in rows]
        else:
            content = values
        return {"predictions" if by_row else "outputs": content}

    return _in_json(model.predict(request), answer)


def classify(model: Model, body: bytes) -> Call[bytes]:
    """Reads a :classify call.

    Args:
        model: what is asked.
        body: {"examples": [{feature: value or list}]}, perhaps with a "context" of features that
            all examples have, and a "signature_name".

    Returns:
        A call with the answer {"results": [[[label, score], …] for each example]}.

    Raises:
        RequestError: the body is not as above, or `model` refuses it.
    """

    def answer(response: ClassificationResponse) -> dict[str, Any]:
        return {
            "results": [
                [
                    [each.label, _shortest(np.array(each.score, np.float32)).item()]
                    for each in row.classes
                ]
                for row in response.result.classifications
            ]
        }

    request = ClassificationRequest()
    _read_examples(model, body, request)
    call = model.classify(request)
    return _in_json(call, lambda outputs: answer(call.finish(outputs)))


def regress(model: Model, body: bytes) -> Call:
    """Rejects a :regress call, as `model` does.

    Raises:
        RequestError: always.
    """
    request = RegressionRequest()
    _read_examples(model, body, request)
    return model.regress(request)


def metadata(model: Model) -> dict[str, Any]:
    """Returns name and version of a model, and its signatures."""
    response = model.metadata(GetModelMetadataRequest(metadata_field=["signature_def"]))
    signatures = SignatureDefMap()
    response.metadata["signature_def"].Unpack(signatures)
    return {
        "model_spec": of_message(response.model_spec),
        "metadata": {"signature_def": of_message(signatures)},
    }


def of_message(message: Message) -> dict[str, Any]:
    """Returns a message with its fields' own names, and with fields that have their defaults."""
    return json_format.MessageToDict(
        message, preserving_proto_field_name=True, **{_DEFAULTS_TOO: True}
    )


def _in_json(call: Call, content: Callable[[Arrays], dict[str, Any]]) -> Call[bytes]:
    """Returns the same call with an answer in JSON, made of the outputs."""
    return dataclasses.replace(call, finish=lambda outputs: json.dumps(content(outputs)).encode())


def _read_examples(
    model: Model, body: bytes, request: ClassificationRequest | RegressionRequest
) -> None:
    document = json_reader.parsed(body, model.json)
    request.model_spec.signature_name = _signature_name(document)
    examples = document.get("examples", [])
    require_valid(
        isinstance(examples, list) and len(examples) > 0,
        "'examples' must be a list of objects that is not empty",
    )
    model.require_few(len(examples))
    target = request.input.example_list
    if "context" in document:
        target = request.input.example_list_with_context
        target.context.CopyFrom(_example(document["context"]))
    target.examples.extend(map(_example, examples))


def _signature_name(document: dict[str, Any]) -> str:
    name = document.get("signature_name", "")
    require_valid(isinstance(name, str), "'signature_name' must be a string")
    return name


def _columns_of_rows(rows: Any, infos: Infos) -> dict[str, Any]:
    """Returns [B] values by input: of {input: value} rows, or of the values of an only input."""
    require_valid(
        isinstance(rows, list | np.ndarray) and len(rows) > 0,
        "'instances' must be a list that is not empty",
    )
    if not any(map(_has_names, rows)):
        return _named(rows, infos, "'instances'")
    for number, row in enumerate(rows):
        require_valid(
            _has_names(row) and row.keys() == rows[0].keys(),
            f"item {number} of 'instances' does not have the inputs of the first",
        )
    return {name: [row[name] for row in rows] for name in rows[0]}


def _columns(value: Any, infos: Infos) -> dict[str, Any]:
    """Returns tensors by input, of {input: tensor} or of the tensor of an only input."""
    return value if _has_names(value) else _named(value, infos, "'inputs'")


def _named(value: Any, infos: Infos, key: str) -> dict[str, Any]:
    require_valid(
        len(infos) == 1, f"{key} must name the inputs, which are {', '.join(sorted(infos))}"
    )
    return dict.fromkeys(infos, value)


def _has_names(value: Any) -> bool:
    return isinstance(value, dict) and not _is_base64(value)


def _is_base64(value: Any) -> bool:
    return isinstance(value, dict) and value.keys() == {"b64"} and isinstance(value["b64"], str)


def _tensor(value: Any, dtype: tf.DType, name: str) -> TensorProto:
    """Packs nested lists, or a single value."""
    # As objects: numpy's own strings lose zero bytes at their end, and true would count as 1.
    try:
        leaves = np.array(value, object)
    except ValueError as error:
        raise _ragged(name) from error
    if dtype == tf.string:
        hint = f"; {images.TAKES_PIXELS}" if leaves.ndim > 1 else ""
        strings = [_bytes(leaf, f"input {name!r}", hint) for leaf in leaves.flat]
        shape = tf.TensorShape(leaves.shape).as_proto()
        return TensorProto(dtype=dtype.as_datatype_enum, tensor_shape=shape, string_val=strings)
    # Row by row, since no other thread runs while numpy reads objects.
    parts = leaves if leaves.ndim > 1 else [leaves]
    converted = [_numbers(part, dtype, name) for part in parts]
    return tf.make_tensor_proto(np.array(converted, dtype.as_numpy_dtype).reshape(leaves.shape))


def _ragged(name: str) -> RequestError:
    return RequestError(Code.INVALID_ARGUMENT, f"input {name!r} has lists of different lengths")


def _numbers(leaves: np.ndarray, dtype: tf.DType, name: str) -> np.ndarray:
    """Converts a part of an input to the input's type."""
    kinds = set(map(type, leaves.flat))
    if kinds & {list, np.ndarray}:
        raise _ragged(name)
    require_valid(
        kinds <= ({int, float} if dtype.is_floating else {int}),
        f"input {name!r} takes numbers that are {dtype.name}"
        + (f"; {images.TAKES_IMAGES}" if kinds & {str, dict} else ""),
    )
    converted = _converted(leaves, dtype, has_whole=int in kinds)
    if converted is None:
        message = f"input {name!r} has a number that {dtype.name} cannot hold"
        raise RequestError(Code.INVALID_ARGUMENT, message)
    return converted


def _converted(leaves: np.ndarray, dtype: tf.DType, has_whole: bool) -> np.ndarray | None:
    """Converts Python's numbers; None if one is out of range or, written as whole, inexact."""
    try:
        with np.errstate(over="ignore"):
            exact = leaves.astype(np.float64 if dtype.is_floating else np.int64)
            converted = exact.astype(dtype.as_numpy_dtype)
    except OverflowError:
        return None
    if not dtype.is_floating:
        return converted if np.array_equal(converted, exact) else None
    inexact = np.isinf(converted) & np.isfinite(exact)
    if has_whole:
        is_whole = np.frompyfunc(lambda leaf: isinstance(leaf, int), 1, 1)(leaves).astype(bool)
        largest = 2 ** (np.finfo(dtype.as_numpy_dtype).nmant + 1)
        inexact |= is_whole & (np.abs(exact) >= largest)
    return None if inexact.any() else converted


def _bytes(value: Any, where: str, hint: str = "") -> bytes:
    """Returns a string's bytes, in UTF-8 or as {"b64": …} says."""
    if isinstance(value, str):
        return value.encode()
    require_valid(
        _is_base64(value), f"{where} has {value!r:.50} instead of a string or {{'b64': …}}{hint}"
    )
    try:
        return json_reader.from_base64(value["b64"])
    except ValueError as error:
        raise RequestError(Code.INVALID_ARGUMENT, f"{where} is no base64: {error}") from error


def _example(features: Any) -> tf.train.Example:
    require_valid(isinstance(features, dict), "an example must be an object of features")
    return tf.train.Example(
        features=tf.train.Features(
            feature={name: _feature(name, value) for name, value in features.items()}
        )
    )


def _feature(name: str, value: Any) -> tf.train.Feature:
    """Makes a feature of one value or of a list, all of one type; booleans count as 1 and 0."""
    values = value if isinstance(value, list) else [value]
    if all(isinstance(each, int) and -(2**63) <= each < 2**63 for each in values):
        numbers = [int(each) for each in values]  # protobuf 5 takes no booleans
        return tf.train.Feature(int64_list=tf.train.Int64List(value=numbers))
    if all(isinstance(each, float) for each in values):
        return tf.train.Feature(float_list=tf.train.FloatList(value=values))
    strings = [_bytes(each, f"feature {name!r}") for each in values]
    return tf.train.Feature(bytes_list=tf.train.BytesList(value=strings))


def _values(name: str, array: np.ndarray) -> Any:
    """Turns an output into nested lists. A name that ends with "_bytes" means base64."""
    if array.dtype == object:
        decode = _base64 if name.endswith("_bytes") else _text
        return np.vectorize(decode, [object])(array).tolist()
    return _shortest(array).tolist() if array.dtype == np.float32 else array.tolist()


def _text(value: bytes) -> str:
    return value.decode(errors="replace")


def _base64(value: bytes) -> dict[str, str]:
    return {"b64": base64.b64encode(value).decode()}


def _shortest(array: np.ndarray) -> np.ndarray:
    """Turns float32 into the float64 with the fewest digits: .1, not .10000000149011612."""
    return array.astype(str).astype(np.float64)
