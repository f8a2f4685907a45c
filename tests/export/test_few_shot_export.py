"""Students of few-shot tasks as exports: what `trained.load` makes of a row's task."""

from __future__ import annotations

import commands
import numpy as np
import pytest
import tensorflow as tf
import tiny
from tiny_few_shot import GIN

from export import trained, versions
from refilled_tf.common import gin_files, storage
from refilled_tf.common.errors import InputError
from refilled_tf.data import episodes
from refilled_tf.experiment import config, experiment
from refilled_tf.models import networks

pytestmark = pytest.mark.slow

ROWS = """
Experiment.rows = [
    @svm/trials(), @fine_tune/trials(), @protonet/trials(), @refilled_convnet/trials()
]
trials.shots = (2,)
test/Episodes.count = 4
"""
EXPORTED = ("fine_tune_2_shot", "protonet_trials_2_shot", "refilled_convnet_2_shot")


@pytest.fixture(scope="module")
def finished_rows(tmp_path_factory):
    """A training of which all rows are finished, and the rows by name."""
    work_dir = tmp_path_factory.mktemp("few_shot_export")
    (work_dir / "few_shot.gin").write_text(GIN + ROWS)
    spec = config.load_experiment([work_dir / "few_shot.gin"])
    storage.write_text(work_dir / gin_files.OPERATIVE, config.operative_config())
    experiment.finish_rows(spec, tiny.run_in(work_dir), ["few_shot.gin"], "command")
    return work_dir, {row.name: row for row in spec.rows}


@pytest.mark.parametrize("name", EXPORTED)
def test_network_of_a_task_answers_as_the_row_was_scored(name, finished_rows):
    work_dir, rows = finished_rows
    row = rows[name]
    tasks, run = row.test.tasks(row.shots, None), tiny.run_in(work_dir)
    wanted = row.chosen(run).answers(row.networks(run), row.test.pool(None), tasks)
    scored = storage.read_json(work_dir / "stages" / name / "result.json")["accuracies"]
    names = episodes.facts(row.test.task).class_names
    for number in (0, 3):
        model = trained.load(work_dir, name, None, number)
        assert model.data.class_names == tuple(names[c] for c in tasks.classes[number])
        assert len(model.data.train.labels) == 3 * row.shots
        images = model.data.test.images.astype(np.float32)
        answers = networks.outputs_of(model.network, [images])["logits"].argmax(axis=1)
        np.testing.assert_array_equal(answers, wanted[number])
        accuracy = np.mean(answers == model.data.test.labels)
        assert accuracy == pytest.approx(scored[number], abs=1e-6)
        assert model.result["accuracy"] == pytest.approx(scored[number], abs=1e-6)


def test_saved_model_knows_the_tasks_classes(finished_rows, tmp_path):
    work_dir, _ = finished_rows
    flags = (f"--work_dir={work_dir}", f"--export_dir={tmp_path / 'exports'}")
    done = commands.run("export.saved_model", *flags, "--stage=refilled_convnet_2_shot", "--task=1")
    assert done.returncode == 0, done.stderr
    (number,) = versions.existing(tmp_path / "exports")
    version = tmp_path / "exports" / str(number)
    model = trained.load(work_dir, "refilled_convnet_2_shot", None, 1)
    assert (version / "assets/classes.txt").read_text().splitlines() == list(model.data.class_names)
    signature = tf.saved_model.load(str(version)).signatures["serving_tensor"]
    images = tf.constant(model.data.test.images, tf.float32)
    wanted = tf.nn.softmax(model.network(images, training=False)["logits"])
    np.testing.assert_allclose(signature(images)["probabilities"], wanted, atol=1e-5)
    card = (version / "model_card.md").read_text()
    assert "6, 2 of every class" in card
    assert "`convnet`" in card  # the teacher


@pytest.mark.parametrize(
    ("name", "number", "message"),
    [
        ("svm_2_shot", 0, "LinearSvm does not make a network of a task"),
        ("fine_tune_2_shot", 4, "--task=4: fine_tune_2_shot has the tasks 0 to 3"),
        ("fine_tune_2_shot", -1, "--task=-1"),
        ("fine_tune_3_shot", None, r"--stage=fine_tune_3_shot .*fine_tune_2_shot"),
        (None, None, r"--stage.*fine_tune_2_shot"),
        ("convnet", 1, r"--task=1 goes with a row.*--stage=convnet"),
    ],
)
def test_what_cannot_be_exported_is_named(name, number, message, finished_rows):
    with pytest.raises(InputError, match=message):
        trained.load(finished_rows[0], name, None, number)


def test_classifier_of_the_seen_classes_is_a_stage_like_any_other(finished_rows):
    assert len(trained.load(finished_rows[0], "convnet", None).data.class_names) == 4


def test_unfinished_row_is_named(finished_rows):
    work_dir, _ = finished_rows
    result = work_dir / "stages/fine_tune_2_shot/result.json"
    text = result.read_text()
    result.unlink()
    try:
        with pytest.raises(InputError, match="fine_tune_2_shot is not scored yet"):
            trained.load(work_dir, "fine_tune_2_shot", None)
    finally:
        result.write_text(text)
