"""Our own format: a folder with `packed.safetensors`, matrices in few bits as the kernels read them.

The file is an ordinary safetensors file, so that any tool can list it. Its metadata hold the configuration, as JSON,
and the shapes; a packed matrix is a uint8 tensor [panels, tiles, tile_bytes] whose last width tells its format, or in
Q4T [panels, panel_bytes]; everything else is float32. Packed matrices lie at multiples of 64 bytes, so kernels read the
mapped file, which processes share. The model's tokenizer and templates are copied beside it.
"""

import json
import math
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cierzo.errors import CierzoError, WeightsError
from cierzo.model import ModelConfig
from cierzo.ops import Format, PackedMatrix, packed_shape, quantize
from cierzo.ops.room import aligned_empty
from cierzo.weights.hub import SIDE_FILES
from cierzo.weights.load import check_counts, check_shapes, checked_finite, is_matrix, model_shapes
from cierzo.weights.packing import FILE, VERSION, PackedWriter
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
    unique_keys,
    whole,
)
from cierzo.weights.store import begin, complete, locked

FORMATS = {"q4t": Format.Q4T, "q4": Format.Q4, "q8": Format.Q8}
EMBEDDINGS = ("tok_embeddings.weight", "output.weight")
"""Matrices that are always in 8 bits."""
_ROLES = {"wq": "qkv", "wk": "qkv", "wv": "qkv", "w1": "gates", "w3": "gates"}
_BY_WIDTH = {format.tile_bytes: format for format in (Format.Q4, Format.Q4M, Format.Q8)}


class PackedFolder:
    """A `WeightSource` over a folder that `quantize_model` wrote; with `mapped` nothing is copied."""

    quantized = True
    dtype = torch.float32

    def __init__(self, folder: Path, *, mapped: bool = True) -> None:
        self.path, self._mapped = folder, mapped
        file = folder / FILE
        metadata = _metadata(file)
        self.config = _config(file, metadata)
        self._tensors = read_safetensors(file, floats=False)
        end = max((tensor.data_ptr() + tensor.nbytes for tensor in self._tensors.values()), default=0)
        shapes = _shapes(file, metadata)
        self._origin = end - file.stat().st_size  # address of the file's first byte: tensors fill it to its end
        self.shapes = {name: self._shape(name, shape) for name, shape in shapes.items()}
        undeclared = sorted(self._tensors.keys() - shapes.keys())
        if undeclared and shapes:  # without any, it is told how many layers there should be
            raise WeightsError(
                f"{file}: tensor {undeclared[0]!r} is not declared in the file's metadata: quantise the model again"
            )
        coded: dict[str, set[bool]] = {}
        for name, shape in self.shapes.items():
            if is_matrix(name, shape):
                coded.setdefault(inputs_of(name), set()).add(_format(self._tensors[name]) is Format.Q4T)
        if mixed := [role for role, kinds in coded.items() if len(kinds) > 1]:
            raise WeightsError(f"{file}: {mixed[0]} is in Q4T and in another format: quantise the model again")

    def file(self, name: str) -> Path:
        return self.path / FILE

    def kind(self, name: str) -> str:
        stored = self._tensors[name]
        return self.packed(name).format.name if stored.dtype == torch.uint8 else "float32"

    def tensor(self, name: str) -> Tensor:
        stored = self._tensors[name]
        return self.packed(name).unpacked() if stored.dtype == torch.uint8 else stored

    def packed(self, name: str) -> PackedMatrix:
        stored = self._tensors[name]
        outputs, inputs = self.shapes[name]
        format = _format(stored)
        assert format is not None  # `_shape` has seen it
        return PackedMatrix(format, outputs, inputs, stored if self._mapped else self._read(stored))

    def _read(self, stored: Tensor) -> Tensor:
        """A copy of a mapped tensor, read from the file: touching the mapping would take its memory as well."""
        copy = aligned_empty(tuple(stored.shape))
        with (self.path / FILE).open("rb", buffering=0) as file:
            file.seek(stored.data_ptr() - self._origin)
            left = memoryview(copy.view(-1).numpy().data)
            while left:
                if not (got := file.readinto(left)):
                    raise WeightsError(f"{self.path / FILE}: changed while it was read: load it again")
                left = left[got:]
        return copy

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
    if metadata.get("cierzo") != VERSION:
        raise WeightsError(f"{file}: not a packed model of version {VERSION}: quantise the model again")
    return dict(metadata)


