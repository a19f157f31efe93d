"""Requests in, tokens out: scheduling, the paged cache's bookkeeping, sampling."""

from cierzo.engine.engine import Engine
from cierzo.engine.metrics import Histogram, Metrics
from cierzo.engine.request import (
    Completion,
    Delta,
    FinishReason,
    SamplingParams,
    Structure,
    TokenLogprob,
    ToolCall,
    ToolCallDelta,
    Usage,
)
from cierzo.engine.sequence import Sequence, Task
from cierzo.engine.thread import EngineThread

__all__ = [
    "Completion",
    "Delta",
    "Engine",
    "EngineThread",
    "FinishReason",
    "Histogram",
    "Metrics",
    "SamplingParams",
    "Sequence",
    "Structure",
    "Task",
    "TokenLogprob",
    "ToolCall",
    "ToolCallDelta",
    "Usage",
]
