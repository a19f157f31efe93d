"""A published shape with random weights in bfloat16 on a CUDA GPU: how fast the reference reads and decodes there.

    python benchmarks/gpu.py [mistral-7b-v0.1] [--layers N] [--prompt 4000] [--decode 32] [--counts 1,16,64]

The weights are drawn on the GPU, so nothing is read or fetched. Decoding of one text, and of many together, after
prompts of 64 tokens, and a long prompt; medians of --rounds. "Of bandwidth" is the weights' bytes a step over what a
copy on the GPU reads and writes, "of TFLOP/s" two operations a weight of the layers over a large product's. Prints a
table and one JSON line.
"""

import argparse
import json
import random
import statistics
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from datetime import date
from typing import Any

import torch

from cierzo.engine import Engine, SamplingParams, Sequence
from cierzo.model import PRESETS, ModelConfig, Transformer
from cierzo.tokens import ChatError, Message

SHORT = 64


class NoText:
    """Stands for a tokenizer: nothing is said about random tokens."""

    vocab_size = 0
    bos_id = None
    stop_ids = frozenset[int]()
    adds_leading_space = False
    chat_refusal = "random weights have no chats"
    tool_format = None

    def encode(self, text: str, *, bos: bool = False) -> list[int]:
        raise NotImplementedError

    def token_bytes(self, token: int) -> bytes:
        return b""

    def encode_chat(self, messages: Iterable[Message], tools: Iterable[dict[str, Any]] | None = None) -> list[int]:
        raise ChatError(self.chat_refusal)


def random_model(config: ModelConfig) -> Transformer:
    """Ones for norms; for matrices, values that keep activations near 1."""
    model = Transformer.without_weights(config).to(torch.bfloat16).to_empty(device="cuda")
    for parameter in model.requires_grad_(False).parameters():
        if parameter.ndim == 1:
            parameter.fill_(1)
        else:
            parameter.normal_(std=parameter.shape[1] ** -0.5)
    return model.eval()


def seconds(work: Callable[[], Any]) -> float:
    """What the median of ten runs takes, after two."""
    taken = []
    for _ in range(12):
        torch.cuda.synchronize()
        start = time.perf_counter()
        work()
        torch.cuda.synchronize()
        taken.append(time.perf_counter() - start)
    return statistics.median(taken[2:])


def limits() -> tuple[float, float]:
    """Bytes a second of a copy (read and written), and operations a second of a product in bfloat16."""
    source = torch.randn(2**30, device="cuda", dtype=torch.bfloat16)
    target = torch.empty_like(source)
    copied = 2 * source.nbytes / seconds(lambda: target.copy_(source))
    a, b = (torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16) for _ in "ab")
    return copied, 2 * 8192**3 / seconds(lambda: a @ b)


def together(engine: Engine, prompts: list[list[int]], decode: int) -> tuple[float, float]:
    """Seconds until every prompt has its first token, and for `decode` more of each."""
    params = SamplingParams(temperature=0, max_tokens=decode + 1 + len(prompts), ignore_eos=True)
    start = time.perf_counter()
    sequences = [engine.add(engine.prepare(prompt, params)) for prompt in prompts]
    said = step_until(engine, sequences, [1] * len(prompts))
    first = time.perf_counter()
    step_until(engine, sequences[-1:], [said[-1] + decode])
    end = time.perf_counter()
    for sequence in sequences:
        engine.cancel(sequence)
    return first - start, end - first


def step_until(engine: Engine, sequences: list[Sequence], lengths: list[int]) -> list[int]:
    """Tokens that each sequence has said when all have said as many as asked."""
    said = [len(sequence.ids) - sequence.n_prompt for sequence in sequences]
    while any(have < asked for have, asked in zip(said, lengths, strict=True)):
        engine.step()
        said = [len(sequence.ids) - sequence.n_prompt for sequence in sequences]
    return said


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    dense = [name for name, config in PRESETS.items() if config.moe is None]  # of a mixture, not all is read
    parser.add_argument("shape", nargs="?", choices=dense, default="mistral-7b-v0.1")
    parser.add_argument("--layers", type=int, help="fewer layers than the shape has")
    parser.add_argument("--prompt", type=int, default=4000)
    parser.add_argument("--decode", type=int, default=32)
    parser.add_argument("--counts", default="1,16,64", help="texts at once")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("error: PyTorch finds no CUDA GPU here")
    config = PRESETS[options.shape]
    if options.layers:
        windows = config.sliding_window
        windows = windows[: options.layers] if isinstance(windows, tuple) else windows
        config = replace(config, n_layers=options.layers, sliding_window=windows)
    counts = [int(count) for count in options.counts.split(",")]
    bandwidth, product = limits()
    torch.cuda.reset_peak_memory_stats()
    model = random_model(config)
    layers = sum(p.numel() for p in model.layers.parameters())
    read = 2 * (layers + config.dim * config.vocab_size)
    ids = random.Random(0)

    def prompts(count: int, length: int) -> list[list[int]]:
        return [[ids.randrange(config.vocab_size) for _ in range(length)] for _ in range(count)]

    results: dict[str, Any] = {}
    with torch.inference_mode():
        longest = max(options.prompt, SHORT) + max(options.decode, 4) + max(counts) + 2
        cache = max(longest, max(counts) * (SHORT + options.decode + max(counts) + 2))
        engine = Engine(model, NoText(), max_seq_len=longest, cache_tokens=cache + 1000)
        together(engine, prompts(1, options.prompt), 4)  # libraries load their kernels
        for _ in range(options.rounds):
            for count in counts:
                taken = together(engine, prompts(count, SHORT), options.decode)[1]
                results.setdefault(f"decode {count}", []).append(count * options.decode / taken)
            results.setdefault("prompt", []).append(options.prompt / together(engine, prompts(1, options.prompt), 0)[0])
    results = {name: statistics.median(rates) for name, rates in results.items()}
    print(f"{torch.cuda.get_device_name()}: copies {bandwidth / 1e12:.2f} TB/s, {product / 1e12:.0f} TFLOP/s")
    for name, rate in results.items():
        if name == "prompt":
            share = f"{2 * layers * rate / product:.1%} of TFLOP/s"
        else:
            share = f"{read * rate / int(name.split()[1]) / bandwidth:.1%} of bandwidth"
        print(f"{name:>12} {rate:10.1f} tokens/s, {share}")
    peak = torch.cuda.max_memory_allocated() / 2**20
    print(f"   most memory {peak:.0f} MiB")
    told = {
        "benchmark": "gpu", "date": date.today().isoformat(), "gpu": torch.cuda.get_device_name(),
        "torch": torch.__version__, "cuda": torch.version.cuda, "shape": options.shape, "layers": config.n_layers,
        "prompt": options.prompt, "decode": options.decode, "rounds": options.rounds, "bandwidth": bandwidth,
        "product": product, "tokens_per_s": results, "peak_mib": peak,
    }  # fmt: skip
    print(json.dumps(told))


if __name__ == "__main__":
    main()
