"""A finished training, and its export as the command makes it."""

import commands
import digits
import filelock
import pytest
import tensorflow as tf

from export import trained, versions
from refilled_tf.common import gin_files, storage
from refilled_tf.experiment import config, training
from refilled_tf.experiment.run import Run


@pytest.fixture(scope="session")
def made_once(tmp_path_factory, worker_id):
    """Returns a function from a name and a maker to a folder that all of pytest's workers share.

    The first to ask makes it; nobody writes into it afterwards.
    """
    root = tmp_path_factory.getbasetemp()
    if worker_id != "master":
        root = root.parent  # each worker has its own folder in there

    def made(name, make):
        finished = root / f"{name}.made"
        with filelock.FileLock(root / f"{name}.lock"):
            if not finished.exists():
                make(root / name)
                finished.touch()
        return root / name

    return made


@pytest.fixture(scope="session")
def work_dir(made_once):
    """A training of which "student" is finished, the embedding "triplet" and "refilled" not."""
    return made_once("work_dir", _train)


def _train(folder):
    folder.mkdir()
    spec = digits.experiment(folder, "Experiment.rows = [@student/Stage(), @refilled/Stage()]")
    storage.write_text(folder / gin_files.OPERATIVE, config.operative_config())
    run = Run(folder, None, tf.distribute.get_strategy())
    training.train(next(each for each in spec.stages() if each.name == "student"), run)


@pytest.fixture(scope="session")
def model(work_dir):
    return trained.load(work_dir, None, None)


@pytest.fixture(scope="session")
def base(made_once, work_dir):
    """The folder of versions that the command itself has made."""
    return made_once("exports", lambda folder: _export(work_dir, folder))


def _export(work_dir, folder):
    run = commands.run("export.saved_model", f"--work_dir={work_dir}", f"--export_dir={folder}")
    assert run.returncode == 0, run.stderr


@pytest.fixture(scope="session")
def version(base):
    (number,) = versions.existing(base)
    return base / str(number)


@pytest.fixture(scope="session")
def tflite_run(work_dir, tmp_path_factory):
    """The command that makes .tflite files, finished, and their folder."""
    folder = tmp_path_factory.mktemp("tflite") / "made/by it"
    run = commands.run("export.tflite", f"--work_dir={work_dir}", f"--output_dir={folder}")
    assert run.returncode == 0, run.stderr
    return run, folder


@pytest.fixture(scope="session")
def tflite_folder(tflite_run):
    return tflite_run[1]
