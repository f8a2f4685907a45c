"""What TFX's Trainer would get: a stand-in for its FnArgs, digits as the pipeline's examples."""

import ast
import contextlib
import json
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import commands
import numpy as np
import pytest
import records
import tensorflow as tf
import tiny
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from sklearn.datasets import load_digits

from export import check, tfx_module
from refilled_tf.common.errors import InputError
from refilled_tf.data.sources import ExampleFiles
from refilled_tf.experiment import experiment, training

pytestmark = pytest.mark.slow

FIRST = 5  # of the pipeline's digits; the teacher's are those before
STEPS = 195
PARAMS = [
    "Experiment.rows = [@refilled/Stage()]",
    "LocalDistillation.weight = 0.1",
    # It would hold for all that comes after in this process.
    "Experiment.deterministic = False",
]


@pytest.fixture(scope="module")
def digits():
    """Examples of the digits 5 to 9 and their labels 0 to 4, for training and for evaluation."""
    known = load_digits()
    rows = np.flatnonzero(known.target >= FIRST)
    labels = known.target[rows] - FIRST
    examples = [
        records.example(
            encoded=records.png(known.images[row][..., np.newaxis] * (255 / 16)),
            label=int(label),
            text=f"digit {known.target[row]}",
        )
        for row, label in zip(rows, labels, strict=True)
    ]
    return {"train": (examples[::2], labels[::2]), "eval": (examples[1::2], labels[1::2])}


@pytest.fixture(scope="module")
def folder(tmp_path_factory, digits):
    """The files as ImportExampleGen leaves them, one of them not compressed, and a gin file."""
    folder = tmp_path_factory.mktemp("tfx")
    train, _ = digits["train"]
    records.write(folder / "Split-train/data_tfrecord-00000-of-00002.gz", train[:200])
    records.write(folder / "Split-train/data_tfrecord-00001-of-00002", train[200:])
    records.write(folder / "Split-eval/data_tfrecord-00000-of-00001.gz", digits["eval"][0])
    (folder / "experiment.gin").write_text(tiny.GIN)
    return folder


@pytest.fixture(scope="module", autouse=True)
def _one_strategy():
    """Keeps to the process's strategy: see `tiny.strategy`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(experiment, "make_strategy", lambda kind: tf.distribute.get_strategy())
        yield


def _fn_args(folder, **changes):
    given = {
        "train_files": [f"{folder}/Split-train/*"],
        "eval_files": [f"{folder}/Split-eval/*"],
        "train_steps": STEPS,
        "eval_steps": None,
        "model_run_dir": f"{folder}/model_run",
        "serving_model_dir": f"{folder}/model/Format-Serving",
        "custom_config": {"gin_file": f"{folder}/experiment.gin", "gin_params": PARAMS},
    }
    return SimpleNamespace(**given | changes)


@pytest.fixture(scope="module")
def finished(folder):
    """The arguments of a call that has come back."""
    fn_args = _fn_args(folder)
    tfx_module.run_fn(fn_args)
    return fn_args


def _stage_facts(fn_args, name):
    with open(f"{fn_args.model_run_dir}/stages/{name}/stage.json", encoding="utf-8") as file:
        return json.load(file)


def test_demo_installs_what_is_imported():
    """In an environment of its own, which has not all that this one has."""
    code = "import sys, export.tfx_module; print(*(m.__file__ for m in sys.modules.values() if"
    code += " m.__name__.startswith(('export', 'refilled_tf'))), sep='\\n')"
    run = subprocess.run(
        [sys.executable, "-c", code],
        **{"cwd": commands.ROOT, "capture_output": True, "text": True, "check": True},
    )
    known = metadata.packages_distributions()
    ours = [line for line in run.stdout.splitlines() if line.startswith(str(commands.ROOT))]
    names = {name for file in ours for name in _imports(Path(file))}
    imported = {name: set(map(canonicalize_name, known[name])) for name in names & known.keys()}

    lines = (commands.ROOT / "export/tfx_demo/requirements.txt").read_text().splitlines()
    queue = [Requirement(line.split("#")[0]) for line in lines if not line.startswith("#") and line]
    installed = set()
    while queue:
        requirement = queue.pop()
        name = canonicalize_name(requirement.name)
        if name in installed or (requirement.marker and not requirement.marker.evaluate()):
            continue
        installed.add(name)
        with contextlib.suppress(metadata.PackageNotFoundError):  # TFX's own
            queue += map(Requirement, metadata.requires(name) or ())
    assert {"filelock", "tensorflow", "tqdm"} <= imported.keys()
    assert [name for name, those in imported.items() if those.isdisjoint(installed)] == []


def _imports(file):
    """Yields the packages that a file of Python imports."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module.split(".")[0]


def test_saved_model_answers_the_pipelines_examples(finished, digits):
    examples, labels = digits["eval"]
    served = tf.saved_model.load(finished.serving_model_dir).signatures["serving_default"]
    reply = served(examples=tf.constant(examples))
    # TFX's Evaluator looks labels up in the probabilities.
    right = np.argmax(reply["probabilities"], axis=1) == labels
    assert np.mean(right) > 0.6  # by chance .2
    named = [f"digit {label + FIRST}".encode() for label in labels]
    np.testing.assert_array_equal(reply["classes"][:, 0] == named, right)
    with open(f"{finished.model_run_dir}/results.json", encoding="utf-8") as file:
        (row,) = json.load(file)["rows"]
    assert row["images"] == len(labels)
    assert row["accuracy"] == pytest.approx(np.mean(right))


