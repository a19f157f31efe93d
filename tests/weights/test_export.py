"""Models into other formats: exact where the format allows, and as `transformers` and PEFT understand them."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from torch import Tensor

from cierzo.errors import CierzoError, WeightsError
from cierzo.model import ModelConfig, MoeConfig
from cierzo.ops import Format, pack, quantize
from cierzo.weights import consolidated, load_model, open_source, quantize_model
from cierzo.weights.export import export_consolidated, export_huggingface
from cierzo.weights.export_gguf import blocks, export_gguf
from support.checkpoints import huggingface_model, huggingface_weights, random_weights, write_consolidated, write_gguf
from support.logits import packed_logits

VOCABULARY = {"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.tokens": ["<s>", "a", "b"]}


def shape(**values: Any) -> ModelConfig:
    odd: dict[str, Any] = {
        "dim": 54, "n_layers": 3, "head_dim": 14, "hidden_dim": 77, "n_heads": 6, "n_kv_heads": 2, "vocab_size": 101,
        "max_seq_len": 128,
    }  # fmt: skip
    return ModelConfig(**odd | values)


MODELS = {
    "mistral-window": shape(sliding_window=7),
    "mistral-tied": shape(rope_theta=1e6, tied_embeddings=True),
    "mixtral": shape(moe=MoeConfig(5, 2), rope_theta=1e6),
    "ministral": shape(n_layers=4, sliding_window=(None, 7, 7, 7), rope_theta=1e8),
}
MORE_MODELS = MODELS | {
    "full": shape(),
    "full, each layer by itself": shape(sliding_window=(None, None, None)),
    "dilation without a window": shape(window_dilation=(2, 1, 3)),
    "one window, each layer by itself": shape(sliding_window=(7, 7, 7), window_dilation=(1, 1, 1)),
    "window as long as the context": shape(sliding_window=128),
    "heads that do not divide the width": shape(dim=50, n_heads=6),
    "one key head": shape(n_kv_heads=1, sliding_window=(7, None, 7), tied_embeddings=True),
    "all key heads": shape(n_kv_heads=6),
    "a whole number as epsilon": shape(norm_eps=1),
    "mixtral-window": shape(moe=MoeConfig(5, 2), sliding_window=7),
    "mixtral-windows": shape(moe=MoeConfig(2, 2), sliding_window=(7, 7, 7), tied_embeddings=True),
    "mixtral, one expert": shape(moe=MoeConfig(1, 1), sliding_window=(None, None, None), dim=50),
}
EXPORTS: dict[str, Callable[..., None]] = {
    "huggingface": export_huggingface,
    "consolidated": export_consolidated,
    "gguf": lambda model, out, dtype, **options: export_gguf(model, out, vocabulary=VOCABULARY, name="x", **options),
}


def tensors(path: Path) -> dict[str, Tensor]:
    source = open_source(path)
    return {name: source.tensor(name) for name in source.shapes}


def assert_same(got: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert got.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(got[name].float(), tensor.float()), name


@pytest.mark.parametrize("to", ["huggingface", "consolidated"])
@pytest.mark.parametrize("name", MODELS)
def test_sixteen_bits_come_back_as_they_were(name: str, to: str, tmp_path: Path) -> None:
    config = MODELS[name]
    weights = {key: tensor.bfloat16() for key, tensor in random_weights(config).items()}
    original = write_consolidated(tmp_path / "original", config, weights)
    reports: list[tuple[int, int]] = []
    EXPORTS[to](original, tmp_path / "out", progress=lambda *report: reports.append(report))
    assert reports[-1] == (config.n_params, config.n_params)
    source = open_source(tmp_path / "out")
    assert source.config == config
    assert source.dtype == torch.bfloat16
    assert_same(tensors(tmp_path / "out"), weights)
    export_consolidated(tmp_path / "out", tmp_path / "again")  # and back again
    assert_same(tensors(tmp_path / "again"), weights)


@pytest.mark.parametrize("name", MORE_MODELS)
def test_transformers_gives_the_same_logits(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = MORE_MODELS[name]
    monkeypatch.setattr(consolidated, "read_params", lambda _: config)  # params.json cannot say all of them
    original = write_consolidated(tmp_path / "original", config, random_weights(config))
    assert_exported_alike(original, tmp_path / "out")


def assert_exported_alike(original: Path, out: Path) -> None:
    """The exported model gives our logits in transformers, and again here."""
    import transformers

    export_huggingface(original, out, dtype=torch.float32)
    settings = {"attn_implementation": "eager", "experts_implementation": "eager", "dtype": torch.float32}
    theirs = transformers.AutoModelForCausalLM.from_pretrained(out, **settings)
    text = torch.randint(open_source(original).config.vocab_size, (60,), generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        expected = theirs.eval()(text.unsqueeze(0)).logits[0]
    for folder in (original, out):
        (ours,) = packed_logits(load_model(folder), [text])
        assert (ours - expected).abs().max() < 1e-4


@pytest.mark.parametrize("kind", ["Mistral", "Ministral"])
def test_an_interleaved_model_whose_layers_all_see_everything(kind: str, tmp_path: Path) -> None:
    config = shape(sliding_window=7)
    folder = tmp_path / "original"
    huggingface_model(config, random_weights(config), kind).save_pretrained(folder)
    values = json.loads((folder / "config.json").read_text())
    for more in ({"layer_types": ["full_attention"] * 3}, {"layer_types": ["sliding_attention"] * 3}):
        (folder / "config.json").write_text(json.dumps(values | more))
        out = tmp_path / more["layer_types"][0]
        assert_exported_alike(folder, out)


def test_dilated_windows_have_no_form_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = shape(sliding_window=(7, None, 5), window_dilation=(1, 1, 2))
    monkeypatch.setattr(consolidated, "read_params", lambda _: config)
    original = write_consolidated(tmp_path / "original", config, random_weights(config))
    for name in ("huggingface", "consolidated"):
        with pytest.raises(CierzoError, match="its windows are dilated"):
            EXPORTS[name](original, tmp_path / "out")


def test_shards_and_their_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from cierzo.weights import export

    monkeypatch.setattr(export, "_SHARD", 20_000)
    config = MODELS["mistral-window"]
    weights = random_weights(config)
    original = write_consolidated(tmp_path / "original", config, weights)
    export_huggingface(original, tmp_path / "out", dtype=torch.float32)
    assert len(list((tmp_path / "out").glob("model-*-of-*.safetensors"))) > 3
    assert_same(tensors(tmp_path / "out"), weights)


@pytest.mark.parametrize("moe", [None, MoeConfig(3, 2)])
@pytest.mark.parametrize("kind", ["f16", "q8_0", "q4_0"])
def test_gguf_files_hold_the_rounded_weights(kind: str, moe: MoeConfig | None, tmp_path: Path) -> None:
    config = shape(dim=64, head_dim=16, hidden_dim=96, sliding_window=7, moe=moe)
    weights = random_weights(config)
    original = write_consolidated(tmp_path / "original", config, weights)
    out = tmp_path / "out.gguf"
    export_gguf(original, out, kind=kind, vocabulary=VOCABULARY, name="tiny")
    assert open_source(out).config == config
    reader = gguf.GGUFReader(out)
    tokens = reader.fields["tokenizer.ggml.tokens"].contents()
    assert tokens[:4] == ["<s>", "a", "b", "[unused 3]"]
    assert len(tokens) == config.vocab_size
    for name, got in tensors(out).items():
        expected = weights[name]
        if expected.ndim == 2 and not name.endswith("gate.weight"):
            if kind == "f16":
                expected = expected.half()
            else:
                eight = kind == "q8_0" or name in ("tok_embeddings.weight", "output.weight")
                expected = quantize(expected, Format.Q8 if eight else Format.Q4).unpacked()
        assert torch.equal(got.float(), expected.float()), name


@pytest.mark.parametrize("bits", [4, 8])
def test_packed_weights_keep_their_grid(bits: int, tmp_path: Path) -> None:
    config = shape(dim=64, head_dim=16, hidden_dim=96)
    original = write_consolidated(tmp_path / "original", config, random_weights(config))
    quantize_model(original, tmp_path / "packed", format=f"q{bits}")
    for kind in ("q8_0", "q4_0"):
        out = tmp_path / f"{kind}.gguf"
        export_gguf(tmp_path / "packed", out, kind=kind, vocabulary=VOCABULARY, name="tiny")
        assert_same(tensors(out), tensors(tmp_path / "packed"))
        stored = open_source(out)
        assert stored.kind("layers.0.attention.wq.weight") == f"Q{bits}_0"
    export_huggingface(tmp_path / "packed", tmp_path / "hf", dtype=torch.float32)
    assert_same(tensors(tmp_path / "hf"), tensors(tmp_path / "packed"))


@pytest.mark.parametrize("own", ["Q4_0", "Q4_1", "Q8_0"])
def test_a_gguf_files_blocks_are_handed_on(own: str, tmp_path: Path) -> None:
    config = shape(dim=64, head_dim=16, hidden_dim=96)
    original = write_gguf(tmp_path / "original.gguf", config, random_weights(config), gguf.GGMLQuantizationType[own])
    for kind in ("q8_0", "q4_0"):
        export_gguf(original, tmp_path / f"{kind}.gguf", kind=kind, vocabulary=VOCABULARY, name="tiny")
        before, after = (gguf.GGUFReader(path).tensors for path in (original, tmp_path / f"{kind}.gguf"))
        bytes_before = {tensor.name: (tensor.tensor_type, tensor.data.tobytes()) for tensor in before}
        assert {tensor.name: (tensor.tensor_type, tensor.data.tobytes()) for tensor in after} == bytes_before


@pytest.mark.parametrize("format", [Format.Q4, Format.Q4M, Format.Q8])
@pytest.mark.parametrize(("outputs", "inputs"), [(16, 64), (37, 96), (1100, 160)])
def test_blocks_are_what_the_gguf_library_reads(format: Format, outputs: int, inputs: int) -> None:
    torch.manual_seed(outputs)
    if format is Format.Q4M:
        groups = inputs // 32
        values = torch.randint(0, 16, (outputs, inputs), dtype=torch.uint8)
        matrix = pack(format, values, torch.rand(outputs, groups).half(), torch.randn(outputs, groups).half())
    else:
        matrix = quantize(torch.randn(outputs, inputs), format)
    kind = {
        Format.Q4: gguf.GGMLQuantizationType.Q4_0,
        Format.Q4M: gguf.GGMLQuantizationType.Q4_1,
        Format.Q8: gguf.GGMLQuantizationType.Q8_0,
    }[format]
    read = gguf.dequantize(blocks(matrix).reshape(outputs, -1), kind)
    np.testing.assert_array_equal(read, matrix.unpacked().numpy())


def adapted(tmp_path: Path, config: ModelConfig, weights: dict[str, Tensor], **settings: Any) -> tuple[Path, Any]:
    """An adapter with random matrices, and PEFT's own model with it merged."""
    import peft

    model = huggingface_model(config, weights, "Mistral")
    targets = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "lm_head"]
    adapter = peft.get_peft_model(model, peft.LoraConfig(r=4, lora_alpha=9, target_modules=targets, **settings))
    torch.manual_seed(3)
    for name, parameter in adapter.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    adapter.save_pretrained(str(tmp_path / "adapter"))
    return tmp_path / "adapter", adapter.merge_and_unload()


