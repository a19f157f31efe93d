"""Mistral's own format: `params.json` with `consolidated*.safetensors` or `consolidated*.pth`."""

from pathlib import Path
from typing import Any

from torch import Tensor

from cierzo.errors import WeightsError
from cierzo.model import ModelConfig
from cierzo.weights.pickled import read_pickle
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

# v0.1's params.json states no limit; the Hugging Face configurations of 7B v0.1 to v0.3 and Mixtral 8x7B say 32,768.
_MAX_SEQ_LEN = 32_768

_UNSUPPORTED = (
    "yarn", "rope_scaling", "rope_scaling_factor", "use_scaled_rope", "llama_4_scaling", "quantization",
    "vision_encoder", "multimodal", "lora", "use_biases", "q_lora_rank", "kv_lora_rank", "qk_norm",
)  # fmt: skip


def consolidated_files(folder: Path) -> list[Path]:
    """The shards in a folder; safetensors where both kinds are there."""
    return sorted(folder.glob("consolidated*.safetensors")) or sorted(folder.glob("consolidated*.pth"))


def open_consolidated(folder: Path) -> MappedTensors:
    config = read_params(folder / "params.json")
    tensors: dict[str, Tensor] = {}
    files: dict[str, Path] = {}
    for file in consolidated_files(folder):
        for name, tensor in (read_safetensors if file.suffix == ".safetensors" else read_pickle)(file).items():
            if name in tensors:
                raise WeightsError(
                    f"{file}: tensor {name!r} is in {files[name].name} too, so the matrices are split between shards "
                    "(Meta's tensor-parallel layout): take the model in the Hugging Face format"
                )
            tensors[name], files[name] = tensor, file
    return MappedTensors(folder, config, tensors, files)


def read_params(path: Path) -> ModelConfig:
    """The configuration in a `params.json`.

    7B v0.1 has no `rope_theta` and means 10,000; Mixtral 8x7B has none either and means 1,000,000, so a mixture of
    experts must say it.
    """
    values = read_json(path)
    for key in _UNSUPPORTED:
        if values.get(key):
            raise WeightsError(f"{path}: {key!r} is not supported: this model cannot be run")
    for key in ("causal", "is_causal"):
        if values.get(key, True) is not True:
            raise WeightsError(f"{path}: {key!r} {shown(values[key])} is not supported: attention here is causal")
    experts = _experts(path, values)
    if experts and "rope_theta" not in values:
        raise WeightsError(f"{path}: a mixture of experts without 'rope_theta': add it (Mixtral 8x7B: 1000000.0)")
    dim, n_heads = whole(path, values, "dim"), whole(path, values, "n_heads")
    n_layers = whole(path, values, "n_layers", most=DEEPEST)
    limits = [key for key in ("max_seq_len", "max_position_embeddings", "model_max_length") if values.get(key)]
    return make_config(
        path,
        dim=dim,
        n_layers=n_layers,
        head_dim=whole(path, {"head_dim": dim // n_heads} | values, "head_dim"),
        hidden_dim=whole(path, values, "hidden_dim"),
        n_heads=n_heads,
        n_kv_heads=values.get("n_kv_heads", n_heads),
        vocab_size=whole(path, values, "vocab_size"),
        max_seq_len=whole(path, values, limits[0], most=LONGEST) if limits else _MAX_SEQ_LEN,
        norm_eps=values.get("norm_eps"),
        rope_theta=values.get("rope_theta", 10_000.0),
        sliding_window=_window(path, values, n_layers),
        tied_embeddings=flag(path, values, "tied_embeddings"),
        experts=experts,
    )


def _experts(path: Path, values: dict[str, Any]) -> tuple[int, int] | None:
    moe = values.get("moe")
    if not moe:
        return None
    if not isinstance(moe, dict) or set(moe) != {"num_experts", "num_experts_per_tok"}:
        raise WeightsError(f"{path}: 'moe' must give num_experts and num_experts_per_tok alone, not {shown(moe)}")
    return whole(path, moe, "num_experts", most=DEEPEST), whole(path, moe, "num_experts_per_tok", most=DEEPEST)


def _window(path: Path, values: dict[str, Any], n_layers: int) -> Any:
    """One window, or the pattern that repeats over the layers (Ministral 8B: none and then three of 32,768)."""
    window = values.get("_sliding_window") if values.get("sliding_window") is None else values["sliding_window"]
    if not isinstance(window, list):
        return window
    if not window or n_layers % len(window):
        raise WeightsError(
            f"{path}: a pattern of {len(window)} sliding windows does not repeat evenly over {n_layers} layers: "
            "give one window, or one a layer"
        )
    return tuple(window) * (n_layers // len(window))
