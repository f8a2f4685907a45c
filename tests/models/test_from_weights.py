"""Networks that start from somebody's weights: where these come from, and which are refused."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import tensorflow as tf

from refilled_tf.common.errors import InputError
from refilled_tf.models import networks
from refilled_tf.models.efficientnet_lite import EfficientNetLite0
from refilled_tf.models.from_weights import FromWeights
from refilled_tf.models.mobilenet import MobileNet, MobileNetV2, MobileNetV3Small


def _saved(tmp_path, network, name="net.keras"):
    for weight in network.weights:  # so that no two layers have the same
        weight.assign(tf.random.stateless_uniform(weight.shape, (len(weight.name), 1)))
    network.save(tmp_path / name)
    return str(tmp_path / name)


def _same(one, other):
    for a, b in zip(one, other, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    ("backbone", "options"),
    [
        (MobileNet(0.25), {"alpha": 0.25}),
        (MobileNetV2(0.35), {"alpha": 0.35}),
        (MobileNetV3Small(0.75), {"alpha": 0.75, "include_preprocessing": False}),
    ],
    ids=lambda each: type(each).__name__,
)
@pytest.mark.parametrize("top", [False, True])
def test_a_file_of_kerass_network_is_taken(tmp_path, backbone, options, top):
    """Keras's network, made and saved by Keras alone: ours computes the same."""
    make = getattr(tf.keras.applications, type(backbone).__name__)
    whole = make(input_shape=(64, 64, 3), weights=None, include_top=top, classes=7, **options)
    tf.keras.utils.set_random_seed(0)
    for weight in whole.weights:
        if "moving" not in weight.name and "beta" in weight.name:
            weight.assign(tf.random.normal(weight.shape))
    whole.save(tmp_path / "net.keras")
    ours = FromWeights(backbone, str(tmp_path / "net.keras"))
    network = ours.build(64)
    images = np.random.default_rng(0).uniform(0, 255, (2, 64, 64, 3)).astype(np.float32)
    below = backbone.application(input_shape=(64, 64, 3), weights=None)
    below.set_weights(whole.get_weights()[: len(below.weights)])
    np.testing.assert_allclose(network(images), below(images / 127.5 - 1), rtol=1e-3, atol=1e-4)
    assert ours.width == backbone.width


def test_a_training_of_ours_is_taken(tmp_path):
    trained = networks.classifier(EfficientNetLite0(0.25), 32, 5)
    file = _saved(tmp_path, trained)
    network = FromWeights(EfficientNetLite0(0.25), file).build(64)
    _same(network.get_weights(), trained.get_weights()[:-2])


@pytest.mark.parametrize(
    ("saved", "message"),
    [
        (MobileNetV2(0.35), r"its weight number 0 is \(3, 3, 3, 16\), but .* \(3, 3, 3, 8\)"),
        (MobileNetV2(0.25), r"weight number \d+ is .*, but .* of MobileNet\(width=0\.25"),
    ],
)
def test_other_networks_are_refused(tmp_path, saved, message):
    file = _saved(tmp_path, saved.build(32))
    with pytest.raises(InputError, match=message):
        FromWeights(MobileNet(0.25), file).build(32)


def test_too_few_weights_are_refused(tmp_path):
    images = tf.keras.Input((32, 32, 3))
    file = _saved(tmp_path, tf.keras.Model(images, tf.keras.layers.Conv2D(8, 3)(images)))
    with pytest.raises(InputError, match="is of another network: its weight number 2 is missing"):
        FromWeights(MobileNet(0.25), file).build(32)


def test_unreadable_files_are_refused(tmp_path):
    (tmp_path / "net.keras").write_text("no network")
    with pytest.raises(InputError, match=r"net\.keras: Keras cannot read it \("):
        FromWeights(MobileNet(0.25), str(tmp_path / "net.keras")).build(32)
    with pytest.raises(InputError, match=r"FromWeights.weights=none\.keras does not exist"):
        FromWeights(MobileNet(0.25), "none.keras").content  # noqa: B018


def test_content_is_that_of_the_file(tmp_path):
    """As it was when it was first asked for."""
    one = FromWeights(MobileNet(0.25), _saved(tmp_path, MobileNet(0.25).build(32)))
    content = one.content
    other = FromWeights(MobileNet(0.25), _saved(tmp_path, MobileNet(0.5).build(32)))
    assert content == one.content != other.content
    assert FromWeights(MobileNet(0.25), "imagenet").content == "imagenet"


def test_imagenet_weights_are_kerass_download(monkeypatch, tmp_path):
    """What Keras would download is a file here, of its own network's weights."""
    published = MobileNetV2(0.35).application(input_shape=(96, 96, 3), weights=None)
    for weight in published.weights:
        weight.assign(tf.random.stateless_uniform(weight.shape, (3, len(weight.shape))))
    published.save_weights(tmp_path / "published.weights.h5")
    asked = []

    def get_file(name, *args, **kwargs):
        asked.append(name)
        return str(tmp_path / "published.weights.h5")

    monkeypatch.setattr(sys.modules[tf.keras.utils.get_file.__module__], "get_file", get_file)
    network = FromWeights(MobileNetV2(0.35), "imagenet").build(96)
    _same(network.get_weights(), published.get_weights())
    assert asked == ["mobilenet_v2_weights_tf_dim_ordering_tf_kernels_0.35_96_no_top.h5"]


def test_a_failed_download_says_what_to_do_instead(monkeypatch):
    def fail(*args, **kwargs):
        raise Exception("URL fetch failure")

    # As Keras raises where there is no way out.
    monkeypatch.setattr(sys.modules[tf.keras.utils.get_file.__module__], "get_file", fail)
    with pytest.raises(InputError, match=r"cannot be had \(URL fetch.*--student_weights") as error:
        FromWeights(MobileNetV2(0.35), "imagenet").build(96)
    assert "\n" not in str(error.value)


def test_widths_without_published_weights_are_named():
    with pytest.raises(InputError, match=r"of width 0\.3 cannot be had .*0\.35"):
        FromWeights(MobileNetV2(0.3), "imagenet").build(96)
    with pytest.raises(InputError, match="Keras has none of EfficientNetLite0; give a file"):
        FromWeights(EfficientNetLite0(), "imagenet")
