"""BUILD says what files import, no less and no more, and Bazel can read and build it.

BUILD is read as the Python syntax it is, so that all but the last tests need no Bazel.
"""

import ast
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
BUILD = (ROOT / "BUILD").read_text()
OWN = ("refilled_tf", "export", "benchmarks")


def _constant(name):
    """Returns the value of a dictionary in BUILD."""
    (value,) = (
        statement.value
        for statement in ast.parse(BUILD).body
        if isinstance(statement, ast.Assign) and statement.targets[0].id == name
    )
    return ast.literal_eval(value)


def _attribute(target, name):
    """Returns what is written for an attribute of a target; [] if nothing."""
    (call,) = (
        statement.value
        for statement in ast.parse(BUILD).body
        if isinstance(statement, ast.Expr)
        and isinstance(statement.value, ast.Call)
        and any(k.arg == "name" and k.value.value == target for k in statement.value.keywords)
    )
    written = [ast.unparse(k.value) for k in call.keywords if k.arg == name]
    return eval(written[0], {"ROOMS": ROOMS, "PROGRAMS": PROGRAMS}) if written else []


ROOMS, PROGRAMS = _constant("ROOMS"), _constant("PROGRAMS")


def _files(room):
    if room == "test_support":  # each test depends on it alone
        return list((ROOT / "tests").rglob("*.py"))
    if room == "benchmarks":
        return [ROOT / "benchmarks/blocks.py"]
    if room == "export":
        found = [*(ROOT / "export").glob("*.py"), *(ROOT / "export/serving").glob("*.py")]
        return [path for path in found if path.relative_to(ROOT).as_posix() not in PROGRAMS]
    return list((ROOT / "refilled_tf" / room).glob("*.py"))


def _label(file):
    return file.removesuffix(".py").removeprefix("refilled_tf/")


# From files below the root, without their endings, to the target that holds them.
TARGETS = {
    path.relative_to(ROOT).with_suffix("").as_posix(): room
    for room in (*ROOMS, "export", "benchmarks")
    for path in _files(room)
} | {file.removesuffix(".py"): _label(file) for file in PROGRAMS}


def _imported(path):
    """Yields the targets of all modules that a file imports, wherever in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        for name in names:
            if name.split(".")[0] in OWN:
                place = name.replace(".", "/")
                target = TARGETS.get(place) or TARGETS.get(f"{place}/__init__")
                if target:
                    yield target


def _imports(paths, target):
    found = {name for path in paths for name in _imported(path)} - {target}
    return found | _started(paths) if target == "test_support" else found


def _started(paths):
    """Returns the programs that tests name, most of them to be run in a process of its own."""
    text = "\n".join(path.read_text() for path in paths)
    modules = {file: file.removesuffix(".py").rsplit("/", 1) for file in PROGRAMS}
    return {
        _label(file)
        for file, (package, name) in modules.items()
        if re.search(rf"\b{package}(\.| import ){name}\b", text)
    }


CASES = [
    *((room, deps, _files(room)) for room, deps in ROOMS.items()),
    *((_label(file), deps, [ROOT / file]) for file, deps in PROGRAMS.items()),
    *(
        (target, [dep.lstrip(":") for dep in _attribute(target, "deps")], _files(target))
        for target in ("export", "benchmarks", "test_support")
    ),
]


@pytest.mark.parametrize(("target", "deps", "files"), CASES, ids=[case[0] for case in CASES])
def test_deps_are_the_imports(target, deps, files):
    """Each dependency is imported, and each import is one: what comes by way of another counts."""
    assert files
    assert sorted(_imports(files, target)) == sorted(set(deps) - {"refilled_tf"})


def test_rooms_come_after_those_they_build_on():
    """So no two rooms need each other."""
    seen = set()
    for room, deps in ROOMS.items():
        assert set(deps) <= seen, f"{room} imports what is listed after it"
        seen.add(room)


def test_every_file_is_in_a_target():
    found = {
        path.relative_to(ROOT).with_suffix("").as_posix()
        for folder in OWN
        for path in (ROOT / folder).rglob("*.py")
    }
    # The first needs an environment of its own, the second none; all depend on the last.
    elsewhere = {"export/tfx_demo/pipeline", "export/web/serve", "refilled_tf/__init__"}
    assert found - TARGETS.keys() == elsewhere


def test_programs_are_those_files_that_run():
    running = {
        path.relative_to(ROOT).as_posix()
        for folder in OWN
        for path in (ROOT / folder).rglob("*.py")
        if re.search(r'^if __name__ == "__main__":', path.read_text(), re.M)
    }
    # The last is run by an export that is being checked.
    elsewhere = {"export/tfx_demo/pipeline.py", "export/web/serve.py", "export/replay.py"}
    assert running - elsewhere == PROGRAMS.keys()


# Bazel itself.

BAZEL, BUILDIFIER = "@bazel/bazel-linux_x64@2.1.0", "@bazel/buildifier@8.2.1"
# Stands in for rules_python, which is not on npm: programs start in their runfiles.
RULES = """
def _runfiles(ctx):
    runfiles = ctx.runfiles(files = ctx.files.srcs + ctx.files.data)
    for dep in ctx.attr.deps:
        runfiles = runfiles.merge(dep[DefaultInfo].default_runfiles)
    return runfiles

