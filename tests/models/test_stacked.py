"""Chains with stacked weights against the Keras networks they are made of, one task at a time."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf
from reference import randomise

from refilled_tf.common.errors import InputError
from refilled_tf.models import stacked
from refilled_tf.models.convnet import ConvNet
from refilled_tf.models.networks import embedding_network, with_classifier
from refilled_tf.models.stacked import Chain
from refilled_tf.models.wide_resnet import WideResNet

TASKS, IMAGES, WAYS = 3, 4, 5
RANDOM = np.random.default_rng(0)
INPUTS = RANDOM.uniform(0, 255, (TASKS, IMAGES, 16, 16, 3)).astype(np.float32)


@pytest.fixture(params=["products", "convolutions"])
def way(request, monkeypatch):
    """How convolutions are computed, whatever the size of their patches."""
    monkeypatch.setattr(stacked, "PATCHES_MB", {"products": 1e9, "convolutions": 0}[request.param])
    return request.param


def _network(pooling="max"):
    """A classifier none of whose weights has its first value."""
    network = with_classifier(embedding_network(ConvNet(channels=8, pooling=pooling), 16), WAYS)
    randomise(network)
    top = network.get_layer("logits")
    top.set_weights([RANDOM.normal(size=w.shape) for w in top.get_weights()])
    return network


def _different(chain):
    """Stacked weights, other ones for every task."""
    return [w * RANDOM.uniform(0.5, 1.5, w.shape).astype(np.float32) for w in chain.stacked(TASKS)]


@pytest.mark.parametrize("pooling", ["max", "flatten"])
@pytest.mark.parametrize("batch_statistics", [False, True])
@pytest.mark.usefixtures("way")
def test_each_task_is_the_network_with_the_tasks_weights(pooling, batch_statistics):
    network = _network(pooling)
    chain = Chain([network])
    weights = _different(chain)
    logits = chain(weights, tf.constant(INPUTS), batch_statistics)
    for task in range(TASKS):
        for variable, own in zip(chain.variables, weights, strict=True):
            variable.assign(own[task])
        # Keras's training mode takes a batch's statistics too.
        wanted = network(INPUTS[task], training=batch_statistics)["logits"]
        if batch_statistics:
            randomise(network)  # its running ones have moved
        np.testing.assert_allclose(logits[task], wanted, rtol=1e-4, atol=1e-4)
        assert np.std(wanted) > 0.1


def test_network_of_half_precision_is_computed_too():
    """Its layers' variables are float32; what it computes itself has 11 significant bits."""
    before = tf.keras.mixed_precision.global_policy()
    tf.keras.mixed_precision.set_global_policy("mixed_float16")
    network = _network()
    tf.keras.mixed_precision.set_global_policy(before)
    chain = Chain([network])
    logits = chain(chain.stacked(TASKS), tf.constant(INPUTS))
    for task in range(TASKS):
        wanted = network(INPUTS[task], training=False)["logits"]
        np.testing.assert_allclose(logits[task], wanted, atol=0.03 * np.std(wanted))


@pytest.mark.usefixtures("way")
def test_gradients_are_those_of_the_networks():
    network = _network()
    chain = Chain([network])
    weights = _different(chain)
    with tf.GradientTape() as tape:
        tape.watch(weights)
        loss = tf.reduce_sum(tf.sin(chain(weights, tf.constant(INPUTS))))
    gradients = tape.gradient(loss, weights)
    for task in range(TASKS):
        for variable, own in zip(chain.variables, weights, strict=True):
            variable.assign(own[task])
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(tf.sin(network(INPUTS[task], training=False)["logits"]))
        for ours, theirs in zip(gradients, tape.gradient(loss, chain.variables), strict=True):
            tolerance = 1e-4 * float(tf.reduce_max(tf.abs(theirs))) + 1e-6
            np.testing.assert_allclose(ours[task], theirs, rtol=0, atol=tolerance)


