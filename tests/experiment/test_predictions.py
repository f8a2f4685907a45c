"""predictions.csv: what it says of known logits, and what is made of damaged ones."""

from __future__ import annotations

import numpy as np
import pytest

from refilled_tf.common.errors import InputError
from refilled_tf.data.task import Examples, TaskData
from refilled_tf.experiment import predictions

LOGITS = np.array([[2.0, 1.0], [0.0, 3.0], [1.0, 0.5]], np.float32)  # for classes 0, 1, 0


@pytest.fixture
def folder(tmp_path):
    images, labels = np.zeros((3, 1, 1, 3), np.uint8), np.array([0, 0, 0])
    examples = Examples(images, labels, np.array(["a/1.jpg", "a/2, 3.jpg", "a/4.jpg"]))
    data = TaskData(examples, examples, ("Least Auklet", "Brewer Blackbird"), "test")
    predictions.write(tmp_path, data, LOGITS)
    return tmp_path


def test_a_line_for_each_image(folder):
    assert (folder / predictions.FILE).read_text(encoding="utf-8").splitlines() == [
        "image,class,predicted",
        "a/1.jpg,Least Auklet,Least Auklet",
        '"a/2, 3.jpg",Least Auklet,Brewer Blackbird',
        "a/4.jpg,Least Auklet,Least Auklet",
    ]


def test_hits_are_where_class_and_prediction_agree(folder):
    hits = predictions.read_hits(folder)
    assert hits.keys.tolist() == ["a/1.jpg", "a/2, 3.jpg", "a/4.jpg"]
    assert hits.right.tolist() == [True, False, True]


def test_no_file_is_no_prediction(tmp_path):
    assert predictions.read_hits(tmp_path) is None


@pytest.mark.parametrize("text", ["", "image,class,predicted\n", "image,class\n", "a\nb,c,d\n"])
def test_other_files_are_named(folder, text):
    (folder / predictions.FILE).write_text(text)
    with pytest.raises(InputError, match=rf"{folder}/predictions\.csv must hold lines of image,"):
        predictions.read_hits(folder)
