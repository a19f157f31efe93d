"""What llama.cpp thinks of texts of token ids: best next token and log-probability of the real one, at every position.

Reads a job as JSON on stdin, {"model": FILE.gguf, "texts": [[id, ...], ...], "threads": 2}, and writes one,
{"best": [[id, ...], ...], "logprobs": [[number, ...], ...]}: for each text, of its positions 0 to n - 2.
With "quantize": [SOURCE.gguf, TYPE NUMBER], it first makes the model out of SOURCE by llama.cpp's own quantisation.
"""

import json
import os
import sys
from typing import Any

import llama_cpp
import numpy as np


def quantize(source: str, target: str, kind: int, threads: int) -> None:
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype, params.nthread = kind, threads
    if llama_cpp.llama_model_quantize(os.fsencode(source), os.fsencode(target), params) != 0:
        raise RuntimeError(f"llama.cpp cannot quantise {source} to type {kind}")


def scores(model: Any, text: list[int], threads: int) -> tuple[list[int], list[float]]:
    params = llama_cpp.llama_context_default_params()
    params.n_ctx = params.n_batch = params.n_ubatch = len(text)
    params.n_threads = params.n_threads_batch = threads
    context = llama_cpp.llama_init_from_model(model, params)
    if not context:
        raise RuntimeError("llama.cpp makes no context")
    n_vocab = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(model))
    batch = llama_cpp.llama_batch_init(len(text), 0, 1)
    batch.n_tokens = len(text)
    for i, token in enumerate(text):
        batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.seq_id[i][0], batch.logits[i] = token, i, 1, 0, True
    if llama_cpp.llama_decode(context, batch) != 0:
        raise RuntimeError("llama.cpp cannot decode")
    best, logprobs = [], []
    for i, token in enumerate(text[1:]):
        row = np.ctypeslib.as_array(llama_cpp.llama_get_logits_ith(context, i), (n_vocab,)).astype(np.float64)
        best.append(int(row.argmax()))
        top = row.max()
        logprobs.append(float(row[token] - top - np.log(np.exp(row - top).sum())))
    llama_cpp.llama_batch_free(batch)
    llama_cpp.llama_free(context)
    return best, logprobs


def main() -> None:
    job = json.load(sys.stdin)
    silent = llama_cpp.llama_log_callback(lambda level, text, data: None)
    llama_cpp.llama_log_set(silent, None)
    llama_cpp.llama_backend_init()
    if "quantize" in job:
        source, kind = job["quantize"]
        quantize(source, job["model"], kind, job["threads"])
    params = llama_cpp.llama_model_default_params()
    params.n_gpu_layers = 0
    model = llama_cpp.llama_model_load_from_file(os.fsencode(job["model"]), params)
    if not model:
        raise RuntimeError(f"llama.cpp cannot load {job['model']}")
    found = [scores(model, text, job["threads"]) for text in job["texts"]]
    print(json.dumps({"best": [best for best, _ in found], "logprobs": [logprobs for _, logprobs in found]}))


if __name__ == "__main__":
    main()
