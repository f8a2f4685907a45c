"""Unlabelled images as a command line names them, and as gin then has them again."""

from __future__ import annotations

import os
from pathlib import Path

import commands
import photos
import pytest
import tiny

from refilled_tf.common.errors import InputError
from refilled_tf.data.sources import TfdsSource
from refilled_tf.data.splits import AlphabeticalHalves
from refilled_tf.data.unlabelled import PhotoFolder
from refilled_tf.experiment import config
from refilled_tf.own_images import pools


def _again(parts):
    """What a gin file with these unlabelled images has."""
    lines = pools.gin_lines(parts, ["probe_pool"])
    text = "\n".join(
        [tiny.GIN, "include 'methods/probe.gin'", *lines, "Experiment.rows = [@probe_pool/Stage()]"]
    )
    return config.load_text(text).rows[0].task.unlabelled


def test_a_folder_is_searched(tmp_path):
    folder = photos.write_folder(tmp_path / "it's")
    part = pools.parse(str(folder), None)
    assert part == PhotoFolder(str(folder))
    assert _again([part]) == (part,)


def test_a_training_stands_for_what_its_teacher_has_learnt_from(tmp_path):
    gin_file = tmp_path / "tiny.gin"
    gin_file.write_text(tiny.GIN)
    flags = (f"--gin_file={gin_file}", f"--work_dir={tmp_path / 'run'}")
    run = commands.run(
        "refilled_tf.train", *flags, "--gin_param=Experiment.rows = [@teacher_1nn/Probe()]"
    )
    assert run.returncode == 0, run.stderr
    part = pools.parse(str(tmp_path / "run"), None)
    assert (part.role, part.data.class_split) == ("teacher", AlphabeticalHalves())
    assert _again([part]) == (part,)


def test_a_tfds_dataset_may_be_one_of_its_splits():
    folder = os.environ.get("TFDS_DATA_DIR")
    if not folder or not (Path(folder) / "cifar100").is_dir():
        pytest.skip("TFDS_DATA_DIR does not have cifar100")
    both, one = pools.parse("cifar100", None), pools.parse("cifar100:train", None)
    assert both == TfdsSource("cifar100", splits=("train", "test"), key="id")
    assert one == TfdsSource("cifar100", splits=("train",), key="id")
    assert _again([both, one]) == (both, one)
    with pytest.raises(InputError, match="cifar100 has no split valid; it has "):
        pools.parse("cifar100:valid", None)


def test_several_keep_options_of_their_own(tmp_path):
    parts = [PhotoFolder(str(photos.write_folder(tmp_path / name))) for name in "ab"]
    assert _again(parts) == tuple(parts)


@pytest.mark.parametrize("spec", ["/nowhere/at/all", "what is this", "no_such_birds"])
def test_anything_else_is_refused(spec):
    with pytest.raises(InputError, match=f"--unlabelled={spec} is no"):
        pools.parse(spec, None)