@pytest.mark.parametrize("settings", [{}, {"use_rslora": True}])
def test_an_adapter_is_merged_as_peft_merges_it(settings: dict[str, Any], tmp_path: Path) -> None:
    config = shape(sliding_window=7)
    weights = random_weights(config)
    original = write_consolidated(tmp_path / "original", config, weights)
    adapter, merged = adapted(tmp_path, config, weights, **settings)
    export_huggingface(original, tmp_path / "out", dtype=torch.float32, lora=adapter)
    from safetensors.torch import load_file

    got = load_file(tmp_path / "out" / "model.safetensors")
    changed = 0
    for name, before in huggingface_weights(config, weights).items():
        expected = merged.state_dict()[name]
        assert torch.allclose(got[name], expected, atol=1e-6, rtol=1e-5), name
        changed += not torch.allclose(before, expected, atol=1e-3)
    assert changed == 7 * config.n_layers + 1
    export_gguf(original, tmp_path / "out.gguf", vocabulary=VOCABULARY, name="x", lora=adapter)
    assert load_model(tmp_path / "out.gguf").config == config


def test_adapters_that_do_not_fit(tmp_path: Path) -> None:
    config = shape(sliding_window=7)
    weights = random_weights(config)
    original = write_consolidated(tmp_path / "original", config, weights)
    adapter, _ = adapted(tmp_path, config, weights)
    other = replace(config, hidden_dim=80)
    narrow = write_consolidated(tmp_path / "narrow", other, random_weights(other))
    with pytest.raises(WeightsError, match=r"takes A and B of rank 4.*the adapter is of another model"):
        export_huggingface(narrow, tmp_path / "out", lora=adapter)
    text = (adapter / "adapter_config.json").read_text()
    for change, says in (
        (('"use_dora": false', '"use_dora": true'), "'use_dora' is not supported"),
        (('"bias": "none"', '"bias": "all"'), "biases are not supported"),
        (('"lora_alpha": 9', '"lora_alpha": -1'), "'lora_alpha' must be a positive number"),
        (('"peft_type": "LORA"', '"peft_type": "IA3"'), "'IA3' adapters cannot be merged"),
    ):
        assert change[0] in text
        (adapter / "adapter_config.json").write_text(text.replace(*change))
        with pytest.raises(WeightsError, match=says):
            export_huggingface(original, tmp_path / "out", lora=adapter)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter", "narrow", "original"]


