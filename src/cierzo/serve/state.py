"""What the parts of a running server share."""

import asyncio
from collections import Counter
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

from starlette.requests import Request

from cierzo import AsyncLLM
from cierzo.guard import Guard
from cierzo.guard.judge import Judge
from cierzo.models import Models
from cierzo.serve.auth import Key
from cierzo.serve.errors import ApiError
from cierzo.serve.settings import Settings


@dataclass
class State:
    """Of one event loop.

    Attributes:
        in_hand: requests that are being read, waiting or answered, in all and by key.
        draining: no new requests; those in hand are being answered.
        stop: set when those in hand must end now.
        answered: requests by path (of a route) and status.
        refused: requests that were refused, by the error's code.
        guard, judges: what judges questions and answers, and the models that it asks.
    """

    settings: Settings
    models: Models
    keys: list[Key]
    in_hand: Counter[str] = field(default_factory=Counter)
    draining: bool = False
    stop: asyncio.Event = field(default_factory=asyncio.Event)
    answered: Counter[tuple[str, int]] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)
    guard: Guard | None = None
    judges: WeakKeyDictionary[AsyncLLM, Judge] = field(default_factory=WeakKeyDictionary)

    def retry_after(self) -> int:
        """Seconds after which a place in the queue is likely, from how long requests took so far."""
        seconds = 1.0
        for entry in self.models.entries.values():
            if entry.llm is not None and (took := entry.llm.metrics.request_time).count:
                seconds = max(seconds, took.sum / took.count / 2)
        return min(60, round(seconds))


@dataclass
class Caller:
    """Who asks, and what is to be logged about it. One a request.

    Attributes:
        key: name of the key; empty where there are no keys.
        fields: for the request's line in the log.
    """

    request_id: str
    key: str = ""
    fields: dict[str, Any] = field(default_factory=dict)

    def salt(self, own: str | None) -> str:
        """What separates the cached prompts of keys: nobody can probe another's by the time that an answer takes."""
        return f"{self.key}:{own or ''}"


def state_of(request: Request) -> State:
    state: State = request.app.state.server
    return state


def caller_of(request: Request) -> Caller:
    caller: Caller = request.scope["cierzo.caller"]
    return caller


def check_count(what: str, count: int, most: int, setting: str) -> None:
    """Refuse what passes a limit, with both numbers.

    Raises:
        ApiError: that it does.
    """
    if count > most:
        raise ApiError(
            400, f"{what} has {count}, and {setting} allows {most} here", param=what, code=f"{setting}_exceeded"
        )
