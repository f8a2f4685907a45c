"""BUILD covers every source file, and names nothing that is not there.

BUILD is read as the Python syntax it is, so that Bazel is not needed for this.
"""

import ast
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("refilled_tf", "export", "benchmarks", "tests")


def _targets():
    """Returns (rule, attributes) of each target; globs and other calls are left out."""
    calls = [
        statement.value
        for statement in ast.parse((ROOT / "BUILD").read_text()).body
        if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Call)
    ]
    return [
        (
            call.func.id,
            {k.arg: ast.literal_eval(k.value) for k in call.keywords if _is_literal(k.value)},
        )
        for call in calls
        if any(k.arg == "name" for k in call.keywords)
    ]


def _is_literal(node):
    return not any(isinstance(n, ast.Call) for n in ast.walk(node))


def _files(attributes):
    """Returns the files in srcs; an entry such as ":x" is what another target makes."""
    return [src for src in attributes.get("srcs", []) if not src.startswith(":")]


def _python_files():
    files = (path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))
    return {path.relative_to(ROOT).as_posix() for path in files}


def _is_test(file):
    return file.startswith("tests/") and Path(file).name.startswith("test_")


TARGETS = _targets()


def test_every_python_file_is_in_a_target():
    covered = {file for _, attributes in TARGETS for file in _files(attributes)}
    missing = sorted(_python_files() - covered)
    assert not missing, f"in no target of BUILD: {missing}"


def test_every_source_exists():
    absent = [
        f"{attributes['name']}: {file}"
        for _, attributes in TARGETS
        for file in _files(attributes)
        if not (ROOT / file).is_file()
    ]
    assert not absent, f"BUILD names files that do not exist: {absent}"


def test_target_names_are_unique():
    counts = Counter(attributes["name"] for _, attributes in TARGETS)
    repeated = [name for name, count in counts.items() if count > 1]
    assert not repeated, f"BUILD uses names more than once: {repeated}"


def test_every_local_label_is_a_target():
    names = {attributes["name"] for _, attributes in TARGETS}
    dangling = [
        f"{attributes['name']}: {label}"
        for _, attributes in TARGETS
        for key in ("srcs", "deps", "data")
        for label in attributes.get(key, [])
        if label.startswith(":") and label[1:] not in names
    ]
    assert not dangling, f"BUILD names targets that do not exist: {dangling}"


def test_py_tests_are_the_test_files():
    tests = {
        file for rule, attributes in TARGETS if rule == "py_test" for file in _files(attributes)
    }
    strays = sorted(file for file in tests if not _is_test(file))
    assert not strays, f"in a py_test, but not a tests/**/test_*.py: {strays}"

    missing = sorted({file for file in _python_files() if _is_test(file)} - tests)
    assert not missing, f"in no py_test of BUILD: {missing}"
