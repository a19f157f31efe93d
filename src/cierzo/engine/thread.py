"""An engine on a thread of its own, so that those who ask never compute and those who compute never wait."""

import asyncio
import threading
from collections import defaultdict
from collections.abc import Callable, Iterable
from queue import SimpleQueue
from typing import Literal

from cierzo.engine.engine import Engine
from cierzo.engine.sequence import Sequence
from cierzo.errors import QueueFullError

Wake = Callable[[], object]
_Order = tuple[Literal["add", "cancel", "close"], Sequence | None]


class EngineThread:
    """Steps an engine while it has work. All methods may be called from any thread.

    A submitted sequence's `deltas` grow from the engine's thread; its event loop calls `wake` after each time.

    Args:
        max_waiting: sequences that wait for their turn at most, besides those that run.
    """

    def __init__(self, engine: Engine, *, max_waiting: int = 256) -> None:
        self.engine, self.max_waiting = engine, max_waiting
        self._orders: SimpleQueue[_Order] = SimpleQueue()
        self._wakes: dict[Sequence, tuple[asyncio.AbstractEventLoop, Wake]] = {}
        self._lock = threading.Lock()
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="cierzo-engine", daemon=True)
        self._thread.start()

    @property
    def pending(self) -> int:
        """Sequences that were submitted and have not ended."""
        return len(self._wakes)

    def check_room(self) -> None:
        """Whether one more sequence would be taken.

        Raises:
            QueueFullError: too many are waiting, or the engine is shutting down.
        """
        if self._closing:
            raise QueueFullError("the engine is shutting down: try again later")
        if len(self._wakes) >= self.engine.scheduler.max_running + self.max_waiting:
            raise QueueFullError(f"{len(self._wakes)} requests are running or waiting: try again later")

    def submit(self, sequence: Sequence, loop: asyncio.AbstractEventLoop, wake: Wake) -> None:
        """Queue a prepared sequence.

        Raises:
            QueueFullError: too many are waiting; it was not queued.
        """
        with self._lock:
            self.check_room()
            self._wakes[sequence] = (loop, wake)
            self._orders.put(("add", sequence))  # before a close

    def cancel(self, sequence: Sequence) -> None:
        """End a sequence before the next step; harmless when it has ended."""
        if sequence.finish_reason is None:
            self._orders.put(("cancel", sequence))

    def close(self, *, drain: bool = True) -> None:
        """Take nothing more; answer what is pending, or with `drain` false cancel it; then end the thread."""
        with self._lock:
            self._closing = True
            left = [] if drain else list(self._wakes)
        for sequence in left:
            self.cancel(sequence)
        self._orders.put(("close", None))
        self._thread.join()

    def _run(self) -> None:
        engine, closing = self.engine, False
        while engine.busy or not closing:
            while not self._orders.empty() or not (engine.busy or closing):
                order, sequence = self._orders.get()
                closing = closing or order == "close"
                if sequence is not None:
                    self._obey(order, sequence)
            try:
                changed = engine.step()
            except BaseException as error:  # a fault of ours, or a panic of a library: nothing can be trusted any more
                engine.fail(f"{type(error).__name__}: {error}")
                changed = list(self._wakes)
            if engine.failure is not None:
                for sequence in changed:
                    if sequence.finish_reason is None:
                        sequence.end("error", engine.failure)
            self._tell(changed)

    def _obey(self, order: str, sequence: Sequence) -> None:
        if order == "cancel":
            self.engine.cancel(sequence)
        elif sequence.finish_reason is not None:
            pass  # cancelled before it was added
        elif self.engine.failure is not None:
            sequence.end("error", self.engine.failure)
        else:
            self.engine.add(sequence)
        if sequence.finish_reason is not None:
            self._tell([sequence])

    def _tell(self, sequences: Iterable[Sequence]) -> None:
        """Wake who asked: once a loop, since every call of one lets its thread take the interpreter for a while."""
        woken: dict[asyncio.AbstractEventLoop, dict[Sequence, Wake]] = defaultdict(dict)
        for sequence in sequences:
            ended = sequence.finish_reason is not None
            asked = self._wakes.pop(sequence, None) if ended else self._wakes.get(sequence)
            if asked is not None:
                loop, wake = asked
                woken[loop][sequence] = wake
        for loop, wakes in woken.items():
            try:
                loop.call_soon_threadsafe(_call, wakes.values())
            except RuntimeError:  # the event loop of who asked is closed
                for sequence in wakes:
                    self._wakes.pop(sequence, None)
                    self.engine.cancel(sequence)


def _call(wakes: Iterable[Wake]) -> None:
    for wake in wakes:
        wake()
