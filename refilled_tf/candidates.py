"""Which way of training suits these images: candidates compete on held-out training images.

All of them take as many steps as the final training. Their stages are kept, so that a killed
competition goes on.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from refilled_tf import predictions, storage
from refilled_tf.launch import launch

HOLDOUT = 0.2
REFERENCE = "student_kx"  # the student alone, as long
ALONE = (REFERENCE, "lkd_alone", "probe")
WITH_POOL = ("lkd_pool", "probe_pool")
FILE = "candidates.json"
# A length that divides by the number of epochs, after each of which there is a checkpoint.
EPOCHS = 20
LEAST_STEPS = 200


class Candidates(NamedTuple):
    """How the candidates did.

    Attributes:
        rows: of each {"stage", "method", "accuracy", "images", and what it is "above" the student
            alone, with the standard "error" of that}, best first.
        winner: the best one's stage.
    """

    rows: list[dict[str, Any]]

    @property
    def winner(self) -> str:
        return self.rows[0]["stage"]


def names(has_pool: bool) -> list[str]:
    """Returns the stages that compete, each before the one that refits its last layer."""
    trained = (*ALONE, *(WITH_POOL if has_pool else ()))
    return [name for each in trained for name in (each, f"{each}_refit")]


def run(text: str, has_pool: bool, folder: Path, data_dir: str | None, command: str) -> Candidates:
    """Trains the candidates on a part of the training images, and scores them on the rest.

    Args:
        text: the experiment in gin.
        has_pool: whether there are unlabelled images.
        folder: of the candidates: a training's folder.
        data_dir: folder of prepared TFDS datasets; None for TFDS's own.
        command: that does this.

    Returns:
        As FOLDER/candidates.json holds it. Of equals, the one first among `names` is better: it is
        the simpler one.
    """
    gin_file = folder.with_name(f"{folder.name}.gin")
    storage.write_text(gin_file, text)
    params = [_rows(names(has_pool)), f"student.holdout = {HOLDOUT}"]
    _, where, results = launch([str(gin_file)], params, folder, data_dir, command)
    reference = [folder / "stages" / REFERENCE]
    found = []
    for row in results["rows"]:
        difference = predictions.difference([folder / "stages" / row["stage"]], reference)
        mean, error = difference or (0.0, 0.0)
        facts = {name: row[name] for name in ("stage", "method", "accuracy", "images")}
        found.append(facts | {"above": mean, "error": error})
    found.sort(key=lambda row: -row["accuracy"])
    storage.write_json(folder / FILE, found)
    return Candidates(found)


def final_rows(winner: str) -> str:
    """Returns the gin line that trains the winner on all images, beside what it is compared with."""
    return _rows(dict.fromkeys([REFERENCE, winner]), ["teacher_1nn", "teacher_lr"])


def _rows(stages, probes: Sequence[str] = ()) -> str:
    rows = [*(f"@{name}/Probe()" for name in probes), *(f"@{name}/Stage()" for name in stages)]
    return f"Experiment.rows = [{', '.join(rows)}]"
