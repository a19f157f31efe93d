"""How fast this machine reads memory and multiplies matrices: several ways, the best of each over its runs.

    python benchmarks/bandwidth.py [--threads 2] [--gigabytes 1]

Prints GB/s (1e9 bytes) of each way to stream through an array, and 1e9 operations a second of each way to multiply two
matrices of 1024 x 1024, as one JSON line.
"""

import argparse
import json
import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch

RUNS = 4


def read_bandwidth(threads: int, n_bytes: int) -> dict[str, float]:
    """Best GB/s of each way to read `n_bytes` in `threads` threads."""
    torch.set_num_threads(threads)
    array = np.ones(n_bytes // 8, np.int64)
    parts = np.array_split(array, threads)
    tensor = torch.from_numpy(array)
    floats = tensor.view(torch.float32)
    half = floats.numel() // 2
    with ThreadPoolExecutor(threads) as pool:

        def by_numpy(work: Callable[[np.ndarray[Any, np.dtype[np.int64]]], object]) -> Callable[[], object]:
            return lambda: list(pool.map(work, parts))

        ways: dict[str, Callable[[], object]] = {
            "numpy sum": by_numpy(np.sum),
            "numpy max": by_numpy(np.max),
            "numpy or": by_numpy(np.bitwise_or.reduce),
            "torch sum": floats.sum,
            "torch max": tensor.max,
            "torch dot": lambda: torch.dot(floats[:half], floats[half:]),
        }
        return {name: round(max(_rate(way, n_bytes) for _ in range(RUNS)), 2) for name, way in ways.items()}


def matrix_peak(threads: int, size: int = 1024) -> dict[str, float]:
    """Best 1e9 operations (a product and an addition are two) a second, by the numbers' type."""
    torch.set_num_threads(threads)
    found = {}
    for name, dtype in (("float32", torch.float32), ("bfloat16", torch.bfloat16), ("int8", torch.int8)):
        a = torch.ones(size, size, dtype=dtype)
        multiply = torch._int_mm if dtype is torch.int8 else torch.mm
        rates = []
        for _ in range(RUNS):
            start = time.perf_counter()
            multiply(a, a)
            rates.append(2 * size**3 / (time.perf_counter() - start) / 1e9)
            if rates[-1] < 20:  # done in plain code: no peak
                break
        found[name] = round(max(rates), 1)
    return found


def _rate(way: Callable[[], object], n_bytes: int) -> float:
    start = time.perf_counter()
    way()
    return n_bytes / (time.perf_counter() - start) / 1e9


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--gigabytes", type=float, default=1.0)
    arguments = parser.parse_args()
    if arguments.threads < 1 or not arguments.gigabytes > 0:
        parser.error("--threads and --gigabytes must be above 0")
    read = read_bandwidth(arguments.threads, int(arguments.gigabytes * 1e9))
    print(json.dumps({"read": read, "matrix": matrix_peak(arguments.threads)}))


if __name__ == "__main__":
    main()
