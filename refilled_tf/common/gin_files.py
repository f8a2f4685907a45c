"""Where gin files lie, and what is wrong with one as far as it can be seen without TensorFlow."""

from __future__ import annotations

import ast
import difflib
import functools
import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import gin
from gin import config_parser

from refilled_tf.common.errors import InputError, require

PACKAGE = Path(__file__).resolve().parents[1]
# In the package where it is installed, beside it in a checkout.
GIN_FOLDER = next(f / "gin" for f in (PACKAGE, PACKAGE.parent) if (f / "gin").is_dir())
# Where "gin/quickstart.gin" and "quickstart.gin" are looked for; the working directory is first.
PLACES = (Path(), GIN_FOLDER, GIN_FOLDER.parent)
OPERATIVE = "operative_config.gin"  # of a training's folder: all settings that it has used
OF_GIN = ("macro", "constant", "singleton")  # what gin itself registers


def training_in(folder: Path) -> Path | None:
    """Returns the folder of a training: this one, or what distill has in it; None if neither is."""
    known = (folder, folder / "training")
    return next((each for each in known if (each / OPERATIVE).is_file()), None)


def require_training(work_dir: Path) -> Path:
    """Returns the file of a training's settings.

    Raises:
        InputError: the folder is not a training's.
    """
    path, inner = work_dir / OPERATIVE, training_in(work_dir)
    require(
        path.is_file(),
        f"--work_dir={work_dir} is not the folder of a training: no {path}"
        + (f"; that of this output of distill is --work_dir={inner}" if inner else ""),
    )
    return path


def require_files(files: Iterable[str | Path]) -> None:
    """Rejects gin files that are not there.

    Raises:
        InputError: naming the first of them.
    """
    for path in files:
        require(
            _find(path) is not None,
            f"--gin_file={path} does not exist; the project's own are in {GIN_FOLDER}",
        )


def check_names(files: Sequence[str | Path], params: Sequence[str] = ()) -> None:
    """Rejects gin files that are not there, or that name what does not exist.

    It compares names with the source code, without running that, so it is done in a moment. What it
    cannot judge it leaves to gin: a text that gin cannot parse, names of modules that a gin file
    imports, and what this process has registered itself.

    Args:
        files: gin files, as `config.load_experiment` takes them.
        params: single settings, as that takes them.

    Raises:
        InputError: naming the file, the line and what is close to it.
    """
    require_files(files)
    statements = [each for path in files for each in _statements(path)]
    for param in params:
        statements += _parsed(param, f"--gin_param={param}")
    known = _of_project()
    others = any(_is(what, "Import") for _, what in statements)
    macros = {what.selector for _, what in statements if _is(what, "Binding") and not what.arg_name}
    for where, what in statements:
        if _is(what, "Binding") and what.arg_name:
            name = what.selector.split(".")[-1]
            option, options = what.arg_name, known.get(name)
            if not others:
                _require_name(where, name, known)
            require(
                options is None or option in options,
                f"{where}: {name} has no option {option!r}" + _close(option, options or ()),
            )
        for reference in _references(getattr(what, "value", None)):
            if reference.macro:
                missing = reference.name not in macros
                require(not missing, f"{where}: nothing sets %{reference.name}")
            elif not others:
                _require_name(where, reference.name, known)


@functools.cache
def _of_project() -> dict[str, frozenset[str] | None]:
    return registered(PACKAGE.rglob("*.py"))


def registered(paths: Iterable[Path]) -> dict[str, frozenset[str] | None]:
    """Reads in source code which names it registers with gin, and with which options.

    Args:
        paths: Python files.

    Returns:
        The options by name, of gin's own names too; None for what cannot be told without running
        the code.
    """
    nodes: dict[str, list[Any]] = {}
    names: dict[str, str] = {}
    for path in paths:
        text = path.read_text(encoding="utf-8")
        for node in ast.parse(text).body:
            if isinstance(node, ast.ClassDef | ast.FunctionDef):
                nodes.setdefault(node.name, []).append(node)
                for decorator in node.decorator_list:
                    if "gin.register" in ast.unparse(decorator):
                        given = getattr(decorator, "args", None)
                        names[ast.literal_eval(given[0]) if given else node.name] = node.name
    known = {name: _options(node, nodes) for name, node in names.items()}
    return known | dict.fromkeys(OF_GIN)


