"""The C library gives what TensorFlow's Python gives, and says what is wrong."""

from __future__ import annotations

import contextlib

import numpy as np
import pytest
import tensorflow as tf

from export import c_api, replay, requests

# Bytes of all lengths that a TF_TString treats differently, a zero at the end among them.
STRINGS = [b"", b"a\0", "é".encode(), b"x" * 22, b"y" * 23, b"z" * 1000]


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Outputs of several types, of which one depends on a variable."""
    module = tf.Module()
    module.scale = tf.Variable([1.0, 2.0, 3.0])

    @tf.function(
        input_signature=[
            tf.TensorSpec([None, 3], tf.float32, name="rows"),
            tf.TensorSpec([None], tf.string, name="names"),
        ]
    )
    def all_types(rows, names):
        return {
            "scaled": rows * module.scale,
            "doubled": tf.strings.join([names, names]),
            "lengths": tf.strings.length(names),
            "count": tf.size(names, tf.int64),
            "empty": names == "",
        }

    folder = str(tmp_path_factory.mktemp("saved"))
    tf.saved_model.save(module, folder, {"all_types": all_types})
    return folder


@pytest.fixture
def model(saved):
    with contextlib.closing(c_api.SavedModel(saved)) as model:
        yield model


@pytest.mark.parametrize("order", ["C", "F"])
def test_numbers_and_strings_by_hand(model, order):
    rows = np.array([[1, 2, 3], [4, 5, 6]], np.float32, order=order)
    answer = model.run("all_types", {"names": np.array(STRINGS, object), "rows": rows})
    expected = {
        "scaled": np.array([[1, 4, 9], [4, 10, 18]], np.float32),
        "doubled": np.array([2 * name for name in STRINGS], object),
        "lengths": np.array([len(name) for name in STRINGS], np.int32),
        "count": np.array(6),
        "empty": np.array([True] + 5 * [False]),
    }
    assert answer.keys() == expected.keys()
    for name, value in expected.items():
        assert answer[name].dtype == value.dtype
        np.testing.assert_array_equal(answer[name], value)


def test_nothing_at_all_is_an_answer_too(model):
    inputs = {"names": np.array([], object), "rows": np.zeros((0, 3), np.float32)}
    answer = model.run("all_types", inputs)
    assert answer["doubled"].shape == (0,)
    assert answer["scaled"].shape == (0, 3)


def test_export_answers_as_python_does(version, model_requests):
    by_function = replay.by_function(str(version), model_requests)
    by_c_library = replay.by_c_library(str(version), model_requests)
    assert by_c_library.keys() == by_function.keys()
    for signature, outputs in by_function.items():
        assert by_c_library[signature].keys() == outputs.keys()
        for name, value in outputs.items():
            ours = by_c_library[signature][name]
            if value.dtype == object:
                np.testing.assert_array_equal(ours, value)
            else:
                np.testing.assert_allclose(ours, value, atol=1e-5)


@pytest.fixture
def model_requests(version):
    random = np.random.default_rng(0)
    by_name = c_api.SavedModel(str(version)).signatures
    side = by_name["serving_tensor"].inputs["images"].tensor_shape.dim[1].size
    squares = random.integers(0, 256, (4, side, side, 3), np.uint8)
    return requests.make(squares, squares.astype(np.float32))


def test_missing_folder_is_named(tmp_path):
    with pytest.raises(RuntimeError, match=rf"{tmp_path}/absent"):
        c_api.SavedModel(f"{tmp_path}/absent")


def test_wrong_shape_is_said(model):
    inputs = {"names": np.array(STRINGS, object), "rows": np.zeros((1, 2), np.float32)}
    with pytest.raises(RuntimeError, match="Incompatible shapes"):
        model.run("all_types", inputs)
    # And no further call is the worse for it.
    assert model.run("all_types", inputs | {"rows": np.zeros((1, 3), np.float32)})["count"] == 6