def test_what_has_no_form_there(tmp_path: Path) -> None:
    mixed = MODELS["ministral"]
    original = write_consolidated(tmp_path / "original", mixed, random_weights(mixed))
    with pytest.raises(CierzoError, match="GGUF has one window for all layers"):
        export_gguf(original, tmp_path / "out.gguf", vocabulary=VOCABULARY, name="x")
    for several in (
        shape(sliding_window=(7, 9, 7)), shape(moe=MoeConfig(2, 1), sliding_window=(7, None, 7), rope_theta=1e6)
    ):  # fmt: skip
        write_consolidated(tmp_path / "original", several, random_weights(several))
        with pytest.raises(CierzoError, match=r"several windows.*no Hugging Face form"):
            export_huggingface(tmp_path / "original", tmp_path / "out")
    write_consolidated(tmp_path / "original", mixed, random_weights(mixed))
    with pytest.raises(CierzoError, match=r"must end with \.gguf"):
        export_gguf(original, tmp_path / "out", vocabulary=VOCABULARY, name="x")
    config = MODELS["mistral-window"]
    huge = random_weights(config)
    huge["norm.weight"][0] = huge["layers.0.attention.wq.weight"][0, 0] = 1e6
    write_consolidated(tmp_path / "huge", config, huge)
    with pytest.raises(CierzoError, match=r"holds numbers beyond torch\.float16: export it to bfloat16"):
        export_huggingface(tmp_path / "huge", tmp_path / "out", dtype=torch.float16)
    export_huggingface(tmp_path / "huge", tmp_path / "out")
    with pytest.raises(CierzoError, match="exists: name another folder"):
        export_consolidated(tmp_path / "huge", tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["huge", "original", "out"]


def test_a_gguf_file_goes_back_to_folders(tmp_path: Path) -> None:
    config = shape(sliding_window=7)
    weights = random_weights(config)
    file = write_gguf(tmp_path / "model.gguf", config, weights)
    export_huggingface(file, tmp_path / "out", dtype=torch.float32)
    assert_same(tensors(tmp_path / "out"), weights)
    assert open_source(tmp_path / "out").config == config
