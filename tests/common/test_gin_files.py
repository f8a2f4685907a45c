"""What is wrong with gin files, told from the source code alone."""

from __future__ import annotations

import inspect
import subprocess
import sys

import commands
import gin
import pytest

from refilled_tf.common import gin_files
from refilled_tf.common.errors import InputError
from refilled_tf.experiment import config

FILES = sorted(gin_files.GIN_FOLDER.rglob("*.gin"))


def test_names_and_options_are_those_that_gin_knows():
    """Independently: what the imported classes and functions have registered."""
    ours = {
        selector.rpartition(".")[2]: known.wrapped
        for selector, known in gin.config._REGISTRY.items()
        if known.wrapped.__module__.startswith("refilled_tf.")
    }
    known = gin_files.registered(gin_files.PACKAGE.rglob("*.py"))
    assert known.keys() == {*ours, *gin_files.OF_GIN}
    for name, kind in ours.items():
        assert known[name] == frozenset(inspect.signature(kind).parameters), name


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_nothing_is_wrong_with_the_projects_files(path):
    gin_files.check_names([path])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("Stge.method = 'x'", ":2: there is no 'Stge'; did you mean Stage"),
        ("student/Stage.metod = 'x'", ":2: Stage has no option 'metod'; did you mean method?"),
        ("Experiment.rows = [@lkd/Stage(), @Sage()]", ":2: there is no 'Sage'; did you mean Stage"),
        ("Recipe.epochs = %epoch", ":2: nothing sets %epoch"),
        ("eopch = 3\nRecipe.epochs = %epoch", ":3: nothing sets %epoch"),
        ("Stage.backbone = @Mine()", ":2: there is no 'Mine'; in a module of your own, it needs"),
        ("student.data = {'x': (@Dta(),)}", ":2: there is no 'Dta'; did you mean Data"),
        ("include 'models/nowhere.gin'", ":2: include 'models/nowhere.gin' does not exist"),
        ("include '{other}'", "other.gin:1: Recipe has no option 'epoch'; did you mean epochs?"),
    ],
)
def test_mistake_is_named_with_its_place(text, said, tmp_path):
    (tmp_path / "other.gin").write_text("Recipe.epoch = 3\n")
    file = tmp_path / "mine.gin"
    file.write_text("# A comment.\n" + text.replace("{other}", f"{tmp_path}/other.gin") + "\n")
    with pytest.raises(InputError) as refused:
        gin_files.check_names([file])
    assert said in str(refused.value)


@pytest.mark.parametrize(
    "text",
    [
        "epochs = 3\nRecipe.epochs = %epochs",
        "refilled_tf.data.recipe.Recipe.epochs = 3",
        "Recipe.epochs = ",  # gin says what is wrong with it
        "import my_method\nMine.weight = 3\nStage.objective = @Mine()",
    ],
)
def test_what_cannot_be_judged_is_left_to_gin(text, tmp_path):
    (tmp_path / "mine.gin").write_text(text)
    gin_files.check_names([tmp_path / "mine.gin"])


def test_single_setting_is_named():
    with pytest.raises(InputError, match=r"--gin_param=Recipe\.epoch = 3: Recipe has no option"):
        gin_files.check_names(
            [config.gin_files.GIN_FOLDER / "quickstart.gin"], ["Recipe.epoch = 3"]
        )


WITHOUT = """
import runpy, sys
sys.argv = [{module!r}, *{flags!r}]
try:
    runpy.run_module({module!r}, run_name="__main__", alter_sys=True)
finally:
    heavy = {{"tensorflow", "tensorflow_datasets", "keras_cv", "sklearn", "matplotlib"}}
    print("imported:", *sorted(heavy & sys.modules.keys()))
"""
MISTAKES = {
    "refilled_tf.train": [
        ["--gin_file=nowhere.gin"],
        ["--gin_file=quickstart.gin", "--gin_param=Recipe.epoch = 3"],
        ["--gin_file=quickstart.gin", "--wrok_dir=x"],
    ],
    "refilled_tf.distill": [
        ["--images=/nowhere/at/all", "--teacher=x.keras", "--output=y"],
        ["--images=.", "--teacher=x.keras", "--output=/tmp/y", "--student=MobileNetV9"],
        ["--images=mnist", "--teacher=/nowhere/x.keras", "--output=/tmp/y"],
    ],
    "refilled_tf.probe": [["--images=mnist", "--teacher=/nowhere/x.keras"]],
    "refilled_tf.evaluate": [["--work_dir=/nowhere"]],
    "refilled_tf.figure1": [["--work_dir=/nowhere", "--output_dir=x"]],
    "refilled_tf.prepare": [["--dataset=mnist", "--manual_dir=/nowhere"]],
    "refilled_tf.reproduce": [["--table=nine"]],
    "export.kubeflow": [
        ["--gin_file=cub_easy.gin", "--image=x", "--claim=y", "--work_dir=/elsewhere/z"]
    ],
    "export.saved_model": [["--work_dir=/nowhere", "--export_dir=/tmp/x"]],
    "export.microcontroller": [["--work_dir=/nowhere", "--output_dir=/tmp/x"]],
    "export.tflite": [["--work_dir=/nowhere", "--output_dir=/tmp/x"]],
    "export.serve": [["--export_dir=/nowhere"]],
    "export.client": [["/nowhere.jpg"]],
}


@pytest.mark.parametrize("module", MISTAKES)
def test_help_and_mistakes_end_before_tensorflow_is_imported(module):
    for flags in (["--help"], *MISTAKES[module]):
        done = subprocess.run(
            [sys.executable, "-c", WITHOUT.format(module=module, flags=flags)],
            env=commands.environment(),
            cwd=commands.ROOT,
            capture_output=True,
            text=True,
        )
        assert done.stdout.endswith("imported:\n"), flags
        assert done.returncode == 1
        if flags == ["--help"]:
            assert f"{module}" in done.stdout or "flags:" in done.stdout
        else:
            assert "Traceback" not in done.stderr, flags
            assert "error: " in done.stderr or "FATAL Flags parsing error" in done.stderr, flags
