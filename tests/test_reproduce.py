"""One table by several processes: what each does, what is shared, what a failure costs."""

from __future__ import annotations

import dataclasses
import json
import math
import signal
import subprocess
import sys
import time
import types
from concurrent import futures

import commands
import numpy as np
import pytest
import tensorflow as tf
import tiny

from refilled_tf import reproduce
from refilled_tf.common.errors import InputError
from refilled_tf.experiment import config, experiment
from refilled_tf.objectives.cross_entropy import CrossEntropy
from refilled_tf.reporting import tables

STUDENT = tiny.second(name="student", objective=CrossEntropy(), start=None)
CHAIN = [tiny.teacher(), STUDENT, tiny.first(), tiny.second()]


def _pooled(work_dir, **changes):
    return dataclasses.replace(tiny.run_in(work_dir), pooled=True, **changes)


@pytest.fixture
def table(tmp_path):
    """A table of two columns that share their teacher: 1 + 2 · 3 stages and a probe."""
    (tmp_path / "tiny.gin").write_text(
        tiny.GIN + "Experiment.rows = [@teacher_1nn/Probe(), @student/Stage(), @refilled/Stage()]\n"
        "Probe.task = @teacher()\n",
        encoding="utf-8",
    )
    (tmp_path / "digits.gin").write_text(
        "Table.title = 'Digits'\nTable.axis = 'images a class'\nTable.seeds = 1\n"
        "Table.pictured = '20'\n"
        "Table.columns = {\n"
        f"    '10': ('{tmp_path}/tiny.gin', 'student.images_per_class = 10'),\n"
        f"    '20': ('{tmp_path}/tiny.gin', 'student.images_per_class = 20'),\n"
        "}\nTable.paper = {'REFILLED': (90.0, None)}\n",
        encoding="utf-8",
    )
    return tmp_path / "digits.gin"


def _reproduce(table, work_dir, *flags, timeout=300):
    flags = (f"--table={table}", f"--work_dir={work_dir}", *flags)
    done = commands.run("refilled_tf.reproduce", *flags, timeout=timeout)
    assert done.returncode == 0, done.stderr
    return done.stdout


def _stages(work_dir):
    """Names of finished folders."""
    return {path.parent.name for path in work_dir.glob("stages/*/result.json")}


@pytest.mark.slow
def test_two_processes_share_a_table_and_give_what_one_gives(table, tmp_path):
    """Each stage is trained by one of them, to the weights that `experiment.finish_rows` trains."""
    work_dir = tmp_path / "work"
    with futures.ThreadPoolExecutor() as two:
        outputs = list(two.map(_reproduce, [table] * 2, [work_dir] * 2))
    taken = [[line for line in out.splitlines() if line in _stages(work_dir)] for out in outputs]
    assert sorted(taken[0] + taken[1]) == sorted(_stages(work_dir))
    assert len(_stages(work_dir)) == 1 + 1 + 2 * 3  # teacher, its probe, three stages a column

    files = [f"{tmp_path}/tiny.gin"], ["student.images_per_class = 20", "Stage.seed = 0"]
    spec = config.load_experiment(*files)
    alone, pooled = tiny.run_in(tmp_path / "alone"), _pooled(work_dir)
    results = experiment.finish_rows(spec, alone, *files)
    for stage in spec.stages():
        weights = [
            tf.keras.models.load_model(run.folder(stage) / "model.keras").get_weights()
            for run in (alone, pooled)
        ]
        for one, two in zip(*weights, strict=True):
            np.testing.assert_allclose(one, two, rtol=1e-4, atol=1e-5)
    lines = (work_dir / "digits" / "digits.csv").read_text(encoding="utf-8").splitlines()
    written = next(line for line in lines if line.startswith("REFILLED,20,")).split(",")
    assert float(written[2]) == pytest.approx(100 * results["rows"][-1]["accuracy"], abs=0.5)

    for name in ("accuracy", "answers", "curves", "embeddings"):
        assert (work_dir / "digits" / f"{name}.png").stat().st_size > 5000
    page = (work_dir / "report.html").read_text(encoding="utf-8")
    assert page.count("data:image/png;base64,") == 4


