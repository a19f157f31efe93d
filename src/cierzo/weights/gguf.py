"""GGUF files of the llama architecture, which Mistral's and Mixtral's are too.

The quantised types are read by the gguf library. q and k are already in interleaved rotary order.
Specification: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

import math
import mmap
import re
from functools import cache, cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from cierzo.errors import WeightsError
from cierzo.model import ModelConfig
from cierzo.ops import GGML_GRIDS, Format, PackedMatrix, from_blocks, quantize
from cierzo.weights.gguf_header import Header, StoredTensor, read_header
from cierzo.weights.source import DEEPEST, LONGEST, PARAMETER, assign, common_dtype, make_config, shown, whole

# Known here, as importing the library takes half a second: Q4_0, Q4_1, Q8_0 and Q4_K.
_BLOCKS = {2: (32, 18), 3: (32, 20), 8: (32, 34), 12: (256, 144)}

_FLOATS = {0: torch.float32, 1: torch.float16, 30: torch.bfloat16}

_KEYS = {
    "dim": "llama.embedding_length", "n_heads": "llama.attention.head_count",
    "n_kv_heads": "llama.attention.head_count_kv", "norm_eps": "llama.attention.layer_norm_rms_epsilon",
    "rope_theta": "llama.rope.freq_base", "sliding_window": "llama.attention.sliding_window",
    "head_dim": "llama.attention.key_length", "num_experts_per_tok": "llama.expert_used_count",
    "num_experts": "llama.expert_count",
}  # fmt: skip
"""What a GGUF file calls values that `ModelConfig` checks under other names."""

MODEL = {
    "token_embd.weight": "tok_embeddings.weight",
    "output_norm.weight": "norm.weight",
    "output.weight": "output.weight",
}
LAYER = {
    "attn_norm": "attention_norm",
    "attn_q": "attention.wq",
    "attn_k": "attention.wk",
    "attn_v": "attention.wv",
    "attn_output": "attention.wo",
    "ffn_norm": "ffn_norm",
    "ffn_gate": "feed_forward.w1",
    "ffn_down": "feed_forward.w2",
    "ffn_up": "feed_forward.w3",
    "ffn_gate_inp": "feed_forward.gate",
}
EXPERT = {"ffn_gate": "w1", "ffn_down": "w2", "ffn_up": "w3"}
_THEIRS = {ours: theirs for theirs, ours in MODEL.items()}
_THEIRS_IN_LAYER = {ours: theirs for theirs, ours in LAYER.items()}
_THEIRS_OF_EXPERTS = {ours: theirs for theirs, ours in EXPERT.items()}
_IN_LAYER = re.compile(r"blk\.(\d+)\.(\w+)\.weight")
_ONE_EXPERT = re.compile(r"blk\.(\d+)\.(ffn_gate|ffn_down|ffn_up)\.(\d+)\.weight")
_ALL_EXPERTS = re.compile(r"blk\.(\d+)\.(ffn_gate|ffn_down|ffn_up)_exps\.weight")


class _Place(NamedTuple):
    """The stored tensor of a parameter, and which of its experts when it holds all of them."""

    stored: str
    expert: int | None = None


class GgufFile:
    """A `WeightSource` over one GGUF file; quantised tensors come out in float32, one at a time."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._header = read_header(path)
        self.config = read_config(path, self._header)
        self._check_places()
        n_experts = self.config.moe.num_experts if self.config.moe else 0
        self._places: dict[str, _Place] = {}
        stored_as: dict[str, str] = {}
        for name, tensor in self._header.tensors.items():
            for ours, place in _places(path, name, tensor, n_experts):
                assign(stored_as, ours, name, path)
                self._places[ours] = place
        self.shapes = {
            ours: self._header.tensors[stored].shape[0 if expert is None else 1 :]
            for ours, (stored, expert) in self._places.items()
        }
        self.dtype = common_dtype(
            _FLOATS.get(tensor.kind, torch.float32) for tensor in self._header.tensors.values() if len(tensor.shape) > 1
        )

        self.quantized = any(tensor.kind not in _FLOATS for tensor in self._header.tensors.values())

    def _check_places(self) -> None:
        """Every tensor lies inside the file, and no two in the same place."""
        size, end, before = self.path.stat().st_size, 0, ""
        for name, tensor in sorted(self._header.tensors.items(), key=lambda item: item[1].offset):
            if tensor.offset < end:
                raise WeightsError(
                    f"{self.path}: tensor {name!r} begins at {tensor.offset}, inside {before!r}: fetch the file again"
                )
            end, before = tensor.offset + self._n_bytes(name), name
            if self._header.data + end > size:
                raise WeightsError(
                    f"{self.path}: {size} bytes, but tensor {name!r} ends at {self._header.data + end}: "
                    "fetch the file again"
                )

    def file(self, name: str) -> Path:
        return self.path

    def kind(self, name: str) -> str:
        from gguf import GGMLQuantizationType

        return GGMLQuantizationType(self._header.tensors[self._places[name].stored].kind).name

    def tensor(self, name: str) -> Tensor:
        raw, shape, kind = self._stored(name)
        if kind in _FLOATS:
            return torch.from_numpy(raw).view(_FLOATS[kind]).view(shape)
        from gguf import GGMLQuantizationType, dequantize

        with np.errstate(all="ignore"):  # infinite scales: whoever uses the tensor looks for NaN
            return torch.from_numpy(dequantize(raw.reshape(*shape[:-1], -1), GGMLQuantizationType(kind)))

    def packed(self, name: str) -> PackedMatrix:
        raw, (outputs, inputs), kind = self._stored(name)
        try:
            if kind in GGML_GRIDS:
                packed = from_blocks(kind, torch.from_numpy(raw), outputs, inputs)
            else:
                packed = quantize(self.tensor(name), Format.Q8)
        except ValueError as error:
            raise WeightsError(f"{self.path}: tensor {name!r}: {error}: fetch it again, or use float32") from error
        self._forget(name)
        return packed

    def _forget(self, name: str) -> None:
        """Give back the memory of a parameter's mapped bytes, which will not be read again."""
        stored, expert = self._places[name]
        shape, _, offset = self._header.tensors[stored]
        size = self._n_bytes(stored) // (1 if expert is None else shape[0])
        start = self._header.data + offset + (expert or 0) * size
        page = -(-start // mmap.PAGESIZE) * mmap.PAGESIZE
        if page < start + size:
            self._map.madvise(mmap.MADV_DONTNEED, page, start + size - page)

    def _stored(self, name: str) -> tuple[np.ndarray[Any, np.dtype[np.uint8]], tuple[int, ...], int]:
        """A parameter's bytes, shape and ggml type."""
        stored, expert = self._places[name]
        shape, kind, offset = self._header.tensors[stored]
        start = self._header.data + offset
        raw = self._data[start : start + self._n_bytes(stored)]
        if expert is not None:
            raw, shape = raw.reshape(shape[0], -1)[expert], shape[1:]
        return raw, shape, kind

    @cached_property
    def _data(self) -> np.ndarray[Any, np.dtype[np.uint8]]:
        return np.frombuffer(self._map, np.uint8)

    @cached_property
    def _map(self) -> mmap.mmap:
        with self.path.open("rb") as file:
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)  # as torch has no read-only tensors

    def _n_bytes(self, name: str) -> int:
        shape, kind, _ = self._header.tensors[name]
        block, size = (1, _FLOATS[kind].itemsize) if kind in _FLOATS else _block(kind) or (0, 0)
        if not block:
            raise WeightsError(
                f"{self.path}: tensor {name!r} has the type {kind}, which the gguf library cannot dequantise"
            )
        if not shape or shape[-1] % block:
            raise WeightsError(f"{self.path}: tensor {name!r} is {list(shape)}, not rows of a multiple of {block}")
        return math.prod(shape) // block * size


