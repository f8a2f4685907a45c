"""The project's version is the same wherever it stands."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# Of the headings of changes, such as "## 0.1.0, 2026-11-30", the newest comes first.
PLACES = {
    "pyproject.toml": r'^version = "(.+)"$',
    "MODULE.bazel": r'^module\(\n    name = "refilled_tf",\n    version = "(.+)",$',
    "CITATION.cff": r"^version: (.+)$",
    "CHANGELOG.md": r"^## (\d.*?)(?:, .*)?$",
}


def test_version_is_the_same_everywhere():
    found = {
        name: re.search(place, (ROOT / name).read_text(), re.M) for name, place in PLACES.items()
    }
    versions = {name: match and match[1] for name, match in found.items()}
    assert set(versions.values()) == {versions["pyproject.toml"]}
    assert versions["pyproject.toml"]
