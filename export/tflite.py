"""Exports for phones and browsers: python -m export.tflite --work_dir=… --output_dir=….

Writes OUTPUT_DIR/<stage>_<quantisation>.tflite, which image classifiers such as MediaPipe's load as
they are, and in tflite.md and tflite.json how each compares with the trained network.
"""

from __future__ import annotations

from pathlib import Path

from absl import flags
from etils import epy

from export import QUANTIZATIONS
from refilled_tf.common import gin_files, storage
from refilled_tf.common.entry import command_line, no_arguments, run_main
from refilled_tf.common.errors import require

with epy.lazy_imports():
    from export import tflite_files, trained

FLAGS = flags.FLAGS
flags.DEFINE_string("work_dir", None, "The folder of a training.", required=True)
flags.DEFINE_string("output_dir", None, "The folder of the .tflite files.", required=True)
flags.DEFINE_list(
    "quantize",
    list(QUANTIZATIONS),
    "; ".join(f"{name}: {what}" for name, what in QUANTIZATIONS.items()),
)
flags.DEFINE_string("stage", None, "The stage to export; if unset, as export.saved_model chooses.")
flags.DEFINE_integer(
    "task", None, "Where --stage is a row of few-shot learning: the task to learn, from 0 on."
)
flags.DEFINE_string("data_dir", None, "Folder of prepared TFDS datasets; TFDS's own if unset.")


def check(argv: list[str]) -> None:
    """Rejects what is not the folder of a training, and what cannot be written."""
    no_arguments(argv)
    require(
        0 < len(FLAGS.quantize) == len(QUANTIZATIONS.keys() & FLAGS.quantize),
        f"--quantize={','.join(FLAGS.quantize)} must name one or more of "
        f"{','.join(QUANTIZATIONS)}, each once",
    )
    storage.require_writable("--output_dir", Path(FLAGS.output_dir))
    gin_files.require_training(Path(FLAGS.work_dir))


def main(_: list[str]) -> None:
    """Exports the stage that the flags name."""
    output_dir = Path(FLAGS.output_dir)
    model = trained.load(Path(FLAGS.work_dir), FLAGS.stage, FLAGS.data_dir, FLAGS.task)
    command = command_line("export.tflite")
    print(f"\n{tflite_files.write(model, FLAGS.quantize, output_dir, command)}")
    print(f"{model.stage.name} ({model.stage.method}) is exported to {output_dir}")


if __name__ == "__main__":
    run_main(main, check)
