"""Servers for tests: in this process over models that a test makes, or `cierzo serve` as users start it."""

import asyncio
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import mistral_common

from cierzo import AsyncLLM, Models
from cierzo.engine import Engine
from cierzo.loading import Loaded
from cierzo.serve import auth
from cierzo.serve.run import DrainingServer, bind
from cierzo.serve.settings import Settings
from cierzo.serve.state import State
from cierzo.tokens.mistral import MistralTokenizer
from support.models import tiny_config, tiny_model

CHATML_TOOLS = """{% if tools %}<|im_start|>system
You may call: {{ tools | tojson }}<|im_end|>
{% endif %}{% for m in messages %}<|im_start|>{{ m.role }}
{{ m.content or '' }}{% for c in m.tool_calls or [] %}<tool_call>
{{ c.function | tojson }}
</tool_call>{% endfor %}<|im_end|>
{% endfor %}<|im_start|>assistant
"""
"""A template with tools for the default model, which has none of its own."""


def mistral_engine(tokenizer: str, max_seq_len: int = 4096) -> Engine:
    """Random weights with one of Mistral's vocabularies and its template, in which control tokens begin tool calls."""
    data = Path(mistral_common.__file__).parent / "data"
    loaded = MistralTokenizer(data / tokenizer, instruct=True)
    model = tiny_model(tiny_config(vocab_size=loaded.vocab_size))
    return Engine(model, loaded, max_seq_len=max_seq_len, cache_tokens=4 * max_seq_len)


class Served:
    """A server in this process, on a thread of its own."""

    def __init__(self, engine: Engine, keys: list[auth.Key], **settings: Any) -> None:
        chosen = Settings(**{"max_running": engine.scheduler.max_running, "log_level": "error", **settings})
        self.engine = engine
        models = Models({"tiny": None}, max_waiting=chosen.max_waiting)
        self.llm = AsyncLLM(Loaded("tiny", Path("tiny"), engine), max_waiting=chosen.max_waiting)
        models.entries["tiny"].llm, models.entries["tiny"].state = self.llm, "loaded"
        self._bound = bind(Settings(port=0))
        self._bound.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 16384)  # who does not read is felt soon
        self.port = self._bound.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.state: State | None = None
        self._ready = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run(chosen, models, keys)))
        self._thread.start()
        assert self._ready.wait(30)
        assert until(lambda: self.server.started, 30)  # only now it listens

    async def _run(self, settings: Settings, models: Models, keys: list[auth.Key]) -> None:
        self.state = State(settings, models, keys)
        self.server = DrainingServer(self.state)
        self._ready.set()
        await self.server.serve([self._bound])
        await models.close(drain=False)

    @property
    def idle(self) -> bool:
        """Whether nobody holds anything: no request, and no block of the cache."""
        assert self.state is not None
        metrics = self.engine.metrics
        nothing = not (self.llm.pending or metrics.running or metrics.waiting or self.state.in_hand[""])
        return nothing and metrics.free_blocks == metrics.blocks

    def until_idle(self, seconds: float = 10) -> bool:
        return until(lambda: self.idle, seconds)

    def stop(self) -> None:
        self.server.should_exit = True
        self._thread.join(60)
        self._bound.close()
        assert not self._thread.is_alive(), "the server does not end"


@contextmanager
def served(engine: Engine, *, keys: list[auth.Key] | None = None, **settings: Any) -> Iterator[Served]:
    server = Served(engine, keys or [], **settings)
    try:
        yield server
    finally:
        server.stop()


def until(true: Any, seconds: float = 10) -> bool:
    """Whether this becomes true in time."""
    end = time.monotonic() + seconds
    while not true():
        if time.monotonic() > end:
            return False
        time.sleep(0.02)
    return True


class Process:
    """`cierzo serve` in a process of its own."""

    def __init__(self, *arguments: str, port: int = 0, environment: dict[str, str] | None = None) -> None:
        self.child = subprocess.Popen(
            [sys.executable, "-m", "cierzo", "serve", "--port", str(port), *arguments],
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "CIERZO_THREADS": "1", **(environment or {})},
        )
        self.lines: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        assert until(lambda: self._address() or self.child.poll() is not None, 120)
        found = self._address()
        assert found is not None, "".join(self.lines)
        self.url = found

    def _read(self) -> None:
        assert self.child.stderr is not None
        for line in self.child.stderr:
            self.lines.append(line)

    def _address(self) -> str | None:
        found = re.search(r"at (http://\S+)/v1", "".join(self.lines))
        return found[1] if found else None

    def metric(self, name: str) -> float:
        """The value of a metric with one sample."""
        text = httpx.get(f"{self.url}/metrics", timeout=30).text
        found = re.search(rf"^{re.escape(name)}(?:{{[^}}]*}})? (\S+)$", text, re.M)
        assert found is not None, text
        return float(found[1])

    @property
    def idle(self) -> bool:
        return self.metric("cierzo:cache_blocks_free") == self.metric("cierzo:cache_blocks")

    def memory(self) -> int:
        """Resident bytes."""
        fields = Path(f"/proc/{self.child.pid}/statm").read_text().split()
        return int(fields[1]) * os.sysconf("SC_PAGESIZE")

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Send a signal and wait for the end; returns the exit status."""
        if self.child.poll() is None:
            self.child.send_signal(number)
        status = self.child.wait(60)
        self._reader.join(10)
        return status
