"""Many conversations at once: speed, waiting times and what a long prompt costs the others, Cierzo and llama.cpp.

    python benchmarks/engine.py [--model 7b.gguf [--cierzo-model 7b-q4t]] [--counts 1,4,16,64] [--rounds 3]

Decoding of 1, 4, 16 and 64 sequences together, each after a prompt of its own; llama.cpp decodes the same batches in
its own process (`--settings all` tries each of its settings, else the one that is best as a rule). Then, in Cierzo
alone: a long prompt among 8 decoding sequences, a second request with the beginning of the first one, and Python's
share of a step. Runs alternate; a figure is the median of the rounds. Prints tables and one JSON line.
"""

import argparse
import json
import random
import statistics
import sys
import time
from collections import defaultdict
from itertools import pairwise
from pathlib import Path
from typing import Any

from cierzo import LLM, SamplingParams
from cierzo.engine import Engine
from cierzo.engine import Sequence as EngineSequence
from cierzo.errors import CierzoError
from cierzo.weights.pull import resolve_model
from cpu import SETTINGS, machine, measure

GREEDY: dict[str, Any] = {"temperature": 0, "ignore_eos": True}
IDS = random.Random(0)


def ids(length: int) -> list[int]:
    """A prompt that nobody has seen."""
    return [IDS.randrange(1000, 30_000) for _ in range(length)]


