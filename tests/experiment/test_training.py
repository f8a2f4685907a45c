"""Stages found finished, resumed, killed and diverging.

Expected weights are those of the same stage trained without a break.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
import signal
import time
import types

import commands
import numpy as np
import pytest
import tensorflow as tf
import tiny
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import NearestCentroid
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler, normalize

from refilled_tf.common import storage
from refilled_tf.common.errors import InputError
from refilled_tf.data import batches, unlabelled
from refilled_tf.data.episodes import Episodes
from refilled_tf.data.recipe import Recipe
from refilled_tf.data.sources import Digits
from refilled_tf.data.task import Task, load, read_index
from refilled_tf.experiment import predictions, training
from refilled_tf.experiment.loading import load_head, load_network, outputs
from refilled_tf.experiment.stage import TeacherCache
from refilled_tf.few_shot.base import Protocol, Selection
from refilled_tf.few_shot.feat import AdaptedPrototypes, Feat
from refilled_tf.objectives.base import Learner
from refilled_tf.objectives.local import LocalDistillation
from refilled_tf.objectives.probe_distillation import ProbeDistillation
from refilled_tf.objectives.refit import Refit

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def _every_epoch_saved(monkeypatch):
    """An epoch of these tests is too short to be saved otherwise, unless it is the last."""
    monkeypatch.setattr(training, "SAVE_STEPS", 1)


def _poison(monkeypatch):
    def fit(*args, **kwargs):
        raise AssertionError("trained again")

    monkeypatch.setattr(Learner, "fit", fit)


def test_finished_stage_is_not_trained_again(run, monkeypatch):
    folder = run.folder(tiny.teacher())
    written = json.loads((folder / "result.json").read_text())
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    _poison(monkeypatch)
    assert training.train(tiny.teacher(), run) == written
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


def test_predictions_are_those_of_the_accuracy(run):
    teacher = tiny.teacher()
    hits, data = predictions.read_hits(run.folder(teacher)), load(teacher.task, None)
    result = json.loads((run.folder(teacher) / "result.json").read_text())
    assert hits.right.mean() == pytest.approx(result["accuracy"])
    assert hits.keys.tolist() == data.test.keys.tolist()


def test_embedding_is_scored_by_training_and_test_images(run):
    """The nearest class mean of scikit-learn, on what the saved network says of either part."""
    spec = tiny.first()
    result = training.train(spec, run)
    data, network = load(spec.task, None), load_network(spec, run)
    train, test = (
        normalize(network(part.images.astype(np.float32), training=False)["embedding"])
        for part in (data.train, data.test)
    )
    centers = NearestCentroid().fit(train, data.train.labels)
    centers.centroids_ = normalize(centers.centroids_)
    assert result["embedding"]["ncm"] == pytest.approx(centers.score(test, data.test.labels))


# ---- what reaches the learner -------------------------------------------------------------


def test_second_stage_starts_from_the_firsts_embedding(run, built):
    training.train(tiny.first(), run)
    training.train(tiny.second(), run)
    _, start = built[-1]
    *embedding, kernel, bias = start["student"]  # and the top layer, which is fresh
    for mine, there in zip(embedding, tiny.saved_weights(run.work_dir, "first"), strict=True):
        np.testing.assert_array_equal(mine, there)
    assert kernel.shape[1:] == bias.shape


def test_initial_weights_are_the_seeds(run, built):
    for name, seed in (("a", 0), ("b", 1), ("c", 1)):
        training.train(tiny.first(name=name, seed=seed), run)
    zero, one, again = (start["student"][0] for _, start in built)
    np.testing.assert_array_equal(one, again)
    assert np.abs(zero - one).max() > 0.1


def test_global_centers_are_means_of_training_images(run, built):
    """Of the teacher's embeddings, un-augmented, and normalised after the mean alone."""
    spec = tiny.second(objective=LocalDistillation(centers="global"), start=None)
    training.train(spec, run)
    data, network = load(spec.task, None), load_network(spec.teacher, run)
    said = network(data.train.images.astype(np.float32), training=False)["embedding"].numpy()
    means = [said[data.train.labels == c].mean(axis=0) for c in range(len(data.class_names))]
    centers = built[0][0].fitted["centers"]
    np.testing.assert_allclose(centers, normalize(means), atol=1e-5)


