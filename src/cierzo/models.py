"""Several models in one process, by name: loaded when asked for, unloaded when idle or when memory is needed."""

import asyncio
import time
from collections.abc import AsyncGenerator, Coroutine, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from cierzo.async_llm import AsyncLLM
from cierzo.errors import CierzoError
from cierzo.loading import LoadOptions, load_engine, resolve_device, weights_size
from cierzo.ops import free_memory
from cierzo.weights.pull import resolve_model

State = Literal["unloaded", "loading", "loaded", "unloading"]


class UnknownModelError(CierzoError):
    """A name that nobody configured."""


class ModelUnavailableError(CierzoError):
    """A model that cannot be used now; the message says why, with paths and sizes that are not a client's to know."""

    def __init__(self, name: str, why: str) -> None:
        super().__init__(why)
        self.name = name


@dataclass
class Entry:
    """One model and who uses it.

    Attributes:
        size: bytes of its files, which loading takes at least.
        users: requests that hold it now.
        used: when the last one let go, in `time.monotonic` seconds.
        work: loading or unloading, which goes on when those who wait for it leave.
    """

    name: str
    source: str | Path | None
    llm: AsyncLLM | None = None
    size: int = 0
    users: int = 0
    used: float = 0.0
    state: State = "unloaded"
    work: asyncio.Task[None] | None = None
    timer: asyncio.TimerHandle | None = None


class Models:
    """The models of one event loop.

    Args:
        sources: what `load` takes, by the name under which clients know it; the first is the default.
        keep: seconds that an unused model stays loaded; None keeps it until memory is needed.
        max_waiting: see `AsyncLLM`.
    """

    def __init__(
        self,
        sources: Mapping[str, str | Path | None],
        options: LoadOptions | None = None,
        *,
        keep: float | None = None,
        max_waiting: int = 256,
        progress: bool = False,
    ) -> None:
        if not sources:
            raise CierzoError("no model is named: give at least one")
        self.entries = {name: Entry(name, source) for name, source in sources.items()}
        self.default = next(iter(self.entries))
        self._options, self._keep, self._max_waiting = options or LoadOptions(), keep, max_waiting
        self._device = resolve_device(self._options.device)
        self._progress, self._closed = progress, False
        self._one_load = asyncio.Lock()  # two at a time would count the same free memory

    @asynccontextmanager
    async def use(self, name: str | None = None) -> AsyncGenerator[AsyncLLM, None]:
        """The model of this name (or the default one), which stays loaded meanwhile.

        Raises:
            UnknownModelError: no such name.
            ModelUnavailableError: it cannot be loaded, there is no memory for it (with the arithmetic), or `close` was
                called.
        """
        entry = self.entries.get(name or self.default)
        if entry is None:
            raise UnknownModelError(f"there is no model {name!r} here: use one of {', '.join(self.entries)}")
        entry.users += 1
        try:
            while entry.llm is None:
                if self._closed:
                    raise ModelUnavailableError(entry.name, "the models are shutting down")
                # A task of its own: loading cannot be stopped, so who leaves must not let another one begin beside it.
                try:
                    await asyncio.shield(entry.work or self._begin(entry, self._load(entry)))
                except (CierzoError, OSError, MemoryError) as error:
                    raise ModelUnavailableError(entry.name, str(error) or type(error).__name__) from error
            yield entry.llm
        finally:
            entry.users -= 1
            self._rest(entry)

    async def close(self, *, drain: bool = True) -> None:
        """Stop every model; one that is being loaded is stopped when it is there."""
        self._closed = True
        for entry in self.entries.values():
            if entry.timer is not None:
                entry.timer.cancel()
        await asyncio.gather(*(e.work for e in self.entries.values() if e.work is not None), return_exceptions=True)
        await asyncio.gather(*(self._unload(e, drain=drain) for e in self.entries.values() if e.llm is not None))

    def memory(self) -> str:
        """What the loaded models take and what is left, as a sum."""
        parts = [
            f"{e.name} {_gib(e.llm.card.weights + e.llm.card.cache)}"
            for e in self.entries.values()
            if e.llm is not None
        ]
        return f"{' + '.join(parts) or 'nothing'} loaded, {_gib(self.free())} free"

    def _promised(self) -> int:
        """Bytes of caches that the system will give when they are used, and so still counts as free."""
        return sum(e.llm.untouched for e in self.entries.values() if e.llm is not None)

    def free(self) -> int:
        """Bytes that another model can take."""
        return max(0, free_memory(self._device) - self._promised())

    def _begin(self, entry: Entry, work: Coroutine[Any, Any, None]) -> "asyncio.Task[None]":
        async def run() -> None:
            try:
                await work
            finally:
                entry.work = None
                entry.state = "unloaded" if entry.llm is None else "loaded"

        entry.work = asyncio.create_task(run())
        # Its error is for those who wait; nobody may be left.
        entry.work.add_done_callback(lambda task: task.cancelled() or task.exception())
        return entry.work

    async def _load(self, entry: Entry) -> None:
        entry.state = "loading"
        path = await asyncio.to_thread(resolve_model, entry.source, progress=self._progress)  # may fetch it
        async with self._one_load:
            entry.size = await asyncio.to_thread(weights_size, path, self._options)
            await self._make_room(entry)
            loaded = await asyncio.to_thread(
                load_engine, path, self._options, promised=self._promised(), progress=self._progress
            )
        entry.llm = AsyncLLM(loaded, max_waiting=self._max_waiting)
        self._rest(entry)

    async def _make_room(self, entry: Entry) -> None:
        """Unload who was not used for longest until the model's weights fit."""
        while entry.size > (free := self.free()):
            leaving = next((e.work for e in self.entries.values() if e.state == "unloading"), None)
            idle = [e for e in self.entries.values() if e.llm is not None and not e.users]
            if leaving is None and not idle:
                raise CierzoError(
                    f"no memory for {entry.name}: its weights take {_gib(entry.size)}, {_gib(free)} are free, "
                    f"and the other models are in use ({self.memory()})"
                )
            if leaving is None:
                oldest = min(idle, key=lambda e: e.used)
                leaving = self._unload(oldest)
            with suppress(Exception):
                await asyncio.shield(leaving)

    def _rest(self, entry: Entry) -> None:
        """Nobody may be using the model: unload it when that stays so."""
        entry.used = time.monotonic()
        if entry.timer is not None:
            entry.timer.cancel()
            entry.timer = None
        if self._keep is not None and not entry.users and entry.llm is not None and not self._closed:
            entry.timer = asyncio.get_running_loop().call_later(self._keep, self._expire, entry)

    def _expire(self, entry: Entry) -> None:
        if entry.llm is not None and not entry.users and entry.work is None:
            self._unload(entry)

    def _unload(self, entry: Entry, *, drain: bool = True) -> "asyncio.Task[None]":
        """Forget a model, at once for those who come; the task ends when its memory is given back."""
        assert entry.llm is not None
        llm, entry.llm, entry.state = entry.llm, None, "unloading"
        return self._begin(entry, llm.close(drain=drain))


def _gib(size: int) -> str:
    return f"{size / 2**30:.1f} GiB"
