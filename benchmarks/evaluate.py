"""The same benchmarks through lm-evaluation-harness with our engine and with transformers, on the same weights.

    python benchmarks/evaluate.py --data FOLDER [--limit 500] [--tasks NAMES] [--only native,float32,transformers]

The weights are the default model's (SmolLM2-135M, Q4_1): ours run as they are on native kernels, and dequantised to
float32 on the PyTorch path; transformers gets the dequantised ones. Where other work runs, give --threads 1 and set
OMP_WAIT_POLICY=PASSIVE: PyTorch's threads spin. An item is scored alike when both choose the same.
Times are of the engines' own calls (tokens, scores), without loading and without the harness's reading of data.
"""

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from cierzo import tokenizer_files
from cierzo.evaluate.lm import CierzoLM
from cierzo.evaluate.suite import Options, chosen, run_suite
from cierzo.weights.export import export_huggingface
from cierzo.weights.pull import resolve_model


def transformers_lm(path: Path, folder: Path, threads: int) -> Any:
    from lm_eval.models.huggingface import HFLM

    torch.set_num_threads(threads)
    export_huggingface(path, folder, dtype=torch.float32, tokenizer=lambda out: tokenizer_files(path, out))
    return HFLM(pretrained=str(folder), device="cpu", dtype="float32", batch_size=8)


class Clock:
    """Seconds spent in a model's `loglikelihood`, since it was last asked: of the clock, and of the processor."""

    def __init__(self, lm: Any) -> None:
        self.seconds, self.processor, score = 0.0, 0.0, lm.loglikelihood

        def timed(*args: Any, **options: Any) -> Any:
            began, processor = time.perf_counter(), time.process_time()
            try:
                return score(*args, **options)
            finally:
                self.seconds += time.perf_counter() - began
                self.processor += time.process_time() - processor

        lm.loglikelihood = timed

    def taken(self) -> tuple[float, float]:
        taken = self.seconds, self.processor
        self.seconds = self.processor = 0.0
        return taken


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=Path("../shared/data/eval"))
    parser.add_argument("--limit", type=int, default=500)
    parser.add_argument("--tasks", help="benchmarks, with commas; the suite `quick` when left out")
    parser.add_argument("--only", default="native,float32,transformers")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    arguments = parser.parse_args()
    path = resolve_model(None, progress=True)
    options = Options(chosen("quick", arguments.tasks), limit=arguments.limit, data=arguments.data)
    found: dict[str, dict[str, Any]] = {}
    seconds: dict[str, dict[str, float]] = {}
    processor: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        makers: dict[str, Callable[[], Any]] = {
            "native": lambda: CierzoLM(path),
            "float32": lambda: CierzoLM(path, dtype="float32"),
            "transformers": lambda: transformers_lm(path, Path(folder, "model"), arguments.threads),
        }
        torch.set_num_threads(arguments.threads)
        for name in arguments.only.split(","):
            lm = makers[name]()
            clock = Clock(lm)
            found[name], seconds[name], processor[name] = {}, {}, {}
            for task in options.benchmarks:
                found[name] |= run_suite(lm, Options((task,), limit=options.limit, data=options.data))
                seconds[name][task], processor[name][task] = taken = clock.taken()
                print(f"{name} {task}: {taken[0]:.1f} s, {taken[1]:.1f} s of processor", flush=True)
            del lm
    print("\n".join([*table(found, seconds, options.benchmarks), *ratios(found, seconds, processor)]))
    scores = {
        name: {task: {k: r[k] for k in ("score", "stderr", "n", "items")} for task, r in results.items()}
        for name, results in found.items()
    }
    print(
        json.dumps(
            {
                "benchmark": "evaluate",
                "limit": arguments.limit,
                "seconds": seconds,
                "processor_seconds": processor,
                "scores": scores,
            }
        )
    )


def table(found: dict[str, dict[str, Any]], seconds: dict[str, dict[str, float]], tasks: tuple[str, ...]) -> list[str]:
    """Scores, times, and items scored as with the last engine."""
    names = list(found)
    last = found[names[-1]]
    rows = ["task          items  " + "  ".join(f"{name:>28}" for name in names)]
    for task in tasks:
        cells = []
        for name in names:
            own = found[name][task]
            alike = sum(a == b for a, b in zip(own["items"], last[task]["items"], strict=True)) / own["n"]
            score = f"{100 * own['score']:.1f} ± {100 * own['stderr']:.1f}"
            cells.append(f"{score:>12} {alike:7.1%} {seconds[name][task]:6.0f} s")
        rows.append(f"{task:13} {last[task]['n']:5}  " + "  ".join(f"{cell:>28}" for cell in cells))
    return rows


def ratios(
    found: dict[str, dict[str, Any]], seconds: dict[str, dict[str, float]], processor: dict[str, dict[str, float]]
) -> list[str]:
    """Over all tasks, against the last engine. Where other work runs, the processor's time is the one to look at."""
    last = list(found)[-1]
    rows = []
    for name in found:
        items = [
            pair for task in found[last] for pair in zip(*(found[n][task]["items"] for n in (name, last)), strict=True)
        ]
        alike = sum(a == b for a, b in items) / len(items)
        took = [sum(times[name].values()) for times in (seconds, processor)]
        other = [sum(times[last].values()) for times in (seconds, processor)]
        rows.append(
            f"{name}: {alike:.2%} of {len(items)} items alike; {took[0]:.0f} s, {other[0] / took[0]:.2f} times as "
            f"fast; {took[1]:.0f} s of processor, {other[1] / took[1]:.2f} times as cheap"
        )
    return rows


if __name__ == "__main__":
    main()
