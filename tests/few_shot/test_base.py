"""Pools, tasks and candidates: what learners have in common."""

from __future__ import annotations

import dataclasses
import gc
import weakref

import numpy as np
import pytest
import tensorflow as tf
import tiny
from reference_tasks import pool_of

from refilled_tf.common.errors import InputError
from refilled_tf.data.episodes import Episodes
from refilled_tf.data.task import Examples, Task
from refilled_tf.few_shot.base import Pool, Protocol, Selection, labels_of, merge_classes
from refilled_tf.few_shot.protonet import NearestPrototype
from refilled_tf.few_shot.svm import LinearSvm
from refilled_tf.models import networks
from refilled_tf.models.convnet import ConvNet

PROTOCOL = Protocol(Task(tiny.DATA, "student"), Episodes(ways=2, queries=2, count=3))
NETWORK = networks.embedding_network(tiny.TinyNetwork(), 8)


def test_pool_shows_networks_the_centres_of_images():
    network = networks.embedding_network(ConvNet(channels=4), 16)
    images = np.random.default_rng(0).integers(0, 256, (5, 20, 20, 3)).astype(np.uint8)
    pool = Pool(Examples(images, np.zeros(5, np.int32), np.arange(5).astype(str)), 16)
    centres = images[:, 2:18, 2:18].astype(np.float32)
    wanted = network(centres)["embedding"]
    np.testing.assert_allclose(pool.embeddings(network), wanted, rtol=1e-5, atol=1e-6)
    below = tf.keras.Model(network.input, network.get_layer("block2_conv").input)
    inputs = pool.inputs_of(network, "block2_conv")
    np.testing.assert_allclose(inputs, below(centres), rtol=1e-5, atol=1e-6)


def test_pool_asks_a_network_once(monkeypatch):
    network = networks.embedding_network(ConvNet(channels=4), 16)
    pool = pool_of(1, 16)
    first = pool.embeddings(network)
    monkeypatch.setattr(networks, "outputs_of", None)
    assert pool.embeddings(network) is first


@pytest.fixture
def only_own_garbage():
    """Garbage collection passes over what other tests have left, which takes it half a minute."""
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.mark.usefixtures("only_own_garbage")
def test_pool_keeps_networks_apart():
    pool, answers, asked = pool_of(1, 16), [], []
    for seed in range(2):
        tf.keras.utils.set_random_seed(seed)
        network = networks.embedding_network(ConvNet(channels=4), 16)
        answers.append(pool.embeddings(network))
        asked.append(weakref.ref(network))
    assert np.abs(answers[0] - answers[1]).max() > 1e-2
    # It knows networks by their ids: one that were gone could leave its id to another.
    del network
    gc.collect()
    assert all(reference() is not None for reference in asked)


def test_labels_and_images_come_class_by_class():
    assert labels_of(np.zeros((3, 2))).tolist() == [0, 0, 1, 1, 2, 2]
    rows = np.arange(12).reshape(1, 3, 2, 2)
    assert merge_classes(rows).numpy().tolist() == [
        [[0, 1], [2, 3], [4, 5], [6, 7], [8, 9], [10, 11]]
    ]


def test_candidates_of_a_learner_without_choices_are_itself():
    assert LinearSvm(c=1.0).candidates() == [LinearSvm(c=1.0)]
    assert [each.c for each in LinearSvm(c=(1.0, 2.0)).candidates()] == [1.0, 2.0]


@pytest.mark.parametrize("option", ["task", "episodes"])
def test_protocol_names_what_is_no_reference(option):
    with pytest.raises(InputError, match=rf"Protocol\.{option} = 'x'"):
        dataclasses.replace(PROTOCOL, **{option: "x"})


def test_selection_takes_one_learner():
    Selection(PROTOCOL, 2, NearestPrototype()).check(NETWORK, None)
    with pytest.raises(InputError, match=r"Selection\.learner.*one value"):
        Selection(PROTOCOL, 2, LinearSvm(c=(1.0, 2.0))).check(NETWORK, None)


def test_selection_refuses_impossible_tasks():
    with pytest.raises(InputError, match=r"shots=1000"):
        Selection(PROTOCOL, 1000, NearestPrototype()).check(NETWORK, None)
