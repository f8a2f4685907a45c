"""A stage's folder: other settings and unreadable files are refused, by name."""

from __future__ import annotations

import dataclasses

import pytest
import tiny

from refilled_tf import stage, training
from refilled_tf.data.task import Task
from refilled_tf.errors import InputError
from refilled_tf.learners.relationship import RelationshipMatching

# ---- settings ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"recipe": dataclasses.replace(tiny.RECIPE, epochs=3)}, "Recipe.epochs = 2 there, 3 now"),
        ({"backbone": tiny.TinyNetwork(5)}, "TinyNetwork.filters = 4 there, 5 now"),
        ({"seed": 1}, "Stage.seed = 0 there, 1 now"),
        ({"task": Task(tiny.DATA, "student")}, "Task.role = 'teacher' there, 'student' now"),
        (
            {"task": Task(tiny.DATA, "teacher", holdout=0.5)},
            "Task.holdout = 0.0 there, 0.5 now",
        ),
        (
            {"recipe": dataclasses.replace(tiny.RECIPE, milestones=())},
            "Recipe.milestones = [0.5] there, [] now",
        ),
    ],
)
def test_other_settings_are_refused(run, change, named):
    with pytest.raises(InputError) as caught:
        training.train(tiny.teacher(**change), run)
    assert named in str(caught.value)
    assert str(run.folder(tiny.teacher())) in str(caught.value)
    # The one setting that differs is the only one named.
    assert str(caught.value).count(" there, ") == 1
    assert "\n" not in str(caught.value)


def test_a_changed_objective_is_named_with_its_options(run):
    training.train(tiny.first(), run)
    changed = tiny.first(objective=RelationshipMatching(weight=11.0))
    with pytest.raises(InputError, match=r"RelationshipMatching\.weight = 10\.0 there, 11\.0 now"):
        stage.check_folder(changed, run)


def test_a_changed_parent_is_named(run):
    # The stage's own options are the same; its teacher would be another network.
    training.train(tiny.first(), run)
    with pytest.raises(InputError, match="parent teacher = "):
        stage.check_folder(tiny.first(teacher=tiny.teacher(seed=1)), run)


def test_name_in_the_table_is_no_setting(run):
    stage.check_folder(tiny.teacher(method="Another name"), run)


# ---- files --------------------------------------------------------------------------------


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"settings": 3}', ""])
def test_unreadable_stage_json(run, content):
    path = run.folder(tiny.teacher()) / "stage.json"
    path.write_text(content)
    with pytest.raises(InputError) as caught:
        training.train(tiny.teacher(), run)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("content", ["{", ""])
def test_unreadable_result_json(run, content):
    path = run.folder(tiny.teacher()) / "result.json"
    path.write_text(content)
    with pytest.raises(InputError) as caught:
        training.train(tiny.teacher(), run)
    assert str(path) in str(caught.value)


def test_truncated_network(run):
    path = run.folder(tiny.teacher()) / "model.keras"
    tiny.truncate(path)
    with pytest.raises(InputError) as caught:
        training.train(tiny.first(), run)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_network(run):
    path = run.folder(tiny.teacher()) / "model.keras"
    path.unlink()
    with pytest.raises(InputError) as caught:
        training.train(tiny.first(), run)
    assert str(path) in str(caught.value)
