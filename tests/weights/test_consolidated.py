"""Mistral's own format: what `params.json` means, and files that are broken."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from cierzo.errors import WeightsError
from cierzo.model import PRESETS, ModelConfig
from cierzo.weights import load_model, open_source
from cierzo.weights.consolidated import read_params
from support.checkpoints import params, random_weights, write_consolidated

SMALL = ModelConfig(
    dim=16, n_layers=2, head_dim=8, hidden_dim=24, n_heads=2, n_kv_heads=1, vocab_size=32, max_seq_len=64
)
# As published: the 2023 torrent of v0.1, and the v0.3, Ministral 8B and Mixtral 8x7B releases.
V01 = {
    "dim": 4096, "n_layers": 32, "head_dim": 128, "hidden_dim": 14336, "n_heads": 32, "n_kv_heads": 8,
    "norm_eps": 1e-05, "sliding_window": 4096, "vocab_size": 32000,
}  # fmt: skip
V03 = {key: value for key, value in V01.items() if key != "sliding_window"} | {
    "vocab_size": 32768,
    "rope_theta": 1000000.0,
}
MINISTRAL = V03 | {
    "n_layers": 36, "hidden_dim": 12288, "rope_theta": 100000000.0, "vocab_size": 131072, "max_seq_len": 131072,
    "_sliding_window": [None, 32768, 32768, 32768],
}  # fmt: skip
MIXTRAL = V03 | {"vocab_size": 32000, "moe": {"num_experts_per_tok": 2, "num_experts": 8}}


def read(folder: Path, values: dict[str, Any]) -> ModelConfig:
    path = folder / "params.json"
    path.write_text(json.dumps(values))
    return read_params(path)


@pytest.mark.parametrize(
    ("values", "preset"),
    [
        (V01, "mistral-7b-v0.1"),
        (V03, "mistral-7b-v0.3"),
        (MINISTRAL, "ministral-8b-2410"),
        (MIXTRAL, "mixtral-8x7b-v0.1"),
    ],
)
def test_published_params(values: dict[str, Any], preset: str, tmp_path: Path) -> None:
    assert read(tmp_path, values) == PRESETS[preset]


def test_a_rope_base_that_is_not_given_is_ten_thousand(tmp_path: Path) -> None:
    config = read(tmp_path, V01)
    assert config.rope_theta == 10_000
    assert config.sliding_window == 4096


def test_keys_that_are_not_given(tmp_path: Path) -> None:
    config = read(tmp_path, {key: V01[key] for key in V01 if key not in ("head_dim", "n_kv_heads", "sliding_window")})
    assert (config.head_dim, config.n_kv_heads, config.max_seq_len) == (128, 32, 32_768)
    assert config.sliding_window is None
    assert not config.tied_embeddings


def test_a_pattern_in_sliding_window_itself_and_unknown_keys(tmp_path: Path) -> None:
    config = read(tmp_path, V01 | {"sliding_window": [4096, None], "model_parallel": 1, "_sliding_window": None})
    assert config.sliding_window == (4096, None) * 16


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"yarn": {"factor": 8}}, "yarn"),
        ({"quantization": {"qformat_weight": "fp8_e4m3"}}, "quantization"),
        ({"vision_encoder": {"hidden_size": 1024}}, "vision_encoder"),
        ({"lora": {"rank": 64}}, "lora"),
        ({"causal": False}, "causal"),
        ({"is_causal": None}, "is_causal"),
        ({"use_biases": True}, "use_biases"),
        ({"use_scaled_rope": True}, "use_scaled_rope"),
        ({"moe": {"num_experts": 8, "num_experts_per_tok": 2}}, "rope_theta"),
        ({"moe": {"num_experts": 8}, "rope_theta": 1e6}, "num_experts_per_tok"),
        ({"moe": {"num_experts": 2, "num_experts_per_tok": 3}, "rope_theta": 1e6}, "num_experts_per_tok 3"),
        ({"moe": {"num_experts": 8, "num_experts_per_tok": 2, "num_shared_experts": 1}}, "num_shared_experts"),
        ({"sliding_window": [4096, None, None]}, "3 sliding windows"),
        ({"sliding_window": []}, "0 sliding windows"),
        ({"sliding_window": 0}, "sliding_window"),
        ({"n_layers": "32"}, "n_layers"),
        ({"hidden_dim": None}, "hidden_dim"),
        ({"vocab_size": -1}, "vocab_size"),
        ({"n_kv_heads": 5}, "n_kv_heads"),
        ({"norm_eps": None}, "norm_eps"),
    ],
)
def test_what_cannot_be_run_is_refused_by_name(change: dict[str, Any], named: str, tmp_path: Path) -> None:
    with pytest.raises(WeightsError) as refusal:
        read(tmp_path, V01 | change)
    assert named in str(refusal.value)
    assert str(tmp_path / "params.json") in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_null_settings_are_not_refused(tmp_path: Path) -> None:
    config = read(tmp_path, V01 | {"yarn": None, "quantization": None, "moe": None, "use_biases": False, "lora": None})
    assert config == PRESETS["mistral-7b-v0.1"]


@pytest.mark.parametrize("text", ["{", "[1]", "", b"\xff\xfe\x00".decode("latin1")])
def test_params_that_are_not_an_object(text: str, tmp_path: Path) -> None:
    (tmp_path / "params.json").write_text(text)
    with pytest.raises(WeightsError, match=r"params\.json"):
        read_params(tmp_path / "params.json")


@pytest.mark.parametrize(("suffix", "shards"), [(".safetensors", 1), (".safetensors", 3), (".pth", 1), (".pth", 2)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_tensors_arrive_unchanged(suffix: str, shards: int, dtype: torch.dtype, tmp_path: Path) -> None:
    weights = {name: tensor.to(dtype) for name, tensor in random_weights(SMALL).items()}
    source = open_source(write_consolidated(tmp_path, SMALL, weights, suffix=suffix, shards=shards))
    assert source.dtype == dtype
    assert source.shapes == {name: tuple(tensor.shape) for name, tensor in weights.items()}
    for name, tensor in weights.items():
        assert torch.equal(source.tensor(name), tensor), name


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_one_name_in_two_shards_is_refused(suffix: str, tmp_path: Path) -> None:
    weights = random_weights(SMALL)
    write_consolidated(tmp_path, SMALL, weights, suffix=suffix, shards=2)
    half = {"layers.0.attention.wq.weight": weights["layers.0.attention.wq.weight"][:8].clone()}
    if suffix == ".pth":
        torch.save(half, tmp_path / "consolidated.02.pth")
    else:
        save_file(half, tmp_path / "consolidated.02.safetensors")
    with pytest.raises(WeightsError, match=r"consolidated\.02.*layers\.0\.attention\.wq\.weight.*Hugging Face"):
        open_source(tmp_path)


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
@pytest.mark.parametrize("kept", [0, 100, 0.5, -1])
def test_a_truncated_file_is_named(suffix: str, kept: float, tmp_path: Path) -> None:
    write_consolidated(tmp_path, SMALL, random_weights(SMALL), suffix=suffix)
    (file,) = tmp_path.glob(f"consolidated*{suffix}")
    whole = file.read_bytes()
    file.write_bytes(whole[: int(len(whole) * kept) if kept == 0.5 else int(kept)])
    with pytest.raises(WeightsError) as refusal:
        open_source(tmp_path)
    assert str(file) in str(refusal.value)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_a_type_that_is_not_a_float_is_refused(suffix: str, tmp_path: Path) -> None:
    weights = random_weights(SMALL)
    weights["output.weight"] = weights["output.weight"].to(torch.int8)
    with pytest.raises(WeightsError, match=r"consolidated\.00.*output\.weight.*int8"):
        open_source(write_consolidated(tmp_path, SMALL, weights, suffix=suffix))


def test_code_in_a_pickle_is_not_run(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> Any:
            return (Path.touch, (tmp_path / "ran",))

    (tmp_path / "params.json").write_text(json.dumps(params(SMALL)))
    torch.save({"tok_embeddings.weight": Evil()}, tmp_path / "consolidated.00.pth")
    with pytest.raises(WeightsError, match=r"consolidated\.00\.pth"):
        open_source(tmp_path)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("content", [[torch.zeros(2)], {"model": {"norm.weight": torch.zeros(2)}}])
def test_a_pickle_of_something_else_is_refused(content: Any, tmp_path: Path) -> None:
    (tmp_path / "params.json").write_text(json.dumps(params(SMALL)))
    torch.save(content, tmp_path / "consolidated.00.pth")
    with pytest.raises(WeightsError, match=r"consolidated\.00\.pth: does not hold a dictionary of tensors"):
        open_source(tmp_path)


def test_declared_tied_with_an_output_of_its_own(tmp_path: Path) -> None:
    tied = ModelConfig(
        **{name: getattr(SMALL, name) for name in SMALL.__dataclass_fields__} | {"tied_embeddings": True}
    )
    weights = random_weights(tied)
    same = weights | {"output.weight": weights["tok_embeddings.weight"].clone()}
    assert load_model(write_consolidated(tmp_path / "same", tied, same)).output is None
    other = weights | {"output.weight": weights["tok_embeddings.weight"] + 1}
    with pytest.raises(WeightsError, match=r"tied.*output\.weight"):
        load_model(write_consolidated(tmp_path / "other", tied, other))
