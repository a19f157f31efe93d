"""Clients that leave, do not read, or come all at once; a server that must stop."""

import asyncio
import json
import socket
import threading
import time
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch

from cierzo import ops
from cierzo.errors import NOT_FINITE, CierzoError
from cierzo.models import Entry
from support.models import tiny_config, tiny_engine
from support.server import Served, served, until

ASKED: dict[str, Any] = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 4, "ignore_eos": True}
LONG: dict[str, Any] = {**ASKED, "max_tokens": 3000}


def post(server: Served, asked: dict[str, Any], path: str = "/v1/chat/completions") -> httpx.Response:
    return httpx.post(f"{server.url}{path}", json=asked, timeout=60)


def opened(server: Served, asked: dict[str, Any], path: str = "/v1/chat/completions") -> socket.socket:
    """A connection on which a request was sent and nothing was read."""
    body = json.dumps(asked).encode()
    raw = socket.socket()
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)  # set before connecting, it bounds what the kernel takes
    raw.connect(("127.0.0.1", server.port))
    raw.sendall(
        f"POST {path} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
        f"content-length: {len(body)}\r\n\r\n".encode()
        + body
    )
    return raw


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions", "/v1/messages"])
def test_who_leaves_frees_everything_at_once(tiny: Served, path: str, stream: bool) -> None:
    asked = {**LONG, "stream": stream}
    if path == "/v1/completions":
        asked = {**asked, "prompt": ["a", "b"], "n": 2}
        del asked["messages"]
    elif path == "/v1/messages":
        # It cannot ask to go on after the end token, which is never the likeliest after this question.
        question = [{"role": "user", "content": "long"}]
        asked = {"model": "tiny", "messages": question, "max_tokens": 3000, "stream": stream, "temperature": 0}
    cancelled = tiny.engine.metrics.finished["cancelled"]
    raw = opened(tiny, asked, path)
    assert until(lambda: tiny.engine.metrics.running > 0)
    steps = tiny.engine.metrics.steps
    raw.close()
    assert until(lambda: tiny.idle, 5), tiny.engine.metrics
    assert tiny.engine.metrics.finished["cancelled"] > cancelled
    assert tiny.engine.metrics.steps < steps + 1000  # far from the 3,000 of the answer


def test_who_does_not_read_keeps_nobody(tiny: Served) -> None:
    raw = opened(tiny, {**LONG, "max_tokens": 300, "stream": True, "logprobs": True, "top_logprobs": 20})
    try:
        assert until(lambda: tiny.engine.metrics.running > 0)
        for _ in range(5):
            began = time.monotonic()
            assert post(tiny, ASKED).status_code == 200
            assert time.monotonic() - began < 5
        # The engine has long been done with the answer, while the client has not begun to read it.
        assert until(lambda: tiny.llm.pending == 0, 30)
        assert tiny.state is not None
        assert tiny.state.in_hand[""] == 1
    finally:
        raw.close()
    assert tiny.until_idle()


def test_a_flood_is_told_to_come_back(tiny: Served) -> None:
    """8 run, 16 wait, the others are told so at once; everybody who was taken is answered."""
    asked = {**ASKED, "max_tokens": 120}
    with ThreadPoolExecutor(64) as pool:
        responses = list(pool.map(lambda _: post(tiny, asked), range(64)))
    taken = [r for r in responses if r.status_code == 200]
    refused = [r for r in responses if r.status_code != 200]
    assert len(taken) >= 24
    assert refused
    for response in refused:
        assert response.status_code == 429
        assert response.json()["error"]["code"] == "queue_full"
        assert 1 <= int(response.headers["retry-after"]) <= 60
    assert all(r.json()["usage"]["completion_tokens"] == 120 for r in taken)
    assert tiny.until_idle()


def test_many_answers_are_taken_all_or_none(tiny: Served) -> None:
    """Of a request that does not fit as a whole, nothing stays."""
    asked = {"prompt": ["a"] * 4, "n": 8, "max_tokens": 5}
    assert post(tiny, asked, "/v1/completions").json()["error"]["code"] == "too_many_answers"
    blockers = [opened(tiny, LONG) for _ in range(10)]
    assert until(lambda: tiny.llm.pending == 10)
    refused = post(tiny, {**asked, "prompt": ["a"] * 2}, "/v1/completions")
    assert refused.status_code == 429
    embedded = post(tiny, {"input": ["a"] * 20}, "/v1/embeddings")
    assert embedded.status_code == 429
    assert tiny.llm.pending == 10
    for blocker in blockers:
        blocker.close()
    assert tiny.until_idle()