def _options(name: str, nodes: dict[str, list[Any]]) -> frozenset[str] | None:
    """Returns what a function or class takes; None if the code alone does not say."""
    if len(nodes.get(name, ())) != 1:
        return None  # of another package, or one of two
    (node,) = nodes[name]
    if isinstance(node, ast.FunctionDef):
        return frozenset(each.arg for each in (*node.args.args, *node.args.kwonlyargs))
    if any(getattr(each, "name", None) == "__init__" for each in node.body):
        return None
    options = {
        each.target.id
        for each in node.body
        if isinstance(each, ast.AnnAssign)
        and isinstance(each.target, ast.Name)
        and "ClassVar" not in ast.unparse(each.annotation)
        and not (each.value and re.search("init=False|read_once", ast.unparse(each.value)))
    }
    for base in node.bases:
        inherited = _options(ast.unparse(base).split(".")[-1], nodes)
        if inherited is None:
            return None
        options |= inherited
    return frozenset(options)


class _Reference:
    """A reference to a name, such as @student/Stage(), or to a macro, such as %steps."""

    def __init__(self, name: str, macro: bool):
        self.name, self.macro = name.split("/")[-1].split(".")[-1], macro


class _Delegate(config_parser.ParserDelegate):
    """Has gin's parser hand on references as they are."""

    def configurable_reference(self, scoped_configurable_name: str, evaluate: bool) -> _Reference:
        del evaluate
        return _Reference(scoped_configurable_name, macro=False)

    def macro(self, macro_name: str) -> _Reference:
        return _Reference(macro_name, macro=True)


def _is(statement: Any, kind: str) -> bool:
    """Whether a statement of gin's is a "Binding", an "Import" or an "Include"."""
    return isinstance(statement, getattr(config_parser, f"{kind}Statement"))


def _find(path: str | Path) -> Path | None:
    return next((place / path for place in PLACES if (place / path).is_file()), None)


def _statements(path: str | Path, within: str = "") -> Iterator[tuple[str, Any]]:
    """Yields the statements of a gin file and of those that it includes, and where each stands."""
    found = _find(path)
    if found is None:
        raise InputError(f"{within}: include {str(path)!r} does not exist")
    for where, what in _parsed(found.read_text(encoding="utf-8"), str(path)):
        yield where, what
        if _is(what, "Include"):
            yield from _statements(what.filename, where)


def _parsed(text: str, where: str) -> list[tuple[str, Any]]:
    """Returns the statements of a text, and where each stands; [] if gin cannot parse it."""
    try:
        statements = list(config_parser.ConfigParser(text, _Delegate()))
    except Exception:  # gin says later what is wrong with it
        return []
    lined = where.endswith(".gin")
    return [(f"{where}:{s.location.line_num}" if lined else where, s) for s in statements]


def _references(value: Any) -> Iterator[_Reference]:
    if isinstance(value, _Reference):
        yield value
    elif isinstance(value, dict):
        yield from _references([*value, *value.values()])
    elif isinstance(value, list | tuple):
        for each in value:
            yield from _references(each)


def _require_name(where: str, name: str, known: Collection[str]) -> None:
    if name in known:
        return
    try:
        gin.get_configurable(name)
    except ValueError as error:
        raise InputError(
            f"{where}: there is no {name!r}{_close(name, known)}; in a module of your own, it "
            "needs `import MODULE` in the gin file"
        ) from error


def _close(name: str, known: Collection[str]) -> str:
    """Returns such as "; did you mean Stage?", or all there is if that is little, or ""."""
    close = difflib.get_close_matches(name, known, n=3)
    if close:
        return f"; did you mean {' or '.join(close)}?"
    return f"; there are {', '.join(sorted(known))}" if 0 < len(known) <= 30 else ""
