"""What takes minutes: thousands of requests with clients that die, signals under load, and litellm."""

import asyncio
import json
import os
import random
import signal
import socket
import struct
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx
import pytest

from support.server import CHATML_TOOLS, Process, until

REQUESTS = int(os.environ.get("CIERZO_FAULT_REQUESTS", "2000"))
SETTINGS = ("--cache-tokens", "3072", "--max-seq-len", "512", "--max-running", "16", "--max-waiting", "16")
QUESTION = [{"role": "user", "content": "What is the capital of France?"}]

_LOOK = """
import http.client, json, sys, threading, time
connection = http.client.HTTPConnection(sys.argv[1], timeout=30)
end = threading.Event()
threading.Thread(target=lambda: (sys.stdin.read(), end.set()), daemon=True).start()
times = []
while not end.is_set():
    began = time.perf_counter()
    connection.request("GET", "/health")
    assert connection.getresponse().read() == b'{"status":"ok"}'
    times.append(time.perf_counter() - began)
    time.sleep(0.02)
times.sort()
print(json.dumps({"count": len(times), "p50": times[len(times) // 2], "p99": times[int(len(times) * 0.99)]}))
"""


@contextmanager
def health_times(process: Process) -> Iterator[dict[str, float]]:
    """How long /health takes meanwhile, as another process sees it; there when the block has ended."""
    host = process.url.removeprefix("http://")
    looking = subprocess.Popen([sys.executable, "-c", _LOOK, host], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    found: dict[str, float] = {}
    try:
        yield found
    finally:
        output, _ = looking.communicate(timeout=60)
        found |= json.loads(output)


def _request(draw: random.Random) -> tuple[str, bytes]:
    """A path and a body, of which some are bad."""
    messages = [{"role": "user", "content": f"{draw.randrange(10**6)} tell me about the sea. " * draw.randint(1, 12)}]
    tokens = draw.choice((1, 4, 16, 40))
    chat = {"messages": messages, "max_tokens": tokens, "stream": draw.random() < 0.6, "n": draw.choice((1, 1, 1, 3))}
    kind = draw.randrange(10)
    if kind < 5:
        return "/v1/chat/completions", json.dumps(chat).encode()
    if kind == 5:
        return "/v1/messages", json.dumps({"model": "m", **{k: v for k, v in chat.items() if k != "n"}}).encode()
    if kind == 6:
        return "/v1/embeddings", json.dumps({"input": ["some wind"] * draw.randint(1, 4)}).encode()
    if kind == 7:
        return "/v1/completions", json.dumps({"prompt": ["Once", "Twice"], "max_tokens": tokens}).encode()
    if kind == 8:
        wanted = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"enum": ["a", draw.random()]}}}
        return "/v1/chat/completions", json.dumps({**chat, "n": 1, "response_format": wanted}).encode()
    bad = (b"{", b"[" * 20_000, json.dumps({**chat, "messages": 3}).encode(), b" " * (4 * 2**20 + 1))
    return "/v1/chat/completions", draw.choice(bad)


async def _ask(port: int, draw: random.Random, told: Counter[str]) -> None:
    """One client; nearly half of them die in the middle, some of these without a goodbye (RST)."""
    path, body = _request(draw)
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(
            f"POST {path} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
            f"connection: close\r\ncontent-length: {len(body)}\r\n\r\n".encode()
        )
        cut = len(body) if draw.random() < 0.9 else draw.randrange(len(body))
        writer.write(body[:cut])
        if cut < len(body) or draw.random() < 0.4:
            await asyncio.sleep(draw.random() ** 2 * 1.5)
            if draw.random() < 0.5:
                with suppress(OSError):  # the server was faster
                    raw = writer.get_extra_info("socket")
                    raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            told["died"] += 1
            return
        with suppress(OSError):  # a body that is too large is refused before it is read
            await writer.drain()
        answer = b""
        with suppress(OSError):
            answer = await asyncio.wait_for(reader.read(-1), 300)
        head, _, rest = answer.partition(b"\r\n\r\n")
        status = head[9:12].decode()
        told[status] += 1
        if status != "200" and rest:
            assert json.loads(rest)["error"]["message"]
        if status == "429":
            assert b"retry-after: " in head
            await asyncio.sleep(draw.random() * 6)  # not as long as told, or few would ever be refused
        assert status in ("200", "400", "413", "429"), (path, status, rest[:300])
    finally:
        writer.close()
        with suppress(OSError):
            await writer.wait_closed()


