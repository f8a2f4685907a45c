"""Exports for phones and browsers: python -m export.tflite --work_dir=… --output_dir=….

Writes OUTPUT_DIR/<stage>_<quantisation>.tflite, which image classifiers such as MediaPipe's load as
they are, and in tflite.md and tflite.json how each compares with the trained network.
"""

from __future__ import annotations

from pathlib import Path

from absl import flags

from export import tflite_files, tflite_model, trained
from refilled_tf.common.entry import command_line, run_main
from refilled_tf.common.errors import require

FLAGS = flags.FLAGS
flags.DEFINE_string("work_dir", None, "The folder of a training.", required=True)
flags.DEFINE_string("output_dir", None, "The folder of the .tflite files.", required=True)
flags.DEFINE_list(
    "quantize",
    list(tflite_model.QUANTIZATIONS),
    "; ".join(f"{name}: {what}" for name, what in tflite_model.QUANTIZATIONS.items()),
)
flags.DEFINE_string("stage", None, "The stage to export; if unset, as export.saved_model chooses.")
flags.DEFINE_integer(
    "task", None, "Where --stage is a row of few-shot learning: the task to learn, from 0 on."
)
flags.DEFINE_string("data_dir", None, "Folder of prepared TFDS datasets; TFDS's own if unset.")


def main(argv: list[str]) -> None:
    """Exports the stage that the flags name."""
    require(len(argv) == 1, f"unexpected argument {argv[1:]}; every option is a --flag")
    output_dir = Path(FLAGS.output_dir)
    tflite_files.check(FLAGS.quantize, output_dir)
    model = trained.load(Path(FLAGS.work_dir), FLAGS.stage, FLAGS.data_dir, FLAGS.task)
    command = command_line("export.tflite")
    print(f"\n{tflite_files.write(model, FLAGS.quantize, output_dir, command)}")
    print(f"{model.stage.name} ({model.stage.method}) is exported to {output_dir}")


if __name__ == "__main__":
    run_main(main)
