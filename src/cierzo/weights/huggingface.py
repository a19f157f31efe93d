"""Hugging Face's format: `config.json` with `model.safetensors`, in one file or in shards with an index.

A key that is not in `config.json` means what `transformers` means by it, which depends on the kind of model.
"""

import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from cierzo.errors import WeightsError
from cierzo.model import ModelConfig
from cierzo.weights.source import (
    DEEPEST,
    LONGEST,
    MappedTensors,
    flag,
    make_config,
    read_json,
    read_safetensors,
    shown,
    whole,
)

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
_IN_LAYER = re.compile(r"model\.(layers\.\d+)\.(.+)\.weight")
_EXPERT = re.compile(r"model\.(layers\.\d+)\.block_sparse_moe\.(experts\.\d+\.w[123]\.weight)")
_ALL_EXPERTS = re.compile(r"model\.(layers\.\d+)\.mlp\.experts\.(gate_up_proj|down_proj)")


def open_huggingface(folder: Path) -> MappedTensors:
    config = read_config(folder / "config.json")
    tensors: dict[str, Tensor] = {}
    files: dict[str, Path] = {}
    for file, stored in _read_tensors(folder).items():
        for name, tensor in stored.items():
            for ours, view in views(name, tensor, config):
                tensors[ours], files[ours] = view, file
    return MappedTensors(folder, config, tensors, files, partial(interleave, config.head_dim))


def read_config(path: Path) -> ModelConfig:
    """The configuration in a `config.json`; refuses by name what this model cannot run."""
    given = read_json(path)
    kind = _kind(path, given)
    values = _DEFAULTS[kind] | given
    for key in ("attention_bias", "mlp_bias"):
        if values.get(key):
            raise WeightsError(f"{path}: {key!r} is not supported: this model has no biases")
    if values.get("quantization_config"):
        raise WeightsError(f"{path}: 'quantization_config': take the model that is not quantised, or a GGUF file")
    if values.get("hidden_act", "silu") not in ("silu", "swish"):
        raise WeightsError(f"{path}: 'hidden_act' {shown(values['hidden_act'])} is not supported: only silu is")
    dim, n_heads = whole(path, values, "hidden_size"), whole(path, values, "num_attention_heads")
    n_layers = whole(path, values, "num_hidden_layers", most=DEEPEST)
    return make_config(
        path,
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
        sliding_window=_window(path, kind, values),
        tied_embeddings=flag(path, values, "tie_word_embeddings"),
        experts=(whole(path, values, "num_local_experts", most=DEEPEST), whole(path, values, "num_experts_per_tok"))
        if kind == "mixtral"
        else None,
    )


def _kind(path: Path, given: dict[str, Any]) -> str:
    architectures = given.get("architectures") or []
    if not isinstance(architectures, list):
        raise WeightsError(f"{path}: 'architectures' must be a list of names, not {shown(architectures)}")
    for architecture in architectures:
        if not isinstance(architecture, str) or not architecture.endswith("ForCausalLM"):
            raise WeightsError(
                f"{path}: architecture {shown(architecture)} is not supported: it does not generate text alone"
            )
    kind = given.get("model_type") or "".join(architectures).removesuffix("ForCausalLM").lower()
    if not isinstance(kind, str) or kind not in _DEFAULTS:
        raise WeightsError(f"{path}: model_type {shown(kind)} is not supported: only {', '.join(_DEFAULTS)} are")
    return kind


def _rope_theta(path: Path, values: dict[str, Any]) -> Any:
    """The rotary base: its own key until transformers 4, inside `rope_parameters` from 5 on."""
    rope = values.get("rope_scaling") or values.get("rope_parameters") or {}
    kind = rope.get("rope_type", rope.get("type", "default")) if isinstance(rope, dict) else rope
    if kind != "default" or not isinstance(rope, dict):
        raise WeightsError(f"{path}: rope scaling {shown(kind)} is not supported: only plain rotary embeddings are")
    for settings in (rope, values):
        if settings.get("partial_rotary_factor", 1.0) != 1.0:
            raise WeightsError(f"{path}: 'partial_rotary_factor' is not supported: heads are rotated whole")
    for layers in ("full_attention", "sliding_attention"):
        if layers in rope:
            raise WeightsError(
                f"{path}: 'rope_parameters' of its own for {layers!r} is not supported: give one for all"
            )
    return rope.get("rope_theta", values["rope_theta"])


def _window(path: Path, kind: str, values: dict[str, Any]) -> Any:
    window = values["sliding_window"] if values.get("use_sliding_window", True) else None
    layers = values.get("layer_types")
    if kind == "llama" and window is not None:
        raise WeightsError(
            f"{path}: 'sliding_window' means nothing to a llama model: remove it, or use model_type mistral"
        )
    if layers is None:
        return window
    if not isinstance(layers, list):
        raise WeightsError(f"{path}: 'layer_types' must be a list, not {shown(layers)}")
    for layer in layers:
        if layer not in ("full_attention", "sliding_attention"):
            raise WeightsError(f"{path}: 'layer_types' entry {shown(layer)} is not supported")
        if layer == "sliding_attention" and window is None:
            raise WeightsError(f"{path}: 'layer_types' has {layer!r} but there is no 'sliding_window': add it")
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
    shards = {file: read_safetensors(folder / file) for file in sorted(set(placed.values()))}
    kept: dict[Path, dict[str, Tensor]] = {folder / file: {} for file in shards}
    for name, file in placed.items():
        if name not in shards[file]:
            raise WeightsError(f"{folder / file}: no tensor {name!r}, which the index places there: fetch it again")
        kept[folder / file][name] = shards[file][name]
    return kept


def views(name: str, tensor: Tensor, config: ModelConfig) -> Iterator[tuple[str, Tensor]]:
    """The parameters, by Mistral's names, that one stored tensor holds.

    Mixtral's experts are apart in `block_sparse_moe`, or together in `mlp.experts`: [experts, 2 F, D] with the gate
    above the up projection, and [experts, D, F].
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
    else:
        yield name, tensor


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