def test_a_killed_process_leaves_no_lock(tmp_path, monkeypatch):
    """While one is at the student, the others go on; when it is killed, the student is free."""
    run = _pooled(tmp_path)
    lock = run.lock(STUDENT).lock_file
    code = f"import filelock, time; held = filelock.FileLock({lock!r}); held.acquire()"
    code += "; print(1, flush=True); time.sleep(600)"
    holder = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    assert holder.stdout.readline()

    def nothing_else_to_do(_):
        assert holder.poll() is None
        assert [stage.name for stage in CHAIN if not run.is_finished(stage)] == ["student"]
        holder.send_signal(signal.SIGKILL)
        holder.wait()

    clock = types.SimpleNamespace(sleep=nothing_else_to_do, monotonic=time.monotonic)
    monkeypatch.setattr(reproduce, "time", clock)
    assert reproduce.finish_all(CHAIN, run) == []
    assert holder.poll() == -signal.SIGKILL
    assert all(run.is_finished(stage) for stage in CHAIN)


def test_a_failure_costs_only_what_builds_on_it(tmp_path, capsys):
    run = _pooled(tmp_path)
    hot = dataclasses.replace(tiny.RECIPE, learning_rate=1e30)
    broken = tiny.first(recipe=hot)
    child = tiny.second(start=broken)
    failed = reproduce.finish_all([tiny.teacher(), broken, child, STUDENT], run)
    assert failed == [run.folder(broken).name, run.folder(child).name]
    assert run.is_finished(STUDENT)
    assert "'first'" in capsys.readouterr().err


def test_memory_that_does_not_suffice_is_such_a_failure(tmp_path, capsys, monkeypatch):
    """What TensorFlow raises on a GPU for a network that is too large."""
    run, finish = _pooled(tmp_path), experiment.finish

    def short_of_memory(spec, where):
        if spec.name == "first":
            raise tf.errors.ResourceExhaustedError(None, None, "OOM\nsecond line")
        return finish(spec, where)

    monkeypatch.setattr(experiment, "finish", short_of_memory)
    failed = reproduce.finish_all(CHAIN, run)
    assert failed == [run.folder(spec).name for spec in (tiny.first(), tiny.second())]
    assert run.is_finished(STUDENT)
    assert "OOM" in capsys.readouterr().err


@pytest.mark.slow
def test_all_tables_are_known_before_the_first_is_trained(table, tmp_path):
    run = commands.run("refilled_tf.reproduce", f"--table={table},9", f"--work_dir={tmp_path}/out")
    assert run.returncode == 1
    assert "--table=9" in run.stderr
    assert not (tmp_path / "out").exists()


def _flags(monkeypatch, **given):
    known = {"data_dir": None, "collect": False, "dry_run": True} | given
    monkeypatch.setattr(reproduce, "FLAGS", types.SimpleNamespace(**known))


def _experiment(**options):
    return experiment.Experiment((STUDENT,), **options)


def test_experiments_may_say_where_their_data_lie(tmp_path, monkeypatch):
    here, there = _experiment(data_dir="here"), _experiment(data_dir="there")
    _flags(monkeypatch)
    assert reproduce.placed("mine", [here, here], _pooled(tmp_path)).data_dir == "here"
    with pytest.raises(InputError, match=r"mine: .*differ in Experiment\.data_dir"):
        reproduce.placed("mine", [here, there], _pooled(tmp_path))
    _flags(monkeypatch, data_dir="elsewhere")
    assert reproduce.placed("mine", [here, there], _pooled(tmp_path)).data_dir == "elsewhere"


def test_several_machines_take_stages_and_not_shares_of_a_batch(tmp_path, monkeypatch):
    _flags(monkeypatch)
    with pytest.raises(InputError, match=r"mine: Experiment\.strategy must be 'mirrored'"):
        reproduce.placed("mine", [_experiment(strategy="multi_worker")], _pooled(tmp_path))