def test_recipe_reaches_learner_and_batches(run, built, monkeypatch):
    seen = []

    def kept(examples, data, order, *others):
        seen.append(examples.labels[order])
        return batches.training_batches(examples, data, order, *others)

    monkeypatch.setattr(
        training, "batches", types.SimpleNamespace(**vars(batches) | {"training_batches": kept})
    )
    recipe = dataclasses.replace(
        tiny.RECIPE, batch_size=12, classes_per_batch=3, embedding_rate=0.25, epochs=1
    )
    training.train(tiny.second(start=None, recipe=recipe), run)
    assert built[0][0].embedding_rate == 0.25
    (labels,) = seen
    # Class-balanced: 3 classes × 4 images, class by class.
    for batch in labels:
        assert [len(set(group)) for group in np.split(batch, 3)] == [1, 1, 1]
        assert len(set(batch)) == 3


def test_precision_is_the_stages_own(run):
    recipe = dataclasses.replace(tiny.RECIPE, precision="mixed_bfloat16", epochs=1)
    training.train(tiny.first(recipe=recipe), run)
    network = load_network(tiny.first(recipe=recipe), run)
    assert network.get_layer("conv").dtype_policy.name == "mixed_bfloat16"
    assert tf.keras.mixed_precision.global_policy().name == "float32"


@pytest.mark.parametrize("pattern", ["*.index", "*.data-*", "checkpoint"])
def test_truncated_checkpoint(run, monkeypatch, pattern):
    folder = tiny.train_until(1, tiny.first(), run)
    (path,) = folder.glob(pattern)
    tiny.truncate(path)
    _poison(monkeypatch)
    with pytest.raises(InputError) as caught:
        training.train(tiny.first(), run)
    assert str(folder) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (folder.parent / "model.keras").exists()


def test_kill_during_the_first_checkpoint_starts_afresh(run, monkeypatch):
    # The file that names the newest checkpoint is written last, so it may be missing.
    folder = tiny.train_until(1, tiny.first(), run)
    (folder / "checkpoint").unlink()
    _poison(monkeypatch)
    with pytest.raises(AssertionError, match="trained again"):
        training.train(tiny.first(), run)


def test_missing_checkpoint_is_named(run):
    folder = tiny.train_until(1, tiny.first(), run)
    (folder / "ckpt-1.index").unlink()
    with pytest.raises(InputError) as caught:
        training.train(tiny.first(), run)
    assert str(folder / "checkpoint") in str(caught.value)


@pytest.mark.parametrize("devices", [1, 2])
def test_resumed_stage_is_the_unbroken_one(devices, run, finished, tmp_path):
    # Half precision too: its loss scale is part of what is kept.
    recipe = dataclasses.replace(tiny.RECIPE, epochs=3, precision="mixed_float16")
    spec = tiny.first(recipe=recipe)
    run = tiny.run_in(run.work_dir, devices)
    shutil.copytree(finished, tmp_path / "unbroken")
    unbroken = training.train(spec, tiny.run_in(tmp_path / "unbroken", devices))
    checkpoints = tiny.train_until(2, spec, run)
    assert {path.name for path in checkpoints.glob("*.index")} == {"ckpt-1.index", "ckpt-2.index"}

    resumed = training.train(spec, run)
    assert resumed["embedding"] == unbroken["embedding"]
    assert resumed["training"] == unbroken["training"]
    weights = tiny.saved_weights(tmp_path / "unbroken", spec.name)
    for a, b in zip(weights, tiny.saved_weights(run.work_dir, spec.name), strict=True):
        np.testing.assert_array_equal(a, b)
    assert not checkpoints.exists()


def test_short_epochs_are_saved_together(run):
    spec = tiny.first(recipe=dataclasses.replace(tiny.RECIPE, epochs=5))
    steps = len(training.load(spec.task, None).train.labels) // spec.recipe.batch_size
    # After two epochs, after two more, and the last in any case.
    checkpoints = tiny.train_until(5, spec, run, save_steps=2 * steps)
    assert {path.name for path in checkpoints.glob("*.index")} == {"ckpt-4.index", "ckpt-5.index"}


