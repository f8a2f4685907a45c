"""Rows of few-shot learning end to end on the digits: trained, chosen, scored, resumed."""

from __future__ import annotations

import dataclasses
import json
from typing import ClassVar

import numpy as np
import pytest
import tiny
from tiny_few_shot import GIN

from refilled_tf.common.errors import InputError
from refilled_tf.experiment import config, experiment, loading, trials
from refilled_tf.few_shot.svm import LinearSvm
from refilled_tf.models.embedding_files import EmbeddingFile
from refilled_tf.objectives.pretrained import Pretrained
from refilled_tf.reporting import report

pytestmark = pytest.mark.slow

ONLY_SVM = "Experiment.rows = [@svm/trials()]"


@pytest.fixture(scope="module")
def spec(tmp_path_factory):
    path = tmp_path_factory.mktemp("gin") / "few_shot.gin"
    path.write_text(GIN)
    return config.load_experiment([path])


@pytest.fixture(scope="module")
def outcome(spec, tmp_path_factory):
    run = tiny.run_in(tmp_path_factory.mktemp("few_shot"))
    experiment.check(spec, run)
    return run, experiment.finish_rows(spec, run, ["few_shot.gin"], "command")


def test_every_method_has_a_row_for_each_number_of_shots(outcome):
    rows = outcome[1]["rows"]
    methods = [
        *("1NN", "SVM", "Fine-Tune", "ProtoNet", "FEAT"),
        *("REFILLED, ResNet-12 teacher", "REFILLED, ConvNet-4 teacher", "MAML"),
    ]
    assert [(row["method"], row["shots"]) for row in rows] == [
        (method, shots) for method in methods for shots in (1, 4)
    ]
    for row in rows:
        assert row["images"] == 20 * 3 * 15
        assert row["split"] == "student"
        assert 0 <= row["accuracy"] <= 1
        assert row["interval"] > 0


def test_embeddings_of_other_digits_beat_chance(outcome):
    """Chance is 1/3; even a tiny network's embedding of digits is far above it."""
    by_row = {(row["method"], row["shots"]): row["accuracy"] for row in outcome[1]["rows"]}
    assert by_row["1NN", 4] > 0.45
    assert by_row["ProtoNet", 4] > 0.45


def test_table_has_a_column_for_each_number_of_shots(outcome):
    header, _, *lines = report.table(outcome[1]["rows"]).splitlines()
    assert [cell.strip() for cell in header.strip("|").split("|")] == ["Method", "1-shot", "4-shot"]
    assert len(lines) == 8
    row = outcome[1]["rows"][0]
    assert f"{100 * row['accuracy']:.2f} ± {100 * row['interval']:.2f}" in lines[0]


def test_folder_holds_every_tasks_accuracy_and_what_was_chosen(outcome):
    run, results = outcome
    for row in results["rows"]:
        kept = json.loads((run.work_dir / "stages" / row["stage"] / "result.json").read_text())
        accuracies = np.array(kept["accuracies"])
        assert len(accuracies) == 20
        assert accuracies.mean() == pytest.approx(row["accuracy"], abs=1e-6)
        # The 95 % interval of a mean, by hand.
        half = 1.96 * accuracies.std(ddof=1) / np.sqrt(20)
        assert half == pytest.approx(row["interval"], rel=1e-3)


def test_best_candidate_on_validation_is_chosen(outcome):
    run, results = outcome
    row = next(r for r in results["rows"] if r["method"] == "Fine-Tune")
    kept = json.loads((run.work_dir / "stages" / row["stage"] / "result.json").read_text())
    assert [c["first"] for c in kept["candidates"]] == ["logits", "block4_conv"]
    best = max(kept["candidates"], key=lambda candidate: candidate["accuracy"])
    assert row["chosen"] == {"first": best["first"]}


@dataclasses.dataclass(frozen=True)
class _Spy(LinearSvm):
    """Keeps which images it was asked about; c = 2 is right in half of the validation's queries."""

    asked: ClassVar[list] = []

    def accuracies(self, networks, pool, tasks):
        self.asked.append((self.c, set(pool.examples.keys)))
        return np.full(len(tasks.classes), 0.5 if self.c == 2 else 0.25)


def test_validation_images_choose_and_test_images_score(spec, outcome):
    run, _ = outcome
    row = next(row for row in spec.rows if row.name == "svm_4_shot")
    _Spy.asked.clear()
    result = dataclasses.replace(row, name="spy", learner=_Spy(c=(1, 2, 3))).score(run)
    assert result["chosen"] == {"c": 2}
    validation, test = (
        set(protocol.pool(None).examples.keys) for protocol in (row.validation, row.test)
    )
    assert _Spy.asked == [(1, validation), (2, validation), (3, validation), (2, test)]
    assert not validation & test


def test_teacher_is_the_named_stages_network(spec, outcome):
    run, _ = outcome
    row = next(row for row in spec.rows if row.name.startswith("refilled_resnet12"))
    known = row.networks(run)
    for network, stage in ((known.teacher, row.teacher), (known.student, row.network)):
        saved = loading.load_network(stage, run).get_weights()
        for mine, there in zip(network.get_weights(), saved, strict=True):
            np.testing.assert_array_equal(mine, there)
    assert known.teacher.count_params() != known.student.count_params()