def test_student_learnt_from_the_train_files(finished, digits):
    facts = _stage_facts(finished, "refilled")
    assert facts["training_images"] == len(digits["train"][0])
    assert facts["class_names"] == [f"digit {digit}" for digit in range(FIRST, 10)]
    files = ExampleFiles(finished.train_files, finished.eval_files)
    assert facts["settings"]["ExampleFiles.content"] == files.content


def test_teacher_learnt_what_the_gin_file_says(finished):
    facts = _stage_facts(finished, "teacher")
    assert facts["class_names"] == list("01234")
    assert facts["settings"]["Recipe.epochs"] == 2  # of tiny.GIN


def test_steps_are_those_of_every_student_stage(finished, digits):
    per_epoch = len(digits["train"][0]) // 50  # the batch size of tiny.GIN
    for name in ("triplet", "refilled"):
        epochs = _stage_facts(finished, name)["settings"]["Recipe.epochs"]
        assert (epochs - 1) * per_epoch < STEPS <= epochs * per_epoch


def test_second_call_finds_what_is_trained(finished, folder, monkeypatch):
    monkeypatch.setattr(training, "_build", None)  # whoever trained would call it
    monkeypatch.setattr(check, "check", lambda folder, trained: 0.0)  # it has its own tests
    again = _fn_args(folder, serving_model_dir=f"{folder}/again/Format-Serving")
    tfx_module.run_fn(again)
    assert tf.saved_model.contains_saved_model(again.serving_model_dir)


def test_without_steps_the_gin_files_epochs_hold(folder):
    spec = tfx_module._load(_fn_args(folder, train_steps=None))
    assert {stage.recipe.epochs for stage in spec.stages()} == {2}


CONFIG = {"gin_file": "experiment.gin", "gin_params": PARAMS}


@pytest.mark.parametrize(
    ("argument", "value", "message"),
    [
        ("custom_config", None, "custom_config={} must hold 'gin_file'"),
        ("custom_config", {"gin_fil": "x"}, "'gin_fil'.* must hold 'gin_file'"),
        ("custom_config", CONFIG | {"gin_params": "x"}, "a list 'gin_params'"),
        ("custom_config", CONFIG | {"more": 1}, "'more'.* nothing else"),
        ("custom_config", CONFIG | {"gin_file": "no.gin"}, r"no\.gin does not exist"),
        ("custom_config", CONFIG | {"gin_params": ["Recipe.epoch = 1"]}, "'epoch'"),
        (
            "custom_config",
            CONFIG | {"gin_params": ["Experiment.rows = [@teacher/Stage()]"]},
            r"no part of this experiment takes 'ExampleFiles\.train'",
        ),
        (
            "custom_config",
            CONFIG | {"gin_params": [*PARAMS, "Recipe.batch_size = 999"]},
            r"Recipe\.batch_size=999 exceeds",
        ),
        ("train_files", None, r"ExampleFiles\.train=\[\] must be a list"),
        ("train_files", ["experiment.gin"], r"experiment\.gin is not a file of tf\.Examples"),
        ("eval_files", ["Split-no/*"], r"ExampleFiles\.test: no file matches 'Split-no/\*'"),
        ("model_run_dir", "gs://bucket/x", "model_run_dir=gs://bucket/x is not a folder"),
        ("serving_model_dir", "gs://bucket/x", "serving_model_dir=gs://bucket/x is not a folder"),
        ("serving_model_dir", "Split-eval", "serving_model_dir=Split-eval holds something"),
    ],
)
def test_bad_input_is_named_before_anything_is_written(
    argument, value, message, folder, tmp_path, monkeypatch
):
    monkeypatch.chdir(folder)
    places = {"model_run_dir": f"{tmp_path}/run", "serving_model_dir": f"{tmp_path}/model"}
    with pytest.raises(InputError, match=message):
        tfx_module.run_fn(_fn_args(folder, **places | {argument: value}))
    assert list(tmp_path.iterdir()) == []


def test_failing_export_leaves_no_model(finished, folder, monkeypatch):
    def failing(saved_model, trained):
        raise InputError("it differs")

    monkeypatch.setattr(check, "check", failing)
    serving = folder / "failing/Format-Serving"
    with pytest.raises(InputError, match="it differs"):
        tfx_module.run_fn(_fn_args(folder, serving_model_dir=str(serving)))
    assert list(serving.parent.iterdir()) == []


def test_other_files_in_the_same_run_are_refused(finished, folder):
    # A run has its files; a stage half trained on others would be nobody's.
    other = _fn_args(
        folder,
        train_files=[f"{folder}/Split-train/*.gz"],
        train_steps=None,
        serving_model_dir=f"{folder}/other/Format-Serving",
    )
    with pytest.raises(InputError, match=r"ExampleFiles\.content = .* there, .* now"):
        tfx_module.run_fn(other)
