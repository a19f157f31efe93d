"""Requests in, tokens out: scheduling, the paged cache's bookkeeping, sampling."""

from cierzo.engine.engine import Engine
from cierzo.engine.request import Completion, Delta, FinishReason, SamplingParams, TokenLogprob, Usage
from cierzo.engine.sequence import Sequence

__all__ = [
    "Completion",
    "Delta",
    "Engine",
    "FinishReason",
    "SamplingParams",
    "Sequence",
    "TokenLogprob",
    "Usage",
]
