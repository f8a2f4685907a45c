"""What an export starts from, where a teacher has seen larger views than the student."""

from __future__ import annotations

import numpy as np
import pytest
import tiny

from export import trained
from refilled_tf.common import gin_files, storage
from refilled_tf.experiment import config, training

GIN = f"""{tiny.GIN}
Experiment.rows = [@student/Stage()]
Data.load_size = 24
Data.view_size = 16
Data.image_size = 8
"""


def test_accuracy_is_of_images_as_the_export_takes_them(tmp_path):
    """Loaded at 24·8/16 = 12 pixels, of which the centre begins at (12 - 8) / 2 = 2."""
    (tmp_path / "views.gin").write_text(GIN)
    spec = config.load_experiment([tmp_path / "views.gin"])
    work_dir = tmp_path / "work"
    storage.write_text(work_dir / gin_files.OPERATIVE, config.operative_config())
    (student,) = spec.stages()
    training.train(student, tiny.run_in(work_dir))
    known = trained.load(work_dir, "student", None)
    images = known.data.test.images
    assert images.shape[1:] == (12, 12, 3)
    logits = known.network(images[:, 2:10, 2:10].astype(np.float32), training=False)["logits"]
    right = np.argmax(logits, axis=-1) == known.data.test.labels
    assert known.result["accuracy"] == pytest.approx(right.mean())
    assert known.result["images"] == len(right)
