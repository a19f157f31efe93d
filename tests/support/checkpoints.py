"""Random tiny models, written in every format that is read.

The weights are drawn under Mistral's names; `huggingface_model` permutes q and k as the published conversion script
does (transformers, models/mistral/convert_mistral_weights_to_hf.py), so nothing here shares code with the readers.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gguf import GGMLQuantizationType, GGUFWriter, quantize
from safetensors.torch import save_file
from torch import Tensor

from cierzo.model import ModelConfig, Transformer


def random_weights(config: ModelConfig, seed: int = 0) -> dict[str, Tensor]:
    """Weights, float32, large enough that logits spread over several units and attention is not flat."""
    generator = torch.Generator().manual_seed(seed)
    weights = {}
    for name, meta in Transformer.without_weights(config).state_dict().items():
        drawn = torch.randn(meta.shape, generator=generator)
        weights[name] = 1 + 0.2 * drawn if meta.ndim == 1 else drawn * 1.5 / meta.shape[1] ** 0.5
    return weights


def params(config: ModelConfig) -> dict[str, Any]:
    """The `params.json` of a configuration."""
    values: dict[str, Any] = {
        name: getattr(config, name)
        for name in (
            "dim", "n_layers", "head_dim", "hidden_dim", "n_heads", "n_kv_heads", "norm_eps", "vocab_size",
            "rope_theta", "max_seq_len", "sliding_window", "tied_embeddings",
        )
    }  # fmt: skip
    if config.moe:
        values["moe"] = {
            "num_experts": config.moe.num_experts,
            "num_experts_per_tok": config.moe.num_experts_per_tok,
        }
    return values


def write_consolidated(
    folder: Path, config: ModelConfig, weights: dict[str, Tensor], *, suffix: str = ".safetensors", shards: int = 1
) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "params.json").write_text(json.dumps(params(config)))
    for shard in range(shards):
        part = dict(list(weights.items())[shard::shards])
        stem = folder / f"consolidated.{shard:02}"
        if suffix == ".safetensors":
            save_file(part, stem.with_suffix(".00.safetensors" if shards == 1 else f".{shard:02}.safetensors"))
        else:
            torch.save(part, f"{stem}{suffix}")
    return folder


def huggingface_model(config: ModelConfig, weights: dict[str, Tensor], kind: str) -> Any:
    """A `transformers` model of these weights, in eager attention, whose masks hold exactly W keys."""
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    windows = config.sliding_window
    settings: dict[str, Any] = {
        "vocab_size": config.vocab_size,
        "hidden_size": config.dim,
        "intermediate_size": config.hidden_dim,
        "num_hidden_layers": config.n_layers,
        "num_attention_heads": config.n_heads,
        "num_key_value_heads": config.n_kv_heads,
        "head_dim": config.head_dim,
        "rms_norm_eps": config.norm_eps,
        "max_position_embeddings": config.max_seq_len,
        "tie_word_embeddings": config.tied_embeddings,
        "rope_parameters": {"rope_type": "default", "rope_theta": config.rope_theta},
        "attn_implementation": "eager",
        "experts_implementation": "eager",
    }
    if kind != "Llama":
        settings["sliding_window"] = max(w or 0 for w in windows) if isinstance(windows, tuple) else windows
    if isinstance(windows, tuple):
        settings["layer_types"] = ["sliding_attention" if w else "full_attention" for w in windows]
    if config.moe:
        settings["num_local_experts"] = config.moe.num_experts
        settings["num_experts_per_tok"] = config.moe.num_experts_per_tok
    with torch.device("meta"):
        model = getattr(transformers, f"{kind}ForCausalLM")(getattr(transformers, f"{kind}Config")(**settings))
    model.to_empty(device="cpu")
    model.model.rotary_emb.__init__(model.config)  # its angles are not weights, so they were left empty
    model.load_state_dict(huggingface_weights(config, weights), strict=True)
    return model.eval()


def huggingface_weights(config: ModelConfig, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights under the names, and with q and k in the order, of a `transformers` model."""
    names = {
        "attention.wv": "self_attn.v_proj", "attention.wo": "self_attn.o_proj", "attention_norm": "input_layernorm",
        "ffn_norm": "post_attention_layernorm", "feed_forward.w1": "mlp.gate_proj", "feed_forward.w2": "mlp.down_proj",
        "feed_forward.w3": "mlp.up_proj", "feed_forward.gate": "mlp.gate",
    }  # fmt: skip
    renamed = {
        "model.embed_tokens.weight": weights["tok_embeddings.weight"],
        "model.norm.weight": weights["norm.weight"],
        "lm_head.weight": weights["tok_embeddings.weight" if config.tied_embeddings else "output.weight"],
    }
    for layer in range(config.n_layers):
        ours, theirs = f"layers.{layer}", f"model.layers.{layer}"
        for name, new in names.items():
            if f"{ours}.{name}.weight" in weights:
                renamed[f"{theirs}.{new}.weight"] = weights[f"{ours}.{name}.weight"]
        for letter, heads in (("q", config.n_heads), ("k", config.n_kv_heads)):
            w = weights[f"{ours}.attention.w{letter}.weight"]
            halves = w.view(heads, config.head_dim // 2, 2, config.dim).transpose(1, 2).reshape(w.shape)
            renamed[f"{theirs}.self_attn.{letter}_proj.weight"] = halves
        if config.moe:
            experts = [
                [weights[f"{ours}.feed_forward.experts.{e}.w{n}.weight"] for n in (1, 2, 3)]
                for e in range(config.moe.num_experts)
            ]
            renamed[f"{theirs}.mlp.experts.gate_up_proj"] = torch.stack([torch.cat((w1, w3)) for w1, _, w3 in experts])
            renamed[f"{theirs}.mlp.experts.down_proj"] = torch.stack([w2 for _, w2, _ in experts])
    return renamed


def write_gguf(
    path: Path,
    config: ModelConfig,
    weights: dict[str, Tensor],
    kind: GGMLQuantizationType = GGMLQuantizationType.F32,
    *,
    merged_experts: bool = True,
) -> Path:
    """A GGUF file with matrices of type `kind`, but for the router; experts merged, or apart as in older files."""
    writer = GGUFWriter(path, "llama")
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
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(["<s>", "é", *(f"t{i}" for i in range(config.vocab_size - 2))])
    if isinstance(config.sliding_window, int):
        writer.add_sliding_window(config.sliding_window)
    if config.moe:
        writer.add_expert_count(config.moe.num_experts)
        writer.add_expert_used_count(config.moe.num_experts_per_tok)
    for name, array in _gguf_arrays(weights, merged_experts).items():
        if array.ndim == 1 or "gate_inp" in name:
            writer.add_tensor(name, array)
        else:
            writer.add_tensor(name, quantize(array, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _gguf_arrays(weights: dict[str, Tensor], merged_experts: bool) -> dict[str, np.ndarray[Any, Any]]:
    names = {
        "tok_embeddings": "token_embd", "norm": "output_norm", "output": "output", "attention_norm": "attn_norm",
        "attention.wq": "attn_q", "attention.wk": "attn_k", "attention.wv": "attn_v", "attention.wo": "attn_output",
        "ffn_norm": "ffn_norm", "feed_forward.w1": "ffn_gate", "feed_forward.w2": "ffn_down",
        "feed_forward.w3": "ffn_up", "feed_forward.gate": "ffn_gate_inp",
    }  # fmt: skip
    arrays: dict[str, np.ndarray[Any, Any]] = {}
    for name, tensor in weights.items():
        stem = name.removesuffix(".weight")
        layer, inner = (stem.split(".", 2)[1], stem.split(".", 2)[2]) if stem.startswith("layers.") else ("", stem)
        if inner.startswith("feed_forward.experts."):
            _, _, expert, matrix = inner.split(".")
            new = f"blk.{layer}.{names['feed_forward.' + matrix]}"
            if merged_experts:
                sofar = arrays.get(f"{new}_exps.weight", np.empty((0, *tensor.shape), np.float32))
                arrays[f"{new}_exps.weight"] = np.concatenate((sofar, tensor.numpy()[None]))
            else:
                arrays[f"{new}.{expert}.weight"] = tensor.numpy()
        else:
            arrays[f"blk.{layer}.{names[inner]}.weight" if layer else f"{names[inner]}.weight"] = tensor.numpy()
    return arrays
