"""The package, installed from its wheel, works without the repository."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

pytestmark = pytest.mark.slow


def _files():
    """Returns the paths of the repository's files."""
    command = ["git", "ls-files"]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return run.stdout.split()


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    # From a copy: building leaves files behind.
    for name in _files():
        if (ROOT / name).is_file():
            (folder / "source" / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / "source" / name).write_bytes((ROOT / name).read_bytes())
    options = ["--no-deps", "--quiet", "--wheel-dir", folder]
    command = [sys.executable, "-m", "pip", "wheel", *options, folder / "source"]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    (path,) = folder.glob("*.whl")
    return path


def test_wheel_holds_every_file_that_runs(wheel):
    wanted = {
        name.replace("gin/", "refilled_tf/gin/", 1) if name.startswith("gin/") else name
        for name in _files()
        if name.startswith(("refilled_tf/", "gin/", "export/"))
        and not name.startswith(("export/web/", "export/tfx_demo/"))
    }
    with zipfile.ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert held == wanted


def test_training_from_an_environment_of_its_own(wheel, tmp_path):
    """Its dependencies are this environment's, which are those that it asks for."""
    environment = tmp_path / "environment"
    subprocess.run([sys.executable, "-m", "venv", environment], check=True)
    python = environment / "bin/python"
    install = [python, "-m", "pip", "install", "--quiet", "--no-deps", wheel]
    subprocess.run(install, check=True)
    code = "import sysconfig; print(sysconfig.get_paths()['purelib'])"
    place = subprocess.run([python, "-c", code], capture_output=True, text=True, check=True)
    Path(place.stdout.strip(), "others.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    settings = (
        "student/Recipe.steps = 10",
        "Recipe.epochs = 1",
        "Experiment.rows = [@student/Stage()]",
    )
    run = subprocess.run(
        [
            environment / "bin/refilled-train",
            "--gin_file=gin/quickstart.gin",
            *(f"--gin_param={setting}" for setting in settings),
        ],
        cwd=tmp_path,
        env=kept,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    assert (tmp_path / "runs/quickstart/stages/student/model.keras").is_file()
