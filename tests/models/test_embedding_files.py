"""Archives of embeddings: what is found in them, and what is refused."""

from __future__ import annotations

import functools

import numpy as np
import pytest

from refilled_tf.common.errors import InputError
from refilled_tf.models import networks
from refilled_tf.models.embedding_files import EmbeddingFile

PATHS = np.array(["a/1.jpg", "a/2.jpg", "b/1.jpg"])
EMBEDDINGS = np.arange(6.0).reshape(3, 2)


def _file(tmp_path, **arrays):
    path = tmp_path / "teacher.npz"
    np.savez(path, **{"paths": PATHS, "embeddings": EMBEDDINGS, **arrays})
    return EmbeddingFile(str(path))


@pytest.mark.parametrize("paths", [PATHS, PATHS.astype(bytes)], ids=["text", "bytes"])
def test_images_are_looked_up_by_path(tmp_path, paths):
    found = _file(tmp_path, paths=paths).embeddings(np.array(["b/1.jpg", "a/1.jpg", "b/1.jpg"]))
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, [[4, 5], [0, 1], [4, 5]])


def test_a_changed_file_is_read_anew(tmp_path):
    first = _file(tmp_path)
    first.embeddings(PATHS)
    second = _file(tmp_path, embeddings=EMBEDDINGS + 1)
    assert first.content != second.content
    np.testing.assert_array_equal(second.embeddings(PATHS), EMBEDDINGS + 1)


def test_missing_images_are_counted_and_the_first_named(tmp_path):
    with pytest.raises(InputError) as error:
        _file(tmp_path).embeddings(["a/1.jpg", "c/1.jpg", "c/2.jpg", "c/3.jpg", "c/4.jpg"])
    assert "misses 4 of 5 images: c/1.jpg, c/2.jpg, c/3.jpg, …" in str(error.value)
    assert "it has 3, such as 'a/1.jpg'" in str(error.value)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_numbers_that_are_not_finite_are_refused_by_path(tmp_path, value):
    embeddings = EMBEDDINGS.copy()
    embeddings[1, 0] = value
    with pytest.raises(InputError, match=r"1 embeddings have NaN or infinite numbers: a/2\.jpg"):
        _file(tmp_path, embeddings=embeddings).embeddings(PATHS[:1])


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"embeddings": EMBEDDINGS[:2]}, r"'embeddings' is \[2, 2\] float64 for 3 paths"),
        ({"embeddings": EMBEDDINGS[:, :, None]}, r"'embeddings' is \[3, 2, 1\]"),
        ({"embeddings": EMBEDDINGS.astype(str)}, r"wanted are \[N, d\] numbers"),
        ({"paths": np.arange(3)}, r"'paths' is \[3\] int64; wanted are \[N\] strings"),
        ({"paths": np.array(["a", "a", "b"])}, "1 of its paths repeat"),
    ],
)
def test_wrong_arrays_are_refused(tmp_path, arrays, message):
    with pytest.raises(InputError, match=message):
        _file(tmp_path, **arrays).embeddings(PATHS[:1])


def test_other_files_are_refused(tmp_path):
    (tmp_path / "text.npz").write_text("no archive")
    np.savez(tmp_path / "one.npz", embeddings=EMBEDDINGS)
    for name in ("text.npz", "one.npz"):
        with pytest.raises(InputError, match=rf"{name} is no NumPy archive of two arrays, 'paths'"):
            EmbeddingFile(str(tmp_path / name)).embeddings(PATHS)
    with pytest.raises(InputError, match=r"none\.npz does not exist"):
        EmbeddingFile(str(tmp_path / "none.npz")).embeddings(PATHS)


def test_it_is_no_network(tmp_path):
    file = _file(tmp_path)
    assert networks.looks_up(file)
    assert not isinstance(file, networks.Backbone)
    for build in (
        networks.embedding_network,
        functools.partial(networks.classifier, num_classes=2),
    ):
        with pytest.raises(
            InputError, match=r"EmbeddingFile\.file=.*\.npz holds embeddings and no n"
        ):
            build(file, 32)
