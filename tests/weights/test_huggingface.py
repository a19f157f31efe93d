"""Hugging Face's format: what `config.json` means, with `transformers` as the judge, and files that are broken."""

import json
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from cierzo.errors import WeightsError
from cierzo.model import PRESETS, ModelConfig, MoeConfig
from cierzo.weights import open_source
from cierzo.weights.huggingface import read_config
from support.checkpoints import huggingface_model, random_weights

SMALL = ModelConfig(
    dim=16, n_layers=2, head_dim=8, hidden_dim=24, n_heads=2, n_kv_heads=1, vocab_size=32, max_seq_len=64
)
# As published with transformers 4: 7B v0.1, and Mixtral 8x7B.
V01: dict[str, Any] = {
    "architectures": ["MistralForCausalLM"], "bos_token_id": 1, "eos_token_id": 2, "hidden_act": "silu",
    "hidden_size": 4096, "initializer_range": 0.02, "intermediate_size": 14336, "max_position_embeddings": 32768,
    "model_type": "mistral", "num_attention_heads": 32, "num_hidden_layers": 32, "num_key_value_heads": 8,
    "rms_norm_eps": 1e-05, "rope_theta": 10000.0, "sliding_window": 4096, "tie_word_embeddings": False,
    "torch_dtype": "bfloat16", "transformers_version": "4.34.0.dev0", "use_cache": True, "vocab_size": 32000,
}  # fmt: skip
MIXTRAL = V01 | {
    "architectures": ["MixtralForCausalLM"], "model_type": "mixtral", "num_experts_per_tok": 2, "num_local_experts": 8,
    "rope_theta": 1000000.0, "sliding_window": None, "output_router_logits": False, "router_aux_loss_coef": 0.02,
}  # fmt: skip
V5 = {key: value for key, value in V01.items() if key != "rope_theta"} | {
    "rope_parameters": {"rope_theta": 10000.0, "rope_type": "default"},
    "head_dim": None,
}


def read(folder: Path, values: dict[str, Any]) -> ModelConfig:
    path = folder / "config.json"
    path.write_text(json.dumps(values))
    return read_config(path)


@pytest.mark.parametrize(
    ("values", "preset"), [(V01, "mistral-7b-v0.1"), (V5, "mistral-7b-v0.1"), (MIXTRAL, "mixtral-8x7b-v0.1")]
)
def test_published_configurations(values: dict[str, Any], preset: str, tmp_path: Path) -> None:
    assert read(tmp_path, values) == PRESETS[preset]