def percentile(values: list[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


class Timed:
    """A sequence and when its tokens came."""

    def __init__(self, engine: Engine, prompt: list[int], tokens: int) -> None:
        self.began = time.perf_counter()
        params = SamplingParams(max_tokens=tokens, **GREEDY)
        self.sequence: EngineSequence = engine.add(engine.prepare(prompt, params))
        self.times: list[float] = []

    def look(self, now: float) -> None:
        """After a step."""
        for delta in self.sequence.deltas:
            self.times += [now] * len(delta.token_ids)
        self.sequence.deltas.clear()

    @property
    def first(self) -> float:
        """Seconds to the first token."""
        return self.times[0] - self.began

    def gaps(self, after: float = 0.0) -> list[float]:
        """Seconds that tokens after `after` were waited for."""
        return [b - a for a, b in pairwise(self.times) if b > after]


def run_step(engine: Engine, timed: list[Timed]) -> None:
    engine.step()
    now = time.perf_counter()
    for one in timed:
        one.look(now)


def run(engine: Engine, timed: list[Timed], until: "EngineSequence | None" = None) -> None:
    """Step until all have ended, or until `until` has its first token."""
    while engine.busy and not (until is not None and until.answered):
        run_step(engine, timed)


def together(engine: Engine, count: int, prompt: int, tokens: int) -> dict[str, float]:
    """`count` sequences that begin at once, until `tokens` more of each have come since all decode."""
    timed = [Timed(engine, ids(prompt), (engine.max_seq_len or 100_000) - prompt) for _ in range(count)]
    while not all(one.times for one in timed):
        run_step(engine, timed)
    last_first = max(one.times[0] for one in timed)
    ends = [len(one.times) + tokens for one in timed]
    while any(len(one.times) < end for one, end in zip(timed, ends, strict=True)):
        run_step(engine, timed)
    seconds = time.perf_counter() - last_first
    decoded = sum(last_first < t for one in timed for t in one.times)
    for one in timed:
        engine.cancel(one.sequence)
    gaps = [gap for one in timed for gap in one.gaps(last_first)]
    firsts = [one.first for one in timed]
    return {
        "decode": decoded / seconds,
        "ttft_p50_s": percentile(firsts, 0.5),
        "ttft_p99_s": percentile(firsts, 0.99),
        "between_p50_ms": 1e3 * percentile(gaps, 0.5),
        "between_p99_ms": 1e3 * percentile(gaps, 0.99),
    }


def stall(engine: Engine, long: int, others: int) -> dict[str, float]:
    """A long prompt arrives among sequences that decode, beside the same sequences without it.

    They grow while it is read, so the control decodes as many tokens after as many: what it takes is the decode share.
    """
    alone = Timed(engine, ids(long), 2)
    run(engine, [alone])

    def texts() -> list[Timed]:
        started = [Timed(engine, ids(32), (engine.max_seq_len or 100_000) - 40) for _ in range(others)]
        while any(len(one.times) < 40 for one in started):
            run_step(engine, started)
        return started

    def end(timed: list[Timed]) -> None:
        for one in timed:
            engine.cancel(one.sequence)
        run(engine, [])

    decoders = texts()
    arrived = time.perf_counter()
    newcomer = Timed(engine, ids(long), 2)
    run(engine, [newcomer, *decoders], until=newcomer.sequence)
    gaps = [gap for one in decoders for gap in one.gaps(arrived)]
    end([newcomer, *decoders])
    control = texts()
    began = time.perf_counter()
    for _ in range(len(gaps) // others):  # as many tokens each; nothing else may happen between steps
        run_step(engine, control)
    without = [gap for one in control for gap in one.gaps(began)]
    end(control)
    median, late, decode_share = statistics.median(without), percentile(gaps, 0.99), sum(without) / others
    return {
        "solo_ttft_s": alone.first,
        "ttft_s": newcomer.first,
        "decode_share_s": decode_share,
        "ttft_over_solo": (newcomer.first - decode_share) / alone.first,
        "between_median_without_ms": 1e3 * median,
        "between_p99_with_ms": 1e3 * late,
        "p99_over_median": late / median,
    }


def prefix(engine: Engine, length: int) -> dict[str, float]:
    """A second request that begins as the first one."""
    shared = ids(length)
    one = Timed(engine, shared + ids(16), 2)
    run(engine, [one])
    second = Timed(engine, shared + ids(16), 2)
    run(engine, [second])
    return {"first_ttft_s": one.first, "second_ttft_s": second.first, "times_shorter": one.first / second.first}


def python_share(engine: Engine, count: int, tokens: int) -> float:
    """Of a step's time, what is spent outside the model and the sampler's kernels."""
    inside = 0.0

    def timing(call: Any) -> Any:
        def timed_call(*args: Any) -> Any:
            nonlocal inside
            began = time.perf_counter()
            try:
                return call(*args)
            finally:
                inside += time.perf_counter() - began

        return timed_call

    for _ in range(count):
        Timed(engine, ids(32), tokens)
    while any(s.uncomputed > 1 for s in [*engine.scheduler.running, *engine.scheduler.waiting]):
        engine.step()
    model = engine.model
    model.hidden, model.scores = timing(model.hidden), timing(model.scores)  # type: ignore[method-assign]
    began = time.perf_counter()
    while engine.busy:
        engine.step()
    whole = time.perf_counter() - began
    del model.hidden, model.scores
    return 1 - inside / whole


def medians(rounds: list[dict[str, float]]) -> dict[str, float]:
    return {name: round(statistics.median(r[name] for r in rounds), 4) for name in rounds[0]}


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="a GGUF file; the default model when left out")
    parser.add_argument("--cierzo-model", help="what Cierzo runs of the same weights; `--model` when left out")
    parser.add_argument("--counts", default="1,4,16,64", help="default: %(default)s")
    parser.add_argument("--prompt", type=int, default=64, help="tokens in front of each sequence")
    parser.add_argument("--decode", type=int, default=48, help="tokens of each sequence once all decode")
    parser.add_argument("--long", type=int, default=7000, help="tokens of the long prompt; 0 leaves it out")
    parser.add_argument("--shared", type=int, default=2000, help="tokens of the shared beginning; 0 leaves it out")
    parser.add_argument("--others", type=int, default=8, help="sequences that decode when the long prompt comes")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--settings", choices=["best", "all", "none"], default="best", help="of llama.cpp")
    parser.add_argument("--rivals", type=Path, default=Path.home() / ".cache" / "cierzo-rivals", metavar="FOLDER")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--timeout", type=float, default=3600)
    options = parser.parse_args()
    options.counts = [int(count) for count in options.counts.split(",")]
    options.stream_prompt, options.cierzo_python, options.deep = options.prompt, Path(sys.executable), 0
    return options


def main() -> None:
    options = parsed()
    try:
        path = resolve_model(options.model, progress=True).absolute()
        own = resolve_model(options.cierzo_model or options.model, progress=True).absolute()
        options.small_model = resolve_model(None, progress=True).absolute()
    except CierzoError as error:
        sys.exit(f"error: {error}")
    settings = {"best": SETTINGS["llama.cpp"][:1], "all": SETTINGS["llama.cpp"], "none": []}[options.settings]
    cache = 2 * options.long + 2 * options.shared + max(options.counts) * (options.prompt + 3 * options.decode) + 4096
    ours: dict[int, list[dict[str, float]]] = defaultdict(list)
    theirs: dict[int, list[float]] = defaultdict(list)
    extra: dict[str, list[dict[str, float]]] = defaultdict(list)
    card = ""
    for number in range(options.rounds):
        llm = LLM(own, cache_tokens=cache)
        engine, card = llm._engine, str(llm.card)
        together(engine, 1, options.prompt, 4)
        for count in options.counts:
            ours[count].append(together(engine, count, options.prompt, options.decode))
        if options.long:
            extra["long_prompt"].append(stall(engine, options.long, options.others))
        if options.shared:
            extra["shared_beginning"].append(prefix(engine, options.shared))
        extra["python"].append({"share_at_16": python_share(engine, 16, options.decode)})
        del llm, engine
        for count in options.counts if settings else []:
            options.streams = count
            rivals = [measure("llama.cpp", path, setting, options) for setting in settings]
            theirs[count].append(max(rival.get("measured", {}).get("streams", 0.0) for rival in rivals))
        print(f"round {number + 1} of {options.rounds} done", file=sys.stderr)
    print(card)
    print("sequences    tok/s  llama.cpp  ratio  TTFT p50     p99  gap p50      p99")
    rows: dict[int, dict[str, float]] = {}
    for count in options.counts:
        row = medians(ours[count])
        rival = statistics.median(theirs[count]) if theirs[count] else 0.0
        rows[count] = row | {"llama_cpp_decode": round(rival, 2)}
        ratio = f"{row['decode'] / rival:.2f}" if rival else "-"
        print(
            f"{count:>9} {row['decode']:>8.1f} {rival:>10.1f} {ratio:>6} {row['ttft_p50_s']:>8.2f}s"
            f" {row['ttft_p99_s']:>6.2f}s {row['between_p50_ms']:>6.1f}ms {row['between_p99_ms']:>6.1f}ms"
        )
    for name, results in extra.items():
        print(f"{name}: {medians(results)}")
    options.streams = max(options.counts)
    told = {
        **machine(options),
        "benchmark": "engine",
        "model": path.name,
        "cierzo_model": own.name,
        "card": card,
        "rows": rows,
    }
    print(json.dumps(told | {name: medians(results) for name, results in extra.items()}))


if __name__ == "__main__":
    main()
