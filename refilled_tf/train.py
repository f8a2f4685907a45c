"""Trains and compares: python -m refilled_tf.train --gin_file=gin/quickstart.gin.

Parses flags and gin files, builds the experiment, runs it and prints the table.
"""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

import tensorflow as tf
from absl import flags

from refilled_tf import config, experiment, report, storage
from refilled_tf.entry import run_main
from refilled_tf.errors import require
from refilled_tf.stage import Run

FLAGS = flags.FLAGS
flags.DEFINE_multi_string("gin_file", [], "A gin file; repeated ones are applied in order.")
flags.DEFINE_multi_string("gin_param", [], "A single setting, such as 'Recipe.epochs = 10'.")
flags.DEFINE_string("work_dir", None, "Where results go; runs/<first gin file's name> if unset.")
flags.DEFINE_string("data_dir", None, "Folder of prepared TFDS datasets; TFDS's own if unset.")


def main(argv: list[str]) -> None:
    """Runs the experiment that the flags describe."""
    require(len(argv) == 1, f"unexpected argument {argv[1:]}; every option is a --flag")
    require(bool(FLAGS.gin_file), "--gin_file is missing, such as --gin_file=gin/quickstart.gin")
    spec = config.load_experiment(FLAGS.gin_file, FLAGS.gin_param)
    work_dir = Path(FLAGS.work_dir or Path("runs") / Path(FLAGS.gin_file[0]).stem)
    check_work_dir(work_dir)
    if spec.deterministic:
        tf.config.experimental.enable_op_determinism()
    data_dir = FLAGS.data_dir or spec.data_dir
    where = Run(work_dir, data_dir, experiment.make_strategy(spec.strategy))
    command = [Path(sys.executable).name, "-m", "refilled_tf.train", *sys.argv[1:]]
    experiment.check(spec, where)
    if where.is_chief:
        storage.write_text(work_dir / config.OPERATIVE, config.operative_config())
    results = experiment.run(spec, where, FLAGS.gin_file, shlex.join(command))
    if where.is_chief:
        print(f"\n{report.table(results['rows'])}\n")
        print(f"Results  {work_dir / 'results.json'}")
        if any("shots" in row for row in results["rows"]):
            report.save_shots_picture(work_dir / "shots.png", results["rows"])
            print(f"Picture  {work_dir / 'shots.png'}")
        print(f"Models   {work_dir / 'stages' / '*' / 'model.keras'}")
        print(f"Curves   tensorboard --logdir {work_dir}")
        print(f"Scores   python -m refilled_tf.evaluate --work_dir={work_dir}")
        print(f"Serve    python -m export.saved_model --work_dir={work_dir} --export_dir=exports")
        print(f"Phone    python -m export.tflite --work_dir={work_dir} --output_dir=exports/tflite")


def check_work_dir(work_dir: Path) -> None:
    """Refuses a place that is not a folder, or a folder with other things in it.

    Raises:
        InputError: naming the place.
    """
    existing = next(path for path in (work_dir, *work_dir.parents) if path.exists())
    require(existing.is_dir(), f"--work_dir={work_dir}: {existing} is not a folder")
    require(
        not work_dir.is_dir()
        or not any(work_dir.iterdir())
        or (work_dir / config.OPERATIVE).is_file(),
        f"--work_dir={work_dir} holds other things than an experiment's results; take an empty "
        "or a new folder",
    )


if __name__ == "__main__":
    run_main(main)
