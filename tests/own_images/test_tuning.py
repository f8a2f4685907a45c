"""The search for hyper-parameters, on accuracies that are known beforehand."""

from __future__ import annotations

import math

import pytest
import tiny

from refilled_tf.common import storage
from refilled_tf.common.errors import DivergedError, InputError
from refilled_tf.experiment import config
from refilled_tf.own_images import tuning

# Where the search begins, for REFILLED, which is the last row.
FIRST = {
    "RelationshipMatching.weight": 30.0,
    "RelationshipMatching.tau_teacher": 2.0,
    "LocalDistillation.weight": 2.0,
    "LocalDistillation.tau_teacher": 2.0,
    "Recipe.learning_rate": 0.1,
}
WIDTH = "student/MobileNet.width"


@pytest.fixture(autouse=True)
def _trainings(monkeypatch):
    """Every training ends at once: best at rate .05, and 10 points better at width .5 or more."""

    def launch(files, params, folder, data_dir, command):
        values = dict(param.split(" = ") for param in params)
        rate, width = float(values["Recipe.learning_rate"]), float(values.get(WIDTH, 0.25))
        accuracy = 0.5 - 0.1 * abs(math.log(rate / 0.05)) + 0.1 * (width >= 0.5)
        return None, None, {"rows": [{"accuracy": accuracy, "images": 7}]}

    monkeypatch.setattr(tuning, "launch", launch)


def _run(folder, count, widths=(0.25,)):
    return tuning.run(tiny.GIN, WIDTH, widths, folder / "tuning", count, None, "distill")


def test_begins_with_the_defaults_and_goes_on_where_fewer_trials_ended(tmp_path):
    few, more = _run(tmp_path, 3), _run(tmp_path, 5)
    assert few[0]["settings"] == FIRST
    assert more[:3] == few
    assert len({trial["settings"]["Recipe.learning_rate"] for trial in more}) == 5
    assert storage.read_json(tmp_path / "tuning" / tuning.TRIALS) == more
    for trial in more:
        assert trial["settings"].keys() == FIRST.keys()
        for option, value in trial["settings"].items():
            low, _, high = tuning.RANGES[option]
            assert low <= value <= high


def test_best_trial_is_chosen(tmp_path):
    trials = _run(tmp_path, 12)
    best = max(trials, key=lambda trial: trial["accuracy"])
    title, *lines = tuning.chosen(trials)
    assert title.startswith(f"# {best['name']}, ")
    assert lines == [f"{option} = {value}" for option, value in best["settings"].items()]
    # What is searched for counts: the best is nearer to .05 than the .1 of the first.
    assert abs(math.log(best["settings"]["Recipe.learning_rate"] / 0.05)) < math.log(2)


def test_a_trial_that_diverges_costs_only_itself(tmp_path, monkeypatch, capsys):
    whole, launch = _run(tmp_path / "whole", 5), tuning.launch

    def diverging(files, params, folder, *rest):
        if "refilled/Stage.name = 'trial_002'" in params:
            raise DivergedError("the loss is nan at step 3")
        return launch(files, params, folder, *rest)

    monkeypatch.setattr(tuning, "launch", diverging)
    trials = _run(tmp_path, 5)
    assert [trial["name"][-1] for trial in trials] == list("0134")
    assert trials[:2] == whole[:2]
    assert "trial_002: the loss is nan at step 3" in capsys.readouterr().out


def test_trials_that_all_diverge_are_an_error(tmp_path, monkeypatch):
    def diverging(*_):
        raise DivergedError("the loss is nan")

    monkeypatch.setattr(tuning, "launch", diverging)
    with pytest.raises(InputError, match="--tune=2: none of the trials"):
        _run(tmp_path, 2)


def test_width_is_chosen_where_there_is_a_choice(tmp_path):
    assert all(WIDTH not in trial["settings"] for trial in _run(tmp_path, 2))
    trials = _run(tmp_path, 12, widths=(0.25, 0.5, 0.75))
    assert trials[0]["settings"] == FIRST | {WIDTH: 0.25}
    assert {trial["settings"][WIDTH] for trial in trials} == {0.25, 0.5, 0.75}
    chosen = dict(line.split(" = ") for line in tuning.chosen(trials)[1:])
    assert float(chosen[WIDTH]) >= 0.5


@pytest.mark.parametrize(
    ("row", "options"),
    [
        ("student", set()),
        ("lkd_pool", {"LocalDistillation.weight", "LocalDistillation.tau_teacher"}),
        (
            "probe_refit",
            {"ProbeDistillation.cross_entropy_weight", "ProbeDistillation.temperature"},
        ),
    ],
)
def test_a_row_is_tuned_by_what_its_stages_take(row, options):
    text = f"{tiny.GIN}include 'methods/probe.gin'\nLocalDistillation.centers = 'global'\n"
    spec = config.load_text(f"{text}Experiment.rows = [@{row}/Stage()]")
    ranges = tuning.ranges_of(tuning.chain_of(spec.rows[-1]))
    assert ranges.keys() == options | {"Recipe.learning_rate"}
