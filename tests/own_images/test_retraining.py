"""What is said of images that came and went, and where the outdated is kept. All by hand."""

from __future__ import annotations

import pytest

from refilled_tf.common.errors import InputError
from refilled_tf.own_images import retraining


def test_changes_are_counted_by_folder():
    there = {"cat/a.png": "1", "cat/b.png": "2", "dog/a.png": "3", "train/fox/a.png": "4"}
    now = {"cat/a.png": "9", "dog/a.png": "3", "dog/b.png": "5", "dog/c.png": "6"}
    assert retraining.images_changed(there, now) == [
        "2 images were added to dog/",
        "1 image was removed from cat/",
        "1 image was removed from train/fox/",
        "1 image was changed in cat/",
    ]
    assert retraining.images_changed(there, there) == []


def test_settings_are_said_once_and_consequences_not(tmp_path):
    width = "MobileNet.width = 0.25 there, 0.5 now"
    differing = {"MobileNet.width": width, "parent teacher": "a", "ImageFolder.content": "b"}
    found = {tmp_path / "a": differing, tmp_path / "b": differing}
    with pytest.raises(InputError) as caught:
        retraining.require_current(found, tmp_path, source=None)
    assert f"made before: the images were others; {width}. Add --retrain" in str(caught.value)
    retraining.require_current({}, tmp_path, source=None)


def test_first_of_what_is_set_aside_is_kept(tmp_path):
    """What is set aside again was made in between, and never finished."""
    stage = tmp_path / "training/stages/probe"
    for content in ("finished", "half"):
        stage.mkdir(parents=True)
        (stage / "result.json").write_text(content)
        retraining.set_aside([stage], tmp_path)
        assert not stage.exists()
    kept = tmp_path / "previous/training/stages/probe/result.json"
    assert kept.read_text() == "finished"
    retraining.forget_previous(tmp_path)
    assert not (tmp_path / "previous").exists()
    retraining.forget_previous(tmp_path)
