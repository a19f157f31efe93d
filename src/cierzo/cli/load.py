"""Load for a server that speaks OpenAI's API: clients that ask one question after the other, and their times."""

import asyncio
import json
import random
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import httpx

from cierzo.errors import CierzoError

_WORDS = (
    "wind", "river", "stone", "bread", "light", "morning", "horse", "copper", "garden", "winter", "letter", "bridge",
    "silver", "market", "forest", "window", "harbour", "mountain", "paper", "candle", "engine", "summer", "violin",
)  # fmt: skip
_TIMEOUT = 3600


@dataclass(frozen=True)
class Load:
    """What is asked.

    Attributes:
        prompt_tokens: of a prompt, about: words are drawn until they are as many, as the server counts them.
        answer_tokens: of an answer at most; exactly, where `extra` makes the server go on.
        extra: more of each request's body.
    """

    url: str
    model: str
    key: str | None = None
    prompt_tokens: int = 256
    answer_tokens: int = 128
    extra: dict[str, Any] = field(default_factory=dict)
    seed: int = 0


@dataclass
class Sample:
    """One request: seconds from its start to its first token and to its end, and between its tokens."""

    first: float = 0.0
    seconds: float = 0.0
    gaps: list[float] = field(default_factory=list)
    prompt_tokens: int = 0
    answer_tokens: int = 0
    error: str | None = None


@dataclass(frozen=True)
class Figures:
    """Of one number of clients. Times are seconds."""

    clients: int
    requests: int
    failed: int
    seconds: float
    requests_per_minute: float
    tokens_per_second: float
    prompt_tokens: float
    answer_tokens: float
    first_p50: float
    first_p99: float
    between_p50: float
    between_p99: float
    whole_p50: float
    whole_p99: float
    errors: tuple[str, ...]


def run(load: Load, clients: int, requests: int, progress: Callable[[int, int], None]) -> Figures:
    """Let `clients` ask `requests` questions in all, each the next one when the last is answered.

    Raises:
        CierzoError: the server cannot be reached.
    """
    return asyncio.run(_run(load, clients, requests, progress))


async def _run(load: Load, clients: int, requests: int, progress: Callable[[int, int], None]) -> Figures:
    limits = httpx.Limits(max_connections=clients)
    headers = {"authorization": f"Bearer {load.key}"} if load.key else {}
    async with httpx.AsyncClient(base_url=load.url, limits=limits, timeout=_TIMEOUT, headers=headers) as client:
        words = await _words(client, load)
        numbers, samples = iter(range(requests)), list[Sample]()
        began = time.perf_counter()

        async def ask() -> None:
            for number in numbers:
                samples.append(await _ask(client, load, _prompt(load.seed, clients, number, words)))
                progress(len(samples), requests)

        await asyncio.gather(*(ask() for _ in range(clients)))
        return figures(clients, samples, time.perf_counter() - began)


def _prompt(seed: int, clients: int, number: int, words: int) -> str:
    """Never the same twice, and different from its beginning on: nothing of it is in a cache."""
    draw = random.Random(f"{seed} {clients} {number}")
    return f"{draw.randrange(10**6)} " + " ".join(draw.choices(_WORDS, k=words))


async def _words(client: httpx.AsyncClient, load: Load) -> int:
    """How many words make a prompt of the wanted length."""
    counts = []
    for words in (50, 100):
        body = _body(load, _prompt(load.seed, 0, words, words)) | {"max_tokens": 1, "stream": False}
        body.pop("stream_options")
        try:
            response = await client.post("/v1/chat/completions", json=body)
            answer = response.json()
        except (httpx.HTTPError, ValueError) as error:
            raise CierzoError(f"cannot ask the server at {load.url}: {error or type(error).__name__}") from None
        if response.status_code != 200:
            raise CierzoError(f"the server at {load.url} refused: {answer}")
        counts.append(int(answer["usage"]["prompt_tokens"]))
    each = (counts[1] - counts[0]) / 50  # tokens of a word
    return max(1, round((load.prompt_tokens - counts[0]) / each + 50))


def _body(load: Load, prompt: str) -> dict[str, Any]:
    return {
        "model": load.model,
        "messages": [{"role": "user", "content": prompt}],
        "max_tokens": load.answer_tokens,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
        **load.extra,
    }


async def _ask(client: httpx.AsyncClient, load: Load, prompt: str) -> Sample:
    sample, began, last = Sample(), time.perf_counter(), 0.0
    try:
        async with client.stream("POST", "/v1/chat/completions", json=_body(load, prompt)) as response:
            if response.status_code != 200:
                sample.error = f"status {response.status_code}: {(await response.aread())[:200]!r}"
                return sample
            async for line in response.aiter_lines():
                if not line.startswith("data:") or line[5:].strip() == "[DONE]":
                    continue
                event, now = json.loads(line[5:]), time.perf_counter()
                if "error" in event:
                    sample.error = str(event["error"])
                    return sample
                if usage := event.get("usage"):
                    sample.prompt_tokens, sample.answer_tokens = usage["prompt_tokens"], usage["completion_tokens"]
                if any(choice.get("delta", {}).get("content") for choice in event.get("choices", ())):
                    sample.answer_tokens += not usage  # a server that does not count sends a token an event
                    if last:
                        sample.gaps.append(now - last)
                    else:
                        sample.first = now - began
                    last = now
    except (httpx.HTTPError, ValueError) as error:
        sample.error = f"{type(error).__name__}: {error}"
    sample.seconds = time.perf_counter() - began
    return sample


def figures(clients: int, samples: list[Sample], seconds: float) -> Figures:
    """What the samples of one run say."""
    good = [sample for sample in samples if sample.error is None]
    tokens = sum(sample.answer_tokens for sample in good)
    gaps = sorted(gap for sample in good for gap in sample.gaps)
    firsts, wholes = sorted(s.first for s in good if s.first), sorted(s.seconds for s in good)
    return Figures(
        clients=clients,
        requests=len(good),
        failed=len(samples) - len(good),
        seconds=seconds,
        requests_per_minute=60 * len(good) / seconds,
        tokens_per_second=tokens / seconds,
        prompt_tokens=statistics.fmean(s.prompt_tokens for s in good) if good else 0.0,
        answer_tokens=tokens / len(good) if good else 0.0,
        first_p50=_quantile(firsts, 0.5),
        first_p99=_quantile(firsts, 0.99),
        between_p50=_quantile(gaps, 0.5),
        between_p99=_quantile(gaps, 0.99),
        whole_p50=_quantile(wholes, 0.5),
        whole_p99=_quantile(wholes, 0.99),
        errors=tuple(sorted({s.error for s in samples if s.error is not None}))[:5],
    )


def _quantile(ordered: list[float], part: float) -> float:
    """The smallest value that at least this part of them does not pass; 0 of none."""
    return ordered[min(len(ordered) - 1, int(part * len(ordered)))] if ordered else 0.0