def test_stage_stopped_after_its_last_epoch_is_only_finished(run, tmp_path, monkeypatch):
    # All epochs are there: nothing is trained, and the result says what it would have said.
    spec = tiny.first()
    copy = shutil.copytree(run.work_dir, tmp_path / "unbroken")
    unbroken = training.train(spec, tiny.run_in(copy))
    tiny.train_until(spec.recipe.total_epochs, spec, run)
    _poison(monkeypatch)
    result = training.train(spec, run)
    assert set(result) == {
        *("scored_on", "images", "embedding", "seconds", "epochs", "parameters", "training")
    }
    assert result["training"] == pytest.approx(unbroken["training"])
    assert (run.folder(spec) / "model.keras").exists()


# ---- selection ----------------------------------------------------------------------------

SELECTED = tiny.first(
    objective=Feat(ways=2, shots=2, queries=3),
    recipe=dataclasses.replace(tiny.RECIPE, epochs=3, batch_size=10, classes_per_batch=2),
    selection=Selection(
        Protocol(Task(tiny.DATA, "student"), Episodes(ways=3, count=20)), 2, AdaptedPrototypes()
    ),
)


def _scored(monkeypatch, *scores):
    """Has a selection find these scores, one after another; returns what it was shown."""
    shown, left = [], list(scores)

    def score(self, known, data_dir):
        shown.append([w for network in known[:2] for w in network.get_weights()])
        return left.pop(0)

    monkeypatch.setattr(Selection, "score", score)
    return shown


def _saved(run):
    networks = (load_network(SELECTED, run), load_head(SELECTED, run))
    return [w for network in networks for w in network.get_weights()]


def test_best_epoch_is_kept(run, monkeypatch):
    shown = _scored(monkeypatch, 0.3, 0.5, 0.4)
    result = training.train(SELECTED, run)
    assert result["selection"] == {"epoch": 2, "accuracy": 0.5}
    for ours, wanted in zip(_saved(run), shown[1], strict=True):
        np.testing.assert_array_equal(ours, wanted)
    assert any(np.any(a != b) for a, b in zip(shown[1], shown[2], strict=True))