def test_finished_row_is_not_scored_again(spec, outcome, monkeypatch):
    run, results = outcome
    monkeypatch.setattr(trials.Trials, "networks", None)
    again = experiment.finish_rows(spec, run, ["few_shot.gin"], "command")
    assert again["rows"] == results["rows"]


def test_selection_keeps_the_best_epoch(spec, outcome):
    run, _ = outcome
    by_name = {stage.name: stage for stage in spec.stages()}
    for name in ("protonet", "feat", "maml"):
        stage = by_name[name]
        kept = json.loads((run.folder(stage) / "result.json").read_text())
        known = trials.Networks(loading.load_network(stage, run), loading.load_head(stage, run))
        assert 1 <= kept["selection"]["epoch"] <= 2
        score = stage.selection.score(known, None)
        assert score == pytest.approx(kept["selection"]["accuracy"])


def test_row_of_other_settings_is_refused(spec, outcome):
    run, _ = outcome
    row = next(row for row in spec.rows if row.name == "svm_4_shot")
    changed = dataclasses.replace(row, learner=LinearSvm(c=(1.0,)))
    with pytest.raises(InputError, match=r"svm_4_shot.*LinearSvm\.c"):
        changed.check(run)


def test_test_and_validation_tasks_are_settings_of_their_own(spec):
    """Both have an `Episodes.count`: GIN gives the tests 20 tasks and validation 8."""
    settings = spec.rows[0].settings()
    assert settings["test Episodes.count"] == 20
    assert settings["validation Episodes.count"] == 8
    assert "Episodes.count" not in settings


def test_name_in_the_table_is_no_setting(spec, outcome):
    run, _ = outcome
    row = next(row for row in spec.rows if row.name == "svm_4_shot")
    dataclasses.replace(row, method="Another name").check(run)


@pytest.mark.parametrize(
    ("params", "culprit"),
    [
        (["trials.shots = (200,)"], r"class '\d' has \d+ images.*shots=200"),
        (["Episodes.ways = 4", ONLY_SVM], r"Episodes\.ways=4 exceeds the 3 classes"),
        (["RandomParts.validation = 0"], r"validation"),
        (["FineTune.first = ('logits', 'block7')"], r"no layer 'block7'.*block4_conv"),
        (["fine_tune/trials.network = @resnet12/Stage()"], r"no layer 'block4_conv'"),
        (["meta/Recipe.batch_size = 20"], r"Recipe\.batch_size=20"),
    ],
)
def test_impossible_tasks_are_refused_before_training(params, culprit, tmp_path):
    (tmp_path / "few_shot.gin").write_text(GIN)
    bad = config.load_experiment([tmp_path / "few_shot.gin"], params)
    with pytest.raises(InputError, match=culprit):
        experiment.check(bad, tiny.run_in(tmp_path / "work"))
    assert not (tmp_path / "work").exists()


@pytest.mark.parametrize(
    ("params", "culprit"),
    [
        (["Maml.ways = 2"], r"InnerLoop.*Maml\.ways=2.*Episodes\.ways=3"),
        (["maml/trials.network = @convnet/Stage()"], r"InnerLoop.*Maml.*CrossEntropy"),
        (["feat/trials.network = @convnet/Stage()"], r"AdaptedPrototypes.*Feat.*CrossEntropy"),
        (["refilled_convnet/trials.teacher = None"], r"refilled_convnet_1.*needs trials\.teacher"),
        (["trials.test = @Episodes()"], r"trials\.test.*Protocol"),
        (
            ["refilled_convnet/trials.teacher = (@resnet12/Stage(), @convnet/Stage())"],
            r"refilled_convnet_1.*trials\.teacher = \(",
        ),
        (["protonet/Selection.learner = @Refilled()"], r"Selection\.learner=.*needs a teacher"),
    ],
)
def test_learner_gets_what_it_needs(params, culprit, tmp_path):
    (tmp_path / "few_shot.gin").write_text(GIN)
    with pytest.raises(InputError, match=culprit):
        config.load_experiment([tmp_path / "few_shot.gin"], params)


def test_teacher_without_a_network_is_refused(spec, outcome, tmp_path):
    """It knows images of a dataset, and the learner asks about augmented ones."""
    np.savez(tmp_path / "known.npz", paths=["a"], embeddings=np.ones((1, 4), np.float32))
    file = EmbeddingFile(str(tmp_path / "known.npz"))
    row = next(row for row in spec.rows if row.name == "refilled_resnet12_1_shot")
    teacher = dataclasses.replace(row.teacher, backbone=file, objective=Pretrained())
    with pytest.raises(InputError, match=r"EmbeddingFile\.file=.*nor teach tasks of few images"):
        dataclasses.replace(row, name="mine", teacher=teacher).check(outcome[0])


def test_interval_by_hand():
    # Mean .5, standard deviation of (0, 1) with ddof 1 is √.5: 1.96·√.5/√2 = .98.
    assert trials.mean_and_interval(np.array([0.0, 1.0])) == pytest.approx((0.5, 0.98))
