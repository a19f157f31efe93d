"""`cierzo moderate eval`: what the guard is worth, on public sets and one's own, beside what else there is."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cierzo.errors import CierzoError
from cierzo.guard import data
from cierzo.guard.classifier import ANY, NEVER, Classifier
from cierzo.guard.guard import Guard
from cierzo.guard.metrics import Figures, curve, figures
from cierzo.guard.policy import Policy
from cierzo.guard.text import normalised
from cierzo.progress import Report

_WORDS = frozenset(
    """
    abuse attack beat behead bleed blood bomb corpse cutting dead destroy die exterminate genocide gun hang hate hurt
    incest kill killing murder naked nazi nude overdose pedophile porn rape raped sex sexual shoot slit stab subhuman
    suicidal suicide torture underage vermin virgin weapon
    """.split()  # noqa: SIM905
)
"""Beside `better-profanity`'s list: the rival that everybody starts with."""

_FEWEST = 10
"""Texts of a category without which a set says nothing about it."""


@dataclass(frozen=True)
class Set:
    """A labelled set under its name; a set that the classifier was trained on is only ever its other half."""

    name: str
    items: list[data.Labelled]

    @property
    def labels(self) -> list[bool]:
        return [item.harmful for item in self.items]


@dataclass(frozen=True)
class Row:
    """A method on a set."""

    set: str
    method: str
    figures: Figures
    curve: tuple[list[float], list[float]]


def public_sets(folder: Path) -> list[Set]:
    """The sets of the table: held-out halves of what was learnt from, and XSTest, of which nothing was."""
    halves = {"openai": data.openai_moderation(folder), "davidson": data.davidson(folder)}
    held_out = [Set(n, [i for i in items if data.part_of(i.text) == "test"]) for n, items in halves.items()]
    return [*held_out, Set("xstest", data.xstest(folder))]


class Method:
    """Something that scores texts and flags some."""

    def __init__(self, name: str, score: Any, threshold: float) -> None:
        self.name, self._score, self._threshold = name, score, threshold

    def row(self, on: Set) -> Row:
        scores = [float(value) for value in self._score([item.text for item in on.items])]
        flags = [value >= self._threshold for value in scores]
        return Row(on.name, self.name, figures(on.labels, scores, flags), curve(on.labels, scores))


def methods(classifier: Classifier, policies: Sequence[Policy]) -> list[Method]:
    """The classifier, what policies refuse and flag by it, and the rivals.

    Raises:
        CierzoError: a rival is not installed.
    """
    ours = [Method("classifier", lambda texts: [classifier.scores(t)[ANY] for t in texts], 0.5)]
    if classifier.heads is not None:
        ours.append(Method("its words alone", lambda texts: [classifier.scores(t, NEVER)[ANY] for t in texts], 0.5))
    for policy in policies:
        guard = Guard(policy, mode="enforce", classifier=classifier)
        ours.append(Method(f"{policy.name}: flags", lambda ts, g=guard: [_margin(g, t) for t in ts], 1.0))
        ours.append(
            Method(f"{policy.name}: refuses", lambda ts, g=guard: [g.check(t).action == "refuse" for t in ts], 1.0)
        )
    return [*ours, *_rivals()]


def _margin(guard: Guard, text: str) -> float:
    """How far the worst category is over its threshold; 1 is on it."""
    scores = guard.check(text).categories
    return max((scores[name] / max(c.threshold, 1e-6) for name, c in guard.policy.categories.items()), default=0.0)


def _rivals() -> list[Method]:
    try:
        from better_profanity.utils import get_complete_path_of_file, read_wordlist
        from profanity_check import predict_prob
    except ModuleNotFoundError as error:
        raise CierzoError(f"the comparison needs {error.name}: pip install 'cierzo[guard]'") from None

    # Only its list: its own search takes 30 ms a text, and finds look-alikes that are plain letters here already.
    listed = _WORDS | set(read_wordlist(get_complete_path_of_file("profanity_wordlist.txt")))

    def words(texts: Sequence[str]) -> list[float]:
        return [float(sum(w.strip(".,;:!?\"'()") in listed for w in normalised(text).split())) for text in texts]

    by_words = Method("keyword list", words, 1.0)
    return [Method("alt-profanity-check", lambda texts: predict_prob(list(texts)), 0.5), by_words]


def by_category(classifier: Classifier, sets: Sequence[Set]) -> list[Row]:
    """Each category by itself, flagged at 0.5, on the texts of a set whose label for it is known."""
    rows = []
    for on in sets:
        labelled = [(item.categories, classifier.scores(item.text)) for item in on.items if item.categories]
        for name in classifier.categories:
            known = [(said[name] == 1, scores[name]) for said, scores in labelled if said.get(name, -1) >= 0]
            labels, values = [label for label, _ in known], [value for _, value in known]
            if sum(labels) >= _FEWEST:
                flags = [value >= 0.5 for value in values]
                rows.append(Row(on.name, name, figures(labels, values, flags), curve(labels, values)))
    return rows


def table(rows: Sequence[Row]) -> list[str]:
    """Lines of text, for people: each figure with half the width of its 95 % interval."""
    names = {
        "precision": "precision", "recall": "recall", "f1": "F1", "balanced_accuracy": "balanced",
        "false_positive_rate": "false pos.", "auc": "AUC",
    }  # fmt: skip
    lines = [f"{'set':<16} {'method':<22} " + " ".join(f"{name:>14}" for name in names.values())]
    for row in rows:
        shown = [_shown(*row.figures[name]) if name in row.figures else "" for name in names]
        lines.append(f"{row.set:<16} {row.method:<22} " + " ".join(f"{each:>14}" for each in shown))
    return lines


def _shown(value: float, low: float, high: float) -> str:
    return "-" if value != value else f"{value:.3f} ± {(high - low) / 2:.3f}"


def drawn(rows: Sequence[Row]) -> bytes:
    """A PNG picture: a curve of each method that ranks texts, a panel for each set."""
    from io import BytesIO

    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    sets = list(dict.fromkeys(row.set for row in rows))
    figure = Figure(figsize=(4.5 * len(sets), 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, name in zip(figure.subplots(1, len(sets), squeeze=False)[0], sets, strict=True):
        for row in rows:
            if row.set == name and not row.method.endswith("refuses"):
                axes.plot(*row.curve, label=f"{row.method} ({row.figures['auc'][0]:.2f})")
        axes.plot([0, 1], [0, 1], ":", color="grey")
        axes.set(title=name, xlabel="harmless texts flagged", ylabel="harmful texts flagged", aspect="equal")
        axes.legend(fontsize=7, loc="lower right")
    picture = BytesIO()
    figure.savefig(picture, format="png", dpi=120)
    return picture.getvalue()


def evaluated(sets: Sequence[Set], by: Sequence[Method], report: Report) -> list[Row]:
    """Every method on every set."""
    rows = []
    for number, on in enumerate(sets):
        for done, method in enumerate(by):
            report(number * len(by) + done, len(sets) * len(by))
            rows.append(method.row(on))
    return rows
