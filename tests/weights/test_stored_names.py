"""Two tensors for one parameter, and names of another format: each reader names both tensors."""

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from cierzo.errors import WeightsError
from cierzo.model import ModelConfig, MoeConfig
from cierzo.weights import load_model, open_source, quantize_model
from cierzo.weights.packing import FILE
from support.checkpoints import huggingface_model, huggingface_weights, random_weights, write_consolidated, write_gguf

SHAPE: dict[str, Any] = {
    "dim": 32, "n_layers": 2, "head_dim": 8, "hidden_dim": 32, "n_heads": 4, "n_kv_heads": 2, "vocab_size": 64,
    "max_seq_len": 64,
}  # fmt: skip
DENSE = ModelConfig(**SHAPE)
MIXTURE = ModelConfig(**SHAPE, moe=MoeConfig(2, 1), rope_theta=1e6)
FOREIGN = {
    "output.weight": "lm_head.weight",
    "norm.weight": "model.norm.weight",
    "tok_embeddings.weight": "model.embed_tokens.weight",
    "layers.1.attention.wq.weight": "model.layers.1.self_attn.q_proj.weight",
    "layers.0.feed_forward.w2.weight": "model.layers.0.mlp.down_proj.weight",
    "layers.1.attention_norm.weight": "model.layers.1.input_layernorm.weight",
}
"""Mistral's own names, and those of Hugging Face."""


def huggingface(folder: Path, config: ModelConfig = DENSE, **options: object) -> Path:
    kind = "Mixtral" if config.moe else "Mistral"
    huggingface_model(config, random_weights(config), kind).save_pretrained(folder, **options)
    return folder


def with_tensors(file: Path, added: dict[str, Tensor]) -> None:
    save_file(load_file(file) | added, file, {"format": "pt"})


@pytest.mark.parametrize("shards", [False, True])
@pytest.mark.parametrize("foreign", FOREIGN)
def test_a_tensor_named_as_in_another_format_replaces_none(foreign: str, shards: bool, tmp_path: Path) -> None:
    folder = huggingface(tmp_path, max_shard_size="10KB" if shards else "1GB")
    file = sorted(folder.glob("*.safetensors"))[-1]
    with_tensors(file, {foreign: torch.zeros_like(random_weights(DENSE)[foreign])})
    with pytest.raises(WeightsError) as refusal:
        open_source(folder)
    for named in (str(file), repr(foreign), repr(FOREIGN[foreign])):
        assert named in str(refusal.value)


def test_a_consolidated_file_under_another_name_is_refused(tmp_path: Path) -> None:
    """Its q and k are in the other order already."""
    save_file(random_weights(DENSE), huggingface(tmp_path) / "model.safetensors")
    with pytest.raises(WeightsError, match=r"'layers\.0\.a.* name from Mistral's own format.*'model\.layers\.0"):
        open_source(tmp_path)


def test_two_layouts_of_one_router_or_expert(tmp_path: Path) -> None:
    both = {
        "model.layers.0.mlp.gate.weight": "model.layers.0.block_sparse_moe.gate.weight",
        "model.layers.1.mlp.experts.down_proj": "model.layers.1.block_sparse_moe.experts.0.w2.weight",
    }
    weights = huggingface_weights(MIXTURE, random_weights(MIXTURE))
    for fused, apart in both.items():
        file = huggingface(tmp_path, MIXTURE, save_original_format=True) / "model.safetensors"
        assert apart in load_file(file)
        with_tensors(file, {fused: weights[fused]})
        with pytest.raises(WeightsError) as refusal:
            open_source(tmp_path)
        assert repr(fused) in str(refusal.value)
        assert repr(apart) in str(refusal.value)


def test_one_tensor_in_two_shards(tmp_path: Path) -> None:
    shards = sorted(huggingface(tmp_path, max_shard_size="10KB").glob("*.safetensors"))
    name, tensor = next(iter(load_file(shards[0]).items()))
    with_tensors(shards[1], {name: tensor + 1})
    with pytest.raises(WeightsError) as refusal:
        open_source(tmp_path)
    for named in (name, shards[0].name, shards[1].name):
        assert named in str(refusal.value)