def _json(file: Path, metadata: Mapping[str, str], key: str) -> dict[str, Any]:
    try:
        value = json.loads(metadata[key], object_pairs_hook=unique_keys)
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
    routers stay float32. `out` appears only when it is whole; work that was stopped goes on where it was. `progress`
    hears (weights done, weights in all).

    Raises:
        CierzoError: `out` exists, or cannot be written.
        WeightsError: as `open_source` does; also for a model in few bits, which is run as it is.
    """
    source, shapes = open_original(model, out)
    formats = packed_formats(shapes, format)
    with partial_model(model, out, work_on(source, format)) as folder:
        writer = PackedWriter(folder, source.config, shapes, formats)
        writer.check_space()
        done, total = 0, source.config.n_params
        for name, shape in shapes.items():
            if name not in writer.done:
                write_rounded(writer, source, name)
            done += math.prod(shape)
            if progress:
                progress(done, total)
        writer.finish()


def inputs_of(name: str) -> str:
    """The same for matrices of a layer that take the same activations, and for the experts' of one role."""
    part, _, matrix = name.removesuffix(".weight").rpartition(".")
    return f"{re.sub(r'.experts.[0-9]+$', '', part)}.{_ROLES.get(matrix, matrix)}"


def packed_formats(shapes: Mapping[str, tuple[int, ...]], format: str) -> dict[str, Format]:
    """The format of every matrix, when all are in `format`. Raises `CierzoError` for one that there is not."""
    if format not in FORMATS:
        raise CierzoError(f"weights can be packed in {', '.join(FORMATS)}, not in {format!r}")
    return {
        name: Format.Q8 if name in EMBEDDINGS else FORMATS[format]
        for name, shape in shapes.items()
        if is_matrix(name, shape)
    }


def open_original(model: Path, out: Path) -> tuple[WeightSource, dict[str, tuple[int, ...]]]:
    """A checkpoint that can be packed into `out`, with the shapes of its parameters; see `quantize_model`."""
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
    return source, shapes


def work_on(source: WeightSource, *settings: object) -> str:
    """What packing these very files with these settings is: only the same work goes on where it was stopped."""
    files = sorted({source.file(name).resolve() for name in source.shapes})
    stats = [(str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    return json.dumps([stats, settings])


@contextmanager
def partial_model(model: Path, out: Path, work: str | None = None) -> Iterator[Path]:
    """A folder that becomes the model `out` when all went well, with the tokenizer of `model` in it.

    It stays for the next try at the same `work` when that was stopped, and goes when the weights cannot be packed.
    Work without a name begins anew.
    """
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with locked(out, progress=True):
            if out.exists():
                raise CierzoError(f"{out} exists: name another folder, or remove it")
            folder = begin(out, work)
            try:
                copy_side_files(model, folder)
                yield folder
            except CierzoError:
                shutil.rmtree(folder, ignore_errors=True)
                raise
            complete(folder, out)
    except OSError as error:
        raise CierzoError(f"cannot write {out}: {error.strerror}: choose a folder with room for the model") from error


def copy_side_files(model: Path, folder: Path) -> None:
    """Tokenizer, templates, configuration and licence of a model, for another form of it."""
    for pattern in (*SIDE_FILES, "params.json"):
        for file in model.glob(pattern):
            if not file.is_file():
                continue
            try:
                data = file.read_bytes()
            except OSError as error:
                raise WeightsError(f"{file}: cannot be read: {error.strerror}") from error
            Path(folder, file.name).write_bytes(data)


def write_rounded(writer: PackedWriter, source: WeightSource, name: str) -> None:
    """One tensor of a checkpoint: its format's nearest values, or floats."""
    tensor = checked_finite(source, name)
    try:
        writer.write(name, quantize(tensor, writer.formats[name]).data if name in writer.formats else tensor)
    except ValueError as error:
        raise WeightsError(f"{source.path}: tensor {name!r}: {error}") from error