@cache
def _block(kind: int) -> tuple[int, int] | None:
    """Values and bytes of a quantised type's block; None when the gguf library does not know how to read it."""
    if kind in _BLOCKS:
        return _BLOCKS[kind]
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, dequantize

    try:
        block, size = GGML_QUANT_SIZES[GGMLQuantizationType(kind)]
        dequantize(np.zeros((1, size), np.uint8), GGMLQuantizationType(kind))
    except (ValueError, KeyError, NotImplementedError):
        return None
    return block, size


def _places(path: Path, name: str, tensor: StoredTensor, n_experts: int) -> list[tuple[str, _Place]]:
    """The parameters, by Mistral's names, that one stored tensor holds.

    Experts are together, [experts, outputs, inputs], or in older files apart. A tensor that has no place in the model
    keeps its name.

    Raises:
        WeightsError: the name is one of Mistral's own format.
    """
    if name in MODEL:
        return [(MODEL[name], _Place(name))]
    if (found := _IN_LAYER.fullmatch(name)) and found[2] in LAYER:
        return [(f"layers.{found[1]}.{LAYER[found[2]]}.weight", _Place(name))]
    if found := _ONE_EXPERT.fullmatch(name):
        return [(f"layers.{found[1]}.feed_forward.experts.{found[3]}.{EXPERT[found[2]]}.weight", _Place(name))]
    if (found := _ALL_EXPERTS.fullmatch(name)) and len(tensor.shape) == 3 and tensor.shape[0] == n_experts:
        layer = f"layers.{found[1]}.feed_forward.experts"
        return [(f"{layer}.{e}.{EXPERT[found[2]]}.weight", _Place(name, e)) for e in range(n_experts)]
    if PARAMETER.fullmatch(name):
        raise WeightsError(
            f"{path}: tensor {name!r} has its name from Mistral's own format, and a GGUF file calls it "
            f"{stored_name(name)!r}: remove it, or fetch the file again"
        )
    return [(name, _Place(name))]


