"""Trains and compares: python -m refilled_tf.train --gin_file=gin/quickstart.gin.

Parses flags and gin files, builds the experiment, runs it and prints the table.
"""

from __future__ import annotations

import shlex
from pathlib import Path

from absl import flags
from etils import epy

from refilled_tf.common import gin_files
from refilled_tf.common.entry import command_line, no_arguments, run_main
from refilled_tf.common.errors import require

with epy.lazy_imports():
    from refilled_tf.experiment import launch
    from refilled_tf.reporting import pictures, report

FLAGS = flags.FLAGS
flags.DEFINE_multi_string("gin_file", [], "A gin file; repeated ones are applied in order.")
flags.DEFINE_multi_string("gin_param", [], "A single setting, such as 'Recipe.epochs = 10'.")
flags.DEFINE_string("work_dir", None, "Where results go; runs/<first gin file's name> if unset.")
flags.DEFINE_string("data_dir", None, "Folder of prepared TFDS datasets; TFDS's own if unset.")


def check(argv: list[str]) -> None:
    """Rejects what is no experiment, as far as names and files show."""
    no_arguments(argv)
    require(bool(FLAGS.gin_file), "--gin_file is missing, such as --gin_file=gin/quickstart.gin")
    gin_files.check_names(FLAGS.gin_file, FLAGS.gin_param)


def main(_: list[str]) -> None:
    """Runs the experiment that the flags describe."""
    work_dir = Path(FLAGS.work_dir or Path("runs") / Path(FLAGS.gin_file[0]).stem)
    command = command_line("refilled_tf.train")
    spec, run, results = launch.launch(
        FLAGS.gin_file, FLAGS.gin_param, work_dir, FLAGS.data_dir, command
    )
    if run.is_chief:
        print(f"\n{report.table(results['rows'])}\n")
        print(f"Results  {work_dir / 'results.json'}")
        few_shot = any("shots" in row for row in results["rows"])
        if few_shot:
            report.save_shots_picture(work_dir / "shots.png", results["rows"])
            print(f"Picture  {work_dir / 'shots.png'}")
        elif stages := pictures.classifiers(spec):
            pictures.save_answers(work_dir / "answers.png", stages, run)
            print(f"Picture  {work_dir / 'answers.png'}")
        print(f"Models   {work_dir / 'stages' / '*' / 'model.keras'}")
        print(f"Curves   tensorboard --logdir {shlex.quote(str(work_dir))}")
        options = [f"--work_dir={work_dir}"]
        if FLAGS.data_dir:
            options.append(f"--data_dir={FLAGS.data_dir}")
        print(f"Scores   python -m refilled_tf.evaluate {shlex.join(options)}")
        if few_shot:
            options.append("--stage=ROW")  # each is another network
        given = shlex.join(options)
        print(f"Serve    python -m export.saved_model {given} --export_dir=exports")
        print(f"Phone    python -m export.tflite {given} --output_dir=exports/tflite")


if __name__ == "__main__":
    run_main(main, check, goes_on=True)
