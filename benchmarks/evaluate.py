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
    """Time spent in a model's `loglikelihood`, since it was last asked."""

    def __init__(self, lm: Any) -> None:
        self.seconds, score = 0.0, lm.loglikelihood

        def timed(*args: Any, **options: Any) -> Any:
            began = time.perf_counter()
            try:
                return score(*args, **options)
            finally:
                self.seconds += time.perf_counter() - began

        lm.loglikelihood = timed

    def taken(self) -> float:
        seconds, self.seconds = self.seconds, 0.0
        return seconds


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
            found[name], seconds[name] = {}, {}
            for task in options.benchmarks:
                found[name] |= run_suite(lm, Options((task,), limit=options.limit, data=options.data))
                seconds[name][task] = clock.taken()
                print(f"{name} {task}: {seconds[name][task]:.1f} s", flush=True)
            del lm
    print("\n".join(table(found, seconds, options.benchmarks)))
    scores = {
        name: {task: {k: r[k] for k in ("score", "stderr", "n", "items")} for task, r in results.items()}
        for name, results in found.items()
    }
    print(json.dumps({"benchmark": "evaluate", "limit": arguments.limit, "seconds": seconds, "scores": scores}))


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
    for name in names:
        items = [(a, b) for task in tasks for a, b in zip(found[name][task]["items"], last[task]["items"], strict=True)]
        alike = sum(a == b for a, b in items) / len(items)
        total, other = (sum(seconds[n].values()) for n in (name, names[-1]))
        rows.append(
            f"{name}: {alike:.2%} of {len(items)} items alike, {total:.0f} s, {other / total:.2f} times as fast"
        )
    return rows


if __name__ == "__main__":
    main()