def stored_name(ours: str) -> str:
    """The name of the tensor that holds a parameter in a GGUF file; the experts of a layer are together in one."""
    if ours in _THEIRS:
        return _THEIRS[ours]
    _, number, inner = ours.removesuffix(".weight").split(".", 2)
    if inner.startswith("feed_forward.experts."):
        return f"blk.{number}.{_THEIRS_OF_EXPERTS[inner.rpartition('.')[2]]}_exps.weight"
    return f"blk.{number}.{_THEIRS_IN_LAYER[inner]}.weight"


def read_config(path: Path, header: Header) -> ModelConfig:
    """The configuration in a header; refuses by name what this model cannot run.

    Converters do not write the window of 7B v0.1, so such a file runs as it says, without one.
    """
    metadata, tensors = header.metadata, header.tensors
    architecture = metadata.get("general.architecture")
    if architecture != "llama":
        raise WeightsError(
            f"{path}: architecture {shown(architecture)} is not supported: only llama is (Mistral, Mixtral, Llama)"
        )
    if metadata.get("split.count", 1) not in (0, 1):
        raise WeightsError(
            f"{path}: one of {shown(metadata['split.count'])} parts: merge them with llama-gguf-split --merge"
        )
    values = {key.removeprefix("llama."): value for key, value in metadata.items()}
    for key, plain in (("rope.scaling.type", "none"), ("rope.scaling.factor", 1.0), ("rope.scale_linear", 1.0)):
        if values.get(key, plain) != plain:
            raise WeightsError(
                f"{path}: 'llama.{key}' {shown(values[key])} is not supported: only plain rotary embeddings are"
            )
    if values.get("attention.causal", True) is not True:
        raise WeightsError(
            f"{path}: 'llama.attention.causal' {shown(values['attention.causal'])} is not supported: a model that also "
            "attends to later tokens (an embedding model) cannot be run"
        )
    if "attention.sliding_window_pattern" in values:
        raise WeightsError(f"{path}: 'llama.attention.sliding_window_pattern' is not supported: take another format")
    for name in ("rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight"):
        if name in tensors:
            raise WeightsError(f"{path}: tensor {name!r} is not supported: only plain rotary embeddings are")
    if "token_embd.weight" not in tensors:
        raise WeightsError(f"{path}: no tensor 'token_embd.weight': fetch the file again")

    dim, n_heads = whole(path, values, "embedding_length"), whole(path, values, "attention.head_count")
    head_dim = whole(path, {"attention.key_length": dim // n_heads} | values, "attention.key_length")
    for key in ("attention.value_length", "rope.dimension_count"):
        if values.get(key, head_dim) != head_dim:
            raise WeightsError(
                f"{path}: 'llama.{key}' {shown(values[key])} is not the heads' {head_dim}: that is not supported"
            )
    return make_config(
        path,
        keys=_KEYS,
        dim=dim,
        n_layers=whole(path, values, "block_count", most=DEEPEST),
        head_dim=head_dim,
        hidden_dim=whole(path, values, "feed_forward_length"),
        n_heads=n_heads,
        n_kv_heads=values.get("attention.head_count_kv", n_heads),
        vocab_size=tensors["token_embd.weight"].shape[0],
        max_seq_len=whole(path, values, "context_length", most=LONGEST),
        norm_eps=_decimal(values.get("attention.layer_norm_rms_epsilon")),
        rope_theta=_decimal(values.get("rope.freq_base", 10_000.0)),
        sliding_window=values.get("attention.sliding_window") or None,
        tied_embeddings="output.weight" not in tensors,
        experts=(whole(path, values, "expert_count", most=DEEPEST), whole(path, values, "expert_used_count"))
        if values.get("expert_count")
        else None,
    )


def _decimal(value: Any) -> Any:
    """The number that was meant by one stored in float32: 1e-05, not 9.999999747e-06."""
    if not isinstance(value, float):
        return value
    with np.errstate(over="ignore"):
        return float(str(np.float32(value)))
