"""ONNX files for tests: exports of Keras networks, and graphs of single operations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import tensorflow as tf


def export(
    network: tf.keras.Model,
    path: Path,
    layout: str = "NCHW",
    metadata: Mapping[str, str] | None = None,
) -> Path:
    """Exports a network with tf2onnx, and gives the file metadata."""
    import onnx
    import tf2onnx

    spec = (tf.TensorSpec(network.input_shape, tf.float32, name="images"),)
    nchw = {"inputs_as_nchw": ["images"]} if layout == "NCHW" else {}
    model, _ = tf2onnx.convert.from_keras(network, spec, opset=17, **nchw)
    onnx.helper.set_model_props(model, dict(metadata or {}))
    onnx.save(model, path)
    return path


def write(
    path: Path,
    nodes: Sequence[str | tuple[str, str]],
    shape: Sequence[int | str | None] = ("B", 3, 8, 8),
    dtype: type = np.float32,
) -> Path:
    """Writes a graph of operations on the input "x", each with an output, of its name or "y"."""
    from onnx import helper, save

    named = [node if isinstance(node, tuple) else (node, "y") for node in nodes]
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    whole = helper.np_dtype_to_tensor_dtype(np.dtype(np.int64))
    outputs = [
        helper.make_tensor_value_info(name, whole if node == "Shape" else kind, None)
        for node, name in named
    ]
    graph = helper.make_graph(
        [helper.make_node(node, ["x"], [name]) for node, name in named],
        "graph",
        [helper.make_tensor_value_info("x", kind, shape)],
        outputs,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 8
    save(model, path)
    return path
