"""The package, installed from its wheel, works without the repository."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import zipfile
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

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


@pytest.fixture(scope="module")
def environment(wheel, tmp_path_factory):
    """An environment with the wheel and what it requires, which is linked from this one."""
    folder = tmp_path_factory.mktemp("environment")
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    python = folder / "bin/python"
    install = [python, "-m", "pip", "install", "--quiet", "--no-deps", wheel]
    subprocess.run(install, check=True)
    code = "import sysconfig; print(sysconfig.get_paths()['purelib'])"
    run = subprocess.run([python, "-c", code], capture_output=True, text=True, check=True)
    place = Path(run.stdout.strip())
    (installed,) = metadata.distributions(name="refilled_tf", path=[str(place)])
    _link(_required(installed), folder / "required")
    (place / "required.pth").write_text(f"{folder / 'required'}\n")
    return folder


def _required(distribution):
    """Returns the names of all distributions that one requires, and that these require."""
    found, left = set(), [(distribution, ("",))]
    while left:
        parent, extras = left.pop()
        for requirement in map(Requirement, parent.requires or ()):
            marker = requirement.marker
            if marker is None or any(marker.evaluate({"extra": extra}) for extra in extras):
                key = canonicalize_name(requirement.name), ("", *sorted(requirement.extras))
                if key not in found:
                    found.add(key)
                    left.append((metadata.distribution(requirement.name), key[1]))
    return {name for name, _ in found}


def _link(names, folder):
    """Fills a folder with links to distributions of this environment, and to no others."""
    wanted, shared = set(), set()
    for distribution in metadata.distributions():
        files = [file for file in distribution.files or () if file.parts[0] != ".."]
        if canonicalize_name(distribution.name) in names:
            wanted |= {Path(distribution.locate_file(""), file) for file in files}
        else:
            shared |= {
                Path(distribution.locate_file(""), *p.parts) for f in files for p in f.parents
            }
    place = Path(sysconfig.get_paths()["purelib"])
    for file in wanted:
        # A folder as a whole, unless another distribution has files in it.
        path = next(
            p for p in (*reversed(file.parents), file) if place in p.parents and p not in shared
        )
        link = folder / path.relative_to(place)
        link.parent.mkdir(parents=True, exist_ok=True)
        if not link.is_symlink():
            link.symlink_to(path)


def test_environment_lacks_what_only_tests_need(environment):
    """So that the training below fails where the wheel does not ask for what it imports."""
    code = "import importlib.util; print([*map(importlib.util.find_spec, ('pytest', 'mypy'))])"
    run = subprocess.run([environment / "bin/python", "-c", code], capture_output=True, text=True)
    assert run.stdout == "[None, None]\n", run.stderr


def test_training_from_an_environment_of_its_own(environment, tmp_path):
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
