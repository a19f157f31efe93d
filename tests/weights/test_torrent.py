"""Torrents from a peer on loopback: whole, stopped half-way, with wrong pieces, and without any peer."""

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cierzo.errors import CierzoError
from cierzo.model import ModelConfig
from cierzo.weights import load_model, torrent
from cierzo.weights.pull import pull
from cierzo.weights.store import begin, stored_models
from support.checkpoints import random_weights, write_consolidated

lt = pytest.importorskip("libtorrent", reason="torrents need the extra `torrent`")

CONFIG = ModelConfig(
    dim=32, n_layers=2, head_dim=8, hidden_dim=64, n_heads=4, n_kv_heads=2, vocab_size=4000, max_seq_len=64,
    sliding_window=16,
)  # fmt: skip


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_consolidated(tmp_path / "seeded" / "tiny-7B", CONFIG, random_weights(CONFIG), suffix=".pth")


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CIERZO_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def session() -> Any:
    return lt.session({
        "listen_interfaces": "127.0.0.1:0", "enable_dht": False, "enable_lsd": False, "enable_upnp": False,
        "enable_natpmp": False, "allow_multiple_connections_per_ip": True, "alert_mask": 0,
        "enable_incoming_utp": False,  # where a killed peer is missed only after a minute
    })  # fmt: skip


@pytest.fixture
def seed(model: Path) -> Iterator[tuple[Any, Any, str]]:
    """A peer that has all of it: its session, the torrent there, and the magnet that leads to it."""
    made = lt.create_torrent(lt.list_files(str(model)), 16 << 10)
    lt.set_piece_hashes(made, str(model.parent))
    info = lt.torrent_info(made.generate())
    peer = session()
    params = lt.add_torrent_params()
    params.ti, params.save_path = info, str(model.parent)
    handle = peer.add_torrent(params)
    deadline = time.monotonic() + 20
    while not handle.status().is_seeding and time.monotonic() < deadline:
        time.sleep(0.05)
    yield peer, handle, f"{lt.make_magnet_uri(info)}&x.pe=127.0.0.1:{peer.listen_port()}"
    peer.pause()


def test_a_swarm_of_two(seed: tuple[Any, Any, str], model: Path, home: Path) -> None:
    path = pull(seed[2], progress=False)
    assert path == home / "models" / "tiny-7B"
    for file in model.iterdir():
        assert (path / file.name).read_bytes() == file.read_bytes()
    assert load_model(path).config == CONFIG
    (stored,) = stored_models()
    assert stored.whole
    assert stored.origin is not None
    assert stored.origin.source.startswith("magnet:?xt=urn:btih:")


def test_a_torrent_is_packed(seed: tuple[Any, Any, str], home: Path) -> None:
    path = pull(seed[2], pack="q4", progress=False)
    assert path == home / "models" / "tiny-7B-q4"
    assert load_model(path, packed=True).config == CONFIG
    assert [file.name for file in (home / "models").iterdir()] == ["tiny-7B-q4"]


def test_a_killed_process_goes_on(seed: tuple[Any, Any, str], home: Path) -> None:
    _, handle, magnet = seed
    handle.set_upload_limit(150_000)
    script = (
        "import os, sys\nfrom contextlib import contextmanager\nfrom cierzo.weights.pull import pull\n"
        "def report(done, total):\n    if done > 100_000: os.kill(os.getpid(), 9)\n"
        "@contextmanager\ndef bar(*about, **more):\n    yield report\n"
        "sys.modules['cierzo.weights.pull'].progress_bar = bar\n"
        f"pull({magnet!r})\n"
    )
    assert subprocess.run([sys.executable, "-c", script], timeout=120).returncode == -9
    (stored,) = stored_models()
    assert not stored.whole
    handle.set_upload_limit(-1)
    before = handle.status().total_payload_upload
    path = pull(magnet, progress=False)
    assert load_model(path).config == CONFIG
    # What was there is not sent again (an open block is at most 16 KiB).
    sent = handle.status().total_payload_upload - before
    size = sum(file.stat().st_size for file in path.iterdir())
    assert sent < size - 50_000


def test_wrong_pieces_are_fetched_again(seed: tuple[Any, Any, str], model: Path, home: Path) -> None:
    (home / "models").mkdir(parents=True)
    partial = begin(home / "models" / "tiny-7B", repr([seed[2], None])) / "tiny-7B"
    partial.mkdir()
    good = (model / "consolidated.00.pth").read_bytes()
    (partial / "consolidated.00.pth").write_bytes(good[:100_000] + bytes(len(good) - 100_000))
    path = pull(seed[2], progress=False)
    assert (path / "consolidated.00.pth").read_bytes() == good


def test_nobody_has_it(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torrent, "PATIENCE", 1.0)
    with pytest.raises(CierzoError, match=r"no description of .* from 0 peers for 1 s: run it again later"):
        pull(f"magnet:?xt=urn:btih:{'12' * 20}&dn=nothing", progress=False)
    with pytest.raises(CierzoError, match="not a torrent"):
        pull("magnet:?dn=nothing", progress=False)
    assert not (home / "models" / "nothing").exists()


def test_without_libtorrent(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "libtorrent", None)
    with pytest.raises(CierzoError, match=r"torrents need libtorrent: pip install 'cierzo\[torrent\]'"):
        pull(f"magnet:?xt=urn:btih:{'12' * 20}&dn=nothing", progress=False)


def test_no_room(seed: tuple[Any, Any, str], home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import shutil

    usage = shutil.disk_usage("/")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    with pytest.raises(CierzoError, match=r"the torrent tiny-7B needs .* and 0 MB are free: make room"):
        pull(seed[2], progress=False)
