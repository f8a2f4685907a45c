"""The pinned packages are the ones installed, and work together without a complaint."""

import os
import re
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[1]

LINES = [line.split("#")[0].strip() for line in (ROOT / "requirements.txt").open()]
REQUIREMENTS = [Requirement(line) for line in LINES if line]

IMPORTS = (
    "import refilled_tf, tensorflow, tensorflow_addons, keras_cv, tensorflow_datasets, gin, "
    "absl.app, sklearn"
)


@pytest.mark.parametrize("requirement", REQUIREMENTS, ids=lambda r: r.name)
def test_requirement_is_bounded_and_installed(requirement):
    operators = {specifier.operator for specifier in requirement.specifier}
    assert operators & {"==", "<", "<="}, f"{requirement} has no upper bound"

    installed = metadata.version(requirement.name)
    assert requirement.specifier.contains(installed), f"{installed} is installed"


def test_imports_are_silent():
    # What an earlier import has set in this process must not do refilled_tf's work for it.
    inherited = ("TF_CPP_MIN_LOG_LEVEL", "PYTHONWARNINGS")
    env = {name: value for name, value in os.environ.items() if name not in inherited}
    run = subprocess.run(
        [sys.executable, "-c", IMPORTS],
        cwd=ROOT,
        env=env,
        capture_output=True,
        text=True,
        check=False,
    )
    output = run.stdout + run.stderr
    assert run.returncode == 0, output
    assert not re.search("traceback|warning", output, re.IGNORECASE), output


def _find_python(path, **env):
    return subprocess.run(
        [shutil.which("bash"), ROOT / "tools/find_python.sh"],
        env={"PATH": str(path), **env},
        capture_output=True,
        text=True,
        check=False,
    )


def _fake_python(path, version):
    path.write_text(f"#!{shutil.which('sh')}\necho {version}\n")
    path.chmod(0o755)


@pytest.mark.parametrize("version", ["3.10.0", "3.11.9"])
def test_find_python_accepts_what_the_pins_install_on(tmp_path, version):
    _fake_python(tmp_path / "python3", version)
    assert _find_python(tmp_path).stdout == f"{tmp_path}/python3\n"


@pytest.mark.parametrize("version", ["3.1.5", "3.9.18", "3.12.0", "3.13.1"])
def test_find_python_refuses_any_other_version(tmp_path, version):
    _fake_python(tmp_path / "python3", version)
    run = _find_python(tmp_path)

    assert run.returncode != 0
    assert run.stdout == ""
    assert f"{tmp_path}/python3: {version}" in run.stderr
    assert "Python 3.10 or 3.11 is needed" in run.stderr


def test_find_python_passes_over_what_does_not_fit(tmp_path):
    _fake_python(tmp_path / "python3.11", "3.13.1")
    _fake_python(tmp_path / "python", "3.11.9")
    assert _find_python(tmp_path).stdout == f"{tmp_path}/python\n"


def test_find_python_takes_only_the_python_it_is_told(tmp_path):
    _fake_python(tmp_path / "python3.11", "3.11.9")
    _fake_python(tmp_path / "other", "3.9.2")
    run = _find_python(tmp_path, PYTHON=str(tmp_path / "other"))

    assert run.returncode != 0
    assert "other: 3.9.2" in run.stderr
