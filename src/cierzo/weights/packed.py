"""Our own format: a folder with `packed.safetensors`, matrices in few bits as the kernels read them.

The file is an ordinary safetensors file, so that any tool can list it. Its metadata hold the configuration, as JSON,
and the shapes; a packed matrix is a uint8 tensor [panels, tiles, tile_bytes] whose last width tells its format, or in
Q4T [panels, panel_bytes]; everything else is float32. Packed matrices lie at multiples of 64 bytes, so kernels read the
mapped file, which processes share. The model's tokenizer and templates are copied beside it.
"""

import json
import math
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from cierzo.errors import CierzoError, WeightsError
from cierzo.model import ModelConfig
from cierzo.ops import Format, PackedMatrix, packed_shape, quantize
from cierzo.weights.load import check_counts, check_shapes, checked_finite, is_matrix, model_shapes
from cierzo.weights.source import (
    DEEPEST,
    LONGEST,
    WeightSource,
    flag,
    gguf_file,
    make_config,
    one_line,
    open_source,
    read_safetensors,
    shown,
    whole,
)

FILE = "packed.safetensors"
FORMATS = {"q4t": Format.Q4T, "q4": Format.Q4, "q8": Format.Q8}

_VERSION = "1"
_BY_WIDTH = {format.tile_bytes: format for format in (Format.Q4, Format.Q4M, Format.Q8)}
EMBEDDINGS = ("tok_embeddings.weight", "output.weight")
"""Matrices that are always in 8 bits."""
_COPIED = (
    "params.json", "config.json", "generation_config.json", "tokenizer*.json", "tokenizer.model*", "tekken*.json",
    "special_tokens_map.json", "chat_template*", "*.md", "LICENSE*",
)  # fmt: skip
_ALIGNMENT = 64


