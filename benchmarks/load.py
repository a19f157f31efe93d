"""What loading a checkpoint costs: seconds and memory until the model is there, and after steps of 8 tokens.

    python benchmarks/load.py CHECKPOINT [--dtype float32] [--cold]

The checkpoint is loaded in a process of its own. Resident memory counts the mapped weights that were touched, which the
operating system can drop; anonymous memory is what it cannot. Linux only: memory is read from /proc.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

TOKENS = 8


def memory() -> dict[str, float]:
    """Resident, anonymous and peak resident memory of this process, GB."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return {name: int(lines[key].split()[0]) * 1024 / 1e9 for name, key in
            (("resident", "VmRSS"), ("anonymous", "RssAnon"), ("peak_resident", "VmHWM"))}  # fmt: skip


def measured(name: str, work: Callable[[], object]) -> dict[str, object]:
    """Run `work` and say what it took; anonymous memory is sampled every 10 ms for its peak."""
    before, samples, done = memory()["anonymous"], [0.0], threading.Event()

    def sample() -> None:
        while not done.wait(0.01):
            samples.append(memory()["anonymous"])

    sampler = threading.Thread(target=sample)
    sampler.start()
    start = time.perf_counter()
    work()
    seconds = time.perf_counter() - start
    done.set()
    sampler.join()
    after = memory()
    return {
        "stage": name,
        "seconds": round(seconds, 3),
        "resident_gb": round(after["resident"], 3),
        "peak_resident_gb": round(after["peak_resident"], 3),
        "extra_anonymous_gb": round(after["anonymous"] - before, 3),
        "peak_extra_anonymous_gb": round(max(*samples, after["anonymous"]) - before, 3),
    }


def load(path: Path, dtype: str | None) -> list[dict[str, object]]:
    import torch

    import cierzo.weights
    from cierzo.model import Transformer
    from cierzo.ops import PackedContext

    models: list[Transformer] = []

    def step() -> None:
        with torch.inference_mode():
            models[0](torch.arange(TOKENS), PackedContext([TOKENS]))

    type_ = getattr(torch, dtype) if dtype else None
    return [
        measured("load", lambda: models.append(cierzo.weights.load_model(path, dtype=type_))),
        measured(f"first step, {TOKENS} tokens", step),
        measured(f"second step, {TOKENS} tokens", step),
    ]


def forget(path: Path) -> None:
    """Drop the checkpoint's files from the page cache, so that the disk is measured too."""
    for file in path.iterdir() if path.is_dir() else [path]:
        with file.open("rb") as stream:
            os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def machine() -> dict[str, object]:
    from importlib.metadata import version

    lines = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())
    return {
        "cpu": model,
        "cores": len(os.sched_getaffinity(0)),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        "python": platform.python_version(),
        "torch": version("torch"),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--dtype", choices=("float32", "float16", "bfloat16"), help="convert (default: as stored)")
    parser.add_argument("--cold", action="store_true", help="drop the files from the page cache first")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.inside:
        print(json.dumps(load(arguments.checkpoint, arguments.dtype)))
        return
    if arguments.cold:
        forget(arguments.checkpoint)
    command = [sys.executable, __file__, str(arguments.checkpoint), "--inside"]
    command += ["--dtype", arguments.dtype] if arguments.dtype else []
    stages = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    size = sum(f.stat().st_size for f in arguments.checkpoint.iterdir()) if arguments.checkpoint.is_dir() else (
        arguments.checkpoint.stat().st_size
    )  # fmt: skip
    print(f"{'':<24}{'seconds':>10}{'resident':>12}{'peak':>12}{'extra anon':>12}{'its peak':>12}   (GB)")
    for stage in stages:
        print(f"{stage['stage']:<24}{stage['seconds']:>10.2f}{stage['resident_gb']:>12.2f}"
              f"{stage['peak_resident_gb']:>12.2f}{stage['extra_anonymous_gb']:>12.2f}"
              f"{stage['peak_extra_anonymous_gb']:>12.2f}")  # fmt: skip
    print(json.dumps({
        "benchmark": "load", "checkpoint": arguments.checkpoint.name, "size_gb": round(size / 1e9, 3),
        "dtype": arguments.dtype, "cold": arguments.cold, "stages": stages, **machine(),
    }))  # fmt: skip


if __name__ == "__main__":
    main()
