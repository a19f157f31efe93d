"""One file over HTTP from servers that break, lie and change their minds."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from cierzo.errors import WeightsError
from cierzo.weights import download
from cierzo.weights.download import DeniedError, FetchError, RemoteFile, fetch_file
from support.web import Handler, Web, cut_at, serve, status

CONTENT = bytes(range(256)) * 20_000  # 5 MB
SHA = f"sha256:{hashlib.sha256(CONTENT).hexdigest()}"


@pytest.fixture
def web(monkeypatch: pytest.MonkeyPatch) -> Iterator[Web]:
    monkeypatch.setattr(download, "WAIT", 0.01)
    monkeypatch.setattr(download, "ATTEMPTS", 3)
    with serve() as web:
        web.files["/model.gguf"] = CONTENT
        yield web


@pytest.fixture
def remote(web: Web) -> RemoteFile:
    return RemoteFile(f"{web.url}/model.gguf", "model.gguf", len(CONTENT), SHA)


def names(folder: Path) -> list[str]:
    return sorted(str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file())


def test_a_file_is_fetched_checked_and_reported(web: Web, remote: RemoteFile, tmp_path: Path) -> None:
    reports: list[int] = []
    assert fetch_file(replace(remote, name="sub/model.gguf"), tmp_path, reports.append) == SHA
    assert names(tmp_path) == ["sub/model.gguf"]
    assert (tmp_path / "sub/model.gguf").read_bytes() == CONTENT
    assert reports == sorted(reports)
    assert reports[-1] == len(CONTENT)


def test_a_cut_at_thirty_percent_is_resumed(web: Web, remote: RemoteFile, tmp_path: Path) -> None:
    web.faults["/model.gguf"] = [cut_at(0.3), cut_at(0.3), status(503)]
    fetch_file(remote, tmp_path)
    assert (tmp_path / "model.gguf").read_bytes() == CONTENT
    asked = [wanted for _, wanted in web.asked]
    first = int(len(CONTENT) * 0.3)
    assert asked[:2] == [None, f"bytes={first}-"]
    assert len(asked) == 4


def test_a_server_that_always_breaks_leaves_a_part_for_the_next_run(
    web: Web, remote: RemoteFile, tmp_path: Path
) -> None:
    web.faults["/model.gguf"] = [cut_at(0.3), *[status(500)] * 3]
    with pytest.raises(FetchError, match=r"the server says 500; 3 tries brought nothing more.*goes on from what is"):
        fetch_file(remote, tmp_path)
    assert names(tmp_path) == ["model.gguf.part", "model.gguf.part.json"]
    assert (tmp_path / "model.gguf.part").stat().st_size == int(len(CONTENT) * 0.3)
    fetch_file(remote, tmp_path)
    assert web.asked[-1][1] == f"bytes={int(len(CONTENT) * 0.3)}-"
    assert names(tmp_path) == ["model.gguf"]
    assert (tmp_path / "model.gguf").read_bytes() == CONTENT


def test_a_server_without_ranges_starts_again(web: Web, remote: RemoteFile, tmp_path: Path) -> None:
    web.ranges = False
    web.faults["/model.gguf"] = [cut_at(0.5)]
    fetch_file(remote, tmp_path)
    assert (tmp_path / "model.gguf").read_bytes() == CONTENT


def test_a_file_that_changed_meanwhile_is_fetched_anew(web: Web, tmp_path: Path) -> None:
    web.faults["/model.gguf"] = [cut_at(0.5), *[status(500)] * 3]
    plain = RemoteFile(f"{web.url}/model.gguf", "model.gguf")
    with pytest.raises(FetchError):
        fetch_file(plain, tmp_path)
    web.files["/model.gguf"] = CONTENT[::-1]
    found = fetch_file(plain, tmp_path)
    assert (tmp_path / "model.gguf").read_bytes() == CONTENT[::-1]
    assert found == f"sha256:{hashlib.sha256(CONTENT[::-1]).hexdigest()}"


@pytest.mark.parametrize("change", [b"", CONTENT[:-1] + b"?", CONTENT[: 10**6]])
def test_wrong_bytes_are_refused_and_not_kept(web: Web, remote: RemoteFile, tmp_path: Path, change: bytes) -> None:
    web.files["/model.gguf"] = change
    with pytest.raises(WeightsError, match=r"(sha256 [0-9a-f]{64}|bytes.*), expected [0-9a-f]+: it was not kept"):
        fetch_file(remote, tmp_path)
    assert names(tmp_path) == []


def test_a_part_with_wrong_bytes_is_found_out(web: Web, remote: RemoteFile, tmp_path: Path) -> None:
    web.faults["/model.gguf"] = [cut_at(0.3), *[status(500)] * 3]
    with pytest.raises(FetchError):
        fetch_file(remote, tmp_path)
    with (tmp_path / "model.gguf.part").open("r+b") as file:
        file.write(b"?")
    with pytest.raises(WeightsError, match="expected"):
        fetch_file(remote, tmp_path)
    assert names(tmp_path) == []


def test_a_server_that_says_too_short_a_length(web: Web, remote: RemoteFile, tmp_path: Path) -> None:
    def short(handler: Handler, content: bytes, start: int) -> None:
        handler.answer(200, content, length=1000)

    web.faults["/model.gguf"] = [short]
    with pytest.raises(WeightsError, match=r"has 1000 bytes, as the server says, expected 5120000"):
        fetch_file(remote, tmp_path)
    web.faults["/model.gguf"] = [short]
    plain = replace(remote, size=None)  # only the checksum can tell
    with pytest.raises(WeightsError, match="expected"):
        fetch_file(plain, tmp_path)
    assert names(tmp_path) == []


def test_a_server_that_goes_on_for_ever(web: Web, remote: RemoteFile, tmp_path: Path) -> None:
    def endless(handler: Handler, content: bytes, start: int) -> None:
        handler.send_response(200)
        handler.send_header("Transfer-Encoding", "chunked")
        handler.end_headers()
        handler.close_connection = True
        try:
            while True:
                handler.wfile.write(b"%x\r\n%s\r\n" % (len(content), content))
        except OSError:
            pass

    web.faults["/model.gguf"] = [endless]
    with pytest.raises(WeightsError, match="goes on after the 5120000 bytes"):
        fetch_file(remote, tmp_path)
    web.faults["/model.gguf"] = [endless]
    with pytest.raises(FetchError, match=r"does not say how long.*#sha256="):
        fetch_file(RemoteFile(remote.url, "model.gguf"), tmp_path)
    assert not (tmp_path / "model.gguf").exists()


def test_a_partial_answer_for_another_place_is_not_believed(web: Web, remote: RemoteFile, tmp_path: Path) -> None:
    def elsewhere(handler: Handler, content: bytes, start: int) -> None:
        handler.answer(206, content[:10], {"Content-Range": f"bytes 0-9/{len(content)}"})

    web.faults["/model.gguf"] = [cut_at(0.3), elsewhere]
    fetch_file(remote, tmp_path)
    assert (tmp_path / "model.gguf").read_bytes() == CONTENT


@pytest.mark.parametrize(("code", "kind"), [(404, FetchError), (401, DeniedError), (403, DeniedError)])
def test_refusals_are_not_tried_again(
    web: Web, remote: RemoteFile, tmp_path: Path, code: int, kind: type[Exception]
) -> None:
    web.faults["/model.gguf"] = [status(code)] * 2
    with pytest.raises(kind, match=f"the server says {code}"):
        fetch_file(remote, tmp_path)
    assert len(web.asked) == 1


def test_nobody_there(web: Web, remote: RemoteFile, tmp_path: Path) -> None:
    with pytest.raises(FetchError, match=r"127\.0\.0\.1:9/x .*3 tries brought nothing"):
        fetch_file(replace(remote, url="http://127.0.0.1:9/x"), tmp_path)
    with pytest.raises(FetchError, match="cannot fetch nonsense://x"):
        fetch_file(replace(remote, url="nonsense://x"), tmp_path)


def test_a_token_does_not_follow_to_another_host(web: Web, remote: RemoteFile, tmp_path: Path) -> None:
    seen: list[str | None] = []

    def elsewhere(handler: Handler, content: bytes, start: int) -> None:
        handler.answer(302, b"", {"Location": f"{web.url.replace('127.0.0.1', 'localhost')}/model.gguf"})

    def listening(handler: Handler, content: bytes, start: int) -> None:
        seen.append(handler.headers.get("Authorization"))
        handler.answer(200, content)

    web.faults["/model.gguf"] = [elsewhere, listening]
    fetch_file(replace(remote, headers={"Authorization": "Bearer secret"}), tmp_path)
    assert seen == [None]


def test_git_hashes(web: Web, remote: RemoteFile, tmp_path: Path) -> None:
    path = tmp_path / "content"
    path.write_bytes(CONTENT)
    git = shutil.which("git")
    assert git is not None
    told = subprocess.run([git, "hash-object", str(path)], capture_output=True, text=True, check=True).stdout.strip()
    web.faults["/model.gguf"] = [cut_at(0.3)]
    assert fetch_file(replace(remote, checksum=f"git:{told}"), tmp_path) == f"git:{told}"


def test_a_killed_process_is_gone_on_from(web: Web, remote: RemoteFile, tmp_path: Path) -> None:
    def hangs(handler: Handler, content: bytes, start: int) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(content)))
        handler.end_headers()
        handler.wfile.write(content[: 3 << 20])
        handler.wfile.flush()
        handler.rfile.read(1)  # until the client is gone

    web.faults["/model.gguf"] = [hangs]
    script = (
        "import os\nfrom pathlib import Path\nfrom cierzo.weights.download import RemoteFile, fetch_file\n"
        "def report(done):\n    if done >= 2 << 20: os.kill(os.getpid(), 9)\n"
        f"fetch_file(RemoteFile({remote.url!r}, 'model.gguf', {remote.size}, {SHA!r}), Path({str(tmp_path)!r}), report)"
    )
    assert subprocess.run([sys.executable, "-c", script]).returncode == -9
    assert names(tmp_path) == ["model.gguf.part", "model.gguf.part.json"]
    have = (tmp_path / "model.gguf.part").stat().st_size
    fetch_file(remote, tmp_path)
    assert web.asked[-1][1] == (f"bytes={have}-" if have else None)
    assert (tmp_path / "model.gguf").read_bytes() == CONTENT


def test_a_changed_checksum_begins_anew(web: Web, remote: RemoteFile, tmp_path: Path) -> None:
    """The catalogue may name other bytes tomorrow."""
    web.faults["/model.gguf"] = [cut_at(0.3), *[status(500)] * 3]
    with pytest.raises(FetchError):
        fetch_file(remote, tmp_path)
    web.files["/model.gguf"] = CONTENT[::-1]
    changed = replace(remote, checksum=f"sha256:{hashlib.sha256(CONTENT[::-1]).hexdigest()}")
    fetch_file(changed, tmp_path)
    assert web.asked[-1][1] is None
    assert json.dumps(names(tmp_path)) == '["model.gguf"]'


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = shutil.which("mount")
    made = mount and os.geteuid() == 0 and subprocess.run(
        [mount, "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)], capture_output=True
    ).returncode == 0  # fmt: skip
    if not made:
        pytest.skip("a small disk needs root, to mount it")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_is_told_and_gone_on_from(web: Web, remote: RemoteFile, small_disk: Path) -> None:
    with pytest.raises(WeightsError, match=r"cannot write .*model\.gguf\.part: No space left on device: make room"):
        fetch_file(remote, small_disk)
    assert "model.gguf" not in names(small_disk)
    have = (small_disk / "model.gguf.part").stat().st_size
    subprocess.run(["mount", "-o", "remount,size=8m", str(small_disk)], check=True)
    fetch_file(remote, small_disk)
    assert web.asked[-1][1] == f"bytes={have}-"
    assert (small_disk / "model.gguf").read_bytes() == CONTENT
