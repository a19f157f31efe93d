"""Models into the store, packed on the way."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from cierzo.errors import CierzoError, WeightsError
from cierzo.ops import Format, PackedMatrix, quantize
from cierzo.weights import load_model, pack_stream
from cierzo.weights.pull import pull, resolve_model
from support.checkpoints import huggingface_model, random_weights, write_consolidated
from support.pulling import CONFIG
from support.web import Web


def test_packing_while_fetching_gives_what_quantize_gives(
    hub: Web, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    most = 0
    give_back = pack_stream._give_back

    def watched(descriptor: int, start: int, size: int) -> None:
        nonlocal most
        give_back(descriptor, start, size)
        most = max(most, len(list((home / "models" / ".web-7b-q4t.partial").glob("model-*.safetensors"))))

    monkeypatch.setattr(pack_stream, "_give_back", watched)
    path = resolve_model("web", progress=False)  # on demand, as it is large by the catalogue
    assert path == home / "models" / "web-7b-q4t"
    assert most == 1  # no two shards at once
    assert sorted(f.name for f in path.iterdir()) == [
        "cierzo-origin.json", "config.json", "generation_config.json", "packed.safetensors", "tokenizer.model.v3"
    ]  # fmt: skip
    model, weights = load_model(path, packed=True), random_weights(CONFIG)
    assert model.config == CONFIG
    for name in ("layers.0.attention.wq.weight", "layers.2.feed_forward.w2.weight", "output.weight"):
        matrix = model.get_submodule(name.removesuffix(".weight")).weight
        assert isinstance(matrix, PackedMatrix)
        format = Format.Q8 if name == "output.weight" else Format.Q4T
        assert torch.equal(matrix.data, quantize(weights[name].bfloat16(), format).data)
    assert resolve_model("web", progress=False) == path


def test_packing_goes_on_where_it_stopped(hub: Web, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = pull("someone/Web-7B", pack="q8", progress=False)
    calls = 0
    give_back = pack_stream._give_back

    def stops(descriptor: int, start: int, size: int) -> None:
        nonlocal calls
        give_back(descriptor, start, size)
        calls += 1
        if calls == 7:
            raise KeyboardInterrupt

    monkeypatch.setattr(pack_stream, "_give_back", stops)
    asked = len(hub.asked)
    with pytest.raises(KeyboardInterrupt):
        pull("web", pack="q8", progress=False)
    assert not (home / "models" / "web-7b-q8").exists()
    monkeypatch.setattr(pack_stream, "_give_back", give_back)
    path = pull("web", pack="q8", progress=False)
    paths = [path for path, _ in hub.asked[asked:] if path.endswith(".safetensors")]
    assert len(paths) == len(set(paths))  # no shard twice
    assert (path / "packed.safetensors").read_bytes() == (whole / "packed.safetensors").read_bytes()


def test_what_cannot_be_packed_on_the_way(hub: Web, tmp_path: Path) -> None:
    with pytest.raises(CierzoError, match=r"is here already: `cierzo quantize"):
        pull(str(tmp_path), pack="q4", progress=False)
    folder = write_consolidated(tmp_path / "pth", CONFIG, random_weights(CONFIG), suffix=".pth")
    hub.add_model("some/pth", folder)
    with pytest.raises(WeightsError, match=r"not in safetensors files.*without --quantize"):
        pull("some/pth", pack="q4", progress=False)
    assert pull("some/pth", progress=False).is_dir()
    consolidated = write_consolidated(tmp_path / "one", CONFIG, random_weights(CONFIG))
    hub.add_model("some/one", consolidated)
    assert load_model(pull("some/one", pack="q4", progress=False), packed=True).config == CONFIG
    broken = random_weights(CONFIG)
    del broken["norm.weight"]
    hub.add_model("some/broken", write_consolidated(tmp_path / "broken", CONFIG, broken))
    with pytest.raises(WeightsError, match=r"1 of 30 tensors are missing, 'norm\.weight' first"):
        pull("some/broken", pack="q4", progress=False)


def changed(folder: Path, *, added: dict[str, torch.Tensor], **settings: bool) -> Path:
    """A model in shards, with more tensors in the last one, and with another configuration."""
    huggingface_model(CONFIG, random_weights(CONFIG), "Mistral").save_pretrained(folder, max_shard_size="30KB")
    last = sorted(folder.glob("*.safetensors"))[-1]
    save_file(load_file(last) | added, last)
    values = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(values | settings))
    return folder


def test_no_tensor_replaces_another_on_the_way(hub: Web, tmp_path: Path) -> None:
    hub.add_model("some/stray", changed(tmp_path / "stray", added={"output.weight": torch.zeros(96, 32)}))
    with pytest.raises(WeightsError, match=r"'output\.weight' has its name.*'lm_head\.weight'"):
        pull("some/stray", pack="q8", progress=False)
    first = next(iter(load_file(min((tmp_path / "stray").glob("model-00001-of-*")))))
    hub.add_model("some/twice", changed(tmp_path / "twice", added={first: torch.zeros(4)}))
    with pytest.raises(WeightsError, match=rf"'{first}' of model-00001\S+ and '{first}' of \S+ are both"):
        pull("some/twice", pack="q8", progress=False)
    hub.add_model("some/tied", changed(tmp_path / "tied", added={}, tie_word_embeddings=True))
    with pytest.raises(WeightsError, match=r"declared tied .*'output\.weight'"):
        pull("some/tied", pack="q8", progress=False)
