"""Time and memory of the first answer: a new process, the default model, one question.

    python benchmarks/first_answer.py [--model MODEL] [--runs 5]

Each run is its own process with the model file in the page cache (the first run warms it and is not counted). Prints a
table and one JSON line: seconds to load, to the first token and to the end since the process began; tokens a second
while decoding; peak resident memory.
"""

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from datetime import date
from typing import Any

QUESTION = "What is the capital of France? Then tell me about its history."


def measure(model: str | None, tokens: int, began: float) -> dict[str, float]:
    """One answer, in this process, which began at `began` (seconds since the epoch)."""
    from cierzo import LLM, SamplingParams

    llm = LLM(model)
    loaded = time.time() - began
    params = SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True)
    usage = llm.chat([{"role": "user", "content": QUESTION}], params).usage
    return {
        "loaded_s": loaded,
        "first_token_s": loaded + usage.time_to_first_token,
        "answer_s": loaded + usage.seconds,
        "decode_tokens_per_s": (usage.completion_tokens - 1) / (usage.seconds - usage.time_to_first_token),
        "peak_memory_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def cpu_name() -> str:
    """As the kernel names it."""
    with open("/proc/cpuinfo", encoding="utf-8") as info:
        return next((line.partition(":")[2].strip() for line in info if line.startswith("model name")), "unknown")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="a path or a name; the default model when left out")
    parser.add_argument("--tokens", type=int, default=64, help="length of the answer")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--began", type=float, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.began is not None:  # the measured process
        print(json.dumps(measure(options.model, options.tokens, options.began)))
        return
    own = [sys.executable, __file__, "--tokens", str(options.tokens)]
    own += ["--model", options.model] if options.model else []
    runs: list[dict[str, float]] = []
    for _ in range(options.runs + 1):
        settings = {"OMP_WAIT_POLICY": "PASSIVE"} | os.environ  # as the command line does
        answer = subprocess.run([*own, "--began", str(time.time())], capture_output=True, text=True, env=settings)
        if answer.returncode:
            sys.exit(answer.stderr)
        runs.append(json.loads(answer.stdout))
    medians = {name: statistics.median(run[name] for run in runs[1:]) for name in runs[0]}
    print(f"{'':24}{'median':>10}{'lowest':>10}{'highest':>10}")
    for name, value in medians.items():
        values = [run[name] for run in runs[1:]]
        print(f"{name:24}{value:10.2f}{min(values):10.2f}{max(values):10.2f}")
    import torch

    import cierzo

    result: dict[str, Any] = {
        "benchmark": "first_answer",
        "date": date.today().isoformat(),
        "model": options.model or "smollm2-135m-instruct",
        "runs": options.runs,
        "tokens": options.tokens,
        **{name: round(value, 3) for name, value in medians.items()},
        "cpu": cpu_name(),
        "cores": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cierzo": cierzo.__version__,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
