"""Write a GGUF file of random weights in a published shape: the model that everybody's engine can read.

    python benchmarks/make_gguf.py mistral-7b-v0.1 FILE.gguf [--type q4_0] [--layers N]

The matrices of the layers have the type; so has the embedding, unless it is the output as well; the output is Q8_0 and
norms are F32. (llama.cpp's own Q4_0 files have a Q6_K output, which fewer engines read.) The vocabulary is Mistral's
v1, filled up with unused tokens. Written tensor by tensor: a 7B model takes 4.1 GB of disk and little memory. Its
answers are noise.
"""

import argparse
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from gguf import MODEL_ARCH, GGMLQuantizationType, GGUFWriter, LlamaFileType, TokenType, get_tensor_name_map

from cierzo.model import PRESETS, ModelConfig
from cierzo.weights.export_gguf import add_shape
from make_checkpoint import parameter_shapes, show_progress

PIECE = 1 << 20  # blocks drawn at a time

Bytes = np.ndarray[Any, np.dtype[np.uint8]]


@dataclass(frozen=True)
class Quantised:
    """A type whose block begins with an fp16 scale; `spread` is its values' standard deviation when drawn evenly."""

    kind: GGMLQuantizationType
    file_type: LlamaFileType
    block: int
    n_bytes: int
    spread: float


_IQ4_NL = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)  # ggml's table
TYPES = {
    "q4_0": Quantised(GGMLQuantizationType.Q4_0, LlamaFileType.MOSTLY_Q4_0, 32, 18, math.sqrt(255 / 12)),
    "iq4_nl": Quantised(
        GGMLQuantizationType.IQ4_NL, LlamaFileType.MOSTLY_IQ4_NL, 32, 18, math.sqrt(sum(v * v for v in _IQ4_NL) / 16)
    ),
    "q4_k": Quantised(GGMLQuantizationType.Q4_K, LlamaFileType.MOSTLY_Q4_K_S, 256, 144, 258),  # with the minima below
    "q8_0": Quantised(GGMLQuantizationType.Q8_0, LlamaFileType.MOSTLY_Q8_0, 32, 34, math.sqrt(65024 / 12)),
}


def make_gguf(path: Path, config: ModelConfig, name: str, layers_type: Quantised, seed: int = 0) -> None:
    random = np.random.default_rng(seed)
    partial = path.with_name(path.name + ".partial")
    partial.parent.mkdir(parents=True, exist_ok=True)
    writer = GGUFWriter(partial, "llama")
    writer.add_name(f"{name}, random weights")
    writer.add_file_type(layers_type.file_type)
    add_shape(writer, config)
    add_vocabulary(writer, config.vocab_size)
    names = get_tensor_name_map(MODEL_ARCH.LLAMA, config.n_layers)
    output = "tok_embeddings.weight" if config.tied_embeddings else "output.weight"
    plan: list[tuple[tuple[int, ...], Quantised | None]] = []
    total = 0
    for own_name, shape in parameter_shapes(config).items():
        stored = names.get_name(own_name, try_suffixes=(".weight",))
        assert stored is not None, own_name
        if len(shape) == 1:
            size, quantised = 4 * shape[0], None
            writer.add_tensor_info(stored, shape, np.dtype(np.float32), size)
        else:
            quantised = TYPES["q8_0"] if own_name == output else layers_type
            in_bytes = (shape[0], shape[1] // quantised.block * quantised.n_bytes)
            size = math.prod(in_bytes)
            writer.add_tensor_info(stored, in_bytes, np.dtype(np.uint8), size, raw_dtype=quantised.kind)
        plan.append((shape, quantised))
        total += size
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    done = 0
    with partial.open("ab") as file:
        file.write(bytes(-file.tell() % writer.data_alignment))
        for shape, quantised in plan:
            for piece in pieces(random, shape, quantised):
                file.write(piece.data)
                done += piece.nbytes
                show_progress(done, total)
            file.write(bytes(-file.tell() % writer.data_alignment))
    os.replace(partial, path)


def pieces(random: np.random.Generator, shape: tuple[int, ...], quantised: Quantised | None) -> Iterator[Bytes]:
    """Ones for a norm; for a matrix, blocks whose values keep activations near 1."""
    if quantised is None:
        yield np.ones(shape, "<f4").view(np.uint8)
        return
    middle = 1 / (quantised.spread * math.sqrt(shape[1]))
    left = math.prod(shape) // quantised.block
    while left:
        count = min(left, PIECE)
        blocks = np.frombuffer(random.bytes(count * quantised.n_bytes), np.uint8).reshape(count, -1).copy()
        scales = random.uniform(0.5 * middle, 1.5 * middle, count).astype("<f2")
        if quantised.kind == GGMLQuantizationType.Q8_0:  # no quantiser writes -128
            np.copyto(blocks, 0x81, where=blocks == 0x80)
        blocks[:, :2] = scales.view(np.uint8).reshape(count, 2)
        if quantised.kind == GGMLQuantizationType.Q4_K:  # what its minima are multiplied with, for a mean of 0
            blocks[:, 2:4] = (7.5 * scales).astype("<f2").view(np.uint8).reshape(count, 2)
        yield blocks
        left -= count


def add_vocabulary(writer: GGUFWriter, size: int) -> None:
    import mistral_common
    from sentencepiece import SentencePieceProcessor

    model = Path(mistral_common.__file__).parent / "data" / "tokenizer.model.v1"
    vocabulary = SentencePieceProcessor(model_file=str(model))
    known = range(vocabulary.vocab_size())
    unused = [f"[unused {token}]" for token in range(len(known), size)]
    kinds = [
        TokenType.UNKNOWN if vocabulary.is_unknown(token)
        else TokenType.CONTROL if vocabulary.is_control(token)
        else TokenType.BYTE if vocabulary.is_byte(token)
        else TokenType.NORMAL
        for token in known
    ]  # fmt: skip
    writer.add_tokenizer_model("llama")
    writer.add_token_list([vocabulary.id_to_piece(token) for token in known] + unused)
    writer.add_token_scores([vocabulary.get_score(token) for token in known] + [0.0] * len(unused))
    writer.add_token_types([*kinds, *[TokenType.UNUSED] * len(unused)])
    writer.add_bos_token_id(vocabulary.bos_id())
    writer.add_eos_token_id(vocabulary.eos_id())
    writer.add_unk_token_id(vocabulary.unk_id())
    writer.add_add_bos_token(True)


def main() -> None:
    offered = [name for name, config in PRESETS.items() if not config.moe and len(config.window_groups) == 1]
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("shape", choices=offered)
    parser.add_argument("file", type=Path)
    parser.add_argument("--type", choices=TYPES, default="q4_0")
    parser.add_argument("--layers", type=int, metavar="N", help="fewer layers than the shape has, or more")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    if arguments.file.exists():
        parser.error(f"{arguments.file} is there already")
    if arguments.layers is not None and arguments.layers < 1:
        parser.error(f"--layers must be at least 1, not {arguments.layers}")
    config = PRESETS[arguments.shape]
    config = replace(config, n_layers=arguments.layers or config.n_layers)
    make_gguf(arguments.file, config, arguments.shape, TYPES[arguments.type], arguments.seed)


if __name__ == "__main__":
    main()
