"""What all tests share: two logical CPU devices, and a work_dir with a finished teacher."""

import os
import shutil
from pathlib import Path

# Before TensorFlow is imported. Networks as small as those of tests keep no two threads busy;
# `make test` runs a process for each core instead.
os.environ.setdefault("TF_NUM_INTRAOP_THREADS", "1")

import refilled_tf  # isort: skip

refilled_tf.import_tensorflow()  # without the notices of its start-up

import pytest  # noqa: E402
import tensorflow as tf  # noqa: E402

# Before anything initialises TensorFlow, so that tests can build a strategy on two devices.
tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * 2
)

import tiny  # noqa: E402

from refilled_tf.experiment import training  # noqa: E402
from refilled_tf.objectives import base  # noqa: E402

TESTS = Path(__file__).parent


@pytest.fixture
def named_files(tmp_path, monkeypatch):
    """Goes to a folder with the files that experiments name, though without their content."""
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "efficientnet_lite0_160.keras").touch()
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """A work_dir with a finished teacher."""
    work_dir = tmp_path_factory.mktemp("finished")
    training.train(tiny.teacher(), tiny.run_in(work_dir))
    return work_dir


@pytest.fixture
def run(finished, tmp_path):
    """A copy of it, to be spoilt."""
    shutil.copytree(finished, tmp_path / "work")
    return tiny.run_in(tmp_path / "work")


@pytest.fixture
def built(monkeypatch):
    """The learners that are trained from here on, each with the weights that it starts from."""
    built = []

    class Kept(base.Learner):
        def __init__(self, *args):
            super().__init__(*args)
            start = {name: network.get_weights() for name, network in self.trained.items()}
            built.append((self, start))

    monkeypatch.setattr(training, "Learner", Kept)
    return built


def pytest_addoption(parser):
    parser.addoption("--fuzz-seconds", type=float, default=15, help="for each of the fuzzers")
    parser.addoption("--fuzz-seed", type=int, default=0, help="of their requests")


# What is worth running on every TensorFlow: start, training, resuming, losses, files, exports,
# servers.
STACK = (
    "test_environment.py",
    "common/test_stack.py",
    "test_train.py",
    "experiment/test_training.py",
    "data/test_batches.py",
    "losses/",
    "models/test_keras_files.py",
    "models/test_networks.py",
    "export/serving/test_answers.py",
    "export/serving/test_manager.py",
    "export/serving/test_serve.py",
    "export/test_c_api.py",
    "export/test_saved_model.py",
    "export/test_tflite.py",
)


def pytest_collection_modifyitems(items):
    """Marks tests of STACK.

    Puts files with slow tests first, lest one worker be at them when all others have ended.
    """
    for item in items:
        if item.path.relative_to(TESTS).as_posix().startswith(STACK):
            item.add_marker(pytest.mark.stack)
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)
