"""`cierzo moderate` as users run it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from cierzo.cli.moderate_eval import with_calibration, with_figures
from cierzo.errors import CierzoError
from cierzo.guard import Policy
from cierzo.guard.classifier import Classifier
from cierzo.guard.data import Labelled
from cierzo.guard.evaluate import Method, Set, by_category, evaluated, table
from cierzo.guard.policy import Platt


def _run(*arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "cierzo", "moderate", *arguments]
    return subprocess.run(command, input=stdin, capture_output=True, text=True, timeout=120, check=False)


def test_a_text_and_stdin() -> None:
    shown = _run("I will kill you all, you filthy animals")
    assert shown.returncode == 0, shown.stderr
    assert shown.stdout.startswith("standard: refuse\n")
    assert "refuse from" in shown.stdout
    piped = _run("-", "--json", "--policy", "strict", stdin="What is the capital of France?\n")
    said = json.loads(piped.stdout)
    assert (said["policy"], said["action"]) == ("strict", "allow")
    assert 0 <= said["categories"]["hate"] < 0.5


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["x", "--policy", "nonsense"], "error: there is no policy 'nonsense'"),
        (["-"], "error: stdin is empty"),
        (["train", "out", "--data", "/nowhere"], "error: /nowhere has no folder openai_moderation"),
    ],
)
def test_mistakes_are_one_line(arguments: list[str], said: str) -> None:
    failed = _run(*arguments)
    assert failed.returncode == 1
    assert failed.stderr.startswith(said)
    assert failed.stderr.count("\n") == 1


def test_each_category_is_measured_where_its_label_is_known() -> None:
    """Ten texts of it at least; those without the label do not count."""
    harmful = [
        Labelled(f"I hate all of them, vermin, number {n}", True, {"hate": 1, "violence": n % 2}) for n in range(12)
    ]
    fine = [Labelled(f"a walk by the river, number {n}", False, {"hate": 0}) for n in range(5)]
    unknown = [Labelled("I hate all of them, vermin", False, {})]
    rows = by_category(Classifier.load(), [Set("own", [*harmful, *fine, *unknown])])
    assert [(row.set, row.method) for row in rows] == [("own", "hate")]
    assert rows[0].figures["auc"][0] == 1


def test_figures_are_written_into_a_policy(tmp_path: Path) -> None:
    """In place of older ones, and it stays the same policy."""
    items = [Labelled("a", True), Labelled("b", False), Labelled("aa", True), Labelled("bb", False)]
    own = Method("mine: flags", lambda texts: [text.count("a") for text in texts], 1.0)
    rows = evaluated([Set("own", items)], [own], lambda done, total: None)
    assert "1.000 ± 0.000" in table(rows)[1]
    path = tmp_path / "mine.yaml"
    path.write_text("# a comment\nname: mine\ndescription: A test's.\n")
    for _ in range(2):
        path.write_text(with_figures(path, Policy.load(path), rows))
    assert path.read_text().startswith("# a comment\n")
    values = yaml.safe_load(path.read_text())
    assert values["figures"]["own"]["flags"]["recall"] == 1.0
    assert Policy.load(path).figures == values["figures"]


@pytest.mark.parametrize(
    "kept", ["", "  calibration:\n    other: {slope: 3.0, intercept: 0.0}\n    'a:b': {slope: 9.0, intercept: 9.0}\n"]
)
def test_a_calibration_is_kept_with_the_policy(tmp_path: Path, kept: str) -> None:
    path = tmp_path / "own.yaml"
    path.write_text(
        f"# a comment\nname: own\ndescription: d\nreflection:\n  question: A or B?\n  answers: [bad]\n{kept}"
    )
    path.write_text(with_calibration(path.read_text(), "a:b", Platt(slope=0.5, intercept=-1.0)))
    reflection = Policy.load(path).reflection
    assert reflection is not None
    assert path.read_text().startswith("# a comment\n")
    assert reflection.calibration["a:b"] == Platt(slope=0.5, intercept=-1.0)
    assert ("other" in reflection.calibration) == bool(kept)


def test_a_calibration_that_cannot_be_placed(tmp_path: Path) -> None:
    platt = Platt(slope=0.5, intercept=-1.0)
    assert with_calibration("name: own\n", "m", platt) == "name: own\n"
    with pytest.raises(CierzoError, match="a model a line"):
        with_calibration("reflection:\n  calibration: {}\n", "m", platt)
