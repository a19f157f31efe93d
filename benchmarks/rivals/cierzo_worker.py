"""Cierzo, measured through its public face. See worker.py.

A setting may name a `model` of its own, a packed folder of the shape that the rivals' file has; whether its weights
stay in their file (`mmap`); and `cache_tokens`: a window bounds what is needed, but blocks of the past are kept for the
next prompt while the cache has room.
"""

import os
import platform
import time
from collections import Counter
from importlib.metadata import version
from typing import Any

from worker import Job, run


class Cierzo:
    loads = True
    absent_bytes = 0

    def __init__(self, job: Job) -> None:
        import torch

        import cierzo

        torch.set_num_threads(job.threads)
        model = job.setting.get("model", job.model)
        cache_tokens = job.setting.get("cache_tokens", 2 * job.most_tokens)
        self._llm = cierzo.LLM(
            model,
            max_seq_len=job.longest + job.streams,
            cache_tokens=cache_tokens,
            mmap=job.setting.get("mmap", True),
        )
        self.versions = {
            "cierzo": cierzo.__version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
            "numpy": version("numpy"),
        }
        self.flags: dict[str, Any] = {
            "isa": cierzo.machine().isa,
            "threads": cierzo.machine().threads,
            "CIERZO_ISA": os.environ.get("CIERZO_ISA", ""),
            "formats": self._formats(),
        }
        self.flags["weight_bytes"] = sum(self.flags["formats"].values())

    def _formats(self) -> dict[str, int]:
        """Bytes of the matrices that a token reads, by format."""
        found: Counter[str] = Counter()
        model = self._llm._engine.model
        for name, module in model.named_modules():
            weight = getattr(module, "weight", None)
            if weight is not None and (name != "tok_embeddings" or model.output is None):
                size = weight.data.nbytes
                found[weight.format.name if hasattr(weight, "format") else str(weight.dtype)] += size
        return dict(found)

    def generate(self, prompts: list[list[int]], steps: int) -> tuple[float, float]:
        from cierzo import SamplingParams

        # Long prompts take several engine steps, so the first streams are some tokens ahead when the last one begins:
        # they get more to say, and the last one's pace is that of all.
        params = SamplingParams(temperature=0, max_tokens=steps + len(prompts), ignore_eos=True)
        start = time.perf_counter()
        streams = [self._llm.stream(prompt, params) for prompt in prompts]
        for stream in streams:
            next(stream)
        first = time.perf_counter()
        for _ in range(steps):
            next(streams[-1])
        end = time.perf_counter()
        for stream in streams:
            stream.close()
        return first - start, end - first


if __name__ == "__main__":
    run(Cierzo)
