"""What the command says of a broken model of each kind: one line, and status 1."""

import io
import json
import struct
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from cierzo import cli
from fuzz.readers import READERS

Breaker = Callable[[Path], object]


def cut(file: str) -> Breaker:
    return lambda folder: (folder / file).write_bytes((folder / file).read_bytes()[:-50])


def changed(file: str, **values: object) -> Breaker:
    return lambda folder: (folder / file).write_text(json.dumps(json.loads((folder / file).read_text()) | values))


def evil(folder: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[object, ...]:
            return (Path.touch, (folder / "ran",))

    torch.save({"norm.weight": Evil()}, folder / "consolidated.00.pth")


BROKEN: dict[str, tuple[list[str], Breaker, str]] = {
    "params": (["safetensors", "tekken.json"], changed("params.json", n_layers=10**9), "'n_layers'"),
    "safetensors": (["safetensors", "tekken.json"], cut("consolidated.00.safetensors"), "not a whole safetensors file"),
    "pickle": (["pth", "tekken.json"], evil, "code in a pickle is never run"),
    "shard": (["huggingface", "tokenizer.json"], lambda folder: (folder / "0.safetensors").unlink(), "missing"),
    "config": (["huggingface", "tokenizer.json"], changed("config.json", rms_norm_eps="abc"), "norm_eps"),
    "gguf": (["gguf"], lambda f: (f / "model.gguf").write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 2**60, 0)), "ends"),
    "vocabulary": (["gguf llama vocabulary"], cut("model.gguf"), "model.gguf"),
    "tokenizer.json": (["huggingface", "tokenizer.json"], changed("tokenizer.json", added_tokens=5), "'added_tokens'"),
    "tokenizer.model": (["huggingface", "tokenizer.model"], cut("tokenizer.model"), "tokenizer.model"),
    "tekken.json": (["safetensors", "tekken.json"], changed("tekken.json", config={}), "'default_vocab_size'"),
    "nested": (["huggingface", "tokenizer.json"], lambda f: (f / "config.json").write_text("[" * 10**5), "too deeply"),
}  # fmt: skip


@pytest.mark.parametrize("verb", ["chat", "generate"])
@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_model_is_one_line(
    verb: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    kinds, breaks, says = BROKEN[name]
    for kind in kinds:
        READERS[kind].make(tmp_path)
    breaks(tmp_path)
    monkeypatch.setattr(sys, "argv", ["cierzo", verb, str(tmp_path)])
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"Hi")))
    with pytest.raises(SystemExit) as left:
        cli.main()
    out, err = capfd.readouterr()
    assert left.value.code == 1
    assert out == ""
    assert err.startswith("error: ")
    assert err.count("\n") == 1, err
    assert says in err
    assert str(tmp_path) in err
    assert not (tmp_path / "ran").exists()
