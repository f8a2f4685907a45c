"""Integers: what the correction of their bias does, by hand and on a network of many layers."""

import numpy as np
import tensorflow as tf
from ai_edge_litert.interpreter import Interpreter

from export import conversion


def _logits(image):
    """By hand: three classes, of the mean of each colour."""
    return tf.reduce_mean(image, axis=(1, 2)) / 100


def _images(count, size=8):
    shape = (count, size, size, 3)
    images = np.random.default_rng(0).integers(0, 256, shape).astype(np.float32)
    images[0, 0, :2] = [[0], [255]]
    return images


def _probabilities(content, images):
    """What a file of bytes gives, by LiteRT."""
    interpreter = Interpreter(model_content=content)
    interpreter.allocate_tensors()
    (taken,), (given,) = interpreter.get_input_details(), interpreter.get_output_details()
    answers = []
    for image in images.astype(taken["dtype"]):
        interpreter.set_tensor(taken["index"], image[np.newaxis])
        interpreter.invoke()
        answers.append(interpreter.get_tensor(given["index"])[0])
    scale, zero_point = given["quantization"]
    return scale * (np.array(answers).astype(np.float32) - zero_point)


def test_what_integers_add_is_taken_away(monkeypatch):
    """By hand: were they 1, -2 and 0 above the floats, these would be taken from the logits."""
    shift, images = np.array([1.0, -2.0, 0.0], np.float32), _images(6)
    monkeypatch.setattr(conversion, "_outputs", lambda _, seen: _logits(seen).numpy() + shift)
    content = conversion.in_integers(_logits, images, 6, tf.uint8)
    expected = tf.nn.softmax(_logits(images) - shift)
    np.testing.assert_allclose(_probabilities(content, images), expected, atol=0.02)


def _deep():
    """Layers with random weights, whose roundings add up."""
    tf.keras.utils.set_random_seed(1)
    layers = [tf.keras.layers.Rescaling(1 / 127.5, -1, input_shape=(8, 8, 3))]
    for _ in range(12):
        layers.append(tf.keras.layers.Conv2D(8, 3, padding="same", activation="relu6"))
    layers += [tf.keras.layers.GlobalAveragePooling2D(), tf.keras.layers.Dense(4)]
    network = tf.keras.Sequential(layers)
    # So that classes are about as probable as one another, and rounding shows.
    spread = network(_images(64)).numpy()
    kernel, bias = layers[-1].get_weights()
    scale = spread.std(axis=0)
    layers[-1].set_weights([kernel / scale, bias - spread.mean(axis=0) / scale])
    return network


def test_bias_falls_on_other_images(monkeypatch):
    """The reference is the float network; without correction its classes are off one way."""
    network, images = _deep(), _images(364)
    fitted, others = images[:300], images[300:]

    def bias():
        content = conversion.in_integers(network, fitted, 50, tf.uint8)
        off = _probabilities(content, others) - tf.nn.softmax(network(others)).numpy()
        return np.abs(off.mean(axis=0)).max()

    corrected = bias()
    monkeypatch.setattr(conversion, "_outputs", lambda _, seen: network(seen).numpy())
    assert corrected < 0.5 * bias()


def test_output_is_of_the_type_and_scale_of_the_input():
    content = conversion.in_integers(_logits, _images(2), 2, tf.int8)
    interpreter = Interpreter(model_content=content)
    (taken,), (given,) = interpreter.get_input_details(), interpreter.get_output_details()
    assert taken["dtype"] == given["dtype"] == np.int8
    assert given["quantization"] == (1 / 256, -128)
