"""Exports for microcontrollers: python -m export.microcontroller --work_dir=… --output_dir=….

Writes a new folder with the network in int8, C++ that runs it by tflite-micro, projects for ESP-IDF
and Arduino, and in README.md and microcontroller.json what it takes and how it compares.
"""

from __future__ import annotations

from pathlib import Path

from absl import flags
from etils import epy

from export import boards
from refilled_tf.common import gin_files, storage
from refilled_tf.common.entry import command_line, no_arguments, run_main
from refilled_tf.common.errors import require, require_whole

with epy.lazy_imports():
    from export import micro_files, trained

FLAGS = flags.FLAGS

SUMMARY = """
{bytes:,} bytes of network, {arena_bytes:,} of arena
of {images} {split} images {float:.2f} % are right in float32, {int8:.2f} % in int8 by tflite-micro
"""
WARNING = """
Warning: int8 gets {lost_images} of {images} images fewer right than float32; the standard error of
that difference is {standard_error:.1f} images.
"""


def check(argv: list[str]) -> None:
    """Rejects what is not the folder of a training, and what cannot be written."""
    no_arguments(argv)
    boards.require_tflite_micro()
    if FLAGS.image_size is not None:
        require_whole("--image_size", FLAGS.image_size)
    folder = Path(FLAGS.output_dir)
    storage.require_writable("--output_dir", folder)
    require(
        not folder.exists() or not any(folder.iterdir()),
        f"--output_dir={folder} holds files already; name a new folder",
    )
    gin_files.require_training(Path(FLAGS.work_dir))


def main(_: list[str]) -> None:
    """Exports the stage that the flags name."""
    output_dir = Path(FLAGS.output_dir)
    model = trained.load(Path(FLAGS.work_dir), FLAGS.stage, FLAGS.data_dir, FLAGS.task)
    command = command_line("export.microcontroller")
    results = micro_files.write(model, output_dir, FLAGS.image_size, FLAGS.grey, command)
    shares = {"float": 100 * results["float_accuracy"], "int8": 100 * results["int8"]["accuracy"]}
    print(SUMMARY.format(**results | shares))
    if micro_files.loses_too_much(results):
        print(WARNING.format(**results | results["int8"]))
    print(f"{model.stage.name} ({model.stage.method}) is exported to {output_dir}")


# Here, so that the module can be imported beside others with flags of these names.
if __name__ == "__main__":
    flags.DEFINE_string("work_dir", None, "The folder of a training.", required=True)
    flags.DEFINE_string("output_dir", None, "A new folder for the files.", required=True)
    flags.DEFINE_string(
        "stage", None, "The stage to export; if unset, as export.saved_model chooses."
    )
    flags.DEFINE_integer(
        "task", None, "Where --stage is a row of few-shot learning: the task to learn, from 0 on."
    )
    flags.DEFINE_integer(
        "image_size",
        None,
        "Side in pixels of what the network sees; if unset, that of its training.",
    )
    flags.DEFINE_bool("grey", False, "Whether it sees images in shades of grey, of one channel.")
    flags.DEFINE_string("data_dir", None, "Folder of prepared TFDS datasets; TFDS's own if unset.")
    run_main(main, check)