def test_time_that_is_over_stops_between_epochs(tmp_path, capsys, monkeypatch):
    """And the next run goes on, to the weights of one that was never stopped."""
    teacher, whole = tiny.teacher(), _pooled(tmp_path / "whole")
    short = _pooled(tmp_path / "pieces", deadline=time.monotonic())
    with monkeypatch.context() as patch:
        # There is time when the stage is taken up, and none after an epoch of any length.
        patch.setattr(reproduce, "time", types.SimpleNamespace(monotonic=lambda: -math.inf))
        reproduce.finish_all([teacher], short)
    folder = short.folder(teacher)
    assert "--max_minutes are over" in capsys.readouterr().out
    assert [path.name for path in folder.glob("checkpoints/*.index")] == ["ckpt-1.index"]

    for run in (dataclasses.replace(short, deadline=None), whole):
        assert reproduce.finish_all([teacher], run) == []
    for file in ("history.csv",):
        assert (folder / file).read_text() == (whole.folder(teacher) / file).read_text()
    networks = [run.folder(teacher) / "model.keras" for run in (short, whole)]
    pieces, at_once = (tf.keras.models.load_model(path).get_weights() for path in networks)
    for one, two in zip(pieces, at_once, strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_dry_run_writes_nothing_and_collecting_trains_nothing(table, tmp_path):
    out = _reproduce(table, tmp_path / "dry", "--dry_run", timeout=120)
    assert not (tmp_path / "dry").exists()
    # Of 2 experiments: the teacher is in both, the others in one each.
    uses = [line.split("|")[2].strip() for line in out.splitlines() if "unknown |" in line]
    assert sorted(uses)[-1] == "2"
    assert "0 of 8 finished" in out

    _reproduce(table, tmp_path / "none", "--collect", timeout=120)
    assert not list((tmp_path / "none").glob("stages/*"))
    assert json.loads((tmp_path / "none" / "digits" / "digits.json").read_text())["missing"]


@pytest.mark.parametrize("scale", ["paper", "cpu"])
def test_every_table_of_the_paper_is_there(scale):
    assert {"1", "2", "3", "4", "5"} <= set(reproduce.names(scale))
    for name in reproduce.names(scale):
        assert reproduce.table_file(name, scale).is_file()


def test_unknown_table_is_refused():
    with pytest.raises(InputError, match=r"--table=9: at --scale=paper there are 1, 2, "):
        reproduce.table_file("9", "paper")
    with pytest.raises(InputError, match=r"--table=nowhere\.gin does not exist"):
        reproduce.table_file("nowhere.gin", "cpu")


def test_scales_are_not_mixed(tmp_path):
    reproduce.check_work_dir(tmp_path / "new", "cpu")
    (tmp_path / reproduce.MARK).write_text('"paper"')
    reproduce.check_work_dir(tmp_path, "paper")
    with pytest.raises(InputError, match=r"results of --scale=paper, which are not mixed"):
        reproduce.check_work_dir(tmp_path, "cpu")


def test_folder_of_something_else_is_refused(tmp_path):
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(InputError, match="not of this command's making"):
        reproduce.check_work_dir(tmp_path, "cpu")
    with pytest.raises(InputError, match=r"thesis\.tex is not a folder"):
        reproduce.check_work_dir(tmp_path / "thesis.tex", "cpu")


def test_stages_that_are_equal_are_shared(tmp_path):
    """Two students of one teacher; their seeds make two of them, and of their stage 1."""
    experiments = [
        experiment.Experiment((tiny.second(seed=seed, start=tiny.first(seed=seed)),))
        for seed in (0, 1)
    ]
    parts = [tables.Part("a", seed, spec) for seed, spec in enumerate(experiments)]
    shared = tables.unique(parts, _pooled(tmp_path))
    assert [(spec.name, spec.seed, uses) for spec, uses in shared] == [
        ("teacher", 0, 2),
        ("first", 0, 1),
        ("second", 0, 1),
        ("first", 1, 1),
        ("second", 1, 1),
    ]
