"""What several records say together: scores of groups, rows to compare with, sizes that they are worth."""

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
    """In percent; `missing` names what of its group was not measured, `notes` what was not the full set."""

    score: float
    error: float
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
                    100 * error,
                    tuple(BENCHMARKS[name].title for name in members if name not in self.results),
                    tuple(notes for r in measured if (notes := note(r))),
                )
        return scores

    @property
    def mean(self) -> Score:
        """Over all benchmarks that were measured."""
        mean, error = mean_of([(r["score"], r["stderr"]) for r in self.results.values()])
        return Score(100 * mean, 100 * error)

    @property
    def equivalents(self) -> dict[str, Equivalent]:
        """Sizes on the curves of Llama 2's published averages, another pipeline's."""
        curves = published.llama2_groups()
        return {group: equivalent(curves[group], s.score, s.error) for group, s in self.groups.items()}


def note(result: dict[str, Any]) -> str | None:
    """What a result is not a score of: the full set, or the published number of examples."""
    parts = []
    if result["note"]:
        parts.append(f"{result['title']}: {result['note']}")
    if result["n"] < result["of"]:
        parts.append(f"{result['title']}: {result['n']} of {result['of']} items")
    if result["published_shots"] is not None and result["shots"] != result["published_shots"]:
        parts.append(f"{result['title']}: {result['shots']}-shot, published {result['published_shots']}-shot")
    return "; ".join(parts) or None


def named(records: list[dict[str, Any]]) -> list[Run]:
    """Runs with names that tell them apart: the model's, its format, and a number where both are the same."""
    names: dict[str, int] = {}
    runs = []
    for record in records:
        name = f"{record['model']['name']} ({record['model']['format']})"
        names[name] = names.get(name, 0) + 1
        runs.append(Run(name if names[name] == 1 else f"{name} {names[name]}", record))
    return runs
