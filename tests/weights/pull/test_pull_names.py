"""What a name, an address and a path stand for."""

from pathlib import Path

import pytest

from cierzo.errors import CierzoError, WeightsError
from cierzo.weights import catalogue as catalogue_module
from cierzo.weights.catalogue import catalogue
from cierzo.weights.pull import cierzo_home, pull, remove, resolve_model
from support.pulling import CONTENT, INDEX
from support.web import Web


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


def test_a_path_is_itself(tmp_path: Path) -> None:
    assert resolve_model(tmp_path, progress=False) == tmp_path
    assert resolve_model(str(tmp_path), progress=False) == tmp_path
    assert pull(str(tmp_path), progress=False) == tmp_path


def test_a_name_that_no_file_can_have() -> None:
    with pytest.raises(CierzoError, match="File name too long"):
        resolve_model("a" * 300 + "/b", progress=False)


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