def test_a_tensor_that_the_index_forgot_is_read(tmp_path: Path) -> None:
    """As transformers does."""
    index = huggingface(tmp_path, max_shard_size="10KB") / "model.safetensors.index.json"
    values = json.loads(index.read_text())
    del values["weight_map"]["model.norm.weight"]
    index.write_text(json.dumps(values))
    assert torch.equal(open_source(tmp_path).tensor("norm.weight"), random_weights(DENSE)["norm.weight"])


def gguf_with(path: Path, config: ModelConfig, added: dict[str, Tensor]) -> Path:
    """A GGUF file with more tensors than it should have."""
    reader = gguf.GGUFReader(write_gguf(path.with_suffix(".plain"), config, random_weights(config)))
    writer = gguf.GGUFWriter(path, "llama")
    for key, field in reader.fields.items():
        if key.startswith("llama."):
            writer.add_key_value(key, field.contents(), field.types[0])
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, tensor.data)
    for name, value in added.items():
        writer.add_tensor(name, value.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize(
    ("config", "added", "stored"),
    [
        (DENSE, "norm.weight", "output_norm.weight"),
        (DENSE, "tok_embeddings.weight", "token_embd.weight"),
        (DENSE, "layers.1.attention.wk.weight", "blk.1.attn_k.weight"),
        (MIXTURE, "layers.1.feed_forward.experts.0.w1.weight", "blk.1.ffn_gate_exps.weight"),
        (MIXTURE, "blk.1.ffn_gate.0.weight", "blk.1.ffn_gate_exps.weight"),
    ],
)
def test_gguf(config: ModelConfig, added: str, stored: str, tmp_path: Path) -> None:
    tensor = torch.from_numpy(np.ones((32, 32), np.float32))
    assert open_source(gguf_with(tmp_path / "good.gguf", config, {})).config == config
    path = gguf_with(tmp_path / "model.gguf", config, {added: tensor})
    with pytest.raises(WeightsError) as refusal:
        open_source(path)
    for named in (str(path), repr(added), repr(stored)):
        assert named in str(refusal.value)


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_consolidated(suffix: str, tmp_path: Path) -> None:
    folder = write_consolidated(tmp_path, DENSE, random_weights(DENSE), suffix=suffix, shards=2)
    first, second = sorted(folder.glob("consolidated*"))
    if suffix == ".safetensors":
        name, tensor = next(iter(load_file(first).items()))
        with_tensors(second, {name: tensor})
    else:
        name, tensor = next(iter(torch.load(first, weights_only=True).items()))
        torch.save(torch.load(second, weights_only=True) | {name: tensor}, second)
    with pytest.raises(WeightsError) as refusal:
        open_source(folder)
    for named in (name, first.name, second.name):
        assert named in str(refusal.value)


def test_consolidated_takes_no_names_of_hugging_face(tmp_path: Path) -> None:
    folder = write_consolidated(tmp_path, DENSE, random_weights(DENSE))
    with_tensors(next(folder.glob("*.safetensors")), {"lm_head.weight": torch.zeros(64, 32)})
    with pytest.raises(WeightsError, match=r"tensor 'lm_head\.weight' has no place"):
        load_model(folder)


@pytest.mark.parametrize("name", ["lm_head.weight", "layers.2.attention.wq.weight", "more"])
def test_packed_folders_declare_every_tensor(name: str, tmp_path: Path) -> None:
    from safetensors import safe_open

    original = write_consolidated(tmp_path / "original", DENSE, random_weights(DENSE))
    quantize_model(original, tmp_path / "packed")
    file = tmp_path / "packed" / FILE
    with safe_open(file, "pt") as opened:
        metadata = opened.metadata()
    save_file(load_file(file) | {name: torch.zeros(4)}, file, metadata)
    with pytest.raises(WeightsError, match=rf"tensor '{name}' is not declared"):
        open_source(tmp_path / "packed")
    twice = json.dumps(json.loads(metadata["shapes"]))[:-1] + ', "norm.weight": [32]}'
    save_file(load_file(file), file, metadata | {"shapes": twice})
    with pytest.raises(WeightsError, match="metadata 'shapes' cannot be read"):
        open_source(tmp_path / "packed")
