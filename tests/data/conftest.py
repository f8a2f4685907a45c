"""The real data sets, where a machine has them prepared."""

import os
from pathlib import Path

import pytest

from refilled_tf.data.sources import TfdsSource


def _source(**options):
    folder = os.environ.get("TFDS_DATA_DIR")
    if not folder:
        pytest.skip("TFDS_DATA_DIR is not set, so there is no real data to test with")
    if not (Path(folder) / options["name"]).is_dir():
        pytest.skip(f"TFDS_DATA_DIR={folder} does not have {options['name']}")
    return TfdsSource(**options)


@pytest.fixture(scope="session")
def cub():
    """CUB as gin/data/cub.gin reads it."""
    return _source(name="caltech_birds2011", box="bbox", class_name="label_name")


@pytest.fixture(scope="session")
def cifar100():
    """CIFAR-100 as gin/data/cifar100.gin reads it."""
    return _source(name="cifar100", key="id", superclass="coarse_label")


@pytest.fixture(scope="session")
def cub_index(cub):
    return cub.index(None)


@pytest.fixture(scope="session")
def cifar100_index(cifar100):
    return cifar100.index(None)
