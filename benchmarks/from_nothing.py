"""From nothing to an answer: `echo Hello | cierzo chat` with an empty store and a 7B on a hub on loopback.

    python benchmarks/make_checkpoint.py mistral-7b-v0.2 CHECKPOINT
    cierzo export CHECKPOINT FOLDER
    python benchmarks/from_nothing.py FOLDER [--store FOLDER]

FOLDER is a Hugging Face folder of the published shape (random weights do). The model comes in its shards, is checked,
packed into 4 bits shard by shard, loaded and asked for a few tokens. Prints seconds, the most disk that the store took,
and the most memory: resident, which counts mapped files that the system may drop, and anonymous, which it may not.
"""

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import mistral_common

from cierzo.weights.catalogue import catalogue

MODEL = "mistral-7b-instruct-v0.2"


class Hub(BaseHTTPRequestHandler):
    """What `cierzo pull` asks a hub for."""

    protocol_version = "HTTP/1.1"
    folder: Path
    hashes: dict[str, str]

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        entry = catalogue().entries[MODEL]
        if self.path.startswith("/api/models/"):
            siblings = [
                {"rfilename": name, "size": (size := (self.folder / name).stat().st_size),
                 "lfs": {"size": size, "sha256": sha, "pointerSize": 130}}
                for name, sha in self.hashes.items()
            ]  # fmt: skip
            info = {"id": entry.hub, "sha": entry.revision, "siblings": siblings, "private": False, "gated": False}
            body = json.dumps(info | {"tags": [], "downloads": 0, "likes": 0}).encode()
            self.begin(len(body))
            self.wfile.write(body)
            return
        path = self.folder / self.path.rpartition("/")[2]
        if not self.path.startswith(f"/{entry.hub}/resolve/") or not path.is_file():
            self.send_error(404)
            return
        self.begin(path.stat().st_size)
        self.wfile.flush()
        with path.open("rb") as file:
            self.connection.sendfile(file)

    def begin(self, length: int) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(length))
        self.end_headers()


def hashes(folder: Path) -> dict[str, str]:
    found = {}
    for path in sorted(folder.iterdir()):
        with path.open("rb") as file:
            found[path.name] = hashlib.file_digest(file, "sha256").hexdigest()
    return found


def disk(folder: Path) -> int:
    total = 0
    for path in folder.rglob("*"):
        try:
            total += path.stat().st_blocks * 512
        except FileNotFoundError:  # it has just got another name
            continue
    return total


def memory(process: int) -> tuple[int, int]:
    """Resident and anonymous bytes of a process; zero when it is gone."""
    try:
        lines = dict(line.split(":", 1) for line in Path(f"/proc/{process}/status").read_text().splitlines())
        return int(lines["VmHWM"].split()[0]) * 1024, int(lines["RssAnon"].split()[0]) * 1024
    except (OSError, KeyError):
        return 0, 0


def measure(folder: Path, store: Path) -> dict[str, object]:
    shutil.copy(Path(mistral_common.__file__).parent / "data" / "tokenizer.model.v1", folder / "tokenizer.model")
    handler = type("Serving", (Hub,), {"folder": folder, "hashes": hashes(folder)})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    environment = os.environ | {"HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}", "CIERZO_HOME": str(store)}
    command = [str(Path(sys.executable).parent / "cierzo"), "chat", MODEL, "--max-tokens", "4", "--context", "256"]
    start = time.perf_counter()
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, text=True)
    assert process.stdin is not None
    process.stdin.write("Hello\n")
    process.stdin.close()
    most_disk = resident = anonymous = 0
    packed = None
    while process.poll() is None:
        most_disk = max(most_disk, disk(store) if store.exists() else 0)
        now = memory(process.pid)
        resident, anonymous = max(resident, now[0]), max(anonymous, now[1])
        if packed is None and (store / "models" / f"{MODEL}-q4").is_dir():
            packed = time.perf_counter() - start
        time.sleep(0.25)
    seconds = time.perf_counter() - start
    server.shutdown()
    return {
        "benchmark": "from nothing",
        "status": process.returncode,
        "original_gb": sum(path.stat().st_size for path in folder.iterdir()) / 1e9,
        "seconds_to_packed": packed,
        "seconds_to_answer": seconds,
        "peak_disk_gb": most_disk / 1e9,
        "disk_at_end_gb": disk(store) / 1e9,
        "peak_resident_gb": resident / 1e9,
        "peak_anonymous_gb": anonymous / 1e9,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--store", type=Path, default=Path("/tmp/cierzo-from-nothing"))
    options = parser.parse_args()
    if options.store.exists():
        parser.error(f"{options.store} is there already: name another folder")
    found = measure(options.folder, options.store)
    for name, value in found.items():
        print(f"{name:<20} {value:.2f}" if isinstance(value, float) else f"{name:<20} {value}")
    print(json.dumps(found))


if __name__ == "__main__":
    main()
