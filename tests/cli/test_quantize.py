"""`cierzo quantize` as a user runs it."""

import shutil
from pathlib import Path

import mistral_common
import pytest
from typer.testing import CliRunner

from cierzo import LLM, SamplingParams
from cierzo.cli import app
from cierzo.errors import CierzoError
from cierzo.model import ModelConfig
from support.checkpoints import random_weights, write_consolidated

CONFIG = ModelConfig(
    dim=32, n_layers=2, head_dim=8, hidden_dim=64, n_heads=4, n_kv_heads=2, vocab_size=32_000, max_seq_len=64,
    sliding_window=16,
)  # fmt: skip


@pytest.fixture
def original(tmp_path: Path) -> Path:
    folder = write_consolidated(tmp_path / "tiny-instruct", CONFIG, random_weights(CONFIG))
    vocabulary = Path(mistral_common.__file__).parent / "data" / "tokenizer.model.v1"
    shutil.copy(vocabulary, folder / "tokenizer.model")
    return folder


@pytest.mark.parametrize("options", [[], ["--format", "q4"], ["--format", "q8"]])
def test_a_packed_model_answers(original: Path, options: list[str]) -> None:
    result = CliRunner().invoke(app, ["quantize", str(original), *options])
    assert result.exit_code == 0, result.output
    out = original.with_name(f"tiny-instruct-{(options or ['q4t'])[-1]}")
    assert f"wrote {out}" in result.stderr
    assert result.stdout == ""
    answer = LLM(out).chat([{"role": "user", "content": "Hello"}], SamplingParams(max_tokens=4, ignore_eos=True))
    assert len(answer.token_ids) == 4


def test_mistakes_are_told(original: Path, tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["quantize", str(tmp_path / "none")])
    assert isinstance(result.exception, CierzoError)
    assert "is no folder: give a consolidated or Hugging Face checkpoint" in str(result.exception)
    assert CliRunner().invoke(app, ["quantize", str(original), "--format", "q3"]).exit_code == 2
