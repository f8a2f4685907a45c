"""The reader of JSON against Python's own, and its limits; expected counts are by hand."""

import json
import random

import mutation
import numpy as np
import pytest

from export.serving import json_reader
from export.serving.errors import Code, RequestError

MANY = json_reader.Most(10**6, 10**6)
TEXTS = [
    "{}",
    ' \t\r\n{ "a" : [ ] , "b" : { } } \n',
    '{"a": [[], [1], [1, 2.5]], "b": [[1, 2], [3, 4]], "c": [[[1], [2]], [[3], [4]]]}',
    '{"a": [[[1], [2]], [[3, 4], [5, 6]]], "b": [[1, 2], "a", {"b64": "[]{},"}]}',
    '{"a": ["x]", "[y", "\\"", "\\\\"], "b": [true, false, null, -1e3, NaN, -Infinity]}',
    '{"\\u00e4 \U0001f600": "\\ud83d\\ude00", "a": {"b": {"c": [{"d": [[0.5]]}]}}}',
]


def _plain(value):
    """Turns the arrays in a value into lists."""
    if isinstance(value, dict):
        return {key: _plain(each) for key, each in value.items()}
    if isinstance(value, np.ndarray):
        assert value.dtype == object
        return value.tolist()
    return list(map(_plain, value)) if isinstance(value, list) else value


def _read(text, most=MANY):
    return json_reader.parsed(text.encode("utf-8", "surrogatepass"), most)


@pytest.mark.parametrize("text", TEXTS)
def test_values_are_those_of_pythons_reader(text):
    assert repr(_plain(_read(text))) == repr(json.loads(text))


@pytest.mark.parametrize("text", TEXTS)
def test_what_is_broken_for_pythons_reader_is_broken_here(text):
    dice, refused = random.Random(text), 0
    for _ in range(500):
        changed = mutation.mutated(dice, text.encode()).decode(errors="replace")
        try:
            expected = json.loads(changed)
        except (ValueError, RecursionError):
            with pytest.raises(RequestError, match=r"^(JSON Parse error|the body)"):
                _read(changed)
            refused += 1
            continue
        if isinstance(expected, dict) and changed.count('":') == text.count('":'):
            assert repr(_plain(_read(changed))) == repr(expected)
    assert refused > 100


def test_tables_of_numbers_are_arrays():
    read = _read('{"a": [[[1, 2], [3, 4], [5, 6]]], "b": [[1], [2, 3]], "c": [1], "d": [["x"]]}')
    assert read["a"].shape == (1, 3, 2)
    assert [type(each) for each in read["a"].flat] == [int] * 6
    assert {key: type(value) for key, value in read.items() if key != "a"} == dict.fromkeys(
        "bcd", list
    )


@pytest.mark.parametrize(
    ("text", "lists", "others"),
    [
        ("{}", 0, 1),
        ('{"a": []}', 1, 1),
        ('{"a": [1, 2, 3]}', 1, 1),
        ('{"a": [[], [1], [[2]]]}', 5, 1),
        ('{"a": [1, [2]]}', 2, 2),
        ('{"a": ["x", "y", {}, 1, null]}', 1, 6),
    ],
)
def test_what_a_body_holds_is_counted(text, lists, others):
    assert _plain(_read(text, json_reader.Most(lists, others))) == json.loads(text)
    for most in ((lists - 1, others), (lists, others - 1)):
        with pytest.raises(RequestError, match="more than a batch of --max") as caught:
            _read(text, json_reader.Most(*most))
        assert caught.value.code == Code.INVALID_ARGUMENT


def test_longest_list_of_numbers():
    longest = json.dumps({"a": [0] * json_reader.LONGEST})
    assert len(_read(longest)["a"]) == json_reader.LONGEST
    with pytest.raises(RequestError, match=f"a list has more than {json_reader.LONGEST} numbers"):
        _read(longest.replace("[", "[0,"))


def test_reading_ends_where_a_limit_is_passed():
    """What comes behind is no JSON, and is not even looked at."""
    few = json_reader.Most(9, 9)
    for text in ('{"a": [[[],[],[],[],[],[],[],[],[],[],?', '{"a": [{},{},{},{},{},{},{},{},{},?'):
        with pytest.raises(RequestError, match="the body has more than 9 lists"):
            _read(text, few)