def _library(ctx):
    return [DefaultInfo(files = depset(ctx.files.srcs), runfiles = _runfiles(ctx))]

def _program(ctx):
    script = ctx.actions.declare_file(ctx.label.name + ".sh")
    module = ctx.attr.main[:-len(".py")].replace("/", ".")
    text = "cd $0.runfiles/__main__ && exec $PYTHON -m %s $@" % module
    ctx.actions.write(script, text, is_executable = True)
    return [DefaultInfo(executable = script, runfiles = _runfiles(ctx))]

ATTRS = {
    "data": attr.label_list(allow_files = True),
    "deps": attr.label_list(),
    "main": attr.string(),
    "srcs": attr.label_list(allow_files = True),
}

py_library = rule(implementation = _library, attrs = ATTRS)
py_binary = rule(implementation = _program, attrs = ATTRS, executable = True)
py_test = rule(implementation = _program, attrs = ATTRS, test = True)
"""


@pytest.fixture(scope="module")
def npm(tmp_path_factory):
    """The folder of Bazel and Buildifier."""
    if not shutil.which("npm"):
        pytest.skip("no npm, which has a Bazel")
    folder = tmp_path_factory.mktemp("npm")
    command = ["npm", "install", "--no-audit", "--no-fund", "--prefix", folder, BAZEL, BUILDIFIER]
    run = subprocess.run(command, capture_output=True, text=True)
    if run.returncode:
        pytest.skip(f"npm has no Bazel: {run.stderr.splitlines()[:1]}")
    return folder / "node_modules/@bazel"


@pytest.fixture(scope="module")
def bazel(npm, tmp_path_factory):
    """Runs Bazel on a copy of the repository, with stand-ins for the others."""
    folder = tmp_path_factory.mktemp("bazel")
    workspace = folder / "workspace"
    kept = ("gin", "refilled_tf", "export", "benchmarks", "tests", "docs")
    for name in kept:
        ignored = shutil.ignore_patterns("node_modules", "__pycache__", "begun", "finished")
        shutil.copytree(ROOT / name, workspace / name, ignore=ignored)
    shutil.copy(ROOT / "BUILD", workspace)
    others = {
        "rules_python": {"python/defs.bzl": RULES, "python/BUILD": ""},
        "pypi": {"requirements.bzl": "all_requirements = []", "BUILD": ""},
    }
    for name, files in others.items():
        for file, text in (files | {"WORKSPACE": ""}).items():
            (folder / name / file).parent.mkdir(parents=True, exist_ok=True)
            (folder / name / file).write_text(text)
    (workspace / "WORKSPACE").write_text(
        "".join(f'local_repository(name = "{name}", path = "{folder / name}")\n' for name in others)
    )
    (program,) = (npm / "bazel-linux_x64").glob("bazel-*")

    def run(*arguments):
        command = [program, f"--output_user_root={folder / 'root'}", "--batch", *arguments]
        done = subprocess.run(command, cwd=workspace, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    run.workspace = workspace
    return run


def test_bazel_knows_what_training_needs(bazel):
    """From rooms that it imports itself to those that only these import, and settings."""
    found = bazel("query", "deps(//:train)").split()
    assert {"//:experiment", "//:losses", "//:gin/quickstart.gin"} <= set(found)
    assert "//:own_images" not in found


def test_bazel_builds_programs_that_start(bazel):
    """With the files of their targets alone: the one that imports the most."""
    programs = bazel("query", "kind(py_binary, //...)").split()
    assert len(programs) == len(PROGRAMS)
    bazel("build", *programs)
    environment = os.environ | {"PYTHON": sys.executable, "PYTHONPATH": ""}
    script = bazel.workspace / "bazel-bin/distill.sh"
    run = subprocess.run(
        ["bash", script, "--help"], env=environment, capture_output=True, text=True
    )
    assert "--unlabelled" in run.stdout, run.stderr


def test_buildifier_has_nothing_to_say(npm):
    command = [
        npm / "buildifier/buildifier-linux_amd64",
        "-mode=check",
        "-lint=warn",
        ROOT / "BUILD",
        ROOT / "MODULE.bazel",
    ]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
