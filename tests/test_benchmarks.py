"""The parts of the benchmarks that decide what a figure means."""

from pathlib import Path
from typing import Any

import pytest

from cierzo import LLM, SamplingParams
from cierzo.model import ModelConfig
from cierzo.weights import load_model
from cpu import weight_bytes
from cpu_report import Result, summary, table
from make_gguf import TYPES, make_gguf
from make_packed import make_packed

SMALL = ModelConfig(
    dim=256, n_layers=2, head_dim=64, hidden_dim=512, n_heads=4, n_kv_heads=2, vocab_size=32_064, max_seq_len=128,
    sliding_window=32,
)  # fmt: skip


@pytest.mark.parametrize("layers_type", TYPES)
def test_a_random_gguf_file_is_a_model_that_answers(tmp_path: Path, layers_type: str) -> None:
    path = tmp_path / "small.gguf"
    make_gguf(path, SMALL, "small", TYPES[layers_type])
    assert [file.name for file in tmp_path.iterdir()] == ["small.gguf"]
    llm = LLM(path)
    assert llm.config == SMALL
    assert llm.tokenizer.encode("Hello world", bos=True) == [1, 22557, 1526]
    answer = llm.generate("Hello", SamplingParams(max_tokens=3, ignore_eos=True))[0]
    assert len(answer.token_ids) == 3


def test_a_random_packed_folder_is_a_model_that_answers(tmp_path: Path) -> None:
    make_packed(tmp_path / "small", SMALL)
    llm = LLM(tmp_path / "small")
    assert llm.config == SMALL
    answer = llm.generate("Hello", SamplingParams(max_tokens=3, ignore_eos=True))[0]
    assert len(answer.token_ids) == 3
    for name, weight in load_model(tmp_path / "small").state_dict().items():
        if weight.dim() == 2:
            assert 0.9 < weight.std() * weight.shape[1] ** 0.5 < 1.2, name


@pytest.mark.parametrize("layers_type", TYPES)
def test_random_matrices_keep_activations_near_one(tmp_path: Path, layers_type: str) -> None:
    make_gguf(tmp_path / "small.gguf", SMALL, "small", TYPES[layers_type])
    for name, weight in load_model(tmp_path / "small.gguf").state_dict().items():
        if weight.dim() == 2:
            assert 0.9 < weight.std() * weight.shape[1] ** 0.5 < 1.2, name


def test_a_token_reads_the_output_but_not_the_embedding(tmp_path: Path) -> None:
    make_gguf(tmp_path / "small.gguf", SMALL, "small", TYPES["q4_0"])
    of_layer = 256 * (256 + 128 + 128 + 256 + 3 * 512) * 18 // 32 + 2 * 256 * 4
    assert weight_bytes(tmp_path / "small.gguf") == 2 * of_layer + 32_064 * 256 * 34 // 32 + 256 * 4


def sample(setting: dict[str, Any], decode: float) -> dict[str, Any]:
    return {"setting": setting, "measured": {"decode": decode, "first_token_s": None}}


def test_the_best_setting_is_one_that_was_measured_in_every_round() -> None:
    fast, lucky = {"flash": True}, {"flash": False}
    result = Result([sample(fast, 10.0), sample(lucky, 11.0)])
    assert result.best("decode") == (11.0, lucky)
    assert result.leaders() == [lucky]
    result.samples += [sample(fast, 10.0), sample(fast, 4.0)]
    assert result.best("decode") == (10.0, fast)
    assert result.best("first_token_s") is None


def test_the_table_tells_shares_ratios_and_what_is_missing() -> None:
    results = {
        "cierzo": Result([sample({}, 12.0)], {"flags": {}}),
        "llama.cpp": Result([sample({}, 8.0)], {"flags": {}}),
        "transformers": Result([{"setting": {}, "measured": {"first_token_s": 3.0}, "error": "not done in 5 s"}]),
        "openvino": Result([{"setting": {}, "error": "no such python"}]),
    }
    results["cierzo"].samples[0]["measured"]["prompt"] = 25.0
    limits = {"read": {"sum": 20.0}, "matrix": {"int8": 100.0}}
    found = summary(results, limits, 1_000_000_000, 1_000_000_000)
    names = ("prompt", "decode", "streams", "stream_prompt", "threads")
    text = "\n".join(table(found | dict.fromkeys(names, 1) | {"model": "m", "weight_bytes": 1_000_000_000}))
    assert "60%" in text
    assert "1.50 x" in text
    assert "{} not done in 5 s" in text
    assert "not measured: no such python" in text
    assert "50%" in text  # 25 tokens a second of 1e9 weights are 50 of 100 GOP/s
    limits["read"] = {"sum": 10.0}
    assert summary(results, limits, 1_000_000_000, 1)["read_gb_per_s"] == 12.0
