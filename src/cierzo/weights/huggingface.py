"""Hugging Face's format: `config.json` with `model.safetensors`, in one file or in shards with an index.

A key that is not in `config.json` means what `transformers` means by it, which depends on the kind of model. What each
key does is in `huggingface_keys`.
"""

import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from cierzo.errors import WeightsError
from cierzo.model import ModelConfig
from cierzo.weights.huggingface_keys import check_keys
from cierzo.weights.source import (
    DEEPEST,
    LONGEST,
    PARAMETER,
    MappedTensors,
    assign,
    flag,
    make_config,
    read_json,
    read_safetensors,
    shown,
    whole,
)

_KEYS = {
    "dim": "hidden_size", "n_heads": "num_attention_heads", "n_kv_heads": "num_key_value_heads",
    "norm_eps": "rms_norm_eps",
}  # fmt: skip
"""What `config.json` calls values that `ModelConfig` checks under other names."""

_LAYER_TYPES = {
    "full_attention": "full_attention", "attention": "full_attention", "sliding_attention": "sliding_attention",
}  # fmt: skip
"""Names of layers' attention, and what they mean; the second is of older files."""

_MISTRAL = {
    "vocab_size": 32_000, "hidden_size": 4096, "intermediate_size": 14_336, "num_hidden_layers": 32,
    "num_attention_heads": 32, "num_key_value_heads": 8, "max_position_embeddings": 131_072, "rms_norm_eps": 1e-6,
    "rope_theta": 10_000.0, "sliding_window": 4096,
}  # fmt: skip
_DEFAULTS: dict[str, dict[str, Any]] = {
    "mistral": _MISTRAL,
    "ministral": _MISTRAL,
    "mixtral": _MISTRAL | {
        "rms_norm_eps": 1e-5, "rope_theta": 1e6, "sliding_window": None,
        "num_local_experts": 8, "num_experts_per_tok": 2,
    },
    "llama": _MISTRAL | {
        "intermediate_size": 11_008, "num_key_value_heads": None, "max_position_embeddings": 2048,
        "sliding_window": None,
    },
}  # fmt: skip

MODEL = {
    "model.embed_tokens.weight": "tok_embeddings.weight",
    "model.norm.weight": "norm.weight",
    "lm_head.weight": "output.weight",
}
LAYER = {
    "self_attn.q_proj": "attention.wq",
    "self_attn.k_proj": "attention.wk",
    "self_attn.v_proj": "attention.wv",
    "self_attn.o_proj": "attention.wo",
    "mlp.gate_proj": "feed_forward.w1",
    "mlp.down_proj": "feed_forward.w2",
    "mlp.up_proj": "feed_forward.w3",
    "input_layernorm": "attention_norm",
    "post_attention_layernorm": "ffn_norm",
    "block_sparse_moe.gate": "feed_forward.gate",
    "mlp.gate": "feed_forward.gate",
}
_THEIRS = {ours: theirs for theirs, ours in MODEL.items()}
_THEIRS_IN_LAYER = {ours: theirs for theirs, ours in LAYER.items() if theirs != "mlp.gate"}
_IN_LAYER = re.compile(r"model\.(layers\.\d+)\.(.+)\.weight")
_EXPERT = re.compile(r"model\.(layers\.\d+)\.block_sparse_moe\.(experts\.\d+\.w[123]\.weight)")
_ALL_EXPERTS = re.compile(r"model\.(layers\.\d+)\.mlp\.experts\.(gate_up_proj|down_proj)")


def open_huggingface(folder: Path) -> MappedTensors:
    config = read_config(folder / "config.json")
    tensors: dict[str, Tensor] = {}
    files: dict[str, Path] = {}
    stored_as: dict[str, str] = {}
    for file, stored in _read_tensors(folder).items():
        for name, tensor in stored.items():
            for ours, view in views(file, name, tensor, config):
                assign(stored_as, ours, name, file)
                tensors[ours], files[ours] = view, file
    return MappedTensors(folder, config, tensors, files, partial(interleave, config.head_dim))


