"""A distillation whose images or options are not what they were: what is outdated, and its place.

OUTPUT/images.json  the images that OUTPUT's networks have learnt from
OUTPUT/previous/    what was outdated, until what takes its place is finished
"""

from __future__ import annotations

import collections
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path

from refilled_tf.common import storage
from refilled_tf.common.errors import InputError
from refilled_tf.data.image_folder import ImageFolder
from refilled_tf.data.sources import Source
from refilled_tf.experiment.experiment import Experiment
from refilled_tf.experiment.run import Run, differing_settings

IMAGES = "images.json"
PREVIOUS = "previous"
# Settings that a user knows by the images, or not at all.
_CONTENT = ("ImageFolder.content", "PhotoFolder.content", "Task.unlabelled", "parent ")

Outdated = dict[Path, dict[str, str]]


def outdated(spec: Experiment, run: Run) -> Outdated:
    """Finds the folders of an experiment that other settings have made.

    Returns:
        Of each folder the settings that differ, by name, in words.
    """
    found = {}
    for named in spec.specs():
        if differing := differing_settings(named, run):
            found[run.folder(named)] = differing
    return found


def listing(source: Source) -> dict[str, str]:
    """Returns the hash of each image of one's own by its path; {} for other sources."""
    if not isinstance(source, ImageFolder):
        return {}
    return {photo.key: photo.content for photo in source.survey().photos}


def images_changed(there: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """Lists in words what has changed in a folder, such as "3 images were added to dog/".

    Args:
        there: what `listing` returned when the networks were trained.
        now: what it returns.
    """
    changes = {
        "added to": now.keys() - there.keys(),
        "removed from": there.keys() - now.keys(),
        "changed in": {key for key in there.keys() & now.keys() if there[key] != now[key]},
    }
    said = []
    for change, keys in changes.items():
        for folder, count in sorted(collections.Counter(map(_folder, keys)).items()):
            images = "1 image was" if count == 1 else f"{count} images were"
            said.append(f"{images} {change} {folder}/")
    return said


def require_current(found: Outdated, output: Path, source: Source) -> None:
    """Rejects outdated results, and says all that has changed.

    Args:
        found: as `outdated` returns it.
        output: of the distillation.
        source: of the labelled images.

    Raises:
        InputError: something is.
    """
    if not found:
        return
    settings = {name: text for differing in found.values() for name, text in differing.items()}
    said = []
    if "ImageFolder.content" in settings:
        record = output / IMAGES
        there = storage.read_json(record) if record.exists() else {}
        said += images_changed(there, listing(source)) if there else ["the images were others"]
    if "Task.unlabelled" in settings:
        said.append("the unlabelled images were others")
    said += [text for name, text in settings.items() if not name.startswith(_CONTENT)]
    raise InputError(
        f"--output={output} holds what was made before: {'; '.join(said)}. Add --retrain to train "
        "anew what that touches (the old stays until the new is there), or take another --output",
    )


def set_aside(paths: Iterable[Path], output: Path) -> None:
    """Moves what is outdated into OUTPUT/previous/.

    What is there already is older, and finished; then the younger one goes.
    """
    for path in paths:
        place = output / PREVIOUS / path.relative_to(output)
        if place.exists():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
            continue
        place.parent.mkdir(parents=True, exist_ok=True)
        path.rename(place)


def forget_previous(output: Path) -> None:
    """Deletes what was set aside, once all that takes its place is there."""
    shutil.rmtree(output / PREVIOUS, ignore_errors=True)


def _folder(key: str) -> str:
    return key.rpartition("/")[0]
