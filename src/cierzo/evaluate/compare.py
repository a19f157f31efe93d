"""What several records say together: scores of groups, rows to compare with, sizes that they are worth."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from cierzo.evaluate import published
from cierzo.evaluate.equivalent import GROUPS, Equivalent, equivalent
from cierzo.evaluate.statistics import mean_of
from cierzo.evaluate.tasks import BENCHMARKS

_MEMBERS = {
    group: [name for name, b in BENCHMARKS.items() if b.group == group or name == group]
    for group in GROUPS
}  # fmt: skip


@dataclass(frozen=True)
class Score:
    """In percent, the error None where something was measured by one item.

    `missing` names what of its group was not measured, `notes` what was not the full set or not as published.
    """

    score: float
    error: float | None
    missing: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Run:
    """A record of `cierzo eval`, under the name that pictures give it."""

    name: str
    record: dict[str, Any]

    @property
    def results(self) -> dict[str, Any]:
        found: dict[str, Any] = self.record["results"]
        return found

    @property
    def groups(self) -> dict[str, Score]:
        """Mean scores of the groups of which something was measured."""
        scores = {}
        for group, members in _MEMBERS.items():
            measured = [self.results[name] for name in members if name in self.results]
            if measured:
                mean, error = mean_of([(r["score"], r["stderr"]) for r in measured])
                scores[group] = Score(
                    100 * mean,
                    percent(error),
                    tuple(BENCHMARKS[name].title for name in members if name not in self.results),
                    tuple(notes for r in measured if (notes := note(r))),
                )
        return scores

    def mean(self, names: Sequence[str]) -> Score:
        """Over some of the benchmarks that were measured."""
        mean, error = mean_of([(self.results[name]["score"], self.results[name]["stderr"]) for name in names])
        return Score(100 * mean, percent(error))

    @property
    def equivalents(self) -> dict[str, Equivalent]:
        """Sizes on the curves of Llama 2's published averages, another pipeline's."""
        curves = published.llama2_groups()
        return {group: equivalent(curves[group], s.score, s.error) for group, s in self.groups.items()}


def shared(runs: Sequence[Run]) -> list[str]:
    """Benchmarks that all runs have measured."""
    return [name for name in runs[0].results if all(name in run.results for run in runs)]


def shared_groups(runs: Sequence[Run]) -> list[str]:
    """Groups of which all runs have measured something."""
    return [group for group in GROUPS if all(group in run.groups for run in runs)]


def percent(error: float | None) -> float | None:
    return None if error is None else 100 * error


def note(result: dict[str, Any]) -> str | None:
    """What a result is not a score of: the full set, or the published number of examples."""
    parts = []
    if result["note"]:
        parts.append(f"{result['title']}: {result['note']}")
    if result["n"] < result["of"]:
        parts.append(f"{result['title']}: {result['n']} of {result['of']} items")
    if shots := shots_note(result):
        parts.append(f"{result['title']}: {shots}")
    return "; ".join(parts) or None


def shots_note(result: dict[str, Any]) -> str | None:
    """How the number of examples is not the published one, which may be a range."""
    if result["published_shots"] is None:  # of older records
        return None
    shots, published = _numbers(result["shots"]), _numbers(result["published_shots"])
    if published[0] <= shots[0] and shots[-1] <= published[-1]:
        return None
    return f"{' to '.join(map(str, shots))} examples, published {' to '.join(map(str, published))}"


def shots_of(result: dict[str, Any]) -> str:
    """`5-shot`, or of tasks with different numbers `3-5-shot`."""
    return f"{'-'.join(map(str, _numbers(result['shots'])))}-shot"


def _numbers(found: int | Sequence[int]) -> list[int]:
    """The one, or the first and the last of several."""
    return [found] if isinstance(found, int) else [found[0], found[-1]]


def named(records: list[dict[str, Any]]) -> list[Run]:
    """Runs with names that tell them apart: the model's, its format, and a number where both are the same."""
    names: dict[str, int] = {}
    runs = []
    for record in records:
        name = f"{record['model']['name']} ({record['model']['format']})"
        names[name] = names.get(name, 0) + 1
        runs.append(Run(name if names[name] == 1 else f"{name} {names[name]}", record))
    return runs
