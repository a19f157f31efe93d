"""The real server and its page over models whose answers a test writes."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

from cierzo import Delta, Message, Models, SamplingParams
from cierzo.engine import Metrics, Usage
from cierzo.guard import Guard
from cierzo.models import Entry
from cierzo.serve import auth
from cierzo.serve.run import DrainingServer, bind
from cierzo.serve.settings import Settings
from cierzo.serve.state import State
from cierzo.tokens.interface import ToolFormat
from support.fake_llm import FakeTokenizer
from support.models import tiny_config
from support.server import until

Say = Callable[[list[Message]], Iterable[str | Delta]]


class _Tokenizer(FakeTokenizer):
    tool_format = ToolFormat("chatml")  # type: ignore[assignment]


class _Answer:
    def __init__(self, llm: "ScriptedLLM", pieces: Iterable[str | Delta], prompt: int) -> None:
        self._llm, self._pieces = llm, self._deltas(pieces, prompt)

    def __aiter__(self) -> AsyncIterator[Delta]:
        return self._pieces

    async def _deltas(self, pieces: Iterable[str | Delta], prompt: int) -> AsyncIterator[Delta]:
        count = 0
        for piece in pieces:
            await asyncio.sleep(self._llm.delay)
            count += 1
            yield piece if isinstance(piece, Delta) else Delta(piece, (7,))
        yield Delta("", (2,), finish_reason="stop", usage=Usage(prompt, count, 0.1, 0.2))

    async def aclose(self) -> None:
        self._llm.closed += 1


class ScriptedLLM:
    """Answers what `say` gives for the messages, `delay` seconds before each piece; a token is a character.

    Attributes:
        asked: the messages of each request.
        params: how each was to be sampled.
        begun: the text that each was to continue, if it was.
        full: how many requests are still told that too many wait.
    """

    name = "script"
    failure: str | None = None
    untouched = 0

    def __init__(self, say: Say, *, delay: float = 0.0, window: int | None = None, context: int | None = 8192) -> None:
        self.say, self.delay, self.max_seq_len = say, delay, context
        self.config = tiny_config(vocab_size=0x110000, sliding_window=window)
        self.card = SimpleNamespace(weights=100 * 2**20, cache=50 * 2**20)
        self.tokenizer = _Tokenizer()
        self.metrics = Metrics()
        self.asked: list[list[Message]] = []
        self.params: list[SamplingParams] = []
        self.begun: list[str] = []
        self.full = self.closed = 0
        self._encoded = ""

    @property
    def pending(self) -> int:
        self.full -= 1
        return 10**6 if self.full >= 0 else 0

    async def encode_chat(self, messages: Sequence[Message], tools: Any = None) -> list[int]:
        self.asked.append(list(messages))
        self.begun.append(self._encoded)
        self._encoded = ""
        return self.tokenizer.encode_chat([{**m, "content": m.get("content") or ""} for m in messages])

    async def encode(self, text: str) -> list[int]:
        self._encoded = text
        return self.tokenizer.encode(text)

    async def answer(self, prompt: list[int], params: SamplingParams, **_: Any) -> _Answer:
        self.params.append(params)
        return _Answer(self, self.say(self.asked[-1]), len(prompt))

    async def close(self, *, drain: bool = True) -> None:
        pass


class _ScriptedModels(Models):
    """Loads scripts, in half a second."""

    def __init__(self, scripts: dict[str, ScriptedLLM]) -> None:
        super().__init__(dict.fromkeys(scripts))
        self._scripts = scripts
        first = self.entries[self.default]
        first.llm, first.state = scripts[self.default], "loaded"  # type: ignore[assignment]

    async def _load(self, entry: Entry) -> None:
        entry.state = "loading"
        await asyncio.sleep(0.5)
        entry.llm = self._scripts[entry.name]  # type: ignore[assignment]


class ScriptedServer:
    """A server on a thread of its own; `stop` and `start` again at the same port. The first model is loaded."""

    def __init__(
        self, scripts: dict[str, ScriptedLLM], keys: list[auth.Key], guard: Guard | None, **settings: Any
    ) -> None:
        self._scripts, self._keys, self._guard = scripts, keys, guard
        self._settings = Settings(**{"log_level": "error", "drain_timeout": 0.2, **settings})
        self._port = 0
        self.start()

    def start(self) -> None:
        self._bound = bind(Settings(port=self._port))
        self._port = self._bound.getsockname()[1]
        self.url = f"http://127.0.0.1:{self._port}"
        self._servers: list[DrainingServer] = []
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()))
        self._thread.start()
        assert until(lambda: self._servers and self._servers[0].started, 30)

    async def _run(self) -> None:
        state = State(self._settings, _ScriptedModels(self._scripts), self._keys, guard=self._guard)
        self._servers.append(DrainingServer(state))
        await self._servers[0].serve([self._bound])

    def stop(self) -> None:
        self._servers[0].should_exit = True
        self._thread.join(30)
        self._bound.close()
        assert not self._thread.is_alive()


@contextmanager
def scripted(
    say: Say | dict[str, ScriptedLLM],
    *,
    keys: list[auth.Key] | None = None,
    guard: Guard | None = None,
    **settings: Any,
) -> Iterator[ScriptedServer]:
    scripts = say if isinstance(say, dict) else {"script": ScriptedLLM(say)}
    server = ScriptedServer(scripts, keys or [], guard, **settings)
    try:
        yield server
    finally:
        if server._thread.is_alive():
            server.stop()