class PackedFolder:
    """A `WeightSource` over a folder that `quantize_model` wrote; nothing is copied."""

    quantized = True
    dtype = torch.float32

    def __init__(self, folder: Path) -> None:
        self.path = folder
        file = folder / FILE
        metadata = _metadata(file)
        self.config = _config(file, metadata)
        self._tensors = read_safetensors(file, floats=False)
        self.shapes = {name: self._shape(name, shape) for name, shape in _shapes(file, metadata).items()}
        coded = {
            _format(self._tensors[name]) is Format.Q4T
            for name, shape in self.shapes.items()
            if is_matrix(name, shape) and name not in EMBEDDINGS
        }
        if len(coded) > 1:
            raise WeightsError(f"{file}: Q4T beside other formats: quantise the model again")

    def file(self, name: str) -> Path:
        return self.path / FILE

    def tensor(self, name: str) -> Tensor:
        stored = self._tensors[name]
        return self.packed(name).unpacked() if stored.dtype == torch.uint8 else stored

    def packed(self, name: str) -> PackedMatrix:
        stored = self._tensors[name]
        outputs, inputs = self.shapes[name]
        format = _format(stored)
        assert format is not None  # `_shape` has seen it
        return PackedMatrix(format, outputs, inputs, stored)

    def _shape(self, name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape that the metadata declare, which must be what is stored."""
        stored = self._tensors.get(name)
        if stored is None:
            raise WeightsError(f"{self.path / FILE}: no tensor {name!r}: quantise the model again")
        packed = is_matrix(name, shape)
        format = _format(stored) if packed else None
        expected = packed_shape(format, *shape) if format is not None else () if packed else shape
        if tuple(stored.shape) != expected or stored.dtype != (torch.uint8 if packed else torch.float32):
            raise WeightsError(
                f"{self.path / FILE}: tensor {name!r} is {list(stored.shape)} and declared {list(shape)}: "
                "quantise the model again"
            )
        return shape


def _format(stored: Tensor) -> Format | None:
    return Format.Q4T if stored.ndim == 2 else _BY_WIDTH.get(stored.shape[-1]) if stored.ndim == 3 else None


def _metadata(file: Path) -> dict[str, str]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="pt") as opened:
            metadata = opened.metadata() or {}
    except (OSError, SafetensorError) as error:
        raise WeightsError(
            f"{file}: not a whole safetensors file ({one_line(error)}): quantise the model again"
        ) from error
    if metadata.get("cierzo") != _VERSION:
        raise WeightsError(f"{file}: not a packed model of version {_VERSION}: quantise the model again")
    return dict(metadata)


def _json(file: Path, metadata: Mapping[str, str], key: str) -> dict[str, Any]:
    try:
        value = json.loads(metadata[key])
    except (KeyError, ValueError, RecursionError) as error:
        raise WeightsError(f"{file}: metadata {key!r} cannot be read: quantise the model again") from error
    if not isinstance(value, dict):
        raise WeightsError(f"{file}: metadata {key!r} is no object: quantise the model again")
    return value


def _config(file: Path, metadata: Mapping[str, str]) -> ModelConfig:
    values = _json(file, metadata, "config")
    unknown = set(values) ^ {field.name for field in fields(ModelConfig)}
    if unknown:
        raise WeightsError(f"{file}: {sorted(unknown)[0]!r} of another version: quantise the model again")
    whole(file, values, "n_layers", most=DEEPEST)
    whole(file, values, "max_seq_len", most=LONGEST)
    for key in ("dim", "head_dim", "hidden_dim", "n_heads", "n_kv_heads", "vocab_size"):
        whole(file, values, key)
    flag(file, values, "tied_embeddings")
    values = {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}
    moe = values.pop("moe")
    if moe is not None and not (isinstance(moe, dict) and set(moe) == {"num_experts", "num_experts_per_tok"}):
        raise WeightsError(f"{file}: 'moe' {shown(moe)} is no mixture of experts: quantise the model again")
    experts = (whole(file, moe, "num_experts"), whole(file, moe, "num_experts_per_tok")) if moe else None
    return make_config(file, experts=experts, **values)


def _shapes(file: Path, metadata: Mapping[str, str]) -> dict[str, tuple[int, ...]]:
    shapes = _json(file, metadata, "shapes")
    for name, shape in shapes.items():
        if not isinstance(shape, list) or not all(isinstance(n, int) and 0 < n < 2**31 for n in shape):
            raise WeightsError(f"{file}: the shape of tensor {name!r}, {shape!r}, cannot be: quantise the model again")
    return {name: tuple(shape) for name, shape in shapes.items()}


def quantize_model(
    model: Path, out: Path, *, format: str = "q4t", progress: Callable[[int, int], None] | None = None
) -> None:
    """Write the model at `model` (consolidated or Hugging Face) as a packed folder `out`, tensor by tensor.

    Matrices are rounded to the nearest in `format` (q4t, q4 or q8), embeddings and output always in q8; norms and
    routers stay float32. `out` appears only when it is whole. `progress` hears (weights done, weights in all).

    Raises:
        CierzoError: `out` exists, or cannot be written.
        WeightsError: as `open_source` does; also for a model in few bits, which is run as it is.
    """
    if format not in FORMATS:
        raise CierzoError(f"weights can be packed in {', '.join(FORMATS)}, not in {format!r}")
    if out.exists():
        raise CierzoError(f"{out} exists: name another folder, or remove it")
    if gguf_file(model) is not None:
        raise WeightsError(
            f"{model}: GGUF files are run as they are: to pack another one, start from the original checkpoint"
        )
    source = open_source(model)
    if source.quantized:
        raise WeightsError(f"{model}: its weights are in few bits already: run it as it is, or start from the original")
    check_counts(source)
    shapes = model_shapes(source.config)
    check_shapes(source, shapes)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.", ignore_cleanup_errors=True) as folder:
            _copy_tokenizer(model, Path(folder))
            with Path(folder, FILE).open("wb") as file:
                _write(file, source, shapes, FORMATS[format], progress)
            os.chmod(folder, 0o755)
            os.rename(folder, out)
    except OSError as error:
        raise CierzoError(
            f"cannot write {out}: {error.strerror}: choose a folder with room for the packed model"
        ) from error


def _copy_tokenizer(model: Path, folder: Path) -> None:
    for pattern in _COPIED:
        for file in model.glob(pattern):
            try:
                data = file.read_bytes()
            except OSError as error:
                raise WeightsError(f"{file}: cannot be read: {error.strerror}") from error
            Path(folder, file.name).write_bytes(data)


def _write(
    file: BinaryIO,
    source: WeightSource,
    shapes: Mapping[str, tuple[int, ...]],
    format: Format,
    progress: Callable[[int, int], None] | None,
) -> None:
    matrices = [name for name, shape in shapes.items() if is_matrix(name, shape)]
    formats = {name: Format.Q8 if name in EMBEDDINGS else format for name in matrices}
    file.write(header(source.config, shapes, formats))
    done, total = 0, source.config.n_params
    # Packed ones first: their lengths are multiples of 64 bytes, so each begins at one.
    for name in [*matrices, *(name for name in shapes if name not in formats)]:
        tensor = checked_finite(source, name)
        stored = _quantized(source, name, tensor, formats[name]).data if name in formats else tensor.float()
        file.write(stored.contiguous().view(-1).view(torch.uint8).numpy().data)
        done += tensor.numel()
        if progress:
            progress(done, total)
    file.flush()
    os.fsync(file.fileno())


def _quantized(source: WeightSource, name: str, tensor: Tensor, format: Format) -> PackedMatrix:
    try:
        return quantize(tensor, format)
    except ValueError as error:
        raise WeightsError(f"{source.path}: tensor {name!r}: {error}") from error


def header(config: ModelConfig, shapes: Mapping[str, tuple[int, ...]], formats: Mapping[str, Format]) -> bytes:
    """The length and the JSON that a safetensors file begins with, filled up so that data begin at a multiple of 64."""

    def entries() -> Iterator[tuple[str, dict[str, Any]]]:
        at = 0
        for name, format in formats.items():
            stored = packed_shape(format, *shapes[name])
            at, start = at + math.prod(stored), at
            yield name, {"dtype": "U8", "shape": stored, "data_offsets": [start, at]}
        for name, shape in shapes.items():
            if name not in formats:
                at, start = at + 4 * math.prod(shape), at
                yield name, {"dtype": "F32", "shape": shape, "data_offsets": [start, at]}

    metadata = {"cierzo": _VERSION, "config": json.dumps(asdict(config)), "shapes": json.dumps(shapes)}
    text = json.dumps({"__metadata__": metadata, **dict(entries())}).encode()
    text += b" " * (-(len(text) + 8) % _ALIGNMENT)
    return len(text).to_bytes(8, "little") + text