def test_a_storm_of_cancels(tiny: Served) -> None:
    for number in range(150):
        raw = opened(tiny, {**LONG, "stream": number % 2 == 0, "n": 1 + number % 3})
        if number % 5:
            time.sleep(0.002 * (number % 5))
        raw.close()
    assert tiny.until_idle(30), tiny.engine.metrics
    assert post(tiny, ASKED).status_code == 200


def test_an_answer_has_its_time() -> None:
    engine = tiny_engine(tiny_config())
    vars(engine.tokenizer)["stop_ids"] = frozenset()  # Anthropic's API has no ignore_eos
    with served(engine, request_timeout=0.3) as server:
        whole = post(server, LONG)
        assert whole.status_code == 504
        assert whole.json()["error"]["code"] == "timeout"
        events = post(server, {**LONG, "stream": True}).text.strip().split("\n\n")
        assert json.loads(events[-1].removeprefix("data: "))["error"]["code"] == "timeout"
        told = post(
            server, {"model": "tiny", "messages": LONG["messages"], "max_tokens": 3000, "stream": True}, "/v1/messages"
        )
        last = told.text.strip().split("\n\n")[-1]
        assert last.startswith("event: error\n")
        assert json.loads(last.split("data: ")[1])["error"]["type"] == "timeout_error"
        assert server.until_idle()


def test_counting_tokens_has_its_time_too(monkeypatch: pytest.MonkeyPatch) -> None:
    with served(tiny_engine(tiny_config()), request_timeout=0.3) as server:
        assert server.state is not None

        @asynccontextmanager
        async def slow(name: str | None = None) -> AsyncIterator[None]:
            await asyncio.sleep(3)
            yield

        monkeypatch.setattr(server.state.models, "use", slow)
        asked = {"model": "tiny", "messages": LONG["messages"]}
        assert post(server, asked, "/v1/messages/count_tokens").status_code == 504
        assert post(server, {"prompt": "a"}, "/tokenize").status_code == 504
        assert post(server, {"tokens": [65]}, "/detokenize").status_code == 504


def test_a_drained_server_ends_its_answers() -> None:
    with served(tiny_engine(tiny_config())) as server, ThreadPoolExecutor(4) as pool:
        answers = [pool.submit(post, server, {**ASKED, "max_tokens": 600, "stream": s}) for s in (True, False)]
        assert until(lambda: server.engine.metrics.running == 2)
        server.server.should_exit = True
        assert answers[0].result().text.endswith("data: [DONE]\n\n")
        assert answers[1].result().json()["usage"]["completion_tokens"] == 600
        with pytest.raises(httpx.ConnectError):
            until(lambda: not httpx.get(f"{server.url}/ready").is_success, 5)


def test_what_takes_longer_than_the_drain_is_told() -> None:
    with served(tiny_engine(tiny_config()), drain_timeout=0.3) as server, ThreadPoolExecutor(4) as pool:
        answers = [pool.submit(post, server, {**LONG, "stream": s}) for s in (True, False)]
        assert until(lambda: server.engine.metrics.running == 2)
        began = time.monotonic()
        server.stop()
        assert time.monotonic() - began < 5
        last = answers[0].result().text.strip().split("\n\n")[-1]
        assert json.loads(last.removeprefix("data: "))["error"]["code"] == "shutting_down"
        assert answers[1].result().status_code == 503


def test_a_stopped_engine_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = tiny_engine(tiny_config())
    with served(engine) as server:
        assert httpx.get(f"{server.url}/health").json() == {"status": "ok"}

        def broken(*_: Any) -> Any:
            raise RuntimeError("no more")

        monkeypatch.setattr(engine, "_forward", broken)
        failed = post(server, ASKED)
        assert failed.status_code == 500
        assert failed.json()["error"]["code"] == "engine_error"
        assert "no more" not in failed.text  # what it was is the log's to say
        assert httpx.get(f"{server.url}/health").status_code == 503
        assert httpx.get(f"{server.url}/ready").json() == {"status": "failed"}


