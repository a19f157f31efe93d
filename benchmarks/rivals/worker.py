"""What every engine's worker has in common: a job in, one engine measured, a JSON line out.

`cpu.py` starts a worker in the engine's own environment, which has Python's standard library and the engine:

    PYTHON benchmarks/rivals/NAME_worker.py JOB          JOB: the fields of `Job`, as JSON

A line comes after each measure, with those before it: what is done is not lost when the rest fails or takes too long.
Settings of an engine are tried one a process. All engines get the same token ids, never the same ones twice (some keep
what they have computed), choose the best token, and go on past the end token.
"""

import json
import random
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

SHORT = 16  # tokens of a short prompt
LEAST_SECONDS = 2.0  # a measure is repeated until it has taken this long


@dataclass(frozen=True)
class Job:
    """`began` is when the process was started, in seconds since the epoch; the other numbers are tokens and counts."""

    model: str
    small_model: str
    """A GGUF file with a byte-pair vocabulary, for an engine that cannot read the model's own."""
    prompt: int
    decode: int
    streams: int
    stream_prompt: int
    threads: int
    deep: int
    """Tokens of a very long prompt, 0 for none."""
    began: float
    setting: dict[str, Any]

    @property
    def longest(self) -> int:
        """Tokens of one sequence at most."""
        return max(self.prompt, SHORT + self.decode, self.stream_prompt + self.decode, self.deep + self.decode) + 1

    @property
    def most_tokens(self) -> int:
        """Tokens in the cache at most."""
        return max(self.longest, self.streams * (self.stream_prompt + self.decode + 1))


class Engine(Protocol):
    versions: dict[str, str]
    flags: dict[str, Any]
    """What tells how the engine was built and what it ran with."""
    loads: bool
    """Whether it reads the model's weights, so that the time to the first token means something."""
    absent_bytes: int
    """Memory that the whole model would take beyond what this process has."""

    def generate(self, prompts: list[list[int]], steps: int) -> tuple[float, float]:
        """Continue the prompts together: seconds until each has its first token, and for `steps` more of each."""
        ...


def run(make_engine: Callable[[Job], Engine]) -> None:
    """The worker's main function."""
    job = Job(**json.loads(sys.argv[1]))
    engine = make_engine(job)
    ids = random.Random(0)

    def prompts(count: int, length: int) -> list[list[int]]:
        return [[ids.randrange(1000, 30_000) for _ in range(length)] for _ in range(count)]

    def repeated(measure: Callable[[], float]) -> float:
        rates: list[float] = []
        end = time.perf_counter() + LEAST_SECONDS
        while not rates or time.perf_counter() < end:
            rates.append(measure())
        return statistics.median(rates)

    measured: dict[str, float] = {}

    def tell(name: str, value: float, peak: str) -> None:
        measured[name] = value
        measured[peak] = (peak_bytes() + engine.absent_bytes) / 2**20
        print(json.dumps({"measured": measured, "versions": engine.versions, "flags": engine.flags}), flush=True)

    engine.generate(prompts(1, SHORT), 0)
    if engine.loads:
        tell("first_token_s", time.time() - job.began, "peak_mib")
    tell("decode", repeated(lambda: job.decode / engine.generate(prompts(1, SHORT), job.decode)[1]), "peak_mib")
    tell("prompt", repeated(lambda: job.prompt / engine.generate(prompts(1, job.prompt), 0)[0]), "peak_mib")
    if job.deep:
        first, rest = engine.generate(prompts(1, job.deep), job.decode)
        tell("deep_prompt", job.deep / first, "deep_peak_mib")
        tell("deep_decode", job.decode / rest, "deep_peak_mib")
    many = prompts(job.streams, job.stream_prompt)
    rate = repeated(lambda: job.streams * job.decode / engine.generate(many, job.decode)[1])
    tell("streams", rate, "streams_peak_mib")


def peak_bytes() -> int:
    """Most memory that this process ever had resident, mapped files included."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024
