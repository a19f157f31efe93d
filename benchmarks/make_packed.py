"""Write a packed folder of random weights in a published shape, as `cierzo quantize` makes them.

    python benchmarks/make_packed.py mistral-7b-v0.1 FOLDER [--layers N]

Matrices of the layers are Q4T of random codes, embedding and output Q8, as always in packed folders; the tokenizer is
Mistral's v1. For `cpu.py --cierzo-model FOLDER`, beside the file of `make_gguf.py` that its rivals read.
"""

import argparse
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from cierzo.model import PRESETS, ModelConfig
from cierzo.ops import Format, packed_shape, quantize
from cierzo.ops.coded import header_bytes, spans
from cierzo.weights.packed import packed_formats
from cierzo.weights.packing import PackedWriter
from make_checkpoint import parameter_shapes, show_progress

PIECE = 256  # panels drawn at a time
SPREAD = 41.5  # standard deviation of step x code, drawn evenly


def make_packed(folder: Path, config: ModelConfig, seed: int = 0) -> None:
    import mistral_common

    torch.manual_seed(seed)
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    shutil.copy(Path(mistral_common.__file__).parent / "data" / "tokenizer.model.v1", partial / "tokenizer.model")
    shapes = parameter_shapes(config)
    formats = packed_formats(shapes, "q4t")
    writer = PackedWriter(partial, config, shapes, formats)
    for number, (name, shape) in enumerate(shapes.items(), 1):
        packed = formats.get(name)
        writer.write(name, floats(shape) if packed is None else torch.cat([*pieces(packed, *shape)]))
        show_progress(number, len(shapes))
    writer.finish()
    partial.rename(folder)


def floats(shape: tuple[int, ...]) -> Tensor:
    """A norm's weight; of a mixture's router what sends tokens to all experts alike."""
    return torch.ones(shape) if len(shape) == 1 else torch.randn(shape) / shape[1] ** 0.5


def pieces(format: Format, outputs: int, inputs: int) -> Iterator[Tensor]:
    """Values that keep activations near 1."""
    if format is Format.Q8:
        for start in range(0, outputs, 4096):
            yield quantize(torch.randn(min(4096, outputs - start), inputs) / inputs**0.5, format).data
        return
    panels, width = packed_shape(format, outputs, inputs)
    tiles = -(-inputs // 64)
    scales = torch.full((spans(tiles) * 16,), 1 / (SPREAD * inputs**0.5), dtype=torch.float16).view(torch.uint8)
    for start in range(0, panels, PIECE):
        data = torch.randint(0, 256, (min(PIECE, panels - start), width), dtype=torch.uint8)
        data[:, : len(scales)] = scales
        data[:, len(scales) + tiles * 16 : header_bytes(tiles)] = 0
        yield data


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("shape", choices=PRESETS)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--layers", type=int, metavar="N", help="fewer layers than the shape has, or more")
    arguments = parser.parse_args()
    if arguments.folder.exists():
        parser.error(f"{arguments.folder} is there already")
    if arguments.layers is not None and arguments.layers < 1:
        parser.error(f"--layers must be at least 1, not {arguments.layers}")
    config = PRESETS[arguments.shape]
    make_packed(arguments.folder, replace(config, n_layers=arguments.layers or config.n_layers))


if __name__ == "__main__":
    main()
