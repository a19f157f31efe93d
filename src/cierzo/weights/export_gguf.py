"""GGUF files of the llama architecture, in F16, Q8_0 or Q4_0. Specification: ggml-org/ggml, docs/gguf.md."""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from cierzo.errors import CierzoError
from cierzo.model import ModelConfig
from cierzo.ops import Format, PackedMatrix, quantize
from cierzo.ops.coded import GROUP, PANEL
from cierzo.weights.export import Progress, finite, open_complete
from cierzo.weights.gguf import stored_name
from cierzo.weights.load import checked_finite, is_matrix
from cierzo.weights.packed import EMBEDDINGS
from cierzo.weights.source import WeightSource
from cierzo.weights.store import check_space, locked

if TYPE_CHECKING:
    from gguf import GGMLQuantizationType, GGUFWriter

KINDS = ("f16", "q8_0", "q4_0")
_BLOCK_BYTES = {"Q8_0": 34, "Q4_0": 18, "Q4_1": 20}
_GRIDS = {"Q4": "Q4_0", "Q4M": "Q4_1", "Q8": "Q8_0"} | {name: name for name in _BLOCK_BYTES}
"""What packed folders and GGUF files call the formats whose grid a GGUF type has."""

Bytes = np.ndarray[Any, np.dtype[np.uint8]]


