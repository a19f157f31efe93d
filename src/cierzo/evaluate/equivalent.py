"""Equivalent model size: how large a Llama 2 would score the same (the article's figure 5).

The score of the Llama 2 family is a curve over the logarithm of the parameters: straight lines between the published
points, each raised to the best score of a smaller model where it is below one, so that more is never worse. A score's
size is the smallest at which the curve reaches it. Beyond the points the nearest line goes on, and that is marked: it
says little more than "smaller than" or "larger than".
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from cierzo.evaluate import published

GROUPS = {
    "mmlu": "MMLU", "commonsense_reasoning": "Commonsense reasoning", "world_knowledge": "World knowledge",
    "reading_comprehension": "Reading comprehension", "math": "Math", "code": "Code",
    "bbh": "BBH", "agieval": "AGI Eval",
}  # fmt: skip
"""Groups that Llama 2's four sizes were published for."""

_BAND = 1.96  # standard errors on each side: 95 %


@dataclass(frozen=True)
class Size:
    """A size in 10^9 parameters, and whether it lies beyond the curve's points."""

    params_b: float
    extrapolated: bool


@dataclass(frozen=True)
class Equivalent:
    """What a score is worth: the size, and those of the score's 95 % band."""

    size: Size
    low: Size
    high: Size

    @property
    def extrapolated(self) -> bool:
        return self.size.extrapolated

    def ratio(self, params_b: float) -> float:
        """How many times the model's own parameters."""
        return self.size.params_b / params_b


def size_of(points: Sequence[tuple[float, float]], score: float) -> Size:
    """The size at which a family reaches a score.

    Args:
        points: (parameters in 10^9, score) of two or more of its models, smallest first; one beats the first.
    """
    curve: list[tuple[float, float]] = []
    for params, own in points:
        curve.append((math.log(params), max(own, curve[-1][1]) if curve else own))
    rising = [(a, b) for a, b in pairwise(curve) if b[1] > a[1]]
    (x0, y0), (x1, y1) = next(((a, b) for a, b in rising if score <= b[1]), rising[-1])
    x = x0 + (x1 - x0) * (score - y0) / (y1 - y0)
    return Size(math.exp(min(x, 700.0)), not curve[0][1] <= score <= curve[-1][1])


def equivalent(points: Sequence[tuple[float, float]], score: float, error: float | None) -> Equivalent:
    """What a score with a standard error is worth on a family's curve; without one the band is the size alone."""
    low, high = (size_of(points, score + sign * _BAND * (error or 0.0)) for sign in (-1, 1))
    return Equivalent(size_of(points, score), low, high)


def bridged(group: str, score: float, error: float) -> tuple[float, float]:
    """A score of Table 2 in the terms of Llama 2's own averages, and its error.

    The straight line that takes Table 2's Llama 2 7B and 13B to what their authors published for the same two models.
    """
    here = [published.article_group(model, group) for model in ("Llama 2 7B", "Llama 2 13B")]
    there = published.llama2_groups()[group][:2]
    assert here[0] is not None
    assert here[1] is not None
    slope = (there[1][1] - there[0][1]) / (here[1][0] - here[0][0])
    return there[0][1] + slope * (score - here[0][0]), slope * error


@dataclass(frozen=True)
class ArticleRow:
    """Equivalent sizes of a row of Table 2 in a group.

    Attributes:
        two_points: on the line through Table 2's Llama 2 7B and 13B: the same pipeline, but no larger model.
        bridged: on the curve of the four sizes, the score taken into their pipeline's terms (`bridged`).
        direct: on the same curve as the score stands, as if both pipelines agreed.
        claim: what the article says, in times of the model's own size.
    """

    group: str
    score: float
    error: float
    two_points: Equivalent
    bridged: Equivalent
    direct: Equivalent
    claim: str | None


_CLAIMS = {"mmlu": "more than 3", "commonsense_reasoning": "more than 3", "world_knowledge": "about 1.9"}


def article_rows(model: str = "Mistral 7B") -> list[ArticleRow]:
    """What the published rows give, beside what the article says, in every group that Table 2 has sets of."""
    rows = []
    table = published.rows("mistral_7b_table2")
    for group, points in published.llama2_groups().items():
        scored = published.article_group(model, group)
        if scored is None:
            continue
        two = [
            (table[name]["params_b"], published.article_group(name, group)) for name in ("Llama 2 7B", "Llama 2 13B")
        ]
        known = [(params, own[0]) for params, own in two if own is not None]
        rows.append(
            ArticleRow(
                group, *scored, equivalent(known, *scored), equivalent(points, *bridged(group, *scored)),
                equivalent(points, *scored), _CLAIMS.get(group),
            )
        )  # fmt: skip
    return rows