def test_best_epoch_outlives_a_stop(run, finished, tmp_path, monkeypatch):
    shutil.copytree(finished, tmp_path / "unbroken")
    unbroken = tiny.run_in(tmp_path / "unbroken")
    _scored(monkeypatch, 0.3, 0.5, 0.4)
    wanted = training.train(SELECTED, unbroken)
    shown = _scored(monkeypatch, 0.3, 0.5, 0.4)
    tiny.train_until(2, SELECTED, run)
    result = training.train(SELECTED, run)
    assert len(shown) == 3  # an epoch is scored once
    assert result["selection"] == wanted["selection"] == {"epoch": 2, "accuracy": 0.5}
    assert result["training"] == wanted["training"]
    for ours, theirs in zip(_saved(run), _saved(unbroken), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_resumed_selection_is_the_unbroken_one(run, finished, tmp_path):
    shutil.copytree(finished, tmp_path / "unbroken")
    unbroken = tiny.run_in(tmp_path / "unbroken")
    wanted = training.train(SELECTED, unbroken)
    tiny.train_until(1, SELECTED, run)
    assert training.train(SELECTED, run)["selection"] == wanted["selection"]
    for ours, theirs in zip(_saved(run), _saved(unbroken), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_selection_must_be_one():
    with pytest.raises(InputError, match=r"Stage\.selection = 3"):
        tiny.first(selection=3)


# ---- divergence ---------------------------------------------------------------------------


def test_absurd_learning_rate_is_named(run):
    recipe = dataclasses.replace(tiny.RECIPE, learning_rate=1e30)
    spec = tiny.second(start=None, recipe=recipe)
    with pytest.raises(InputError) as caught:
        training.train(spec, run)
    message = str(caught.value)
    assert "'second'" in message
    assert " step " in message
    assert "Recipe.learning_rate" in message
    folder = run.folder(spec)
    assert not (folder / "result.json").exists()
    assert not (folder / "model.keras").exists()


def test_divergence_keeps_the_last_good_epoch(run):
    # Two good epochs, then the rate is multiplied with 1e30: the first step of epoch 3 spoils
    # the weights, so the loss of its second step is not finite.
    recipe = Recipe(
        epochs=4, batch_size=50, learning_rate=0.05, milestones=(0.5,), decay_factor=1e30
    )
    spec = tiny.second(start=None, recipe=recipe)
    images = len(training.load(spec.task, None).train.labels)
    with pytest.raises(InputError) as caught:
        training.train(spec, run)
    folder = run.folder(spec)
    kept = folder / "checkpoints" / "ckpt-2"
    assert f"at step {2 * (images // 50) + 2};" in str(caught.value)
    assert f"the last good checkpoint is {kept}." in str(caught.value)
    for name, _ in tf.train.list_variables(str(kept)):
        value = np.asarray(tf.train.load_variable(str(kept), name))
        assert value.dtype.kind != "f" or np.isfinite(value).all(), name
    # Whole files only: settings, logs and checkpoints.
    assert {path.name for path in folder.iterdir()} == {
        "stage.json",
        "checkpoints",
        "history.csv",
        "logs",
    }
    assert not [path for path in folder.rglob(".*")]


# ---- kill -9 ------------------------------------------------------------------------------

KILL_GIN = (
    tiny.GIN
    + """
include 'methods/probe.gin'
Experiment.rows = [@refilled/Stage(), @probe_pool/Stage()]
Recipe.epochs = 20
Recipe.batch_size = 20
teacher/Recipe.epochs = 2
RelationshipMatching.fallback = 'farthest'
"""
)
TIME_LIMIT = 120


def _command(folder, work_dir):
    return "refilled_tf.train", f"--gin_file={folder / 'kill.gin'}", f"--work_dir={work_dir}"


def _finish(folder, work_dir):
    done = commands.run(*_command(folder, work_dir), cwd=folder, timeout=TIME_LIMIT)
    assert done.returncode == 0, done.stderr


def _kill_in(folder, work_dir, name):
    """Starts the command and kills it when stage `name` has finished an epoch or more."""
    stage_folder, log = work_dir / "stages" / name, folder / "log"
    process = commands.start(*_command(folder, work_dir), cwd=folder, outputs=[log, log])
    try:
        deadline = time.monotonic() + TIME_LIMIT
        while not (stage_folder / "checkpoints" / "checkpoint").exists():
            assert process.exitcode is None, log.read_text()[-6000:]
            assert time.monotonic() < deadline, f"no checkpoint of {name}"
            time.sleep(0.01)
    finally:
        process.kill()
        process.join()
    assert process.exitcode == -signal.SIGKILL
    # It was in the middle: some epochs are finished, the stage is not.
    assert not (stage_folder / "result.json").exists()
    newest = tf.train.latest_checkpoint(stage_folder / "checkpoints")
    assert 1 <= int(newest.rpartition("-")[2]) < 20


def test_killed_run_ends_bit_identical(tmp_path):
    (tmp_path / "kill.gin").write_text(KILL_GIN)
    unbroken, broken = tmp_path / "unbroken", tmp_path / "broken"
    _finish(tmp_path, unbroken)
    _kill_in(tmp_path, broken, "triplet")
    _kill_in(tmp_path, broken, "refilled")
    _kill_in(tmp_path, broken, "probe_pool")  # three in four of whose images have no labels
    _finish(tmp_path, broken)

    for name in ("teacher", "triplet", "refilled", "probe_pool"):
        weights = tiny.saved_weights(unbroken, name)
        assert len(weights) >= 5
        for a, b in zip(weights, tiny.saved_weights(broken, name), strict=True):
            assert np.array_equal(a, b), name
        results = [work_dir / "stages" / name / "result.json" for work_dir in (unbroken, broken)]
        one, other = (json.loads(path.read_text()) for path in results)
        for key in ("accuracy", "embedding", "training", "epochs"):
            assert one.get(key) == other.get(key), (name, key)


# ---- unlabelled images ---------------------------------------------------------------------

POOL = Task(tiny.DATA, "student", unlabelled=(Task(tiny.DATA, "teacher"),))


def _pooled(**changes):
    recipe = dataclasses.replace(tiny.RECIPE, epochs=3, steps=12)
    return tiny.first(objective=ProbeDistillation(), task=POOL, recipe=recipe, **changes)


def test_unlabelled_images_are_counted_and_the_probe_reported(run):
    spec = _pooled()
    result = training.train(spec, run)
    assert result["epochs"] == 3
    assert set(result["fitted"]) == {"probe_c", "probe_temperature", "probe_accuracy"}
    facts = storage.read_json(run.folder(spec) / "stage.json")
    assert facts["unlabelled_images"] == len(load(Task(tiny.DATA, "teacher"), None).train.labels)
    assert facts["left_out"] == []


def test_steps_are_dealt_out_to_epochs(run, built):
    training.train(_pooled(), run)
    assert built[0][0].steps_per_epoch == 4
    assert built[0][0].optimizer.iterations == 12


def test_labels_of_unlabelled_images_are_not_read(run, monkeypatch):
    """A source that says others of the very same images gives the same weights, to the bit."""
    everything = dataclasses.replace(POOL, unlabelled=(Digits(),))
    spec = dataclasses.replace(_pooled(), task=everything)
    caches = (unlabelled.load, load, read_index)
    training.train(spec, run)
    weights = tiny.saved_weights(run.work_dir, "first")
    index_of = Digits.index

    def scrambled(source, data_dir=None):
        index = index_of(source, data_dir)
        labels, others = index.labels.copy(), index.labels < 5
        labels[others] = np.random.default_rng(0).permutation(labels[others])
        return index._replace(labels=labels)

    monkeypatch.setattr(Digits, "index", scrambled)
    for cached in caches:
        cached.cache_clear()
    shutil.rmtree(run.folder(spec))
    training.train(spec, run)
    for cached in caches:
        cached.cache_clear()
    assert tiny.largest_difference(weights, tiny.saved_weights(run.work_dir, "first")) == 0


@pytest.mark.parametrize("views", [0, 2])
def test_resumed_stage_with_unlabelled_images_is_the_unbroken_one(views, run, finished, tmp_path):
    spec = _pooled(teacher_cache=TeacherCache(views=views))
    training.train(spec, run)
    shutil.copytree(finished, tmp_path / "stopped")
    stopped = tiny.run_in(tmp_path / "stopped")
    tiny.train_until(2, spec, stopped)
    training.train(spec, stopped)
    weights = [tiny.saved_weights(each.work_dir, "first") for each in (run, stopped)]
    assert tiny.largest_difference(*weights) == 0


def test_objective_that_takes_no_unlabelled_images_has_none():
    spec = tiny.first(task=POOL)
    assert spec.task.unlabelled == ()
    assert spec.digest() == tiny.first().digest()


# ---- refit ---------------------------------------------------------------------------------


def test_refit_is_logistic_regression_on_the_stages_embedding(run):
    training.train(tiny.first(), run)
    spec = tiny.second(name="refit", objective=Refit(views=0), start=tiny.first(), teacher=None)
    result = training.train(spec, run)
    data = load(spec.task, None)
    known = {
        part: outputs(tiny.first(), run, spec.task, part)["embedding"] for part in ("train", "test")
    }
    model = make_pipeline(
        StandardScaler(), LogisticRegression(C=result["fitted"]["c"], max_iter=1000)
    ).fit(known["train"], data.train.labels)
    assert result["accuracy"] == pytest.approx(model.score(known["test"], data.test.labels))
    before = tiny.saved_weights(run.work_dir, "first")
    *embedding, _, _ = tiny.saved_weights(run.work_dir, "refit")
    assert tiny.largest_difference(before, embedding) == 0


def test_refit_needs_a_start():
    with pytest.raises(InputError, match=r"Refit, which needs Stage\.start"):
        tiny.second(objective=Refit(), start=None)
