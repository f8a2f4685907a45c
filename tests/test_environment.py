"""The environment: which Python, which packages, and that they start without a complaint."""

import os
import re
import shutil
import subprocess
import sys
from importlib import metadata, util
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]


def _read(name):
    """Yields the requirements of a file and of those that it names."""
    for line in (ROOT / name).read_text().splitlines():
        line = line.split("#")[0].strip()
        if line.startswith("-r "):
            yield from _read(line.removeprefix("-r "))
        elif line:
            yield Requirement(line)


REQUIREMENTS = [*_read("requirements.txt")]
# By Python, what not all install.
PYTHONS = {
    "3.10": {"tensorflow-addons"},
    "3.11": {"tensorflow-addons"},
    "3.12": {"tf-keras"},
    "3.13": {"tf-keras"},
}


def _of(python, requirements=REQUIREMENTS):
    """Returns what a Python installs on the Linux that Bazel locks for."""
    environment = {"python_version": python, "sys_platform": "linux", "platform_machine": "x86_64"}
    return [r for r in requirements if r.marker is None or r.marker.evaluate(environment)]


@pytest.mark.parametrize(
    "requirement", _of("{}.{}".format(*sys.version_info)), ids=lambda r: r.name
)
def test_requirement_is_bounded_and_installed(requirement):
    operators = {specifier.operator for specifier in requirement.specifier}
    assert operators & {"==", "<", "<="}, f"{requirement} has no upper bound"

    installed = metadata.version(requirement.name)
    assert requirement.specifier.contains(installed), f"{installed} is installed"


@pytest.mark.parametrize("python", PYTHONS)
def test_every_python_installs_the_same_packages_once_but_for_few(python):
    names = [requirement.name for requirement in _of(python)]
    assert len(set(names)) == len(names)
    common = set.intersection(*({r.name for r in _of(each)} for each in PYTHONS))
    assert set(names) - common == PYTHONS[python]


def test_nothing_is_pinned_twice():
    names = [canonicalize_name(each.name) for each in _of("3.13", _read("requirements-dev.txt"))]
    assert len(set(names)) == len(names)


def test_bazel_locks_what_the_newest_python_installs():
    """From the file that the lock's head names, with all that it includes."""
    locked = (ROOT / "requirements_lock.txt").read_text().splitlines()
    (source,) = re.findall(r"uv pip compile (\S+) --python-version 3\.13 ", locked[1])
    assert source == "requirements-dev.txt"
    wanted = {f"{canonicalize_name(r.name)}{r.specifier}" for r in _of("3.13", _read(source))}
    assert wanted <= {*locked}


def _python(program, *, cwd=ROOT, **extra):
    """Runs a program in a fresh process, without what an earlier import has set in this one."""
    ours = ("TF_CPP_MIN_LOG_LEVEL", "TF_USE_LEGACY_KERAS", "PYTHONWARNINGS")
    env = {name: value for name, value in os.environ.items() if name not in ours}
    return subprocess.run(
        [sys.executable, "-c", program],
        cwd=cwd,
        env=env | extra,
        capture_output=True,
        text=True,
        check=False,
    )


def test_imports_are_silent():
    optional = ", tensorflow_addons" if util.find_spec("tensorflow_addons") else ""
    run = _python(
        "import refilled_tf.losses, tensorflow, keras_cv, tensorflow_datasets, gin, absl.app"
        ", sklearn" + optional
    )
    assert run.returncode == 0, run.stderr
    assert run.stderr == ""
    assert not re.search("traceback|warning", run.stdout, re.IGNORECASE)


@pytest.mark.parametrize("said", ["0", "1", ""])
def test_keras_is_keras_2_whatever_the_environment_says(said):
    run = _python(
        "import refilled_tf.losses, tensorflow as tf; print(hasattr(tf.keras, 'ops'))",
        TF_USE_LEGACY_KERAS=said,
    )
    assert (run.stdout, run.stderr) == ("False\n", "")


@pytest.mark.skipif(not util.find_spec("tf_keras"), reason="tf.keras is Keras 2 here")
def test_too_late_for_keras_2_is_said_in_a_line():
    run = _python("import tensorflow, refilled_tf", TF_CPP_MIN_LOG_LEVEL="3")
    *_, last = run.stderr.splitlines()
    assert run.returncode == 1
    assert re.match(
        r"ImportError: refilled_tf needs Keras 2, but tf\.keras is Keras 3[.\d]+: import "
        "refilled_tf before tensorflow ",
        last,
    )


FAKE = """
import os, sys
os.write(2, b"WARNING: All log messages before absl::InitializeLog() is called are written\\n")
os.write(2, b"I0000 00:00:1796011358.422436    4270 port.cc:153] a notice\\n")
print("E as in error", file=sys.stderr)
"""


def _with_tensorflow(folder, end, **extra):
    """Imports a room where TensorFlow is a file that writes to stderr, and then does `end`."""
    (folder / "tensorflow.py").write_text(FAKE + end)
    (folder / "refilled_tf").symlink_to(ROOT / "refilled_tf")
    return _python("import refilled_tf.losses", cwd=folder, **extra)


def test_only_notices_are_held_back(tmp_path):
    run = _with_tensorflow(tmp_path, "class keras: pass")
    assert (run.returncode, run.stderr) == (0, "E as in error\n")


def test_nothing_is_held_back_where_asked(tmp_path):
    run = _with_tensorflow(tmp_path, "class keras: pass", TF_CPP_MIN_LOG_LEVEL="0")
    assert run.stderr.count("\n") == 3