@pytest.mark.parametrize("kind", ["Mistral", "Mixtral", "Ministral", "Llama"])
def test_a_key_that_is_not_given_means_what_transformers_means(kind: str, tmp_path: Path) -> None:
    theirs = getattr(transformers, f"{kind}Config")()
    config = read(tmp_path, {"model_type": kind.lower()})
    assert config.dim == theirs.hidden_size
    assert config.n_layers == theirs.num_hidden_layers
    assert config.head_dim == (getattr(theirs, "head_dim", None) or theirs.hidden_size // theirs.num_attention_heads)
    assert config.hidden_dim == theirs.intermediate_size
    assert config.n_heads == theirs.num_attention_heads
    assert config.n_kv_heads == theirs.num_key_value_heads
    assert config.vocab_size == theirs.vocab_size
    assert config.max_seq_len == theirs.max_position_embeddings
    assert config.norm_eps == theirs.rms_norm_eps
    assert config.rope_theta == theirs.rope_parameters["rope_theta"]
    assert config.sliding_window == getattr(theirs, "sliding_window", None)
    assert config.tied_embeddings == theirs.tie_word_embeddings
    experts = (theirs.num_local_experts, theirs.num_experts_per_tok) if kind == "Mixtral" else None
    assert config.moe == (MoeConfig(*experts) if experts else None)


@pytest.mark.parametrize("kind", ["mistral", "mixtral", "ministral"])
def test_null_key_value_heads_are_all_heads(kind: str, tmp_path: Path) -> None:
    assert read(tmp_path, {"model_type": kind, "num_key_value_heads": None}).n_kv_heads == 32


@pytest.mark.parametrize(
    ("change", "window"),
    [
        ({}, 4096),
        ({"sliding_window": None}, None),
        ({"use_sliding_window": False}, 4096),
        ({"use_sliding_window": None}, 4096),
        ({"use_sliding_window": True}, 4096),
        ({"layer_types": ["full_attention", "sliding_attention"] * 16}, (None, 4096) * 16),
        ({"layer_types": ["full_attention"] * 32, "sliding_window": None}, (None,) * 32),
    ],
)
def test_windows(change: dict[str, Any], window: Any, tmp_path: Path) -> None:
    assert read(tmp_path, V01 | change).sliding_window == window


@pytest.mark.parametrize(
    ("change", "theta"),
    [
        ({}, 10_000),
        ({"rope_theta": 5e5}, 5e5),
        ({"rope_scaling": None, "rope_theta": 5e5}, 5e5),
        ({"rope_scaling": {"type": "default"}, "rope_theta": 5e5}, 5e5),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 7e5}, "rope_theta": 5e5}, 7e5),
    ],
)
def test_rope_bases(change: dict[str, Any], theta: float, tmp_path: Path) -> None:
    assert read(tmp_path, V01 | change).rope_theta == theta
    theirs: Any = transformers.MistralConfig(**V01 | change)
    assert theirs.rope_parameters["rope_theta"] == theta


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"]}, "qwen2"),
        ({"architectures": ["MistralForSequenceClassification"]}, "MistralForSequenceClassification"),
        ({"architectures": ["PhiForCausalLM"], "model_type": None}, "phi"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "llama3"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "linear"),
        ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e6, "factor": 4.0}}, "yarn"),
        ({"rope_parameters": {"full_attention": {"rope_theta": 1e6}, "sliding_attention": {}}}, "full_attention"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ({"attention_bias": True}, "attention_bias"),
        ({"mlp_bias": True}, "mlp_bias"),
        ({"hidden_act": "gelu"}, "gelu"),
        ({"quantization_config": {"quant_method": "awq"}}, "quantization_config"),
        ({"layer_types": ["chunked_attention"] * 32}, "chunked_attention"),
        ({"layer_types": ["sliding_attention"] * 31}, "31 entries"),
        ({"layer_types": ["sliding_attention"] * 32, "sliding_window": None}, "sliding_window"),
        ({"model_type": "llama", "architectures": ["LlamaForCausalLM"]}, "sliding_window"),
        ({"num_hidden_layers": None}, "num_hidden_layers"),
        ({"num_attention_heads": 0}, "num_attention_heads"),
        ({"hidden_size": "4096"}, "hidden_size"),
        ({"num_key_value_heads": 7}, "n_kv_heads"),
        ({"head_dim": 127}, "head_dim"),
        ({"architectures": 5}, "architectures"),
        ({"architectures": [["MistralForCausalLM"]]}, "MistralForCausalLM"),
        ({"model_type": ["mistral"]}, "model_type"),
        ({"rope_scaling": "default"}, "rope scaling 'default'"),
        ({"rope_scaling": {"rope_type": ["default"]}}, "rope scaling"),
        ({"rope_theta": "abc"}, "rope_theta"),
        ({"layer_types": 5}, "layer_types"),
        ({"tie_word_embeddings": "false"}, "tie_word_embeddings"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers"),
        ({"vocab_size": 10**12}, "vocab_size"),
        ({"sliding_window": [4096]}, "sliding_window"),
    ],
)
def test_what_cannot_be_run_is_refused_by_name(change: dict[str, Any], named: str, tmp_path: Path) -> None:
    with pytest.raises(WeightsError) as refusal:
        read(tmp_path, V01 | change)
    assert named in str(refusal.value)
    assert str(tmp_path / "config.json") in str(refusal.value)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("fused", [False, True])
def test_both_layouts_of_experts(fused: bool, tmp_path: Path) -> None:
    values = {name: getattr(SMALL, name) for name in SMALL.__dataclass_fields__}
    config = ModelConfig(**values | {"moe": MoeConfig(3, 2)})
    weights = random_weights(config)
    huggingface_model(config, weights, "Mixtral").save_pretrained(tmp_path, save_original_format=not fused)
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        assert any("gate_up_proj" in name for name in file.keys()) == fused  # noqa: SIM118 - not a mapping
    source = open_source(tmp_path)
    assert set(source.shapes) == set(weights)
    for name, tensor in weights.items():
        assert torch.equal(source.tensor(name), tensor), name


def saved(folder: Path, **options: Any) -> Path:
    huggingface_model(SMALL, random_weights(SMALL), "Mistral").save_pretrained(folder, **options)
    return folder


