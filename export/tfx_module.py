"""The module of TFX's Trainer: Trainer(run_fn="export.tfx_module.run_fn", …).

The student learns from the examples that the pipeline hands over, under the teacher that a gin
file describes; Evaluator, Pusher and servers find the same SavedModel as `export.saved_model`
writes. Nothing here needs TFX itself.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from export import trained, versions
from refilled_tf.common import gin_files, storage
from refilled_tf.common.errors import require
from refilled_tf.data.task import read_index, select
from refilled_tf.experiment import config, experiment
from refilled_tf.experiment.experiment import Experiment
from refilled_tf.experiment.run import Run

EXAMPLE_FILES = gin_files.GIN_FOLDER / "data/example_files.gin"


def run_fn(fn_args: Any) -> None:
    """Trains a student and exports it. Killed and called again, it goes on where it was.

    Args:
        fn_args: TFX's `FnArgs`, of which these attributes are used:
            train_files, eval_files: lists of patterns of TFRecord files, which the student learns
                from and is scored on; see `sources.ExampleFiles` for what they hold.
            train_steps: steps of every stage that trains a student, rounded up to whole epochs;
                stages with epochs of their own in the gin file keep these. None or 0 keeps all
                epochs as they are. (All images are scored, whatever eval_steps says.)
            model_run_dir: the training's folder, as `--work_dir` of refilled_tf.train.
            serving_model_dir: where the SavedModel shall appear.
            custom_config: {"gin_file": the experiment, "gin_params": optional list of single
                settings}. Of the student, the files stand above the gin file in all that
                gin/data/example_files.gin sets.

    Raises:
        InputError: naming the argument, setting, file or feature at fault.
    """
    work_dir, serving = (_folder(fn_args, name) for name in ("model_run_dir", "serving_model_dir"))
    require(
        not serving.exists() or not any(serving.iterdir()),
        f"fn_args.serving_model_dir={serving} holds something already; it must be new or empty",
    )
    spec = _load(fn_args)
    run = Run(work_dir, spec.data_dir, experiment.make_strategy(spec.strategy))
    experiment.make_ready(spec, run)
    storage.write_text(work_dir / gin_files.OPERATIVE, config.operative_config())
    experiment.finish_rows(spec, run, [fn_args.custom_config["gin_file"]], f"{__name__}.run_fn")
    versions.save(trained.load(work_dir, None, None), serving)


def _folder(fn_args: Any, name: str) -> Path:
    uri = str(getattr(fn_args, name))
    require("://" not in uri, f"fn_args.{name}={uri} is not a folder of this machine")
    return Path(uri)


def _load(fn_args: Any) -> Experiment:
    """Loads the experiment with the pipeline's files and steps."""
    given = fn_args.custom_config or {}
    params = given.get("gin_params", [])
    require(
        "gin_file" in given
        and given.keys() <= {"gin_file", "gin_params"}
        and isinstance(params, list),
        f"fn_args.custom_config={given} must hold 'gin_file', may hold a list 'gin_params' of "
        "settings, and nothing else",
    )
    files = [given["gin_file"], EXAMPLE_FILES]
    settings = [
        *params,
        f"ExampleFiles.train = {list(fn_args.train_files or ())}",
        f"ExampleFiles.test = {list(fn_args.eval_files or ())}",
    ]
    spec = config.load_experiment(files, settings)
    if fn_args.train_steps:
        spec = config.load_experiment(files, settings + _epochs(spec, fn_args.train_steps))
    return spec


def _epochs(spec: Experiment, steps: int) -> list[str]:
    """Returns settings that give the student's stages so many steps and the teacher its own."""
    by_role = {each.task.role: each for each in spec.stages() if each.objective.trains}
    require("student" in by_role, "the experiment has no stage that trains a student")
    student = by_role["student"]
    index = read_index(student.task.data.source, spec.data_dir)
    images = len(select(student.task, index).train)
    # Too few images for a batch are refused by the check of the whole experiment.
    per_epoch = max(1, images // student.training_recipe.batch_size)
    settings = [f"Recipe.epochs = {math.ceil(steps / per_epoch)}"]
    if "teacher" in by_role:
        settings.append(f"teacher/Recipe.epochs = {by_role['teacher'].training_recipe.epochs}")
    return settings
