"""A SavedModel in TensorFlow's C library, with which TensorFlow Serving restores and runs it too.

The library lies in the Python package, and is reached by ctypes. What is declared here is all that
it takes: https://github.com/tensorflow/tensorflow/blob/master/tensorflow/c/c_api.h
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Sequence
from ctypes import POINTER, c_char_p, c_int, c_int64, c_size_t, c_void_p
from pathlib import Path

import numpy as np
import tensorflow as tf

_STRING_BYTES = 24  # of a TF_TString


class _Buffer(ctypes.Structure):
    _fields_ = (("data", c_void_p), ("length", c_size_t), ("deallocator", c_void_p))


class _Output(ctypes.Structure):
    _fields_ = (("operation", c_void_p), ("index", c_int))


# Function to what it returns and what it takes.
_FUNCTIONS = {
    "TF_NewStatus": (c_void_p, []),
    "TF_GetCode": (c_int, [c_void_p]),
    "TF_Message": (c_char_p, [c_void_p]),
    "TF_NewBuffer": (POINTER(_Buffer), []),
    "TF_NewGraph": (c_void_p, []),
    "TF_NewSessionOptions": (c_void_p, []),
    "TF_LoadSessionFromSavedModel": (
        c_void_p,
        [c_void_p, c_void_p, c_char_p, POINTER(c_char_p), c_int, c_void_p, c_void_p, c_void_p],
    ),
    "TF_GraphOperationByName": (c_void_p, [c_void_p, c_char_p]),
    "TF_SessionRun": (
        None,
        [
            *(c_void_p, c_void_p),
            *(POINTER(_Output), POINTER(c_void_p), c_int),
            *(POINTER(_Output), POINTER(c_void_p), c_int),
            *(c_void_p, c_int, c_void_p, c_void_p),
        ],
    ),
    "TF_AllocateTensor": (c_void_p, [c_int, POINTER(c_int64), c_int, c_size_t]),
    "TF_TensorType": (c_int, [c_void_p]),
    "TF_NumDims": (c_int, [c_void_p]),
    "TF_Dim": (c_int64, [c_void_p, c_int]),
    "TF_TensorData": (c_void_p, [c_void_p]),
    "TF_TensorByteSize": (c_size_t, [c_void_p]),
    "TF_DeleteTensor": (None, [c_void_p]),
    "TF_StringInit": (None, [c_void_p]),
    "TF_StringCopy": (None, [c_void_p, c_char_p, c_size_t]),
    "TF_StringGetDataPointer": (c_void_p, [c_void_p]),
    "TF_StringGetSize": (c_size_t, [c_void_p]),
    "TF_CloseSession": (None, [c_void_p, c_void_p]),
    "TF_DeleteSession": (None, [c_void_p, c_void_p]),
}


@functools.cache
def _library() -> ctypes.CDLL:
    folder = Path(tf.sysconfig.get_lib())
    (path,) = folder.glob("libtensorflow_cc.*")
    library = ctypes.CDLL(str(path))
    for name, (result, arguments) in _FUNCTIONS.items():
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    return library


class SavedModel:
    """A SavedModel, restored for serving.

    Attributes:
        signatures: `SignatureDef` by name.
    """

    def __init__(self, folder: str):
        """Restores the model.

        Args:
            folder: of the SavedModel.

        Raises:
            RuntimeError: with what TensorFlow finds wrong with it.
        """
        self._c = _library()
        self._status = self._c.TF_NewStatus()
        self._graph = self._c.TF_NewGraph()
        tags = (c_char_p * 1)(tf.saved_model.SERVING.encode())
        described = self._c.TF_NewBuffer()
        self._session = self._c.TF_LoadSessionFromSavedModel(
            self._c.TF_NewSessionOptions(),
            None,
            folder.encode(),
            tags,
            len(tags),
            self._graph,
            described,
            self._status,
        )
        self._check()
        meta_graph = tf.compat.v1.MetaGraphDef.FromString(
            ctypes.string_at(described.contents.data, described.contents.length)
        )
        self.signatures = dict(meta_graph.signature_def)

    def run(self, signature: str, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Asks a signature.

        Args:
            signature: its name.
            inputs: by name; strings as objects of type bytes.

        Returns:
            The outputs by name, strings again as bytes.

        Raises:
            RuntimeError: with what TensorFlow says.
        """
        known = self.signatures[signature]
        feeds = self._places([known.inputs[name].name for name in inputs])
        fetches = self._places([info.name for info in known.outputs.values()])
        given = (c_void_p * len(feeds))(*map(self._to_tensor, inputs.values()))
        answers = (c_void_p * len(fetches))()
        self._c.TF_SessionRun(
            *(self._session, None),
            *(feeds, given, len(feeds)),
            *(fetches, answers, len(fetches)),
            *(None, 0, None, self._status),
        )
        for tensor in given:
            self._c.TF_DeleteTensor(tensor)
        self._check()
        arrays = [self._to_array(tensor) for tensor in answers]
        for tensor in answers:
            self._c.TF_DeleteTensor(tensor)
        return dict(zip(known.outputs, arrays, strict=True))

    def close(self) -> None:
        """Frees the session."""
        self._c.TF_CloseSession(self._session, self._status)
        self._c.TF_DeleteSession(self._session, self._status)

    def _check(self) -> None:
        if self._c.TF_GetCode(self._status) != 0:
            # What follows is where in the graph it happened.
            raise RuntimeError(self._c.TF_Message(self._status).decode().splitlines()[0])

    def _places(self, names: Sequence[str]) -> ctypes.Array[_Output]:
        """Returns where in the graph tensors such as "logits:0" are."""
        places = (_Output * len(names))()
        for place, name in zip(places, names, strict=True):
            operation, _, index = name.rpartition(":")
            place.operation = self._c.TF_GraphOperationByName(self._graph, operation.encode())
            place.index = int(index)
        return places

    def _to_tensor(self, array: np.ndarray) -> int:
        dtype = tf.string if array.dtype == object else tf.as_dtype(array.dtype)
        width = _STRING_BYTES if dtype == tf.string else array.itemsize
        tensor = self._c.TF_AllocateTensor(
            dtype.as_datatype_enum,
            (c_int64 * array.ndim)(*array.shape),
            array.ndim,
            array.size * width,
        )
        data = self._c.TF_TensorData(tensor)
        if dtype == tf.string:
            for number, value in enumerate(array.flat):
                place = data + number * width
                self._c.TF_StringInit(place)
                self._c.TF_StringCopy(place, value, len(value))
        else:
            ctypes.memmove(data, np.ascontiguousarray(array).ctypes.data, array.nbytes)
        return tensor

    def _to_array(self, tensor: int | None) -> np.ndarray:
        dtype = tf.as_dtype(self._c.TF_TensorType(tensor))
        dims = range(self._c.TF_NumDims(tensor))
        shape = [self._c.TF_Dim(tensor, dim) for dim in dims]
        data, size = self._c.TF_TensorData(tensor), self._c.TF_TensorByteSize(tensor)
        if dtype == tf.string:
            places = range(data, data + size, _STRING_BYTES)
            return np.array([self._string(place) for place in places], object).reshape(shape)
        return np.frombuffer(ctypes.string_at(data, size), dtype.as_numpy_dtype).reshape(shape)

    def _string(self, place: int) -> bytes:
        start = self._c.TF_StringGetDataPointer(place)
        return ctypes.string_at(start, self._c.TF_StringGetSize(place))
