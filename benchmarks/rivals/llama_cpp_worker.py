"""llama.cpp through the low-level interface of llama-cpp-python. See worker.py.

A setting has `repack` (matrices laid out anew for the instruction set when loading), `flash` (flash attention) and
`ubatch` (tokens computed at once). The cache is in 16 bits, and streams have caches of their own.
"""

import os
import sys
import time
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np
from worker import Job, run


class LlamaCpp:
    loads = True
    absent_bytes = 0

    def __init__(self, job: Job) -> None:
        self._job = job
        llama_cpp.llama_backend_init()
        params = llama_cpp.llama_model_default_params()
        params.n_gpu_layers = 0
        params.use_extra_bufts = job.setting["repack"]
        self._model = llama_cpp.llama_model_load_from_file(os.fsencode(job.model), params)
        if not self._model:
            raise RuntimeError(f"llama.cpp cannot load {job.model}")
        self._n_vocab = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self._model))
        self._context: Any = None
        self._n_streams = 0
        self._batch = llama_cpp.llama_batch_init(job.most_tokens, 0, 1)
        self.versions = {"llama-cpp-python": llama_cpp.__version__}
        self.flags = {
            "system_info": llama_cpp.llama_print_system_info().decode(),
            "build": Path(sys.prefix, "built-with").read_text(encoding="utf-8").strip(),  # install.sh wrote it
            "threads": job.threads,
            "cache": "f16",
        }

    def generate(self, prompts: list[list[int]], steps: int) -> tuple[float, float]:
        self._open_context(len(prompts))
        start = time.perf_counter()
        tokens = [0] * len(prompts)
        # As many whole prompts in one batch as llama.cpp's batch of 2,048 tokens holds; it cuts them to micro-batches.
        together = max(1, 2048 // len(prompts[0]))
        for at in range(0, len(prompts), together):
            some = range(at, min(at + together, len(prompts)))
            rows = [(t, i, s, i == len(prompts[s]) - 1) for s in some for i, t in enumerate(prompts[s])]
            ends = self._decode(rows)
            for stream, row in zip(some, ends, strict=True):
                tokens[stream] = self._best(row)
        first = time.perf_counter()
        for step in range(steps):
            rows = [(t, len(prompts[s]) + step, s, True) for s, t in enumerate(tokens)]
            tokens = [self._best(row) for row in self._decode(rows)]
        return first - start, time.perf_counter() - first

    def _open_context(self, n_streams: int) -> None:
        """An empty cache for so many streams."""
        if n_streams == self._n_streams:
            llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self._context), True)
            return
        if self._context is not None:
            llama_cpp.llama_free(self._context)
        job, params = self._job, llama_cpp.llama_context_default_params()
        params.n_ctx = n_streams * (job.longest if n_streams == 1 else job.stream_prompt + job.decode + 1)
        params.n_batch = max(2048, job.longest)
        params.n_ubatch = job.setting["ubatch"]
        params.n_seq_max = n_streams
        params.n_threads = params.n_threads_batch = job.threads
        flash = llama_cpp.LLAMA_FLASH_ATTN_TYPE_ENABLED if job.setting["flash"] else (
            llama_cpp.LLAMA_FLASH_ATTN_TYPE_DISABLED
        )  # fmt: skip
        params.flash_attn_type = flash
        params.no_perf = True
        self._context = llama_cpp.llama_init_from_model(self._model, params)
        if not self._context:
            raise RuntimeError(f"llama.cpp cannot make a context of {params.n_ctx} tokens")
        self._n_streams = n_streams

    def _decode(self, rows: list[tuple[int, int, int, bool]]) -> list[int]:
        """Compute (token, position, stream, whether its scores are wanted); the rows that have scores."""
        batch = self._batch
        for row, (token, position, stream, wanted) in enumerate(rows):
            batch.token[row], batch.pos[row] = token, position
            batch.n_seq_id[row], batch.seq_id[row][0] = 1, stream
            batch.logits[row] = wanted
        batch.n_tokens = len(rows)
        status = llama_cpp.llama_decode(self._context, batch)
        if status:
            raise RuntimeError(f"llama_decode: {status}")
        return [row for row, (_, _, _, wanted) in enumerate(rows) if wanted]

    def _best(self, row: int) -> int:
        scores = llama_cpp.llama_get_logits_ith(self._context, row)
        return int(np.argmax(np.ctypeslib.as_array(scores, (self._n_vocab,))))


if __name__ == "__main__":
    run(LlamaCpp)
