"""Exports for TF Serving: python -m export.saved_model --work_dir=… --export_dir=….

Writes EXPORT_DIR/<Unix time>/, a SavedModel with warm-up requests and a model card, and in
EXPORT_DIR/server/ what a server needs to be told. A version appears at once as a whole, after it
was loaded again and has answered as the trained network does.
"""

from __future__ import annotations

import shlex
from pathlib import Path

from absl import flags
from etils import epy

from export import PREFERRED
from refilled_tf.common import gin_files, storage
from refilled_tf.common.entry import no_arguments, run_main

with epy.lazy_imports():
    from export import server_files, trained, versions

FLAGS = flags.FLAGS
flags.DEFINE_string("work_dir", None, "The folder of a training.", required=True)
flags.DEFINE_string("export_dir", None, "The folder of the versions.", required=True)
flags.DEFINE_string(
    "stage",
    None,
    f"The stage to export. If unset {PREFERRED!r}, or if that is not finished, the last "
    "finished classifier of the student's task.",
)
flags.DEFINE_integer(
    "task", None, "Where --stage is a row of few-shot learning: the task to learn, from 0 on."
)
flags.DEFINE_string("data_dir", None, "Folder of prepared TFDS datasets; TFDS's own if unset.")


def check(argv: list[str]) -> None:
    """Rejects what is not the folder of a training, and what cannot be written."""
    no_arguments(argv)
    storage.require_writable("--export_dir", Path(FLAGS.export_dir))
    gin_files.require_training(Path(FLAGS.work_dir))


def main(_: list[str]) -> None:
    """Exports the stage that the flags name."""
    base = Path(FLAGS.export_dir)
    versions.check_base(base)
    model = trained.load(Path(FLAGS.work_dir), FLAGS.stage, FLAGS.data_dir, FLAGS.task)
    version = versions.publish(model, base)
    print(f"{model.stage.name} ({model.stage.method}) is exported to {version}")
    script = base / server_files.FOLDER / "docker_run.sh"
    print(f"Serve it: sh {shlex.quote(str(script))}")


if __name__ == "__main__":
    run_main(main, check)
