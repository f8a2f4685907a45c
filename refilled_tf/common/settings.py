"""Settings that a result depends on: options of nested dataclasses, under their names in gin.

An option says itself, by the metadata of its field, where it is none of the settings.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
from collections.abc import Callable, Collection, Iterable
from typing import Any, Protocol

_KEY, _PREFIX, _RANGE = "setting", "prefix", "range"
# A name in tables, what to do with images that a finished stage has not met, and where a file lies
# whose content is a setting.
NEVER = {_KEY: "never"}
# Newer than finished folders, so that these are known to be made with its default.
IF_SET = {_KEY: "if set"}
# A parent: it stands as its name and digest. Of several the names are listed, in their order.
PARENT = {_KEY: "parent"}


def prefixed(prefix: str) -> dict[str, str]:
    """Metadata of an option with a task of its own, beside its owner's or another option's."""
    return {_PREFIX: prefix}


def searched(least: float, first: float, largest: float) -> dict[str, tuple[float, float, float]]:
    """Metadata of a hyper-parameter that a search chooses on a logarithmic scale.

    Args:
        least: the smallest value.
        first: where the search begins.
        largest: the largest value.
    """
    return {_RANGE: (least, first, largest)}


def ranges_of(kind: type) -> dict[str, tuple[float, float, float]]:
    """Returns what `searched` says of a dataclass's options, by their names in gin."""
    return {
        f"{kind.__name__}.{field.name}": field.metadata[_RANGE]
        for field in dataclasses.fields(kind)
        if _RANGE in field.metadata
    }


def read_once(read: Callable[[Any], Any]) -> Any:
    """Makes a field of what lies on a disk, which is read when it is first asked for.

    Such as a file's hash, a setting in place of its path: a constructor that read it would do so
    at every reference in gin, and say of a missing file that gin cannot build something.

    Args:
        read: the field's value from its owner.
    """
    return dataclasses.field(init=False, default=functools.cached_property(read))


class Named(Protocol):
    """A stage, or a row with results of its own: it has settings and a folder."""

    @property
    def name(self) -> str:
        """The name of the folder."""

    def settings(self) -> dict[str, Any]:
        """Returns every setting that shapes the result."""


def settings_of(spec: Any, parents: Iterable[Named]) -> dict[str, Any]:
    """Returns all settings of a dataclass and those nested in it, as {"Class.option": value}.

    Args:
        spec: the dataclass.
        parents: what it builds on, which stand as their names and digests.
    """
    return flatten(spec) | {
        f"parent {parent.name}": digest(parent.settings()) for parent in parents
    }


def flatten(spec: Any) -> dict[str, Any]:
    """Lists the options of a nested dataclass under their gin names; parents are left out."""
    flat: dict[str, Any] = {}
    for field in dataclasses.fields(spec):
        value = getattr(spec, field.name)
        name, kind = f"{type(spec).__name__}.{field.name}", field.metadata.get(_KEY)
        if kind == "never" or is_unset(field, value):
            continue
        if kind == "parent" and value is not None:
            if isinstance(value, tuple):
                flat[name] = [parent.name for parent in value]
        elif dataclasses.is_dataclass(value):
            flat[name] = type(value).__name__
            prefix = field.metadata.get(_PREFIX, "")
            flat |= {prefix + option: x for option, x in flatten(value).items()}
        elif isinstance(value, tuple) and value and all(map(dataclasses.is_dataclass, value)):
            flat[name] = [{"kind": type(part).__name__} | flatten(part) for part in value]
        else:
            flat[name] = list(value) if isinstance(value, tuple) else value
    return flat


def is_unset(field: dataclasses.Field, value: Any) -> bool:
    """Whether an option is of those that are newer than finished folders, and at its default."""
    return field.metadata.get(_KEY) == "if set" and value == field.default


def unlisted(spec: Any) -> set[str]:
    """Returns the names of those options that are never settings, which older folders may list."""
    names = set()
    for field in dataclasses.fields(spec):
        if field.metadata.get(_KEY) == "never":
            names.add(f"{type(spec).__name__}.{field.name}")
        elif dataclasses.is_dataclass(value := getattr(spec, field.name)):
            names |= unlisted(value)
    return names


def digest(settings: dict[str, Any]) -> str:
    """Returns a short hash of settings."""
    text = json.dumps(settings, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def differences(there: dict[str, Any], now: dict[str, Any]) -> str:
    """Lists in words how settings read from a file differ from the present ones; "" if nowhere."""
    return "; ".join(differing(there, now).values())


def differing(
    there: dict[str, Any], now: dict[str, Any], unlisted: Collection[str] = ()
) -> dict[str, str]:
    """Returns in words, by name, how settings read from a file differ from the present ones.

    Args:
        there: read from the file.
        now: the present ones.
        unlisted: names to be passed over.
    """
    # Through JSON, as what is compared with has been.
    now = json.loads(json.dumps(now))
    return {
        name: f"{name} = {there.get(name)!r} there, {now.get(name)!r} now"
        for name in sorted((there.keys() | now.keys()) - set(unlisted))
        if there.get(name) != now.get(name)
    }
