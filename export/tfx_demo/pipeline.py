"""A TFX pipeline on this machine: python -m export.tfx_demo.pipeline --output_dir=runs/tfx_demo.

ImportExampleGen takes TFRecord files of scikit-learn's digits 5 to 9, Trainer distils a student
of them from a teacher of 0 to 4, Evaluator blesses it if it is accurate enough, and Pusher puts
it where a server watches. `make tfx-demo` sets up what it needs and runs it.
"""

from __future__ import annotations

import shlex
from pathlib import Path

import numpy as np
import sklearn.datasets
import tensorflow as tf
import tensorflow_model_analysis as tfma
from absl import flags
from tfx import v1 as tfx

from export import versions
from refilled_tf.common.entry import run_main
from refilled_tf.common.errors import require

FLAGS = flags.FLAGS
flags.DEFINE_string("output_dir", "runs/tfx_demo", "Where everything goes.")

FIRST = 5  # of the student's digits; the teacher's, in digits_halves.gin, are those before
STEPS = 150
LOWEST_ACCURACY = 0.6  # of what is pushed; a guess has 0.2
LABEL = "image/class/label"


def main(_: list[str]) -> None:
    """Runs the pipeline and says where the model is."""
    folder = Path(FLAGS.output_dir).resolve()
    base = folder / "pushed"
    before = versions.existing(base)
    write_digits(folder / "digits")
    tfx.orchestration.LocalDagRunner().run(pipeline(folder))
    now = versions.existing(base)
    require(
        now != before,
        f"nothing was pushed: the student's accuracy is below {LOWEST_ACCURACY:.0%}",
    )
    print(f"Pushed to {base / str(now[-1])}")
    print(f"Serve it: python -m export.serve --export_dir={shlex.quote(str(base))}")


def write_digits(folder: Path) -> None:
    """Writes train.tfrecord.gz and eval.tfrecord.gz, half of the student's digits each."""
    digits = sklearn.datasets.load_digits()
    rows = np.flatnonzero(digits.target >= FIRST)
    folder.mkdir(parents=True, exist_ok=True)
    for split, part in (("train", rows[::2]), ("eval", rows[1::2])):
        with tf.io.TFRecordWriter(str(folder / f"{split}.tfrecord.gz"), "GZIP") as writer:
            for row in part:
                writer.write(_example(digits.images[row], int(digits.target[row])))


def _example(pixels: np.ndarray, digit: int) -> bytes:
    """Returns a serialized tf.Example of an image [8, 8] with values in [0, 16]."""
    grey = np.round(pixels[..., np.newaxis] * (255 / 16)).astype(np.uint8)
    values = {
        "image/encoded": tf.train.BytesList(value=[tf.io.encode_png(grey).numpy()]),
        "image/class/text": tf.train.BytesList(value=[str(digit).encode()]),
    }
    feature = {name: tf.train.Feature(bytes_list=value) for name, value in values.items()}
    feature[LABEL] = tf.train.Feature(int64_list=tf.train.Int64List(value=[digit - FIRST]))
    return tf.train.Example(features=tf.train.Features(feature=feature)).SerializeToString()


def pipeline(folder: Path) -> tfx.dsl.Pipeline:
    """Returns the pipeline from FOLDER/digits/ to FOLDER/pushed/VERSION/."""
    splits = [
        tfx.proto.Input.Split(name=split, pattern=f"{split}.tfrecord.gz")
        for split in ("train", "eval")
    ]
    examples = tfx.components.ImportExampleGen(
        input_base=str(folder / "digits"), input_config=tfx.proto.Input(splits=splits)
    )
    trainer = tfx.components.Trainer(
        run_fn="export.tfx_module.run_fn",
        examples=examples.outputs["examples"],
        train_args=tfx.proto.TrainArgs(num_steps=STEPS),
        eval_args=tfx.proto.EvalArgs(),
        custom_config={
            "gin_file": "digits_halves.gin",
            "gin_params": ["Experiment.rows = [@refilled/Stage()]"],
        },
    )
    threshold = tfma.GenericValueThreshold(lower_bound={"value": LOWEST_ACCURACY})
    accuracy = tfma.MetricConfig(
        class_name="SparseCategoricalAccuracy",
        threshold=tfma.MetricThreshold(value_threshold=threshold),
    )
    evaluator = tfx.components.Evaluator(
        examples=examples.outputs["examples"],
        model=trainer.outputs["model"],
        eval_config=tfma.EvalConfig(
            model_specs=[
                tfma.ModelSpec(
                    signature_name="serving_default",
                    label_key=LABEL,
                    prediction_key="probabilities",
                )
            ],
            slicing_specs=[tfma.SlicingSpec()],
            metrics_specs=[tfma.MetricsSpec(metrics=[accuracy])],
        ),
    )
    destination = tfx.proto.PushDestination.Filesystem(base_directory=str(folder / "pushed"))
    pusher = tfx.components.Pusher(
        model=trainer.outputs["model"],
        model_blessing=evaluator.outputs["blessing"],
        push_destination=tfx.proto.PushDestination(filesystem=destination),
    )
    return tfx.dsl.Pipeline(
        pipeline_name="refilled",
        pipeline_root=str(folder / "pipeline"),
        components=[examples, trainer, evaluator, pusher],
        metadata_connection_config=tfx.orchestration.metadata.sqlite_metadata_connection_config(
            str(folder / "metadata.sqlite")
        ),
    )


if __name__ == "__main__":
    run_main(main)
