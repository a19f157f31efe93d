"""What every request passes before anything reads it: who asks, how much, how fast; and its line in the log."""

import asyncio
import json
import logging
import re
import time
from contextlib import suppress
from typing import Any
from uuid import uuid4

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cierzo.serve.auth import Key, find
from cierzo.serve.errors import ANTHROPIC, ApiError, api_error, log_failure
from cierzo.serve.logs import event
from cierzo.serve.state import Caller, State

_PAGE = "/page/"
_KEYED = ("/v1", "/tokenize", "/detokenize", "/metrics", _PAGE)
_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")
_PATIENCE = 2.0
_LOCAL_HOSTS = ("localhost", "127.0.0.1", "[::1]", "::1")


class ClientGoneError(Exception):
    """The client closed its connection; nobody is there to be told."""


class _Body:
    """A request's messages as they come, and whether its body has come whole."""

    def __init__(self, receive: Receive) -> None:
        self._receive, self.whole = receive, False

    async def __call__(self) -> Message:
        message = await self._receive()
        self.whole = self.whole or not message.get("more_body", False)
        return message

    async def discard(self) -> None:
        """Read what is left, for a while: a client that is cut off while it sends does not read why."""
        with suppress(TimeoutError):
            async with asyncio.timeout(_PATIENCE):
                while not self.whole:
                    await self()