@pytest.mark.parametrize(
    ("path", "asked"),
    [
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "a~b"}], "max_tokens": 4}),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "a~b"}], "logprobs": True, "stream": True}),
        ("/v1/completions", {"prompt": ["good", "a~b"], "max_tokens": 4, "logprobs": 2}),
        ("/v1/completions", {"prompt": "a~b", "max_tokens": 4, "stream": True}),
        ("/v1/completions", {"prompt": "a~b", "max_tokens": 0, "echo": True, "logprobs": 2}),
        ("/v1/embeddings", {"input": ["good", "a~b"]}),
        ("/v1/embeddings", {"input": "a~b", "encoding_format": "base64", "pooling": "last"}),
        ("/v1/messages", {"model": "tiny", "messages": [{"role": "user", "content": "a~b"}], "max_tokens": 4}),
    ],
)
def test_scores_that_are_no_numbers_are_told(
    path: str, asked: dict[str, Any], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """By every API in the same words, with nothing of our code in the log; others are answered meanwhile."""
    embed = ops.embed

    def poisoned(tokens: torch.Tensor, weight: Any) -> torch.Tensor:
        rows = embed(tokens, weight).clone()
        rows[tokens == ord("~")] = torch.nan
        return rows

    monkeypatch.setattr(ops, "embed", poisoned)
    with (
        served(tiny_engine(tiny_config()), log_level="info") as server,
        caplog.at_level("INFO", "cierzo.serve"),
        ThreadPoolExecutor(2) as pool,
    ):
        other = pool.submit(post, server, {**ASKED, "max_tokens": 300, "logit_bias": {str(ord("~")): -100}})
        refused = post(server, asked, path)
        if asked.get("stream"):
            assert refused.status_code == 200
            told = json.loads(refused.text.strip().split("\n\n")[-1].removeprefix("data: "))["error"]
        else:
            assert refused.status_code == 500
            told = refused.json()["error"]
        assert told["message"] == NOT_FINITE
        assert (told["type"], told.get("code")) in (("server_error", "scores_not_finite"), ("api_error", None))
        assert other.result().json()["usage"]["completion_tokens"] == 300
        assert server.until_idle()
    assert not [record for record in caplog.records if record.exc_info]
    errors = [vars(record)["fields"].get("error") for record in caplog.records if record.getMessage() == "request"]
    assert "scores_not_finite" in errors


def test_a_model_that_cannot_be_loaded_is_told_without_its_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with served(tiny_engine(tiny_config()), log_level="info") as server, caplog.at_level("INFO", "cierzo.serve"):
        assert server.state is not None
        server.state.models.entries["lost"] = Entry("lost", tmp_path / "secret.gguf")
        asked = {**ASKED, "model": "lost"}
        refused = post(server, asked)
        assert refused.status_code == 503
        assert refused.json()["error"]["code"] == "model_unavailable"
        assert int(refused.headers["retry-after"]) >= 1
        assert "'lost'" in refused.text
        assert str(tmp_path) not in refused.text
        other = post(server, {"model": "lost", "messages": asked["messages"], "max_tokens": 1}, "/v1/messages")
        assert (other.status_code, other.json()["error"]["type"]) == (503, "overloaded_error")
        (tmp_path / "secret.gguf").write_bytes(b"GGUF")

        async def full(*_: Any) -> None:
            raise CierzoError("no memory for lost: its weights take 9.0 GiB")

        monkeypatch.setattr(server.state.models, "_load", full)
        refused = post(server, asked)
        assert refused.status_code == 503
        assert "GiB" not in refused.text
        assert post(server, ASKED).status_code == 200
    reasons = [vars(r)["fields"].get("reason", "") for r in caplog.records if r.getMessage() == "request"]
    assert "secret.gguf" in reasons[0]
    assert "9.0 GiB" in reasons[2]


def test_health_answers_while_the_engine_works(tiny: Served) -> None:
    """A first look; the figure is measured by the heavy test, from another process."""
    stop = threading.Event()
    seconds: list[float] = []

    def look() -> None:
        with httpx.Client() as client:
            while not stop.is_set():
                began = time.monotonic()
                assert client.get(f"{tiny.url}/health").status_code == 200
                seconds.append(time.monotonic() - began)
                time.sleep(0.01)

    looking = threading.Thread(target=look)
    looking.start()
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: post(tiny, {**ASKED, "max_tokens": 100, "stream": True}), range(16)))
    stop.set()
    looking.join()
    assert sorted(seconds)[len(seconds) // 2] < 0.1
    assert min(seconds) < 0.03  # with TCP_NODELAY; each would take 40 ms more without
