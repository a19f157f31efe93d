"""Means with their standard errors. One value has none: None."""

import math
from collections.abc import Sequence


def mean_and_error(values: Sequence[float]) -> tuple[float, float | None]:
    """The mean, and its standard error by the sample's deviation."""
    mean = math.fsum(values) / len(values)
    if len(values) < 2:
        return mean, None
    variance = math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1)
    return mean, math.sqrt(variance / len(values))


def score_and_error(scores: Sequence[float]) -> tuple[float, float | None]:
    """The same of scores in 0..1. Where all fail or all pass, they do not deviate, but their share is not certain.

    The error is then that of the share (k + 1) / (n + 2), which Laplace's rule of succession expects.
    """
    mean, error = mean_and_error(scores)
    if error == 0 and mean in (0, 1):
        share = (math.fsum(scores) + 1) / (len(scores) + 2)
        error = math.sqrt(share * (1 - share) / len(scores))
    return mean, error


def mean_of(parts: Sequence[tuple[float, float | None]]) -> tuple[float, float | None]:
    """The mean of means that do not depend on each other, and its standard error where all of them have one."""
    errors = [error for _, error in parts if error is not None]
    whole = math.sqrt(math.fsum(error**2 for error in errors)) / len(parts) if len(errors) == len(parts) else None
    return math.fsum(mean for mean, _ in parts) / len(parts), whole


def plus_minus(error: float | None, digits: int = 1, width: int = 0) -> str:
    """` ± 1.2`, or as many spaces as that takes with a width."""
    return f"{'' if error is None else f' ± {error:{width}.{digits}f}':{width + 3 if width else 0}}"