class Gate:
    """Pure ASGI, so that nothing stands between an answer and its client."""

    def __init__(self, app: ASGIApp, state: State) -> None:
        self._app, self._state = app, state

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self._app(scope, receive, send)
            return  # websockets are refused by saying nothing
        headers = dict(scope["headers"])
        asked = headers.get(b"x-request-id", b"").decode("latin-1")
        caller = Caller(asked if _ID.fullmatch(asked) else uuid4().hex)
        scope["cierzo.caller"] = caller
        began, status = time.perf_counter(), 0
        ids = [(b"x-request-id", caller.request_id.encode()), (b"x-content-type-options", b"nosniff")]
        if scope["path"].startswith(ANTHROPIC):
            ids.append((b"request-id", caller.request_id.encode()))

        async def send_with_ids(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message = {**message, "headers": [*message["headers"], *ids]}
            await send(message)

        body = _Body(receive)
        try:
            await self._admitted(scope, body, send_with_ids, headers, caller)
        except ClientGoneError:
            status = status or 499
        except Exception as error:
            known = error if isinstance(error, ApiError) else api_error(error)
            log_failure(error, known, caller.request_id)
            if status:
                raise  # in the middle of an answer: the connection is closed
            self._state.refused[known.code or "refused"] += 1
            await body.discard()
            extra = {} if body.whole else {"connection": "close"}
            await known.response(scope["path"], caller.request_id, extra)(scope, receive, send_with_ids)
        finally:
            self._tell(scope, caller, status, began)

    async def _admitted(
        self, scope: Scope, receive: Receive, send: Send, headers: dict[bytes, bytes], caller: Caller
    ) -> None:
        state, path = self._state, scope["path"]
        self._check_host(headers)
        if not path.startswith(_KEYED):
            await self._app(scope, receive, send)
            return
        key = self._check_key(headers)
        caller.key = key.name if key else ""
        if scope["method"] in ("GET", "HEAD"):
            await self._app(scope, receive, send)
            return
        # The page asks for the HTML of an answer while it comes; that is no answer more of this key.
        places = ("", caller.key) if caller.key and not path.startswith(_PAGE) else ("",)
        self._check_places(places)
        state.in_hand.update(places)
        try:
            await self._app(scope, await self._whole_body(receive, headers), send)
        finally:
            state.in_hand.subtract(places)

    def _check_host(self, headers: dict[bytes, bytes]) -> None:
        """A web page elsewhere may let its own name mean this machine (DNS rebinding), and then read answers."""
        settings = self._state.settings
        if self._state.keys or settings.public:
            return
        host = re.sub(r":\d*$", "", headers.get(b"host", b"").decode("latin-1")).lower()
        if host not in (*_LOCAL_HOSTS, *settings.allowed_hosts):
            raise ApiError(403, f"this server is not called {host!r}: add it to allowed_hosts", code="unknown_host")

    def _check_key(self, headers: dict[bytes, bytes]) -> Key | None:
        keys = self._state.keys
        if not keys:
            return None
        scheme, _, bearer = headers.get(b"authorization", b"").partition(b" ")
        presented = bearer.strip() if scheme.lower() == b"bearer" else headers.get(b"x-api-key", b"")
        if not presented:
            raise ApiError(
                401, "there is no API key: send `Authorization: Bearer KEY` or `x-api-key: KEY`", code="missing_api_key"
            )
        key = find(keys, presented)
        if key is None:
            raise ApiError(401, "this API key is not known here", code="invalid_api_key")
        return key

    def _check_places(self, places: tuple[str, ...]) -> None:
        state = self._state
        if state.draining:
            raise ApiError(503, "the server is shutting down", code="shutting_down", retry_after=5)
        if state.in_hand[""] >= state.settings.max_requests:
            raise ApiError(
                429, f"{state.in_hand['']} requests are in hand: try again later", code="too_many_requests",
                retry_after=state.retry_after(),
            )  # fmt: skip
        most = state.settings.max_per_key
        if most is not None and any(state.in_hand[key] >= most for key in places[1:]):
            raise ApiError(
                429, f"{most} requests of this key are in hand, and more are not allowed at once", code="key_limit",
                retry_after=state.retry_after(),
            )  # fmt: skip

    async def _whole_body(self, receive: Receive, headers: dict[bytes, bytes]) -> Receive:
        """Read the body within its limits; returns what gives it again, and then what follows it."""
        settings = self._state.settings
        declared = headers.get(b"content-length", b"0")
        if declared.isdigit() and int(declared[:20]) > settings.max_body:
            raise _too_large(settings.max_body)
        parts: list[bytes] = []
        size, more = 0, True
        try:
            async with asyncio.timeout(settings.body_timeout):
                while more:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise ClientGoneError
                    parts.append(message.get("body", b""))
                    size, more = size + len(parts[-1]), message.get("more_body", False)
                    if size > settings.max_body:
                        raise _too_large(settings.max_body)
        except TimeoutError:
            raise ApiError(
                408, f"the body did not arrive within {settings.body_timeout} s", code="body_timeout"
            ) from None
        body = b"".join(parts)
        _check_utf8(body)
        if _SURROGATE.search(body):
            await asyncio.to_thread(_check_pairs, body)
        whole: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

        async def again() -> Message:
            return whole.pop() if whole else await receive()

        return again

    def _tell(self, scope: Scope, caller: Caller, status: int, began: float) -> None:
        route = getattr(scope.get("route"), "path", "other")
        self._state.answered[route, status] += 1
        quiet = route in ("/health", "/ready", "/metrics", "/page/state", "/page/render")
        particulars: dict[str, Any] = {
            "id": caller.request_id,
            "client": (scope.get("client") or [None])[0],
            "key": caller.key,
            "method": scope["method"],
            "path": scope["path"][:200],
            "status": status,
            "ms": round((time.perf_counter() - began) * 1000, 1),
            **caller.fields,
        }
        event("request", level=logging.DEBUG if quiet else logging.INFO, **particulars)


def _check_utf8(body: bytes) -> None:
    """Refuse what Python's reader of JSON would take for UTF-16 or UTF-32, and halves of characters that it lets pass.

    Raises:
        ApiError: it is not UTF-8.
    """
    try:
        body.decode()
    except UnicodeDecodeError:
        raise ApiError(400, "the body is not UTF-8", code="json_invalid") from None
    if b"\0" in body:
        raise ApiError(400, "the body is not UTF-8: it has bytes of zero", code="json_invalid")


def _check_pairs(body: bytes) -> None:
    """Refuse half surrogate pairs: JSON can write them, and no text can hold them.

    Raises:
        ApiError: there is one.
    """
    try:
        json.dumps(json.loads(body), ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise ApiError(400, "the body has half a surrogate pair, which is no character", code="json_invalid") from None
    except (ValueError, RecursionError):
        return  # told by who reads it


def _too_large(most: int) -> ApiError:
    return ApiError(413, f"the body is larger than the {most} bytes that max_body allows", code="body_too_large")
