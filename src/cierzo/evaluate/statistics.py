"""Means with their standard errors."""

import math
from collections.abc import Sequence


def mean_and_error(values: Sequence[float]) -> tuple[float, float]:
    """The mean, and its standard error by the sample's deviation (0 of one value)."""
    mean = math.fsum(values) / len(values)
    if len(values) < 2:
        return mean, 0.0
    variance = math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1)
    return mean, math.sqrt(variance / len(values))


def mean_of(parts: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """The mean of means that do not depend on each other, and its standard error."""
    return (
        math.fsum(mean for mean, _ in parts) / len(parts),
        math.sqrt(math.fsum(error**2 for _, error in parts)) / len(parts),
    )
