"""Prepares a dataset of TFDS: python -m refilled_tf.prepare --dataset=cifar100.

Does what `tfds build` does, which needs Apache Beam even for datasets without it.
"""

from __future__ import annotations

from pathlib import Path

from absl import flags
from etils import epy

from refilled_tf.common import storage
from refilled_tf.common.entry import no_arguments, run_main
from refilled_tf.common.errors import InputError, require

with epy.lazy_imports():
    import tensorflow_datasets as tfds

    from refilled_tf.data import sources

FLAGS = flags.FLAGS


def check(argv: list[str]) -> None:
    """Rejects folders that are not there or cannot be written."""
    no_arguments(argv)
    check_folders(FLAGS.data_dir, FLAGS.manual_dir)


def check_folders(data_dir: str | None, manual_dir: str | None) -> None:
    """Rejects folders that `prepare` cannot write or read.

    Raises:
        InputError: naming the folder.
    """
    require(
        manual_dir is None or Path(manual_dir).is_dir(),
        f"--manual_dir={manual_dir} is not a folder",
    )
    if data_dir is not None:
        storage.require_writable("--data_dir", Path(data_dir))


def main(_: list[str]) -> None:
    """Prepares the dataset that the flags name."""
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
    from refilled_tf.data import mini_imagenet  # noqa: F401  # makes it known to TFDS

    try:
        builder = tfds.builder(dataset, data_dir=data_dir)
    except sources.UNKNOWN_DATASET as error:
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
    run_main(main, check, goes_on=True)
