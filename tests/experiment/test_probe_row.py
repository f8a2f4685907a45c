"""A row without training, against scikit-learn's own estimators on what the saved network says."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf
import tiny
from sklearn.neighbors import KNeighborsClassifier, NearestCentroid
from sklearn.preprocessing import normalize

from refilled_tf.common.errors import InputError
from refilled_tf.data.task import Task, load
from refilled_tf.evaluation.embedding import logistic_regression_accuracy
from refilled_tf.experiment.probe_row import Probe

STUDENT = Task(tiny.DATA, "student")


def _sides(work_dir):
    """What the teacher's file makes of the student's images: training and test, with labels."""
    network = tf.keras.models.load_model(work_dir / "stages/teacher/model.keras", compile=False)
    data = load(STUDENT, None)
    for part in (data.train, data.test):
        size = part.images.shape[1]
        assert size == tiny.DATA.image_size  # no crop to take
        yield network(part.images.astype(np.float32), training=False)["embedding"].numpy()
        yield part.labels


@pytest.mark.parametrize("classifier", ["1nn", "logistic_regression"])
def test_score_is_that_of_the_saved_network(classifier, run):
    train, train_labels, test, test_labels = _sides(run.work_dir)
    result = Probe("probe", "", STUDENT, tiny.teacher(), classifier).score(run)
    units = normalize(train), train_labels
    quality = result["embedding"]
    nearest = KNeighborsClassifier(1).fit(*units).score(normalize(test), test_labels)
    assert quality["1nn"] == pytest.approx(nearest)
    centers = NearestCentroid().fit(*units)
    centers.centroids_ = normalize(centers.centroids_)
    assert quality["ncm"] == pytest.approx(centers.score(normalize(test), test_labels))
    # The other classifier, or training images among the test, would give another number.
    regression = logistic_regression_accuracy(train, train_labels, test, test_labels, 0)
    assert regression != pytest.approx(nearest)
    wanted = {"1nn": nearest, "logistic_regression": regression}
    assert result["accuracy"] == pytest.approx(wanted[classifier])
    assert result["images"] == len(test_labels)


@pytest.mark.parametrize(
    ("change", "culprit"),
    [
        ({"name": "../probe"}, r"Probe\.name='\.\./probe' names a folder"),
        ({"task": tiny.DATA}, r"probe/Probe\.task.*@student\(\)"),
        ({"teacher": tiny.teacher}, r"probe/Probe\.teacher.*@teacher/Stage\(\)"),
        ({"classifier": "svm"}, r"Probe\.classifier='svm' must be one of 1nn, logistic_regression"),
    ],
)
def test_bad_option_is_named(change, culprit):
    options = {"name": "probe", "method": "", "task": STUDENT, "teacher": tiny.teacher()}
    with pytest.raises(InputError, match=culprit):
        Probe(**{**options, "classifier": "1nn", **change})
