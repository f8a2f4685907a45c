"""A finished training, and its export as the command makes it."""

import digits
import pytest
import tensorflow as tf

from export import trained, versions
from refilled_tf import config, stage, storage, training


@pytest.fixture(scope="session")
def work_dir(tmp_path_factory):
    """A training of which "student" is finished, the embedding "triplet" and "refilled" not."""
    folder = tmp_path_factory.mktemp("work_dir")
    spec = digits.experiment(folder, "Experiment.rows = [@student/Stage(), @refilled/Stage()]")
    storage.write_text(folder / config.OPERATIVE, config.operative_config())
    where = stage.Run(folder, None, tf.distribute.get_strategy())
    training.train(next(each for each in spec.stages() if each.name == "student"), where)
    return folder


@pytest.fixture(scope="session")
def model(work_dir):
    return trained.load(work_dir, None, None)


@pytest.fixture(scope="session")
def base(work_dir, tmp_path_factory):
    """The folder of versions that the command itself has made."""
    folder = tmp_path_factory.mktemp("exports") / "digits"
    run = digits.command("export.saved_model", f"--work_dir={work_dir}", f"--export_dir={folder}")
    assert run.returncode == 0, run.stderr
    return folder


@pytest.fixture(scope="session")
def version(base):
    (number,) = versions.existing(base)
    return base / str(number)


@pytest.fixture(scope="session")
def tflite_run(work_dir, tmp_path_factory):
    """The command that makes .tflite files, finished, and their folder."""
    folder = tmp_path_factory.mktemp("tflite") / "made/by it"
    run = digits.command("export.tflite", f"--work_dir={work_dir}", f"--output_dir={folder}")
    assert run.returncode == 0, run.stderr
    return run, folder


@pytest.fixture(scope="session")
def tflite_folder(tflite_run):
    return tflite_run[1]
