"""A folder of versions, BASE/1700000000/, BASE/1700003600/, …, as a server watches it."""

from __future__ import annotations

import time
from pathlib import Path

from export import check, model_card, requests, server_files, signatures
from export.trained import Trained
from refilled_tf.common import storage
from refilled_tf.common.errors import require


def publish(trained: Trained, base: Path) -> Path:
    """Exports a classifier as a new version, once it is seen to answer as it should.

    Args:
        trained: what to export.
        base: the folder of the versions; made if missing.

    Returns:
        The version's folder.

    Raises:
        InputError: as `check_base` says, or the export fails its own check; then no version is
            added.
    """
    check_base(base)
    storage.remove_abandoned(base)
    # The Unix time, and yet the highest number: two exports may fall into the same second.
    version = max([int(time.time()), *(number + 1 for number in existing(base))])
    require(
        version < 2**63, f"--export_dir={base} holds {version - 1}, the highest version there is"
    )
    save(trained, base / str(version))
    server_files.add(base, existing(base), version)
    return base / str(version)


def check_base(base: Path) -> None:
    """Rejects a folder that no version can be added to.

    Raises:
        InputError: it cannot be written, or its models.config cannot be read.
    """
    for folder in (base, base / server_files.FOLDER):
        storage.require_writable("--export_dir", folder)
    server_files.read_models(base)


def save(trained: Trained, folder: Path) -> None:
    """Writes a classifier's SavedModel, once it is seen to answer as it should.

    Args:
        trained: what to export.
        folder: the SavedModel's own; must not be there, or be empty.

    Raises:
        InputError: `folder` cannot be written, or the export fails its check; then nothing is.
    """
    data = trained.stage.task.data
    with storage.appearing(folder) as temporary:
        functions = signatures.save(trained.network, data, trained.data.class_names, temporary)
        requests.write_warmup(temporary, data)
        difference = check.check(temporary, trained)
        card = model_card.text(trained, functions, difference)
        (temporary / "model_card.md").write_text(card, encoding="utf-8")


def existing(base: Path) -> list[int]:
    """Returns the versions in a folder, which may be missing."""
    return sorted(server_files.version_folders(base)) if base.exists() else []