def export_gguf(
    model: Path, out: Path, *, kind: str = "f16", vocabulary: Mapping[str, Any], name: str, lora: Path | None = None,
    progress: Progress | None = None,
) -> None:  # fmt: skip
    """Write a GGUF file with the matrices in one of `KINDS`, and the `tokenizer.*` metadata in `vocabulary`.

    In "q4_0", embeddings and output are Q8_0. Weights on such a grid keep it, to the bit, whatever the `kind` in few
    bits: packed Q4 is Q4_0, Q4M is Q4_1, Q8 is Q8_0, and a GGUF file's are what they were. Matrices whose rows do not
    divide by 32 become F16, norms and routers F32.

    Raises:
        CierzoError: `out` exists, cannot be written, or the model has no form there.
        WeightsError: as `open_source` does.
    """
    import gguf

    if out.suffix != ".gguf":
        raise CierzoError(f"{out} must end with .gguf")
    if out.exists():
        raise CierzoError(f"{out} exists: name another file, or remove it")
    source, shapes = open_complete(model, lora)
    windows = set(source.config.windows)
    if len(windows) > 1 or source.config.window_dilation != 1:
        raise CierzoError(f"{model}: GGUF has one window for all layers, and this model has several: export to another")
    part = out.with_name(f".{out.name}.part")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with locked(out, progress=True), _removed(part):
            if out.exists():
                raise CierzoError(f"{out} exists: name another file, or remove it")
            writer = gguf.GGUFWriter(part, "llama")
            _add_metadata(writer, source.config, name, kind)
            for key, value in padded_vocabulary(vocabulary, source.config.vocab_size).items():
                _add_value(writer, key, value)
            plan = _plan(source, shapes, kind)
            total = 0
            for stored, (names, stored_kind) in plan.items():
                shape = (len(names),) * (len(names) > 1 or "_exps" in stored) + shapes[names[0]]
                size = _n_bytes(shape, stored_kind)
                total += size
                dtype: np.dtype[Any] = np.dtype(np.uint8)
                in_bytes = shape
                if stored_kind.name == "F16":
                    dtype = np.dtype(np.float16)
                elif stored_kind.name == "F32":
                    dtype = np.dtype(np.float32)
                else:
                    in_bytes = (*shape[:-1], shape[-1] // GROUP * _BLOCK_BYTES[stored_kind.name])
                writer.add_tensor_info(stored, in_bytes, dtype, size, raw_dtype=stored_kind)
            check_space(out.parent, total, out.name)
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_ti_data_to_file()
            writer.close()
            _write(part, source, plan, writer.data_alignment, progress)
            os.replace(part, out)
    except OSError as error:
        raise CierzoError(f"cannot write {out}: {error.strerror}: choose a folder with room for it") from error


@contextmanager
def _removed(part: Path) -> Iterator[None]:
    """Leaves no unfinished file; only whoever has the lock may remove it."""
    try:
        yield
    finally:
        part.unlink(missing_ok=True)


def _write(
    part: Path, source: WeightSource, plan: "dict[str, tuple[list[str], GGMLQuantizationType]]", alignment: int,
    progress: Progress | None,
) -> None:  # fmt: skip
    done = 0
    with part.open("ab") as file:
        file.write(bytes(-file.tell() % alignment))
        for names, stored_kind in plan.values():
            for name in names:
                file.write(_stored(source, name, stored_kind.name).data)
                done += int(np.prod(source.shapes[name]))
                if progress:
                    progress(done, source.config.n_params)
            file.write(bytes(-file.tell() % alignment))
        file.flush()
        os.fsync(file.fileno())


def _plan(
    source: WeightSource, shapes: dict[str, tuple[int, ...]], kind: str
) -> "dict[str, tuple[list[str], GGMLQuantizationType]]":
    """Every stored tensor, with the parameters in it (the experts of a layer are together) and its type."""
    from gguf import GGMLQuantizationType as Kind

    plan: dict[str, tuple[list[str], Kind]] = {}
    for ours, shape in shapes.items():
        stored = stored_name(ours)
        if not is_matrix(ours, shape):
            found = Kind.F32
        elif kind == "f16" or shape[1] % GROUP:
            found = Kind.F16
        else:
            kept = _GRIDS.get(source.kind(ours)) if source.quantized else None  # with an adapter, none is kept
            found = Kind[kept or ("Q8_0" if kind == "q8_0" or ours in EMBEDDINGS else "Q4_0")]
        names, before = plan.setdefault(stored, ([], found))
        if before != found:
            raise CierzoError(f"{source.path}: experts of one layer are in several formats: GGUF keeps them in one")
        names.append(ours)
    return plan


def _n_bytes(shape: tuple[int, ...], kind: "GGMLQuantizationType") -> int:
    numbers = int(np.prod(shape))
    sizes = {"F32": 4, "F16": 2}
    return numbers * sizes[kind.name] if kind.name in sizes else numbers // GROUP * _BLOCK_BYTES[kind.name]


def _stored(source: WeightSource, name: str, kind: str) -> Bytes:
    """A parameter's bytes in the file."""
    if kind in ("F16", "F32"):
        tensor = checked_finite(source, name).to(torch.float16 if kind == "F16" else torch.float32)
        return as_bytes(finite(name, tensor))
    if source.quantized and source.kind(name) in _GRIDS:
        return blocks(source.packed(name))
    return blocks(quantize(checked_finite(source, name), Format.Q8 if kind == "Q8_0" else Format.Q4))


def as_bytes(tensor: Tensor) -> Bytes:
    return tensor.contiguous().view(-1).view(torch.uint8).numpy()


def blocks(matrix: PackedMatrix) -> Bytes:
    """A packed matrix as ggml's blocks, row by row: Q4 as Q4_0, Q4M as Q4_1, Q8 as Q8_0.

    A block is a float16 scale, a float16 minimum if there is one, and 32 bytes, or 16 with inputs n and n + 16.
    """
    pieces = [_panel_blocks(matrix, start) for start in range(0, len(matrix.data), 64)]
    return as_bytes(torch.cat(pieces)[: matrix.outputs])


def _panel_blocks(matrix: PackedMatrix, start: int) -> Tensor:
    """64 panels' rows, [outputs, bytes]."""
    data, format = matrix.data[start : start + 64], matrix.format
    panels, tiles, _ = data.shape
    header = data[..., : format.header].reshape(panels, tiles, -1, PANEL, 2)  # 2 scales (and 2 minima)
    lines = data[..., format.header :].reshape(panels, tiles, -1, PANEL, 4)
    values = lines.permute(0, 3, 1, 2, 4).reshape(panels * PANEL, tiles, -1)  # of an output: 64 bytes, or 32 pairs
    if format is Format.Q8:
        values = values.reshape(panels * PANEL, tiles, 2, GROUP)
    else:  # the low nibbles are the tile's first group, the high ones its second: here a block holds one group
        low, high = values & 15, values >> 4
        groups = torch.stack((low, high), 2)
        values = groups[..., : GROUP // 2] | groups[..., GROUP // 2 :] << 4
    sides = header.permute(0, 3, 1, 2, 4).reshape(panels * PANEL, tiles, -1, 2, 2).transpose(2, 3)
    whole = torch.cat((sides.reshape(panels * PANEL, tiles, 2, -1), values), -1)
    groups_in_row = -(-matrix.inputs // GROUP)
    return whole.flatten(1, 2)[:, :groups_in_row].flatten(1)


def _add_metadata(writer: "GGUFWriter", config: ModelConfig, name: str, kind: str) -> None:
    import gguf

    file_types = {
        "f16": gguf.LlamaFileType.MOSTLY_F16,
        "q8_0": gguf.LlamaFileType.MOSTLY_Q8_0,
        "q4_0": gguf.LlamaFileType.MOSTLY_Q4_0,
    }
    writer.add_name(name)
    writer.add_file_type(file_types[kind])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    add_shape(writer, config)
    if config.moe:
        writer.add_expert_count(config.moe.num_experts)
        writer.add_expert_used_count(config.moe.num_experts_per_tok)


def add_shape(writer: "GGUFWriter", config: ModelConfig) -> None:
    """The metadata that say a dense model's dimensions; all layers have one window, or none."""
    writer.add_context_length(config.max_seq_len)
    writer.add_embedding_length(config.dim)
    writer.add_block_count(config.n_layers)
    writer.add_feed_forward_length(config.hidden_dim)
    writer.add_head_count(config.n_heads)
    writer.add_head_count_kv(config.n_kv_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(config.rope_theta)
    writer.add_layer_norm_rms_eps(config.norm_eps)
    writer.add_vocab_size(config.vocab_size)
    window = config.windows[0]
    if window is not None:
        writer.add_sliding_window(window.size)


def _add_value(writer: "GGUFWriter", key: str, value: Any) -> None:
    """A key of the vocabulary, in the type that readers expect."""
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    else:
        writer.add_array(key, value)


def padded_vocabulary(vocabulary: Mapping[str, Any], size: int) -> dict[str, Any]:
    """The vocabulary with as many tokens as the embedding has rows; those that are missing are never used."""
    values = dict(vocabulary)
    tokens: list[str] = list(values["tokenizer.ggml.tokens"])
    missing = list(_unused(len(tokens), size))
    if missing:
        values["tokenizer.ggml.tokens"] = [*tokens, *missing]
        for key, filler in (("scores", 0.0), ("token_type", 5)):
            if f"tokenizer.ggml.{key}" in values:
                values[f"tokenizer.ggml.{key}"] = [*values[f"tokenizer.ggml.{key}"], *[filler] * len(missing)]
    return values


def _unused(start: int, stop: int) -> Iterator[str]:
    return (f"[unused {token}]" for token in range(start, stop))
