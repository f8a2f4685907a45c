"""What a stage refuses, by name: other settings, unreadable files, what cannot be distilled."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import shutil
import types

import numpy as np
import pytest
import tensorflow as tf
import tiny

from refilled_tf import stage, training
from refilled_tf.data.episodes import Episodes
from refilled_tf.data.task import Task
from refilled_tf.errors import InputError
from refilled_tf.few_shot.base import Protocol, Selection
from refilled_tf.few_shot.feat import Feat
from refilled_tf.few_shot.fine_tune import FineTune
from refilled_tf.few_shot.maml import InnerLoop
from refilled_tf.few_shot.protonet import NearestPrototype, ProtoNet
from refilled_tf.few_shot.refilled import Refilled
from refilled_tf.few_shot.svm import LinearSvm
from refilled_tf.learners.distillation import Distillation
from refilled_tf.learners.fitnet import FitNet
from refilled_tf.learners.joint import JointDistillation
from refilled_tf.learners.local import LocalDistillation
from refilled_tf.learners.relationship import RelationshipMatching
from refilled_tf.learners.vid import VariationalInformation
from refilled_tf.models.mobilenet import MobileNet

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


def test_a_distilled_method_is_a_setting():
    settings = tiny.first(objective=Distillation(FitNet(weight=2.0))).settings()
    assert settings["Stage.objective"] == "Distillation"
    assert settings["Distillation.method"] == "FitNet"
    assert settings["FitNet.weight"] == 2.0
    assert settings["FitNet.layers"] == ["f2"]


def test_name_in_the_table_is_no_setting(run):
    stage.check_folder(tiny.teacher(method="Another name"), run)


def test_tasks_of_a_selection_do_not_hide_the_stages_own():
    protocol = Protocol(Task(tiny.DATA, "student", 7), Episodes(ways=2, queries=2, count=3))
    chosen = Selection(protocol, 2, NearestPrototype())
    spec = tiny.teacher(selection=chosen)
    assert spec.settings()["Task.role"] == "teacher"
    assert spec.settings()["selection Task.images_per_class"] == 7
    fewer = tiny.teacher(selection=chosen, task=Task(tiny.DATA, "teacher", 20))
    assert fewer.digest() != spec.digest()


@pytest.mark.parametrize("objective", [RelationshipMatching, LocalDistillation])
def test_what_gin_writes_as_a_list_is_a_tuple(objective):
    """Stages are looked up by what they are, which no list can be."""
    ours = objective(tau_teacher=[2.0, 4.0], teacher_weights=[1.0, 3.0])
    assert ours == objective(tau_teacher=(2.0, 4.0), teacher_weights=(1.0, 3.0))
    hash(ours)


@pytest.mark.parametrize(
    ("kind", "option"),
    [
        (RelationshipMatching, "tau_student"),
        (RelationshipMatching, "tau_teacher"),
        (RelationshipMatching, "margin"),
        (LocalDistillation, "tau_student"),
        (Refilled, "tau_teacher"),
        (ProtoNet, "temperature"),
        (Feat, "contrastive_temperature"),
    ],
)
def test_what_is_divided_by_is_above_zero(kind, option):
    for value in (0.0, -1.0):
        with pytest.raises(InputError, match=rf"{kind.__name__}\.{option}={value} must be above"):
            kind(**{option: value})


@pytest.mark.parametrize(
    ("kind", "option"),
    [
        (RelationshipMatching, "weight"),
        (LocalDistillation, "weight"),
        (LocalDistillation, "decay"),
        (FitNet, "weight"),
        (Refilled, "weight"),
        (Refilled, "learning_rate"),
        (InnerLoop, "learning_rate"),
        (
            functools.partial(JointDistillation, RelationshipMatching(), LocalDistillation()),
            "gamma",
        ),
        (functools.partial(dataclasses.replace, tiny.DATA), "pad"),
    ],
)
def test_what_adds_is_not_negative(kind, option):
    with pytest.raises(InputError, match=rf"\w+\.{option}=-1 must be zero or more"):
        kind(**{option: -1})


@pytest.mark.parametrize(
    ("kind", "option"),
    [(FineTune, "steps"), (InnerLoop, "steps"), (InnerLoop, "group"), (LinearSvm, "c")],
)
def test_what_is_counted_is_above_zero(kind, option):
    with pytest.raises(InputError, match=rf"{kind.__name__}\.{option}=0 must be above zero"):
        kind(**{option: 0})


@pytest.mark.parametrize(
    ("jobs", "task", "is_chief"),
    [
        (["worker"], ("worker", 0), True),
        (["worker"], ("worker", 1), False),
        (["chief", "worker"], ("chief", 0), True),
        (["chief", "worker"], ("worker", 0), False),
    ],
)
def test_one_of_the_workers_writes(tmp_path, jobs, task, is_chief):
    """TensorFlow's documentation of TF_CONFIG: the job "chief", where there is one."""
    spec = tf.train.ClusterSpec({job: ["localhost:1", "localhost:2"] for job in jobs})
    resolver = tf.distribute.cluster_resolver.SimpleClusterResolver(spec, "", *task)
    strategy = types.SimpleNamespace(cluster_resolver=resolver)
    assert stage.Run(tmp_path, None, strategy).is_chief == is_chief


