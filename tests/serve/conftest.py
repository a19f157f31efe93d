"""The servers that the tests of a module share."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from support.models import tiny_config, tiny_engine
from support.server import Process, Served, served


@pytest.fixture(scope="session")
def smollm(default_gguf: Path) -> Iterator[Process]:
    """The default model as a user serves it."""
    process = Process(f"smollm={default_gguf}", "--cache-tokens", "16384")
    yield process
    assert process.stop() == 0, "".join(process.lines)


@pytest.fixture(scope="module")
def tiny() -> Iterator[Served]:
    """A random model of bytes, which answers anything at once."""
    with served(tiny_engine(tiny_config(), max_running=8), max_waiting=16) as server:
        yield server
        assert server.until_idle(), server.engine.metrics
