"""From scores to probabilities (Platt, "Probabilistic Outputs for Support Vector Machines", 1999)."""

import math
from collections.abc import Sequence

from cierzo.guard.policy import Platt


def logistic(x: float) -> float:
    """1 / (1 + exp(-x)) for any x."""
    return 1 / (1 + math.exp(-x)) if x > -700 else 0.0


def fitted(logits: Sequence[float], labels: Sequence[bool]) -> Platt:
    """The slope and intercept of the greatest likelihood, with Platt's smoothed targets (Newton's method)."""
    import numpy as np

    x, y = np.asarray(logits, float), np.asarray(labels, bool)
    positive, negative = int(y.sum()), int((~y).sum())
    target = np.where(y, (positive + 1) / (positive + 2), 1 / (negative + 2))
    rows = np.stack([x, np.ones_like(x)], 1)
    found = np.zeros(2)
    for _ in range(100):
        p = 1 / (1 + np.exp(-np.clip(rows @ found, -500, 500)))
        gradient = rows.T @ (p - target) + 1e-6 * found
        hessian = (rows * (p * (1 - p))[:, None]).T @ rows + 1e-6 * np.eye(2)
        step = np.linalg.solve(hessian, gradient)
        found -= step / max(1.0, float(np.abs(step).max()) / 2)
        if np.abs(step).max() < 1e-8:
            break
    return Platt(slope=round(float(found[0]), 6), intercept=round(float(found[1]), 6))
