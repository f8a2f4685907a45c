"""Prepares a dataset of TFDS: python -m refilled_tf.prepare --dataset=cifar100.

Does what `tfds build` does, which needs Apache Beam even for datasets without it.
"""

from __future__ import annotations

from pathlib import Path

import tensorflow_datasets as tfds
from absl import flags

from refilled_tf.common import storage
from refilled_tf.common.entry import run_main
from refilled_tf.common.errors import InputError, require
from refilled_tf.data import mini_imagenet  # noqa: F401  # makes it known to TFDS
from refilled_tf.data.sources import UNKNOWN_DATASET

FLAGS = flags.FLAGS


def main(argv: list[str]) -> None:
    """Prepares the dataset that the flags name."""
    require(len(argv) == 1, f"unexpected argument {argv[1:]}; every option is a --flag")
    print(f"prepared in {prepare(FLAGS.dataset, FLAGS.data_dir, FLAGS.manual_dir)}")


def prepare(dataset: str, data_dir: str | None, manual_dir: str | None) -> str:
    """Downloads a dataset, or takes what is at hand, and writes it in TFDS's format.

    Args:
        dataset: its TFDS name, or "mini_imagenet".
        data_dir: the folder of prepared datasets; None for TFDS's own.
        manual_dir: the folder of what cannot be downloaded; None for TFDS's own.

    Returns:
        The folder in which it is.

    Raises:
        InputError: TFDS knows no such dataset, what is at hand is incomplete, or a download or the
            disk fails.
    """
    require(
        manual_dir is None or Path(manual_dir).is_dir(),
        f"--manual_dir={manual_dir} is not a folder",
    )
    if data_dir is not None:
        storage.require_writable("--data_dir", Path(data_dir))
    try:
        builder = tfds.builder(dataset, data_dir=data_dir)
    except UNKNOWN_DATASET as error:
        raise InputError(f"--dataset={dataset}: TensorFlow Datasets knows none such") from error
    settings = tfds.download.DownloadConfig(manual_dir=manual_dir)
    try:
        builder.download_and_prepare(download_config=settings)
    except (OSError, ValueError, AssertionError, tfds.download.DownloadError) as error:
        # TFDS asserts that there is a folder where one is wanted; without a network, requests
        # raises kinds of OSError.
        raise InputError(f"--dataset={dataset}: {' '.join(str(error).split())}") from error
    return str(builder.data_path)


# Here, so that the module can be imported beside others with flags of these names.
if __name__ == "__main__":
    flags.DEFINE_string("dataset", None, "TFDS's name, or mini_imagenet.", required=True)
    flags.DEFINE_string("data_dir", None, "Folder of prepared datasets; TFDS's own if unset.")
    flags.DEFINE_string("manual_dir", None, "Folder of what TFDS cannot download.")
    run_main(main, goes_on=True)
