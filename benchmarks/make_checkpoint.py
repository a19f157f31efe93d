"""Write a random checkpoint of a published shape, to measure what loading and running that size costs.

    python benchmarks/make_checkpoint.py mistral-7b-v0.1 FOLDER [--layers N]

Consolidated format, bfloat16, one safetensors file, written piece by piece: a 7B model takes 14.5 GB of disk and little
memory. The answers of such a model are noise.
"""

import argparse
import json
import math
import shutil
import struct
import sys
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

import torch

from cierzo.model import PRESETS, ModelConfig, Transformer

PIECE = 1 << 24  # elements drawn at a time


def make_checkpoint(folder: Path, config: ModelConfig, seed: int = 0) -> None:
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    params = {name: value for name, value in asdict(config).items() if name != "window_dilation" and value is not None}
    (partial / "params.json").write_text(json.dumps(params, indent=2))
    shapes = parameter_shapes(config)
    # The format: https://github.com/huggingface/safetensors#format
    header, end = {}, 0
    for name, shape in shapes.items():
        start, end = end, end + 2 * math.prod(shape)
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    torch.manual_seed(seed)
    with (partial / "consolidated.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for shape in shapes.values():
            for piece in pieces(shape):
                file.write(piece.bfloat16().view(torch.int16).numpy().data)
            show_progress(file.tell(), end)
    partial.rename(folder)


def parameter_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Every parameter's shape, by Mistral's names."""
    return {name: tuple(meta.shape) for name, meta in Transformer.without_weights(config).state_dict().items()}


def show_progress(done: int, total: int) -> None:
    """How many bytes are written, on a terminal."""
    if sys.stderr.isatty():
        end = "\n" if done >= total else ""
        print(f"\r{done / 1e9:.1f} of {total / 1e9:.1f} GB", end=end, file=sys.stderr, flush=True)


def pieces(shape: tuple[int, ...]) -> Iterator[torch.Tensor]:
    """Ones for a norm; for a matrix, values that keep activations near 1."""
    if len(shape) == 1:
        yield torch.ones(shape)
        return
    left = math.prod(shape)
    while left:
        count = min(left, PIECE)
        yield torch.randn(count) / shape[1] ** 0.5
        left -= count


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("shape", choices=PRESETS)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--layers", type=int, metavar="N", help="fewer layers than the shape has, or more")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    if arguments.folder.exists():
        parser.error(f"{arguments.folder} is there already")
    if arguments.layers is not None and arguments.layers < 1:
        parser.error(f"--layers must be at least 1, not {arguments.layers}")
    config = PRESETS[arguments.shape]
    config = replace(config, n_layers=arguments.layers or config.n_layers)
    make_checkpoint(arguments.folder, config, arguments.seed)