def read_config(path: Path) -> ModelConfig:
    """The configuration in a `config.json`; refuses by name what this model cannot run."""
    given = read_json(path)
    kind = _kind(path, given)
    check_keys(path, given)
    values = _DEFAULTS[kind] | given
    if values.get("hidden_act", "silu") not in ("silu", "swish"):
        raise WeightsError(f"{path}: 'hidden_act' {shown(values['hidden_act'])} is not supported: only silu is")
    dim, n_heads = whole(path, values, "hidden_size"), whole(path, values, "num_attention_heads")
    n_layers = whole(path, values, "num_hidden_layers", most=DEEPEST)
    return make_config(
        path,
        keys=_KEYS,
        dim=dim,
        n_layers=n_layers,
        head_dim=dim // n_heads if values.get("head_dim") is None else whole(path, values, "head_dim"),
        hidden_dim=whole(path, values, "intermediate_size"),
        n_heads=n_heads,
        n_kv_heads=n_heads if values["num_key_value_heads"] is None else values["num_key_value_heads"],
        vocab_size=whole(path, values, "vocab_size"),
        max_seq_len=whole(path, values, "max_position_embeddings", most=LONGEST),
        norm_eps=values["rms_norm_eps"],
        rope_theta=_rope_theta(path, values),
        sliding_window=_window(path, kind, values, n_layers),
        tied_embeddings=flag(path, values, "tie_word_embeddings"),
        experts=_experts(path, values) if kind == "mixtral" else None,
    )


def _experts(path: Path, values: dict[str, Any]) -> tuple[int, int]:
    """How many there are, and how many a token uses; of the two names for the first, `num_experts` wins."""
    key = "num_experts" if "num_experts" in values else "num_local_experts"
    return whole(path, values, key, most=DEEPEST), whole(path, values, "num_experts_per_tok", most=DEEPEST)


def _kind(path: Path, given: dict[str, Any]) -> str:
    architectures = given.get("architectures") or []
    if not isinstance(architectures, list):
        raise WeightsError(f"{path}: 'architectures' must be a list of names, not {shown(architectures)}")
    for architecture in architectures:
        if not isinstance(architecture, str) or not architecture.endswith("ForCausalLM"):
            raise WeightsError(
                f"{path}: 'architectures': architecture {shown(architecture)} is not supported: it does not generate "
                "text alone"
            )
    kind = given.get("model_type") or "".join(architectures).removesuffix("ForCausalLM").lower()
    if not isinstance(kind, str) or kind not in _DEFAULTS:
        raise WeightsError(f"{path}: model_type {shown(kind)} is not supported: only {', '.join(_DEFAULTS)} are")
    return kind


def _rope_theta(path: Path, values: dict[str, Any]) -> Any:
    """The rotary base: its own key until transformers 4, inside `rope_parameters` from 5 on."""
    key = "rope_scaling" if values.get("rope_scaling") else "rope_parameters"
    rope = values.get(key) or {}
    kind = rope.get("rope_type", rope.get("type", "default")) if isinstance(rope, dict) else rope
    if kind != "default" or not isinstance(rope, dict):
        raise WeightsError(
            f"{path}: {key!r}: rope scaling {shown(kind)} is not supported: only plain rotary embeddings are"
        )
    if rope.get("partial_rotary_factor", 1) not in (1, None):
        raise WeightsError(f"{path}: {key!r}: 'partial_rotary_factor' is not supported: heads are rotated whole")
    for layers in _LAYER_TYPES.values():
        if layers in rope:
            raise WeightsError(f"{path}: {key!r} of its own for {layers!r} is not supported: give one for all layers")
    theta = rope.get("rope_theta", values["rope_theta"])
    if "rope_theta" in rope and not isinstance(theta, int | float):
        raise WeightsError(f"{path}: {key!r}: rope_theta must be a positive number, not {shown(theta)}")
    return theta


def _window(path: Path, kind: str, values: dict[str, Any], n_layers: int) -> Any:
    """The window of all layers, or of each."""
    window, layers = values["sliding_window"], values.get("layer_types")
    if kind == "llama" and window is not None:
        raise WeightsError(
            f"{path}: 'sliding_window' means nothing to a llama model: remove it, or use model_type mistral"
        )
    if layers is None:
        return window
    if not isinstance(layers, list):
        raise WeightsError(f"{path}: 'layer_types' must be a list, not {shown(layers)}")
    if len(layers) != n_layers:
        raise WeightsError(
            f"{path}: 'layer_types' has {len(layers)} entries for 'num_hidden_layers' {n_layers}: give one a layer"
        )
    for layer in layers:
        if not isinstance(layer, str) or layer not in _LAYER_TYPES:
            raise WeightsError(f"{path}: 'layer_types' entry {shown(layer)} is not supported")
        if layer == "sliding_attention" and window is None:
            raise WeightsError(f"{path}: 'layer_types' has {layer!r} but there is no 'sliding_window': add it")
    if kind not in ("mistral", "ministral"):
        return window  # transformers gives all layers of a mixtral the same mask
    return tuple(window if layer == "sliding_attention" else None for layer in layers)


