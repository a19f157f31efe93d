"""Figures of a method that gives texts scores and flags those that reach its threshold."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

_DRAWS = 1000
Figures = dict[str, tuple[float, float, float]]
"""A figure with the ends of its 95 % confidence interval."""


def figures(labels: Sequence[bool], scores: Sequence[float], flags: Sequence[bool]) -> Figures:
    """Precision, recall, F1, balanced accuracy, false positive rate (over-refusal of harmless texts), and AUC.

    Intervals are percentiles of 1,000 bootstrap samples, drawn within each class with a fixed seed. What is not defined
    (no flags, one class) is nan.
    """
    y, s, f = np.asarray(labels, bool), np.asarray(scores, float), np.asarray(flags, bool)
    random = np.random.default_rng(0)
    samples = []
    classes = [np.flatnonzero(y), np.flatnonzero(~y)]
    for _ in range(_DRAWS):
        rows = np.concatenate([random.choice(rows, len(rows)) for rows in classes if len(rows)])
        samples.append(_all(y[rows], s[rows], f[rows]))
    found = _all(y, s, f)
    return {name: (value, *_interval([sample[name] for sample in samples])) for name, value in found.items()}


def _interval(values: list[float]) -> tuple[float, float]:
    whole = [value for value in values if value == value]
    if not whole:
        return (float("nan"), float("nan"))
    low, high = np.percentile(whole, [2.5, 97.5])
    return float(low), float(high)


def _all(y: NDArray[np.bool_], s: NDArray[np.float64], f: NDArray[np.bool_]) -> dict[str, float]:
    hits, flagged, positives = int((y & f).sum()), int(f.sum()), int(y.sum())
    negatives = len(y) - positives
    false = flagged - hits
    recall, fpr = _part(hits, positives), _part(false, negatives)
    return {
        "precision": _part(hits, flagged),
        "recall": recall,
        "f1": _part(2 * hits, flagged + positives),
        "balanced_accuracy": (recall + 1 - fpr) / 2,
        "false_positive_rate": fpr,
        "auc": auc(y, s),
    }


def _part(count: int, of: int) -> float:
    return count / of if of else float("nan")


def auc(labels: Any, scores: Any) -> float:
    """The probability that a positive scores higher than a negative, ties counted half (Mann and Whitney's U)."""
    y, s = np.asarray(labels, bool), np.asarray(scores, float)
    positives, negatives = int(y.sum()), int((~y).sum())
    if not positives or not negatives:
        return float("nan")
    _, inverse, counts = np.unique(s, return_inverse=True, return_counts=True)
    ranks = np.cumsum(counts) - (counts - 1) / 2
    return float((ranks[inverse][y].sum() - positives * (positives + 1) / 2) / (positives * negatives))


def curve(labels: Sequence[bool], scores: Sequence[float]) -> tuple[list[float], list[float]]:
    """False and true positive rates of every threshold, for a plot."""
    y = np.asarray(labels, bool)[np.argsort(np.asarray(scores, float))[::-1]]
    hits, false = np.cumsum(y), np.cumsum(~y)
    return [0.0, *(false / max(1, false[-1]))], [0.0, *(hits / max(1, hits[-1]))]