def test_tensors_arrive_unchanged_and_old_angles_are_left_out(tmp_path: Path) -> None:
    file = saved(tmp_path) / "model.safetensors"
    save_file(load_file(file) | {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)}, file)
    weights, source = random_weights(SMALL), open_source(tmp_path)
    assert set(source.shapes) == set(weights)
    for name, tensor in weights.items():
        assert torch.equal(source.tensor(name), tensor), name


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    shards = sorted(saved(tmp_path, max_shard_size="2KB").glob("model-*.safetensors"))
    assert len(shards) > 3
    for shard in shards[1:3]:
        shard.unlink()
    with pytest.raises(WeightsError, match=rf"{shards[1].name}: missing, with 1 other"):
        open_source(tmp_path)


def test_a_shard_without_its_tensor_is_named(tmp_path: Path) -> None:
    shard = sorted(saved(tmp_path, max_shard_size="2KB").glob("model-*.safetensors"))[1]
    tensors = load_file(shard)
    name = next(iter(tensors))
    save_file({"other": torch.zeros(1)}, shard)
    with pytest.raises(WeightsError, match=rf"{shard.name}: no tensor '{name}'"):
        open_source(tmp_path)


@pytest.mark.parametrize("weight_map", [None, [], {"lm_head.weight": "../model.safetensors"}, {"lm_head.weight": 3}])
def test_an_index_that_points_elsewhere_is_refused(weight_map: Any, tmp_path: Path) -> None:
    saved(tmp_path, max_shard_size="2KB")
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(WeightsError, match=r"model\.safetensors\.index\.json: no 'weight_map'"):
        open_source(tmp_path)


def test_a_truncated_file_is_named(tmp_path: Path) -> None:
    file = saved(tmp_path) / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-10])
    with pytest.raises(WeightsError, match=r"model\.safetensors: not a whole safetensors file"):
        open_source(tmp_path)


def test_an_eight_bit_type_is_refused(tmp_path: Path) -> None:
    file = saved(tmp_path) / "model.safetensors"
    tensors = load_file(file)
    save_file(tensors | {"lm_head.weight": tensors["lm_head.weight"].to(torch.float8_e4m3fn)}, file)
    with pytest.raises(WeightsError, match=r"lm_head\.weight.*float8_e4m3fn"):
        open_source(tmp_path)


def test_pytorch_files_alone_are_not_read(tmp_path: Path) -> None:
    (saved(tmp_path) / "model.safetensors").rename(tmp_path / "pytorch_model.bin")
    with pytest.raises(WeightsError, match=r"model\.safetensors\.index\.json.*pytorch_model\.bin"):
        open_source(tmp_path)


@pytest.mark.parametrize(
    ("header", "says"),
    [
        (b"\xff" * 8 + b"{}", "HeaderTooLarge|header too large"),
        (struct.pack("<Q", 10**7) + b"{}", "header|length"),
        (struct.pack("<Q", 2) + b"[]", "header|JSON|invalid"),
        (
            b'{"lm_head.weight":{"dtype":"F32","shape":[1000000,1000000],"data_offsets":[0,4]}}',
            "[Tt]ensor|[Oo]ffset|header",
        ),
        (b'{"lm_head.weight":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}', "[Oo]ffset|header"),
        (b'{"lm_head.weight":{"dtype":"F32","shape":[1],"data_offsets":[8,4]}}', "[Oo]ffset|header"),
        (b'{"lm_head.weight":{"dtype":"F32","shape":[0,1099511627776],"data_offsets":[0,0]}}', "empty|header"),
    ],
)
def test_headers_that_lie(header: bytes, says: str, tmp_path: Path) -> None:
    file = saved(tmp_path) / "model.safetensors"
    body = header if header[:1] != b"{" else struct.pack("<Q", len(header)) + header + bytes(4)
    file.write_bytes(body)
    with pytest.raises(WeightsError, match=says) as refusal:
        open_source(tmp_path)
    assert str(file) in str(refusal.value)


def test_fused_experts_that_the_configuration_does_not_say_are_not_taken_apart(tmp_path: Path) -> None:
    values = {name: getattr(SMALL, name) for name in SMALL.__dataclass_fields__}
    config = ModelConfig(**values | {"moe": MoeConfig(3, 2)})
    huggingface_model(config, random_weights(config), "Mixtral").save_pretrained(tmp_path, save_original_format=False)
    settings = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(settings | {"num_local_experts": 2}))
    assert "model.layers.0.mlp.experts.down_proj" in open_source(tmp_path).shapes
