"""`pull`, `ls`, `rm`, `inspect` and `fit` as a user runs them."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import mistral_common
import pytest
import torch
from typer.testing import CliRunner

from cierzo.cli import app
from cierzo.errors import CierzoError
from cierzo.model import PRESETS, ModelConfig
from cierzo.weights import open_source, quantize_model
from cierzo.weights.fit import _layers, cache_bytes
from cierzo.weights.load import model_shapes
from cierzo.weights.packed import packed_formats
from cierzo.weights.store import size_text
from support.checkpoints import huggingface_model, random_weights
from support.web import Web, serve

CONFIG = ModelConfig(
    dim=32, n_layers=2, head_dim=8, hidden_dim=64, n_heads=4, n_kv_heads=2, vocab_size=32_000, max_seq_len=64,
    sliding_window=16,
)  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "tiny"
    huggingface_model(CONFIG, random_weights(CONFIG), "Mistral").save_pretrained(folder)
    shutil.copy(Path(mistral_common.__file__).parent / "data" / "tokenizer.model.v1", folder / "tokenizer.model")
    return folder


@pytest.fixture
def hub(tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Web]:
    monkeypatch.setenv("CIERZO_HOME", str(tmp_path / "home"))
    with serve() as web:
        monkeypatch.setenv("HF_ENDPOINT", web.url)
        web.add_model("some/tiny", folder)
        yield web


def run(*arguments: str) -> tuple[str, str]:
    result = CliRunner().invoke(app, list(arguments))
    if isinstance(result.exception, CierzoError):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.stdout, result.stderr


def test_a_model_comes_is_listed_and_goes(hub: Web, tmp_path: Path) -> None:
    out, err = run("ls")
    assert (out, err) == (
        "",
        f"no models in {tmp_path / 'home' / 'models'}: `cierzo ls --all` shows what can be fetched\n",
    )
    out, err = run("pull", "some/tiny", "--quantize", "q8")
    assert out == f"{tmp_path / 'home' / 'models' / 'some--tiny-q8'}\n"
    assert "apache-2.0, packed into q8 on the way) into" in err
    out, _ = run("ls")
    assert out.split()[:3] == ["some--tiny-q8", "5", "MB"]
    assert out.endswith("some/tiny@c0ffee00, apache-2.0\n")
    out, _ = run("inspect", "some/tiny")
    assert "packed by Cierzo" in out
    assert "16 Q8" in out
    assert "2 layers see 16 positions" in out
    _, err = run("rm", "some/tiny-q8")
    assert err.startswith("deleted some/tiny-q8: 5 MB freed")
    assert run("ls")[0] == ""
    with pytest.raises(CierzoError, match="there is no model"):
        run("rm", "some/tiny-q8")


def test_all_names_are_shown(hub: Web) -> None:
    lines = run("ls", "--all")[0].splitlines()
    (line,) = [line for line in lines if line.startswith("mistral-7b-v0.1 ")]
    assert line.split(maxsplit=3)[1:] == ["14.5", "GB", "can be fetched: Apache-2.0; from hub, magnet"]
    assert any("ask Meta for access first" in line for line in lines if line.startswith("llama-2-7b "))


def test_inspect_names_what_is_wrong(folder: Path) -> None:
    out, _ = run("inspect", str(folder), "--full")
    assert "all numbers are finite" in out
    assert "32000 tokens" in out
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(CierzoError, match=r"model\.safetensors: not a whole safetensors file"):
        run("inspect", str(folder))


@pytest.fixture
def briefly(monkeypatch: pytest.MonkeyPatch) -> None:
    """Speed is told, and need not be right."""
    monkeypatch.setattr("cierzo.weights.fit._SECONDS", 0.05)


@pytest.mark.usefixtures("briefly")
def test_fit_says_what_a_model_takes(folder: Path) -> None:
    out, _ = run("fit", str(folder), "--context", "32")
    assert "2 layers of 32" in out
    assert "q4t: weights" in out
    assert "tokens/s" in out
    assert f"as it is, in float32: weights {size_text(4 * CONFIG.n_params)}, cache" in out
    narrow = torch.float16
    huggingface_model(CONFIG, random_weights(CONFIG), "Mistral").to(narrow).save_pretrained(folder)
    assert open_source(folder).dtype == narrow
    out, _ = run("fit", str(folder), "--context", "32")
    assert f"as it is, in float32: weights {size_text(4 * CONFIG.n_params)}, cache" in out
    for wrong in ("0", "1000000000000"):
        with pytest.raises(CierzoError, match="--context must be from 1 to the model's"):
            run("fit", str(folder), "--context", wrong)


@pytest.mark.usefixtures("briefly")
def test_fit_of_a_model_in_few_bits_is_of_it_as_it_is(folder: Path, tmp_path: Path) -> None:
    quantize_model(folder, tmp_path / "packed", format="q4")
    out, _ = run("fit", str(tmp_path / "packed"), "--context", "32")
    assert "as it is: weights" in out
    assert "q4t" not in out


def test_what_is_measured_has_windows_and_experts_in_their_share() -> None:
    ministral, mixtral = PRESETS["ministral-8b-2410"], PRESETS["mixtral-8x7b-v0.1"]
    formats = [packed_formats(model_shapes(config), "q4t") for config in (ministral, mixtral)]
    assert _layers(ministral, formats[0]) == 4  # one that sees everything, three with a window
    assert _layers(mixtral, formats[1]) == 2


def test_the_cache_is_bounded_by_the_window() -> None:
    """The figures of the paged cache's own documentation."""
    v01 = PRESETS["mistral-7b-v0.1"]
    assert cache_bytes(v01, 32_768) == cache_bytes(v01, 1_000_000) == 289 * 16 * 128 * 1024
    assert cache_bytes(PRESETS["mistral-7b-v0.3"], 32_768) == 32_768 * 128 * 1024
