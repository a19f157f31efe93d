"""What the engine counts. Plain numbers; who exposes them gives them names and formats."""

from bisect import bisect_left
from collections import Counter
from dataclasses import dataclass, field

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)
_TOKENS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048)


class Histogram:
    """`counts[n]` values were at most `bounds[n]` and more than the bound before; the last count is of larger ones."""

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    @property
    def count(self) -> int:
        return sum(self.counts)

    def add(self, value: float) -> None:
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value


def _seconds() -> Histogram:
    return Histogram(_SECONDS)


@dataclass
class Metrics:
    """Since the engine began. Times are seconds.

    Attributes:
        prompt_tokens: computed or found in the cache, of which `cached_tokens` were found.
        finished: requests by finish reason.
        preemptions: times that a sequence gave its blocks to another.
        time_to_first_token, time_between_tokens, request_time: per request, per token, per request.
        step_time, step_tokens: per step of the model.
    """

    prompt_tokens: int = 0
    cached_tokens: int = 0
    generated_tokens: int = 0
    preemptions: int = 0
    steps: int = 0
    finished: Counter[str] = field(default_factory=Counter)
    time_to_first_token: Histogram = field(default_factory=_seconds)
    time_between_tokens: Histogram = field(default_factory=_seconds)
    request_time: Histogram = field(default_factory=_seconds)
    step_time: Histogram = field(default_factory=_seconds)
    step_tokens: Histogram = field(default_factory=lambda: Histogram(_TOKENS))
    # Right now:
    running: int = 0
    waiting: int = 0
    blocks: int = 0
    free_blocks: int = 0
    named_blocks: int = 0
