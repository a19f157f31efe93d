"""Policies are read strictly, and say what is wrong with them."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from cierzo.errors import CierzoError
from cierzo.guard import Policy

GOOD: dict[str, Any] = {
    "name": "mine",
    "description": "A test's.",
    "mode": "enforce",
    "guardrail_prompt": "Be kind.",
    "categories": {"hate": {"description": "hatred", "threshold": 0.5, "action": "refuse", "stage": "input"}},
}


def _file(folder: Path, values: Any) -> Path:
    path = folder / "policy.yaml"
    path.write_text(values if isinstance(values, str) else yaml.safe_dump(values))
    return path


@pytest.mark.parametrize("name", ["off", "standard", "strict"])
def test_shipped_policies(name: str) -> None:
    policy = Policy.load(name)
    assert policy.name == name
    assert policy.on == (name != "off")
    assert all(category.description for category in policy.categories.values())
    if policy.on:
        assert policy.guardrail_always
        assert policy.figures, "no measured figures"


def test_strict_is_stricter_than_standard() -> None:
    standard, strict = Policy.load("standard"), Policy.load("strict")
    assert set(standard.categories) <= set(strict.categories)
    for name, category in standard.categories.items():
        assert strict.categories[name].threshold <= category.threshold, name
    assert (standard.on_error, strict.on_error) == ("allow", "refuse")


def test_a_file_is_read(tmp_path: Path) -> None:
    policy = Policy.load(_file(tmp_path, GOOD))
    assert policy.categories["hate"].threshold == 0.5
    assert set(policy.judged("input")) == {"hate"}
    assert policy.judged("output") == {}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"mode": "loud"}, "mode"),
        ({"on_error": "shrug"}, "on_error"),
        ({"nonsense": 1}, "nonsense"),
        ({"name": "../up"}, "name"),
        ({"hold": "48"}, "hold"),
        ({"hold": 0}, "hold"),
        ({"refusal": ""}, "refusal"),
        ({"categories": {"spam": {"description": "x", "threshold": 0.5}}}, "no category 'spam'"),
        ({"categories": {"hate": {"description": "x", "threshold": 1.5}}}, "categories.hate.threshold"),
        ({"categories": {"hate": {"description": "x", "threshold": float("nan")}}}, "categories.hate.threshold"),
        ({"categories": {"hate": {"threshold": 0.5}}}, "categories.hate.description"),
        ({"categories": {"hate": {"description": "x", "threshold": 0.5, "action": "ban"}}}, "categories.hate.action"),
        ({"categories": {"hate": {"description": "x", "threshold": 0.5, "action": "prompt"}}}, "stage: input"),
        ({"guardrail_prompt": None, "guardrail_always": True}, "guardrail_always needs"),
        ({"reflection": {"question": "?", "answers": []}}, "reflection.answers"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(CierzoError, match=r"policy\.yaml") as caught:
        Policy.load(_file(tmp_path, GOOD | changes))
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("name: a\nname: b\n", "twice"),
        ("- a\n", "policy"),
        ("", "policy"),
        ("a: [", "cannot read"),
        ("!!python/object/apply:os.getcwd []", "cannot read"),
        ("{[a]: 1}: 2", "cannot read"),
    ],
)
def test_files_that_are_none(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(CierzoError, match=said):
        Policy.load(_file(tmp_path, text))


def test_unknown_names_and_files(tmp_path: Path) -> None:
    with pytest.raises(CierzoError, match="off, standard, strict"):
        Policy.load("lenient")
    with pytest.raises(CierzoError, match="cannot read"):
        Policy.load(tmp_path / "none.yaml")
