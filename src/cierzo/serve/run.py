"""A server's life: bind, load, listen, drain."""

import asyncio
import os
import signal
import socket
import sys
from pathlib import Path
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from cierzo import LoadOptions, Models
from cierzo.errors import CierzoError
from cierzo.guard import Guard
from cierzo.guard.audit import Audit
from cierzo.serve import logs
from cierzo.serve.app import create_app
from cierzo.serve.auth import VARIABLE, read_keys
from cierzo.serve.settings import Settings
from cierzo.serve.state import State

_KEEP_ALIVE = 75  # seconds, more than the 60 that proxies keep a connection


def serve(settings: Settings) -> None:
    """Serve until SIGTERM or SIGINT.

    Raises:
        CierzoError: an address that cannot be had or is not safe, or a model that cannot be loaded.
    """
    keys = read_keys(settings.api_keys_file, os.environ.get(VARIABLE))
    if settings.public and not keys and not settings.allow_public:
        raise CierzoError(
            f"{settings.host} can be reached from other machines, and there is no key: set api_keys_file or "
            f"{VARIABLE}, or say --allow-public if everybody may use this server"
        )
    guard = guard_of(settings)
    logs.set_up(settings.log_level)
    bound = bind(settings)
    try:
        asyncio.run(_run(settings, keys, guard, bound))
    finally:
        bound.close()


def load_options(settings: Settings) -> LoadOptions:
    return LoadOptions(
        dtype=settings.dtype,
        device=settings.device,
        chat_template=settings.chat_template,
        max_seq_len=settings.max_seq_len,
        allow_beyond_limit=settings.allow_beyond_limit,
        chunk_size=settings.chunk_size,
        cache_dtype=settings.cache_dtype,
        cache_tokens=settings.cache_tokens,
        mmap=settings.mmap,
        max_running=settings.max_running,
    )


def guard_of(settings: Settings) -> Guard | None:
    """The guard that the settings ask for.

    Raises:
        CierzoError: there is no such policy, or its log cannot be written.
    """
    if settings.guard is None:
        return None
    audit = None if settings.guard_log is None else Audit(Path(settings.guard_log), text=settings.guard_log_text)
    mode: Any = settings.guard_mode  # checked by `Settings`
    guard = Guard(settings.guard, mode=mode, audit=audit)
    guard.prepare()
    return guard


def bind(settings: Settings) -> socket.socket:
    """The address is taken before minutes of loading, and listened at after them.

    Raises:
        CierzoError: it is taken, or not this machine's.
    """
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    # Only to sockets that name their protocol does asyncio give TCP_NODELAY; without it small answers take 40 ms more.
    bound = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind((settings.host, settings.port))
    except OSError as error:
        bound.close()
        raise CierzoError(
            f"cannot listen at {settings.host} port {settings.port}: {error.strerror or error}; choose another --port"
        ) from None
    return bound


async def _run(settings: Settings, keys: list[Any], guard: Guard | None, bound: socket.socket) -> None:
    models = Models(
        settings.sources, load_options(settings), keep=settings.keep, max_waiting=settings.max_waiting,
        progress=sys.stderr.isatty(),
    )  # fmt: skip
    async with models.use() as llm:
        print(llm.card, file=sys.stderr)
    state = State(settings, models, keys, guard=guard)
    server = DrainingServer(state)
    host, port = bound.getsockname()[:2]
    name = f"[{host}]" if ":" in host else host
    print(f"Cierzo serves {', '.join(models.entries)} at http://{name}:{port}/v1", file=sys.stderr, flush=True)
    # uvicorn sends itself the signal again when it has shut down; a drained server has ended well.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)
    try:
        await server.serve([bound])
    finally:
        await models.close(drain=False)


class DrainingServer(uvicorn.Server):
    """Answers what is in hand after a signal, for `drain_timeout` seconds at most; takes nothing new."""

    def __init__(self, state: State) -> None:
        self._state = state
        super().__init__(
            uvicorn.Config(
                create_app(state),
                http=_impatient(state.settings.body_timeout),
                ws="none",
                lifespan="off",
                log_config=None,
                access_log=False,
                server_header=False,
                proxy_headers=False,
                timeout_keep_alive=_KEEP_ALIVE,
                # Beyond our own, whose clients are told.
                timeout_graceful_shutdown=int(state.settings.drain_timeout) + 5,
            )
        )

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._state.draining = True
        logs.event("draining", in_hand=self._state.in_hand[""])
        end = asyncio.get_running_loop().call_later(self._state.settings.drain_timeout, self._state.stop.set)
        await super().shutdown(sockets)
        end.cancel()


def _impatient(seconds: float) -> type[H11Protocol]:
    """uvicorn's HTTP, which closes a connection when the head of its next request takes longer than this to come."""

    class Impatient(H11Protocol):
        _timer: asyncio.TimerHandle | None = None

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            self._set_timer()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            self._set_timer()

        def connection_lost(self, exc: Exception | None) -> None:
            self._unset_timer()
            super().connection_lost(exc)

        def _set_timer(self) -> None:
            if self.cycle is not None and not self.cycle.response_complete:
                self._unset_timer()
            elif self._timer is None:
                self._timer = self.loop.call_later(seconds, self.transport.close)

        def _unset_timer(self) -> None:
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None

    return Impatient