@pytest.mark.parametrize(
    ("error", "fails"), [(tf.errors.UnavailableError, False), (tf.errors.InternalError, True)]
)
def test_a_worker_that_is_gone_already_fails_nobody(run, monkeypatch, error, fails):
    # What TensorFlow raises in an all-reduce whose other side has ended.
    def wait_for_all(self):
        raise error(None, None, "Socket closed")

    monkeypatch.setattr(stage.Run, "wait_for_all", wait_for_all)
    with pytest.raises(error) if fails else contextlib.nullcontext():
        run.leave_together()


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


def test_resumed_stage_goes_on_with_its_adapter(run, finished, tmp_path):
    # Only an adapter as it was after the first epoch teaches the student the same in the second.
    spec = tiny.first(objective=Distillation(VariationalInformation(layers=("conv", "relu"))))
    shutil.copytree(finished, tmp_path / "unbroken")
    training.train(spec, tiny.run_in(tmp_path / "unbroken"))
    tiny.train_until(1, spec, run)
    assert training.train(spec, run)["epochs"] == 2
    weights = tiny.saved_weights(tmp_path / "unbroken", spec.name)
    for a, b in zip(weights, tiny.saved_weights(run.work_dir, spec.name), strict=True):
        np.testing.assert_array_equal(a, b)


# ---- what cannot be distilled -------------------------------------------------------------


def _refusal(tmp_path, objective, **changes):
    """What the check says before anything, the teacher included, is trained or written."""
    with pytest.raises(InputError) as caught:
        stage.check(tiny.first(objective=objective, **changes), tiny.run_in(tmp_path))
    assert not list(tmp_path.iterdir())
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_features_of_other_sizes_are_refused_with_both_shapes(tmp_path):
    data = dataclasses.replace(tiny.DATA, image_size=32, load_size=32)
    teacher = tiny.teacher(task=Task(data, "teacher"), backbone=MobileNet(0.5, stem_stride=1))
    message = _refusal(
        tmp_path,
        Distillation(FitNet()),
        task=Task(data, "student"),
        backbone=MobileNet(0.25),
        teacher=teacher,
    )
    assert "'f2' is 4×4×64 in the student and 16×16×64 in the teacher" in message


def test_unknown_layer_is_refused_with_the_known_ones(tmp_path):
    message = _refusal(tmp_path, Distillation(FitNet(layers=("f9",))))
    assert "no layer 'f9'" in message
    assert "conv, norm, relu, flatten" in message


def test_vectors_are_no_features(tmp_path):
    message = _refusal(tmp_path, Distillation(FitNet(layers=("flatten",))))
    assert "'flatten' is 36 in the student and 36 in the teacher" in message


def test_kd_needs_a_teacher_of_the_students_classes(tmp_path):
    objective = Distillation(kd_weight=0.9)
    message = _refusal(tmp_path, objective)
    assert "'first' has the objective Distillation" in message
    assert "@SharedClasses()" in message
    same = tiny.first(objective=objective, task=Task(tiny.DATA, "teacher"))
    stage.check(same, tiny.run_in(tmp_path))
    # Features have no classes.
    features = tiny.first(objective=Distillation(FitNet(layers=("conv",))))
    stage.check(features, tiny.run_in(tmp_path))


def test_images_too_small_for_the_network_are_refused(tmp_path):
    """Keras's MobileNet takes 32 pixels at least; these are 8."""
    message = _refusal(tmp_path, RelationshipMatching(), backbone=MobileNet(0.25))
    assert "MobileNet takes images from 32×32 on" in message


def test_start_of_another_width_is_refused(tmp_path):
    start = tiny.first(name="narrow", backbone=tiny.TinyNetwork(2))
    message = _refusal(tmp_path, LocalDistillation(), start=start)
    assert "layer 'conv' has weights [(3, 3, 3, 4)], but [(3, 3, 3, 2)]" in message


def test_learner_of_a_selection_must_fit_the_network(tmp_path):
    tasks = Protocol(Task(tiny.DATA, "student"), Episodes(ways=2, queries=2, count=2))
    selection = Selection(tasks, 1, FineTune(first="block9"))
    with pytest.raises(InputError, match="no layer 'block9'"):
        stage.check(tiny.teacher(selection=selection), tiny.run_in(tmp_path))


def test_distillation_needs_a_teacher():
    with pytest.raises(InputError, match=r"objective Distillation, which needs Stage\.teacher"):
        tiny.first(objective=Distillation(kd_weight=0.9), teacher=None)
