"""From gin files to an experiment: the only place that reads configuration."""

from __future__ import annotations

import dataclasses
import importlib
import pkgutil
import re
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gin

from refilled_tf import data, few_shot, models, objectives
from refilled_tf.common import gin_files
from refilled_tf.common.errors import (
    InputError,
    alternatives,
    choices,
    gin_param,
    one_line,
    require,
)
from refilled_tf.data import task
from refilled_tf.experiment import experiment as experiments
from refilled_tf.experiment import table

# The rooms whose modules hold what gin files may name. Importing a module registers it.
REGISTERED = (data, few_shot, models, objectives)
for _room in REGISTERED:
    for _module in pkgutil.iter_modules(_room.__path__, f"{_room.__name__}."):
        importlib.import_module(_module.name)

# What gin and the classes that it builds raise; an ImportError comes of `import` in a gin file.
REFUSALS = (ValueError, TypeError, SyntaxError, OSError, RuntimeError, ImportError, InputError)

# So that "gin/quickstart.gin" and "quickstart.gin" are found from anywhere.
for _place in gin_files.PLACES[1:]:
    gin.add_config_file_search_path(str(_place))
# gin would also take "data/cub.gin" for a file of a Python package `data`, and trip over any
# folder of that name on Python's path: only files are read, by the first, plain reader.
del gin.config._FILE_READERS[1:]

# A setting whose value begins as no value of gin's does: not with a quote, a digit, @, %, (, …
_UNQUOTED = re.compile(r"([\w/.]+)=((?!(?:True|False|None)$)[A-Za-z_/~][^'\"]*)")


def load_experiment(
    files: Sequence[str | Path], params: Sequence[str] = ()
) -> experiments.Experiment:
    """Parses gin files and single settings, later ones over earlier ones.

    An include is looked up in the working directory, then in the project's gin/ folder.

    Args:
        files: gin files, in order.
        params: settings such as "student.images_per_class = 20", in order.

    Returns:
        The experiment. `operative_config()` then gives all its settings, defaults included.

    Raises:
        InputError: a file or include is missing, a name unknown, a value refused, or a single
            setting has no effect on the experiment.
    """
    gin_files.require_files(files)
    require_quotes(params)
    built = build(experiments.Experiment, files, params)
    for param in params:
        name = option_of(param)
        require(
            _takes_effect(name),
            f"--gin_param={param!r} has no effect: no part of this experiment takes {name!r}, or "
            "settings of narrower scopes override it",
        )
    return built


def load_table(file: Path) -> table.Table:
    """Parses a gin file of a table of results.

    Raises:
        InputError: a name is unknown or a value refused.
    """
    return build(table.Table, [file], [])


def require_quotes(params: Sequence[str]) -> None:
    """Rejects strings without quotes, which a shell takes off unless there are others around them.

    Args:
        params: single settings.

    Raises:
        InputError: with what the option accepts and how to type it.
    """
    for param in params:
        option, sign, value = (part.strip() for part in param.partition("="))
        if not _UNQUOTED.fullmatch(option + sign + value):
            continue
        scope, _, name = option.rpartition(".")
        try:
            accepted = choices(gin.get_configurable(scope.rpartition("/")[2]), name)
        except ValueError as error:  # there is no such configurable
            raise InputError(f"--gin_param={param}: gin: {one_line(error)}") from error
        typed = accepted[0] if accepted and value not in accepted else value
        wanted = f"; {option} must be {alternatives(accepted)}" if accepted else ""
        raise InputError(
            f"--gin_param={param}: {value} is no number and has no quotes{wanted}; type "
            f"{gin_param(option, typed)}"
        )


def load_text(text: str, params: Sequence[str] = ()) -> experiments.Experiment:
    """Parses the text of a gin file; see `load_experiment`."""
    with tempfile.TemporaryDirectory() as folder:
        gin_file = Path(folder, "experiment.gin")
        gin_file.write_text(text, encoding="utf-8")
        return load_experiment([gin_file], params)


def as_gin(value: Any, scope: str) -> tuple[str, list[str]]:
    """Writes an object as gin would have built it.

    Args:
        value: a dataclass that is registered with gin, or a task.
        scope: of its options, and of those of what it holds.

    Returns:
        The reference to it, such as "@SCOPE/PhotoFolder()", and a line for each of its options.
    """
    kind, lines = value.role if isinstance(value, task.Task) else type(value).__name__, []
    options = {f.name: getattr(value, f.name) for f in dataclasses.fields(value) if f.init}
    if isinstance(value, task.Task):
        del options["role"]
        if value.role != "student":
            del options["unlabelled"]
    for name, option in options.items():
        written = repr(option)
        if dataclasses.is_dataclass(option):
            written, further = as_gin(option, scope)
            lines += further
        lines.append(f"{scope}/{kind}.{name} = {written}")
    return f"@{scope}/{kind}()", lines


def build(kind: type, files: Sequence[str | Path], params: Sequence[str]):
    """Parses gin files, and builds the one object that they are about.

    Args:
        kind: of the object: a class that is registered with gin.
        files: gin files, in order.
        params: single settings, in order.

    Raises:
        InputError: with what gin makes of it.
    """
    gin.clear_config()
    try:
        gin.parse_config_files_and_bindings([str(path) for path in files], list(params))
        return gin.get_configurable(kind)()
    except REFUSALS as error:
        # gin appends where the error happened on further lines; the first one says what.
        first, *places = str(error).strip().splitlines()
        if isinstance(error, InputError):
            raise InputError(first, error.details) from error
        where = next((place.strip() for place in places if place.startswith("  In ")), "")
        where = re.sub(r" \(<class .*?>\)", "", where)
        if isinstance(error, SyntaxError):
            where = (error.text or "").strip() or ", ".join(params)
        raise InputError(f"gin: {first}" + (f" ({where})" if where else "")) from error


def option_of(param: str) -> str:
    """Returns the option that a single setting such as "student.images_per_class = 20" sets."""
    return param.split("=", 1)[0].strip()


def _takes_effect(name: str) -> bool:
    """Whether the loaded experiment has used the value that is set for `name` in any scope."""
    # A value that is too long for its line follows on indented lines, after a backslash.
    used = rf"^(?:\w+/)*{re.escape(name)} = (?:\\\n +)?(.*(?:\n +.*)*)"
    values = re.findall(used, operative_config(), re.MULTILINE)
    return any(gin.config.parse_value(v) == gin.query_parameter(name) for v in values)


def load_work_dir(work_dir: Path) -> experiments.Experiment:
    """Loads the experiment that a training has left its settings of.

    Raises:
        InputError: the folder is not a training's.
    """
    return load_experiment([gin_files.require_training(work_dir)])


def operative_config() -> str:
    """Returns every setting that the loaded experiment used, as gin text."""
    return gin.operative_config_str(max_line_length=96)
