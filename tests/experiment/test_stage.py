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

from refilled_tf.common.errors import InputError
from refilled_tf.data.episodes import Episodes
from refilled_tf.data.task import Data, Task
from refilled_tf.experiment import checks, loading, training
from refilled_tf.experiment.run import Run, check_folder
from refilled_tf.experiment.stage import Stage
from refilled_tf.few_shot.base import Protocol, Selection
from refilled_tf.few_shot.feat import Feat
from refilled_tf.few_shot.fine_tune import FineTune
from refilled_tf.few_shot.maml import InnerLoop, Maml
from refilled_tf.few_shot.protonet import NearestPrototype, ProtoNet
from refilled_tf.few_shot.refilled import Refilled
from refilled_tf.few_shot.svm import LinearSvm
from refilled_tf.models.mobilenet import MobileNet
from refilled_tf.objectives.distillation import Distillation
from refilled_tf.objectives.fitnet import FitNet
from refilled_tf.objectives.joint import JointDistillation
from refilled_tf.objectives.local import LocalDistillation
from refilled_tf.objectives.relationship import RelationshipMatching
from refilled_tf.objectives.rkd import RelationalDistillation
from refilled_tf.objectives.vid import VariationalInformation

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
        check_folder(changed, run)


def test_a_changed_parent_is_named(run):
    # The stage's own options are the same; its teacher would be another network.
    training.train(tiny.first(), run)
    with pytest.raises(InputError, match="parent teacher = "):
        check_folder(tiny.first(teacher=tiny.teacher(seed=1)), run)


def test_a_distilled_method_is_a_setting():
    settings = tiny.first(objective=Distillation(FitNet(weight=2.0))).settings()
    assert settings["Stage.objective"] == "Distillation"
    assert settings["Distillation.method"] == "FitNet"
    assert settings["FitNet.weight"] == 2.0
    assert settings["FitNet.layers"] == ["f2"]


def test_name_in_the_table_is_no_setting(run):
    check_folder(tiny.teacher(method="Another name"), run)


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
        (RelationalDistillation, "angle_weight"),
        (functools.partial(Distillation, FitNet()), "cross_entropy_weight"),
    ],
)
def test_what_adds_is_not_negative(kind, option):
    with pytest.raises(InputError, match=rf"\w+\.{option}=-1 must be zero or more"):
        kind(**{option: -1})


def test_cost_of_a_mistake_is_above_zero():
    with pytest.raises(InputError, match=r"LinearSvm\.c=nan must be a finite number"):
        LinearSvm(c=float("nan"))
    with pytest.raises(InputError, match=r"LinearSvm\.c=0 must be above zero"):
        LinearSvm(c=0)


@pytest.mark.parametrize(
    ("spec", "option", "least"),
    [
        (tiny.DATA, "pad", 0),
        (tiny.DATA, "split_seed", 0),
        (tiny.DATA, "image_size", 1),
        (tiny.DATA, "num_classes", 0),
        (Task(tiny.DATA, "student"), "images_per_class", 1),
        (tiny.teacher(), "seed", 0),
        (tiny.RECIPE, "epochs", 1),
        (tiny.RECIPE, "classes_per_batch", 1),
        (tiny.teacher().teacher_cache, "views", 0),
        (Episodes(), "ways", 2),
        (FineTune(), "steps", 1),
        (FineTune(), "group", 1),
        (InnerLoop(), "steps", 1),
        (Maml(), "inner_steps", 1),
    ],
)
def test_what_is_counted_is_a_whole_number(spec, option, least):
    for value in (least - 1, least + 0.5):
        with pytest.raises(InputError, match=rf"\.{option}={value} must be a whole number of at l"):
            dataclasses.replace(spec, **{option: value})


def test_each_of_several_values_is_counted():
    with pytest.raises(InputError, match=r"FineTune\.steps=2\.5 must be a whole number"):
        FineTune(steps=(100, 2.5))


@pytest.mark.parametrize(
    ("make", "option"),
    [
        (lambda: tiny.second(teacher=Stage), r"second/Stage\.teacher"),
        (lambda: tiny.second(teacher=[tiny.teacher(), Stage]), r"second/Stage\.teacher"),
        (lambda: tiny.second(start=Stage), r"second/Stage\.start"),
        (lambda: Task(Data, "student"), r"student\.data"),
        (
            lambda: JointDistillation(RelationshipMatching, LocalDistillation()),
            r"JointDistillation\.relationship",
        ),
    ],
)
def test_class_instead_of_an_object_names_the_option(make, option):
    """In gin @Stage instead of @Stage()."""
    with pytest.raises(InputError, match=rf"{option} = '(Stage|Data|Rel\w+)'.*needs parentheses"):
        make()


def test_no_teacher_in_a_list_is_none():
    with pytest.raises(InputError, match=r"'second'.*needs Stage\.teacher"):
        tiny.second(teacher=[])


@pytest.mark.parametrize("objective", [RelationshipMatching, LocalDistillation])
def test_one_weight_for_all_teachers_is_refused(objective):
    """Only ratios of weights count: one for all would say nothing."""
    with pytest.raises(InputError, match=r"teacher_weights=1\.0 must be one for each teacher"):
        objective(teacher_weights=1.0)


def test_method_of_two_teachers_is_refused_where_one_teaches():
    objective = Distillation(RelationshipMatching(tau_teacher=(2.0, 4.0)))
    with pytest.raises(InputError, match=r"tau_teacher=\(2\.0, 4\.0\) must be one for each of 1 t"):
        tiny.second(objective=objective)


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
    assert Run(tmp_path, None, strategy).is_chief == is_chief


@pytest.mark.parametrize(
    ("error", "fails"), [(tf.errors.UnavailableError, False), (tf.errors.InternalError, True)]
)
def test_a_worker_that_is_gone_already_fails_nobody(run, monkeypatch, error, fails):
    # What TensorFlow raises in an all-reduce whose other side has ended.
    def wait_for_all(self):
        raise error(None, None, "Socket closed")

    monkeypatch.setattr(Run, "wait_for_all", wait_for_all)
    with pytest.raises(error) if fails else contextlib.nullcontext():
        run.leave_together()


# ---- files --------------------------------------------------------------------------------


HISTORY = """epoch,loss,val_loss
0,4.0,NA
1,3.0,NA
1,2.0,NA
2,1.0,NA
"""


def test_history_counts_an_epoch_once_that_was_trained_again(tmp_path):
    """As after a crash between its line and its checkpoint."""
    (tmp_path / "history.csv").write_text(HISTORY)
    history = loading.read_history(tmp_path / "history.csv")
    assert history.keys() == {"epoch", "loss"}
    np.testing.assert_array_equal(history["loss"], [4, 2, 1])


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
        checks.check(tiny.first(objective=objective, **changes), tiny.run_in(tmp_path))
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
    checks.check(same, tiny.run_in(tmp_path))
    # Features have no classes.
    features = tiny.first(objective=Distillation(FitNet(layers=("conv",))))
    checks.check(features, tiny.run_in(tmp_path))


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
        checks.check(tiny.teacher(selection=selection), tiny.run_in(tmp_path))


def test_distillation_needs_a_teacher():
    with pytest.raises(InputError, match=r"objective Distillation, which needs Stage\.teacher"):
        tiny.first(objective=Distillation(kd_weight=0.9), teacher=None)