async def _storm(port: int, count: int, clients: int, seed: int) -> Counter[str]:
    told: Counter[str] = Counter()
    numbers = iter(range(count))

    async def client() -> None:
        for number in numbers:
            await _ask(port, random.Random(f"{seed} {number}"), told)

    await asyncio.gather(*(client() for _ in range(clients)))
    return told


@pytest.mark.heavy
@pytest.mark.timeout(1800)
def test_thousands_of_requests_leave_nothing_behind(default_gguf: Path, capsys: pytest.CaptureFixture[str]) -> None:
    quiet = os.getloadavg()[0] < 1
    process = Process(f"m={default_gguf}", *SETTINGS, "--log-level", "error")
    port = int(process.url.rpartition(":")[2])
    try:
        asyncio.run(_storm(port, REQUESTS // 4, 48, 1))  # touches the whole cache, which then counts as memory
        memory = process.memory()
        with health_times(process) as health:
            told = asyncio.run(_storm(port, REQUESTS, 48, 2))
        assert until(lambda: process.idle, 30)
        assert process.metric("cierzo:http_requests_in_hand") == 0
        grown = process.memory() - memory
        with capsys.disabled():
            print(
                f"\n{REQUESTS} requests: {dict(told)}; health {health}; memory {memory >> 20} MiB, {grown >> 20:+} MiB"
            )
        assert grown < 64 * 2**20
        assert told["429"] > 0
        assert told["200"] > REQUESTS // 20
        # Another process on this machine may hold the cores for longer than that.
        assert health["p99"] < (0.05 if quiet else 0.5)
        answer = httpx.post(
            f"{process.url}/v1/chat/completions", json={"messages": QUESTION, "temperature": 0}, timeout=60
        )
        assert answer.json()["choices"][0]["message"]["content"] == "The capital of France is Paris."
        assert process.stop() == 0
        assert not [line for line in process.lines if "traceback" in line.lower()]
    finally:
        process.stop(signal.SIGKILL)


@pytest.mark.heavy
@pytest.mark.timeout(900)
def test_a_signal_under_load_and_a_start_after_a_kill(default_gguf: Path) -> None:
    asked = {"messages": QUESTION, "max_tokens": 200, "stream": True, "ignore_eos": True}

    async def streams(process: Process, count: int, sent: signal.Signals) -> list[str]:
        """What each of `count` streams got from a server that was sent a signal when it had them all."""
        async with httpx.AsyncClient(timeout=120, limits=httpx.Limits(max_connections=count)) as client:

            async def one() -> str:
                try:
                    async with client.stream("POST", f"{process.url}/v1/chat/completions", json=asked) as response:
                        return (await response.aread()).decode()
                except httpx.HTTPError as error:
                    return type(error).__name__

            tasks = [asyncio.create_task(one()) for _ in range(count)]
            while await asyncio.to_thread(process.metric, "cierzo:http_requests_in_hand") < count:
                assert not any(task.done() for task in tasks)
            process.child.send_signal(sent)
            return await asyncio.gather(*tasks)

    process = Process(f"m={default_gguf}", *SETTINGS, "--drain-timeout", "60")
    ended = asyncio.run(streams(process, 20, signal.SIGTERM))
    assert all(text.endswith("data: [DONE]\n\n") for text in ended), ended
    assert process.child.wait(30) == 0
    port = int(process.url.rpartition(":")[2])
    process = Process(f"m={default_gguf}", *SETTINGS, port=port)
    broken = asyncio.run(streams(process, 20, signal.SIGKILL))
    assert all(not text.endswith("data: [DONE]\n\n") for text in broken)
    process.stop(signal.SIGKILL)
    began = time.monotonic()
    process = Process(f"m={default_gguf}", *SETTINGS, port=port)
    try:
        assert time.monotonic() - began < 60
        answer = httpx.post(
            f"{process.url}/v1/chat/completions", json={"messages": QUESTION, "temperature": 0}, timeout=60
        )
        assert answer.json()["choices"][0]["message"]["content"] == "The capital of France is Paris."
        assert process.idle
    finally:
        assert process.stop() == 0


_LITELLM = """
import json, sys
import litellm
options = {"model": "openai/m", "api_base": sys.argv[1] + "/v1", "api_key": "none"}
question = [{"role": "user", "content": "What is the capital of France?"}]
answer = litellm.completion(messages=question, temperature=0, **options)
assert answer.choices[0].message.content == "The capital of France is Paris.", answer
assert answer.usage.completion_tokens == 8
chunks = list(litellm.completion(messages=question, temperature=0, stream=True, **options))
assert "".join(c.choices[0].delta.content or "" for c in chunks) == "The capital of France is Paris."
schema = {"type": "object", "properties": {"city": {"enum": ["Paris", "Rome"]}}, "required": ["city"],
          "additionalProperties": False}
form = {"type": "json_schema", "json_schema": {"name": "city", "schema": schema, "strict": True}}
answer = litellm.completion(messages=question, response_format=form, max_tokens=40, **options)
assert json.loads(answer.choices[0].message.content)["city"] in ("Paris", "Rome")
answer = litellm.completion(messages=question, logprobs=True, top_logprobs=2, max_tokens=3, temperature=0, **options)
assert len(answer.choices[0].logprobs.content) == 3
vectors = litellm.embedding(input=["a", "b"], encoding_format="float", **options)
assert len(vectors.data) == 2
for changes, kind in (({"messages": question * 2000}, litellm.ContextWindowExceededError),
                      ({"messages": question, "model": "openai/other"}, litellm.NotFoundError),
                      ({"messages": question, "temperature": -1}, litellm.BadRequestError)):
    try:
        litellm.completion(**{**options, **changes})
    except kind as error:
        print(kind.__name__)
    else:
        raise AssertionError(kind)
anthropic = litellm.completion(
    messages=question, model="anthropic/m", api_base=sys.argv[1], api_key="none", max_tokens=20
)
assert anthropic.choices[0].message.content
print("all well")
"""
_LITELLM_TOOLS = """
import json, sys
import litellm
options = {"model": "openai/m", "api_base": sys.argv[1] + "/v1", "api_key": "none", "max_tokens": 100}
parameters = {"type": "object", "properties": {"city": {"enum": ["Paris", "Rome"]}}, "required": ["city"],
              "additionalProperties": False}
tools = [{"type": "function", "function": {"name": "weather", "parameters": parameters}}]
choice = {"type": "function", "function": {"name": "weather"}}
messages = [{"role": "user", "content": "What is the weather in Paris?"}]
answer = litellm.completion(messages=messages, tools=tools, tool_choice=choice, **options)
[call] = answer.choices[0].message.tool_calls
assert call.function.name == "weather" and json.loads(call.function.arguments)["city"] in ("Paris", "Rome"), call
chunks = list(litellm.completion(messages=messages, tools=tools, tool_choice=choice, stream=True, **options))
[streamed] = litellm.stream_chunk_builder(chunks).choices[0].message.tool_calls
assert streamed.function.name == "weather" and json.loads(streamed.function.arguments)["city"] in ("Paris", "Rome")
messages += [answer.choices[0].message, {"role": "tool", "tool_call_id": call.id, "content": "Sunny, 30 degrees."}]
last = litellm.completion(messages=messages, tools=tools, **options)
assert last.choices[0].message.content
assert last.usage.prompt_tokens > answer.usage.prompt_tokens
print("all well")
"""


@pytest.mark.heavy
@pytest.mark.network
@pytest.mark.timeout(1200)
def test_litellm(default_gguf: Path, tmp_path: Path) -> None:
    """In an environment of its own: its versions of libraries exclude ours."""
    subprocess.run([sys.executable, "-m", "venv", str(tmp_path / "venv")], check=True)
    python = str(tmp_path / "venv" / "bin" / "python")
    install = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "litellm"]
    subprocess.run(install, check=True, timeout=600)
    template = tmp_path / "tools.jinja"
    template.write_text(CHATML_TOOLS)
    environment = {**os.environ, "LITELLM_LOCAL_MODEL_COST_MAP": "True"}
    for script, options in ((_LITELLM, ()), (_LITELLM_TOOLS, ("--chat-template", str(template)))):
        process = Process(f"m={default_gguf}", *SETTINGS, *options)
        try:
            command = [python, "-c", script, process.url]
            result = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=200)
            assert result.stdout.endswith("all well\n"), result.stdout + result.stderr
        finally:
            assert process.stop() == 0
