"""Server-sent events (the HTML standard, section 9.2)."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, suppress
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from cierzo.serve.answers import watched
from cierzo.serve.errors import ApiError, api_error, log_failure
from cierzo.serve.gate import ClientGoneError
from cierzo.serve.state import caller_of

_QUIET = 15.0
"""Seconds without an event after which a ping tells proxies that somebody is at work."""
COMMENT = b": still here\n\n"


def message(data: Any, name: str | None = None) -> bytes:
    """One event of JSON, or of text that is no JSON."""
    text = data if isinstance(data, str) else json.dumps(data, ensure_ascii=False, separators=(",", ":"))
    return (f"event: {name}\ndata: {text}\n\n" if name else f"data: {text}\n\n").encode("utf-8", "replace")


class EventStream(Response):
    """Sends events as they come; ends the request's work when the client leaves, and tells it what went wrong.

    Args:
        events: each a whole event.
        failed: the event that tells an error.
        stack: closed at the end, whatever happens.
    """

    media_type = "text/event-stream"

    def __init__(
        self, request: Request, events: AsyncIterator[bytes], failed: Callable[[ApiError], bytes],
        stack: AsyncExitStack, *, ping: bytes = COMMENT,
    ) -> None:  # fmt: skip
        self._request, self._events, self._failed, self._stack, self._ping = request, events, failed, stack, ping
        super().__init__(headers={"cache-control": "no-store", "x-accel-buffering": "no"})
        del self.headers["content-length"]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with self._stack:
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            try:
                await watched(self._request, self._send_all(send))
            except ClientGoneError:
                raise
            except Exception as error:
                told = api_error(error)
                caller = caller_of(self._request)
                caller.fields["error"] = told.code
                log_failure(error, told, caller.request_id)
                await self._end(send, self._failed(told))
            else:
                await self._end(send, b"")

    async def _end(self, send: Send, data: bytes) -> None:
        with suppress(TimeoutError):  # who does not read cannot be told; the connection is then closed
            async with asyncio.timeout(1):
                await send({"type": "http.response.body", "body": data, "more_body": False})

    async def _send_all(self, send: Send) -> None:
        sent = asyncio.Event()
        pings = asyncio.create_task(self._send_pings(send, sent))
        try:
            async for data in self._events:
                sent.set()
                await send({"type": "http.response.body", "body": data, "more_body": True})
        finally:
            pings.cancel()

    async def _send_pings(self, send: Send, sent: asyncio.Event) -> None:
        while True:
            await asyncio.sleep(_QUIET)
            if not sent.is_set():
                await send({"type": "http.response.body", "body": self._ping, "more_body": True})
            sent.clear()