def test_failing_import_shows_all_that_was_written(tmp_path):
    run = _with_tensorflow(tmp_path, "raise ImportError('libtensorflow.so is not there')")
    assert run.returncode == 1
    assert "] a notice\nE as in error\nTraceback" in run.stderr
    assert run.stderr.endswith("ImportError: libtensorflow.so is not there\n")


# --- tools/*.sh and the Makefile's .venv ------------------------------------------------------


def _find_python(path, *arguments, **env):
    return subprocess.run(
        [shutil.which("bash"), ROOT / "tools/find_python.sh", *arguments],
        env={"PATH": str(path), **env},
        capture_output=True,
        text=True,
        check=False,
    )


def _fake_python(path, version):
    path.write_text(f"#!{shutil.which('sh')}\necho {version}\n")
    path.chmod(0o755)


@pytest.mark.parametrize("version", ["3.10.0", "3.11.9", "3.12.0", "3.13.11"])
def test_find_python_accepts_what_the_pins_install_on(tmp_path, version):
    _fake_python(tmp_path / "python3", version)
    assert _find_python(tmp_path).stdout == f"{tmp_path}/python3\n"


@pytest.mark.parametrize("version", ["2.7.18", "3.1.5", "3.9.18", "3.14.0", "3.130.1", "4.11.0"])
def test_find_python_refuses_any_other_version(tmp_path, version):
    _fake_python(tmp_path / "python3", version)
    run = _find_python(tmp_path)

    assert run.returncode != 0
    assert run.stdout == ""
    assert f"{tmp_path}/python3: {version}" in run.stderr
    assert "Python 3.10 to 3.13 is needed" in run.stderr


def test_find_python_takes_the_newest_that_fits(tmp_path):
    for minor in (10, 12, 14):
        _fake_python(tmp_path / f"python3.{minor}", f"3.{minor}.1")
    _fake_python(tmp_path / "python3.13", "pyenv: not active")
    assert _find_python(tmp_path).stdout == f"{tmp_path}/python3.12\n"
    assert _find_python(tmp_path, "3.11").stdout == f"{tmp_path}/python3.10\n"


def test_find_python_passes_over_what_does_not_fit(tmp_path):
    _fake_python(tmp_path / "python3.11", "3.14.1")
    _fake_python(tmp_path / "python", "3.11.9")
    assert _find_python(tmp_path).stdout == f"{tmp_path}/python\n"


def test_find_python_takes_only_the_python_it_is_told(tmp_path):
    _fake_python(tmp_path / "python3.11", "3.11.9")
    _fake_python(tmp_path / "other", "3.9.2")
    run = _find_python(tmp_path, PYTHON=str(tmp_path / "other"))

    assert run.returncode != 0
    assert "other: 3.9.2" in run.stderr


# As far as the Makefile can tell, a Python: of the version in its name, which goes with its copies.
STAND_IN = """#!/bin/bash
minor={minor}
echo "$minor $*" >> {log}
case "$*" in
  *python_version*) echo "3.$minor.1" ;;
  *base_prefix*) echo "3 $minor 1 /usr" ;;
  *"import pip"*) [ -e "$(dirname "$0")/pip" ] ;;
  "-m venv --clear "*)
    rm -rf "$4" && mkdir -p "$4/bin" && cp "$0" "$4/bin/python"
    touch "$4/pyvenv.cfg" "$4/bin/pip"
    ;;
esac
"""


class Machine:
    """A copy of the Makefile, and two Pythons that write down what they are asked to do."""

    def __init__(self, folder):
        self.folder, self.log = folder, folder / "log"
        shutil.copy(ROOT / "Makefile", folder)
        shutil.copytree(ROOT / "tools", folder / "tools")
        for path in ROOT.glob("requirements*.txt"):
            (folder / path.name).touch()
        for minor in (11, 13):
            path = folder / "bin" / f"python3.{minor}"
            path.parent.mkdir(exist_ok=True)
            path.write_text(STAND_IN.format(minor=minor, log=self.log))
            path.chmod(0o755)

    def train(self, python=None):
        """Runs `make train`; returns who made an environment, installed packages and trained."""
        self.log.write_text("")
        ours = ("MAKE", "PYTHON")
        env = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
        env["PATH"] = f"{self.folder / 'bin'}{os.pathsep}{env['PATH']}"
        command = ["make", "train", *([f"PYTHON=python3.{python}"] if python else [])]
        subprocess.run(command, cwd=self.folder, env=env, capture_output=True, check=True)
        done = re.findall(r"^(\d+) -m (venv|pip|refilled_tf\.train) ", self.log.read_text(), re.M)
        return [(int(minor), what) for minor, what in done]


def _all_by(minor):
    return [(minor, "venv"), (minor, "pip"), (minor, "refilled_tf.train")]


def test_environment_of_the_wanted_python_stays_and_any_other_is_replaced(tmp_path):
    machine = Machine(tmp_path)
    assert machine.train() == _all_by(13)
    assert machine.train() == _all_by(13)[2:]
    assert machine.train(python=11) == _all_by(11)
    assert machine.train(python=11) == _all_by(11)[2:]
    assert machine.train() == _all_by(11)[2:]  # no Python is named, and this one works
    assert machine.train(python=13) == _all_by(13)


@pytest.mark.parametrize("gone", ["bin/python", "bin/pip"])
def test_environment_that_is_not_whole_is_replaced(tmp_path, gone):
    machine = Machine(tmp_path)
    machine.train(python=11)
    (tmp_path / ".venv" / gone).unlink()
    (tmp_path / ".venv/left_over").touch()
    assert machine.train() == _all_by(13)
    assert not (tmp_path / ".venv/left_over").exists()