def test_no_gradient_is_one_that_gpus_cannot_repeat(way):
    """TensorFlow's GPU kernel of FusedBatchNormGrad is not deterministic with running statistics.

    With `tf.config.experimental.enable_op_determinism`, which experiments turn on, it raises.
    """
    chain = Chain([_network()])

    @tf.function
    def gradients(*weights):
        return tf.gradients(tf.reduce_sum(chain(list(weights), tf.constant(INPUTS))), weights)

    graph = gradients.get_concrete_function(*chain.stacked(TASKS)).graph
    kinds = {operation.type for operation in graph.get_operations()}
    assert ("Conv2DBackpropFilter" in kinds) == (way == "convolutions")
    assert "BatchMatMulV2" in kinds or way == "convolutions"
    assert not {kind for kind in kinds if kind.startswith("FusedBatchNorm")}


def test_chain_from_a_layer_on_takes_what_comes_to_that_layer():
    network = _network()
    below = tf.keras.Model(network.input, network.get_layer("block3_conv").input)
    chain = Chain([network], "block3_conv")
    assert [w.name.split("/")[0] for w in chain.variables] == [
        *("block3_conv", "block3_conv", "block3_norm", "block3_norm"),
        *("block4_conv", "block4_conv", "block4_norm", "block4_norm"),
        *("logits", "logits"),
    ]
    inputs = tf.stack([below(images) for images in INPUTS])
    wanted = [network(images)["logits"] for images in INPUTS]
    logits = chain(chain.stacked(TASKS), inputs)
    np.testing.assert_allclose(logits, wanted, rtol=1e-4, atol=1e-4)


def test_networks_follow_one_another():
    body = embedding_network(ConvNet(channels=8), 16)
    head = tf.keras.Sequential([tf.keras.Input((8,)), tf.keras.layers.Dense(2, name="head")])
    chain = Chain([body, head])
    wanted = [head(body(images)["embedding"]) for images in INPUTS]
    logits = chain(chain.stacked(TASKS), tf.constant(INPUTS))
    np.testing.assert_allclose(logits, wanted, rtol=1e-4, atol=1e-4)


def test_unknown_first_layer_is_named():
    with pytest.raises(InputError, match=r"no layer 'block9_conv'.*block4_conv"):
        Chain([_network()], "block9_conv")


def test_branches_are_refused_but_below_the_chain():
    network = with_classifier(embedding_network(WideResNet(10, 1), 16), WAYS)
    with pytest.raises(InputError, match="without branches"):
        Chain([network])
    chain = Chain([network], "logits")
    assert [tuple(w.shape) for w in chain.variables] == [(64, WAYS), (WAYS,)]


def test_layers_that_cannot_be_stacked_are_named():
    network = tf.keras.Sequential(
        [tf.keras.Input((8, 8, 3)), tf.keras.layers.DepthwiseConv2D(3, name="depthwise")]
    )
    with pytest.raises(InputError, match=r"'depthwise'.*Conv2D"):
        Chain([network])


@pytest.mark.usefixtures("way")
def test_strides_and_paddings_are_the_layers():
    layers = [
        tf.keras.Input((9, 9, 3)),
        tf.keras.layers.Conv2D(4, (3, 2), 2, "valid"),
        tf.keras.layers.Conv2D(4, (2, 3), (1, 2), "same"),
        tf.keras.layers.Conv2D(5, 2, 2, "same", use_bias=False),
        tf.keras.layers.GlobalAveragePooling2D(),
    ]
    network = tf.keras.Sequential(layers)
    chain = Chain([network])
    inputs = RANDOM.normal(size=(TASKS, IMAGES, 9, 9, 3)).astype(np.float32)
    outputs = chain(chain.stacked(TASKS), tf.constant(inputs))
    np.testing.assert_allclose(outputs, [network(x) for x in inputs], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("images", "products"), [(5, True), (25, True), (150, False)])
def test_few_patches_are_a_product(images, products):
    """Block 4 of a ConvNet of 64 channels at 32 pixels: 4·4 places of 3·3·64 floats an image.

    36,864 bytes: .18, .92 and 5.5 MB, of which a core's cache has 2.
    """
    network = embedding_network(ConvNet(), 32)
    (convolution,) = (x for x in network.layers if x.name == "block4_conv")
    assert stacked._patches_fit(convolution, images) == products
