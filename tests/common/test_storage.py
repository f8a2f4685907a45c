"""Files are whole or not there."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from refilled_tf.common import storage
from refilled_tf.common.errors import InputError


def test_json_comes_back(tmp_path):
    value = {"α": [1, 2.5, None], "name": "chêne"}
    path = tmp_path / "new" / "folders" / "value.json"
    storage.write_json(path, value)
    assert storage.read_json(path) == value
    assert "chêne" in path.read_text(encoding="utf-8")  # for people, not escaped


def test_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "value.json"
    storage.write_json(path, 1)
    with pytest.raises(OSError, match="disk full"), storage.replacing(path) as temporary:  # noqa: PT012
        temporary.write_text("half")
        raise OSError("disk full")
    assert storage.read_json(path) == 1
    assert list(tmp_path.iterdir()) == [path]


def test_value_that_json_cannot_hold_leaves_the_old_file(tmp_path):
    path = tmp_path / "value.json"
    storage.write_json(path, 1)
    with pytest.raises(TypeError):
        storage.write_json(path, {"x": object()})
    assert storage.read_json(path) == 1


def test_new_content_appears_only_at_the_end(tmp_path):
    path = tmp_path / "model.keras"
    path.write_text("old")
    with storage.replacing(path) as temporary:
        temporary.write_text("new")
        assert path.read_text() == "old"
        # Writers choose the format by the suffix; a rename needs the same folder.
        assert temporary.suffix == ".keras"
        assert temporary.parent == path.parent
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


def test_content_is_on_disk_before_the_name(tmp_path, monkeypatch):
    """Or a power cut in between leaves an empty result.json, which marks a stage as finished."""
    order = []
    sync, rename = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda fd: order.append("content") or sync(fd))
    monkeypatch.setattr(os, "replace", lambda *names: order.append("name") or rename(*names))
    storage.write_json(tmp_path / "result.json", 1)
    assert order == ["content", "name"]


def test_two_writers_of_one_file_do_not_meet(tmp_path):
    """As on two machines, where processes may well have the same number."""
    path = tmp_path / "scale.json"
    with storage.replacing(path) as one, storage.replacing(path) as other:
        one.write_text("one")
        other.write_text("other")
    assert path.read_text() == "one"
    assert list(tmp_path.iterdir()) == [path]


def test_folder_that_may_not_be_entered_is_the_nearest(tmp_path):
    """Or one above, that may not be entered either."""
    closed = tmp_path / "closed"
    closed.mkdir(mode=0)
    root = os.geteuid() == 0
    try:
        if root:  # who may enter everything
            os.seteuid(65534)
        nearest = storage.nearest_existing(closed / "new/folder")
    finally:
        if root:
            os.seteuid(0)
        closed.chmod(0o700)
    assert nearest in (closed, *closed.parents)


@pytest.mark.parametrize("content", [None, "", '{"a": ', "\xff"])
def test_unreadable_json_is_named(tmp_path, content):
    path = tmp_path / "result.json"
    if content is not None:
        path.write_bytes(content.encode("latin-1"))
    with pytest.raises(InputError) as caught:
        storage.read_json(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def _dead():
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_what_dead_writers_left_is_removed(tmp_path):
    """Of this machine; what another one's writers are at is theirs."""
    path, mine = tmp_path / "model.keras", storage.temporary_beside(tmp_path / "model.keras")
    mine.write_text("under way")
    dead = tmp_path / mine.name.replace(f"@{os.getpid()}-", f"@{_dead()}-")
    dead.write_text("half")
    other = tmp_path / dead.name.replace(".", ".elsewhere", 1)
    other.write_text("under way")
    (tmp_path / ".hidden-1").touch()
    with storage.replacing(path) as temporary:
        temporary.write_text("whole")
    assert sorted(tmp_path.iterdir()) == sorted([mine, other, path, tmp_path / ".hidden-1"])
    (tmp_path / f".{_dead()}-1700000000").mkdir()
    (tmp_path / f".{os.getpid()}-1700000000").mkdir()
    storage.remove_abandoned(tmp_path)
    assert not dead.exists()
    left = [f".{os.getpid()}-1700000000", ".hidden-1", mine.name, other.name, path.name]
    assert sorted(each.name for each in tmp_path.iterdir()) == sorted(left)


@pytest.mark.parametrize("instead", [False, True])
def test_folders_that_dead_writers_left_are_removed(tmp_path, instead):
    """Of this folder alone: another's writer may be alive on another machine."""
    folder = tmp_path / "microcontroller"
    mine, others = storage.temporary_beside(folder), storage.temporary_beside(tmp_path / "other")
    left, other = (
        tmp_path / each.name.replace(f"@{os.getpid()}-", f"@{_dead()}-") for each in (mine, others)
    )
    for path in (left, other, *([folder] if instead else ())):
        (path / "src").mkdir(parents=True)
        (path / "src/half.cc").touch()
    with storage.appearing(folder, instead) as temporary:
        assert not left.exists()
        (temporary / "model.cc").touch()
        assert folder.exists() == instead
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([other.name, folder.name])
    assert [path.name for path in folder.iterdir()] == ["model.cc"]


def test_a_folder_with_content_is_replaced_only_where_that_is_said(tmp_path):
    (tmp_path / "out/src").mkdir(parents=True)
    with (
        pytest.raises(InputError, match="out cannot be written"),
        storage.appearing(tmp_path / "out"),
    ):
        pass
    with pytest.raises(ValueError, match="ours"), storage.appearing(tmp_path / "out", True):
        raise ValueError("ours")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["src"]
