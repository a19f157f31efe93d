"""Several models in one process, by name: loaded when asked for, unloaded when idle or when memory is needed."""

import asyncio
import time
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch

from cierzo.async_llm import AsyncLLM
from cierzo.errors import CierzoError
from cierzo.loading import LoadOptions, load_engine
from cierzo.ops import free_memory
from cierzo.weights.pull import resolve_model

State = Literal["unloaded", "loading", "loaded"]


class UnknownModelError(CierzoError):
    """A name that nobody configured."""


@dataclass
class Entry:
    """One model and who uses it.

    Attributes:
        size: bytes of its files, which loading takes at least.
        users: requests that hold it now.
        used: when the last one let go, in `time.monotonic` seconds.
    """

    name: str
    source: str | Path | None
    llm: AsyncLLM | None = None
    size: int = 0
    users: int = 0
    used: float = 0.0
    state: State = "unloaded"
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)


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
        self._progress = progress
        self._loading = asyncio.Lock()  # one at a time: two would count the same free memory

    @asynccontextmanager
    async def use(self, name: str | None = None) -> AsyncGenerator[AsyncLLM, None]:
        """The model of this name (or the default one), which stays loaded meanwhile.

        Raises:
            UnknownModelError: no such name.
            CierzoError: it cannot be loaded, or there is no memory for it, with the arithmetic.
        """
        entry = self.entries.get(name or self.default)
        if entry is None:
            raise UnknownModelError(f"there is no model {name!r} here: use one of {', '.join(self.entries)}")
        entry.users += 1
        try:
            async with entry.lock:
                if entry.llm is None:
                    await self._load(entry)
            assert entry.llm is not None
            yield entry.llm
        finally:
            entry.users -= 1
            entry.used = time.monotonic()
            if self._keep is not None and not entry.users:
                asyncio.get_running_loop().call_later(self._keep, self._expire, entry)

    async def close(self, *, drain: bool = True) -> None:
        """Stop every model."""
        await asyncio.gather(*(e.llm.close(drain=drain) for e in self.entries.values() if e.llm is not None))

    def memory(self) -> str:
        """What the loaded models take and what is left, as a sum."""
        parts = [f"{e.name} {_gib(self._taken(e))}" for e in self.entries.values() if e.llm is not None]
        return f"{' + '.join(parts) or 'nothing'} loaded, {_gib(free_memory(torch.device('cpu')))} free"

    def _taken(self, entry: Entry) -> int:
        return entry.llm.card.weights + entry.llm.card.cache if entry.llm is not None else 0

    async def _load(self, entry: Entry) -> None:
        async with self._loading:
            entry.state = "loading"
            try:
                path = await asyncio.to_thread(resolve_model, entry.source, progress=self._progress)
                entry.size = await asyncio.to_thread(_size, path)
                await self._make_room(entry)
                loaded = await asyncio.to_thread(load_engine, path, self._options, progress=self._progress)
                entry.llm = AsyncLLM(loaded, max_waiting=self._max_waiting)
                entry.state = "loaded"
            finally:
                if entry.llm is None:
                    entry.state = "unloaded"

    async def _make_room(self, entry: Entry) -> None:
        """Unload who was not used for longest until the model's files fit."""
        while entry.size > (free := free_memory(torch.device("cpu"))):
            idle = [e for e in self.entries.values() if e.llm is not None and not e.users]
            if not idle:
                raise CierzoError(
                    f"no memory for {entry.name}: its weights take {_gib(entry.size)}, {_gib(free)} are free, "
                    f"and the other models are in use ({self.memory()})"
                )
            await self._unload(min(idle, key=lambda e: e.used))

    def _expire(self, entry: Entry) -> None:
        """Unload a model that nobody has used for long enough."""
        assert self._keep is not None
        if entry.llm is not None and not entry.users and time.monotonic() - entry.used >= self._keep:
            self._unloading = asyncio.ensure_future(self._unload(entry))

    async def _unload(self, entry: Entry) -> None:
        async with entry.lock:
            if entry.users or entry.llm is None:  # somebody came meanwhile
                return
            llm, entry.llm, entry.state = entry.llm, None, "unloaded"
            await llm.close()


def _size(path: Path) -> int:
    files = [path] if path.is_file() else [f for f in path.iterdir() if f.is_file()]
    return sum(file.stat().st_size for file in files)


def _gib(size: int) -> str:
    return f"{size / 2**30:.1f} GiB"
