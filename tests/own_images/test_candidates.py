"""The competition, on accuracies and failures that are known beforehand."""

from __future__ import annotations

import re

import pytest

from refilled_tf.common import storage
from refilled_tf.common.errors import DivergedError
from refilled_tf.own_images import candidates

ACCURACY = {"student_kx": 0.5, "lkd_alone": 0.7, "probe": 0.7, "probe_refit": 0.6}


@pytest.fixture
def launched(monkeypatch):
    """The rows of each training, all of which end at once; "lkd_alone" may diverge."""
    launched = []

    def launch(files, params, folder, data_dir, command):
        names = re.findall(r"@(\w+)/Stage", params[0])
        launched.append(names)
        if launch.diverges and names == [launch.diverges]:
            raise DivergedError("the loss is nan at step 3")
        rows = [
            {"stage": n, "method": n.title(), "accuracy": ACCURACY.get(n, 0.1), "images": 10}
            for n in names
        ]
        return None, None, {"rows": rows}

    launch.diverges = None
    monkeypatch.setattr(candidates, "launch", launch)
    monkeypatch.setattr(candidates.predictions, "difference", lambda ours, reference: (0.0, 0.1))
    return launch, launched


def _run(folder):
    return candidates.run("# gin", False, folder / "candidates", None, "distill")


def test_the_best_comes_first_and_of_equals_the_simpler(launched, tmp_path):
    found = _run(tmp_path)
    assert [row["stage"] for row in found[:4]] == [
        "lkd_alone",
        "probe",
        "probe_refit",
        "student_kx",
    ]
    assert len(found) == len(candidates.names(False)) == 6
    assert storage.read_json(tmp_path / "candidates" / candidates.FILE) == found


def test_a_candidate_that_diverges_is_out_with_its_refit(launched, tmp_path, capsys):
    launch, names = launched
    launch.diverges = "lkd_alone"
    found = _run(tmp_path)
    assert {row["stage"] for row in found}.isdisjoint({"lkd_alone", "lkd_alone_refit"})
    assert ["lkd_alone_refit"] not in names
    assert names[-1] == ["student_kx", "student_kx_refit", "probe", "probe_refit"]
    assert "lkd_alone is out: the loss is nan at step 3" in capsys.readouterr().out


def test_a_student_alone_that_diverges_ends_it(launched, tmp_path):
    launched[0].diverges = "student_kx"
    with pytest.raises(DivergedError):
        _run(tmp_path)


def test_unlabelled_images_add_candidates():
    assert set(candidates.names(True)) - set(candidates.names(False)) == {
        f"{name}{refit}" for name in ("lkd_pool", "probe_pool") for refit in ("", "_refit")
    }


@pytest.mark.parametrize("has_head", [True, False])
def test_the_winner_is_trained_beside_its_measures(has_head):
    line = candidates.final_rows("probe_refit", has_head)
    head = "@teacher_head/Stage(), " if has_head else ""
    assert line == (
        "Experiment.rows = [@teacher_1nn/Probe(), @teacher_lr/Probe(), "
        f"{head}@student_kx/Stage(), @probe_refit/Stage()]"
    )
    assert candidates.final_rows("student_kx", False).count("student_kx") == 1


def test_a_plan_is_made_once(monkeypatch, tmp_path):
    made = []
    monkeypatch.setattr(candidates, "steps_within", lambda *what: made.append(what) or 4_000)
    for minutes in (10.0, 10.0, 20.0):
        found = candidates.planned_steps(minutes, "", False, tmp_path / "candidates", None)
        assert found == 4_000
    assert [minutes for minutes, *_ in made] == [10.0, 20.0]
