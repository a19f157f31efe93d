"""JSON that does not say what it should."""

from pathlib import Path

import pytest

from cierzo.errors import CierzoError, WeightsError
from cierzo.weights.source import read_json


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[" * 100_000, "nested too deeply"),
        ('{"a":' * 100_000 + "1" + "}" * 100_000, "nested too deeply"),
        ('{"a": NaN}', "NaN is no number"),
        ('{"a": [-Infinity]}', "-Infinity is no number"),
        ('{"a": {"key": 1, "key": 2}}', "key 'key' is there twice"),
        ('{"a": ' + "9" * 5000 + "}", "not JSON"),
        ('{"a": 1', "not JSON"),
        ('{"a": ["\\ud83d"]}', "surrogates not allowed"),
        ("[1]", "holds a list"),
    ],
    ids=lambda value: value[:20],
)
def test_json_that_is_none(text: str, says: str, tmp_path: Path) -> None:
    path = tmp_path / "values.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(WeightsError, match=says) as refusal:
        read_json(path)
    assert str(path) in str(refusal.value)
    assert str(refusal.value).isprintable()
    assert len(str(refusal.value)) < 500


def test_a_message_is_one_line_whatever_it_quotes() -> None:
    assert str(CierzoError("a\n  b\x1b[31m c\u2028d \ud800e")) == "a b [31m c d e"
    long = str(CierzoError("begin " + "x" * 10**6 + " end"))
    assert len(long) < 1100
    assert long.startswith("begin x")
    assert long.endswith("x end")


def test_a_character_in_two_halves_is_read(tmp_path: Path) -> None:
    path = tmp_path / "values.json"
    path.write_text('{"a": "\\ud83d\\udc4d"}')
    assert read_json(path) == {"a": "👍"}