def _read_tensors(folder: Path) -> dict[Path, dict[str, Tensor]]:
    """The tensors of each file."""
    whole_file, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if whole_file.is_file():
        return {whole_file: read_safetensors(whole_file)}
    if not index.is_file():
        raise WeightsError(
            f"{folder}: config.json without model.safetensors or model.safetensors.index.json: fetch the weights "
            "(pytorch_model.bin is not read: save the model as safetensors)"
        )
    placed = read_json(index).get("weight_map")
    if not isinstance(placed, dict) or not all(
        isinstance(file, str) and Path(file).name == file for file in placed.values()
    ):
        raise WeightsError(f"{index}: no 'weight_map' from tensors to files of this folder: fetch it again")
    there = {file.name for file in folder.iterdir() if file.is_file()}
    missing = sorted(set(placed.values()) - there)
    if missing:
        raise WeightsError(f"{folder / missing[0]}: missing, with {len(missing) - 1} other shards: fetch the rest")
    shards = {folder / file: read_safetensors(folder / file) for file in sorted(set(placed.values()))}
    for name, file in placed.items():
        if name not in shards[folder / file]:
            raise WeightsError(f"{folder / file}: no tensor {name!r}, which the index places there: fetch it again")
    return shards  # with what the index does not list, which transformers reads as well


def views(file: Path, name: str, tensor: Tensor, config: ModelConfig) -> Iterator[tuple[str, Tensor]]:
    """The parameters, by Mistral's names, that one stored tensor of a file holds.

    Mixtral's experts are apart in `block_sparse_moe`, or together in `mlp.experts`: [experts, 2 F, D] with the gate
    above the up projection, and [experts, D, F]. A tensor that has no place in the model keeps its name.

    Raises:
        WeightsError: the name is one of Mistral's own format, whose q and k have their rows in another order.
    """
    if name in MODEL:
        yield MODEL[name], tensor
    elif name.endswith("rotary_emb.inv_freq"):
        return  # older files carry the angles, which follow from the configuration
    elif found := _EXPERT.fullmatch(name):
        yield f"{found[1]}.feed_forward.{found[2]}", tensor
    elif (found := _IN_LAYER.fullmatch(name)) and found[2] in LAYER:
        yield f"{found[1]}.{LAYER[found[2]]}.weight", tensor
    elif (
        (found := _ALL_EXPERTS.fullmatch(name))
        and tensor.ndim == 3
        and config.moe
        and len(tensor) == config.moe.num_experts
    ):
        for number, expert in enumerate(tensor):
            place = f"{found[1]}.feed_forward.experts.{number}"
            if found[2] == "down_proj":
                yield f"{place}.w2.weight", expert
            else:
                gate, up = expert.tensor_split(2)
                yield f"{place}.w1.weight", gate
                yield f"{place}.w3.weight", up
    elif PARAMETER.fullmatch(name):
        raise WeightsError(
            f"{file}: tensor {name!r} has its name from Mistral's own format, and a Hugging Face folder calls it "
            f"{stored_name(name)!r}: remove it, or take all files from one format"
        )
    else:
        yield name, tensor


def stored_name(ours: str) -> str:
    """The name that a parameter has in a Hugging Face checkpoint."""
    if ours in _THEIRS:
        return _THEIRS[ours]
    layers, number, inner = ours.removesuffix(".weight").split(".", 2)
    if inner.startswith("feed_forward.experts."):
        return f"model.{layers}.{number}.block_sparse_moe.{inner.removeprefix('feed_forward.')}.weight"
    return f"model.{layers}.{number}.{_THEIRS_IN_LAYER[inner]}.weight"


def halves(head_dim: int, name: str, tensor: Tensor) -> Tensor:
    """Rows of q and k from pairs side by side to half-split rotary order: what `interleave` undoes."""
    if not name.endswith(("attention.wq.weight", "attention.wk.weight")):
        return tensor
    return tensor.view(-1, head_dim // 2, 2, tensor.shape[1]).transpose(1, 2).reshape(tensor.shape)


def interleave(head_dim: int, name: str, tensor: Tensor) -> Tensor:
    """Rows of q and k from half-split rotary order, (0, C/2), (1, C/2 + 1), ..., to pairs side by side."""
    if not name.endswith(("attention.wq.weight", "attention.wk.weight")):
        return tensor
    return tensor.view(-1, 2, head_dim // 2, tensor.shape[1]).transpose(1, 2).reshape(tensor.shape)
