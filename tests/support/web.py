"""A web server on loopback that serves files as a hub does, and misbehaves on request."""

import hashlib
import json
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

COMMIT = "c0ffee" + "0" * 34


@dataclass
class Web:
    """`files` by path. `faults` by path: what to do with the next requests for it, one each, then nothing special.

    A fault is a function of the handler, the content and the first byte asked for, which answers the request.
    """

    url: str = ""
    files: dict[str, bytes | Path] = field(default_factory=dict)
    faults: dict[str, list[Callable[["Handler", bytes, int], None]]] = field(default_factory=dict)
    asked: list[tuple[str, str | None]] = field(default_factory=list)
    """Every request for a file: its path and its Range."""
    ranges: bool = True
    token: str | None = None
    """Wanted for files of gated repositories."""
    gated: bool = False
    commit: str = COMMIT
    lies: dict[str, str] = field(default_factory=dict)
    """Wrong sha256 that the hub tells, by file name."""

    def add_model(self, repo: str, folder: Path) -> None:
        for file in sorted(folder.iterdir()):
            self.files[f"/{repo}/resolve/{self.commit}/{file.name}"] = file

    def content(self, path: str) -> bytes:
        found = self.files[path]
        return found if isinstance(found, bytes) else found.read_bytes()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    web: Web

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        if self.path.partition("?")[0] in self.web.files and self.path.startswith("/api/"):
            self.answer(200, self.web.content(self.path.partition("?")[0]))
        elif self.path.startswith("/api/models/"):
            self.model_info(self.path.removeprefix("/api/models/").partition("?")[0])
        elif self.path not in self.web.files:
            self.answer(404, b"")
        elif self.web.gated and self.headers.get("Authorization") != f"Bearer {self.web.token}":
            self.answer(401, b"", {"X-Error-Code": "GatedRepo"})
        else:
            self.file()

    def file(self) -> None:
        wanted = self.headers.get("Range")
        self.web.asked.append((self.path, wanted))
        content = self.web.content(self.path)
        tag = f'"{hashlib.md5(content).hexdigest()}"'
        start = 0
        if wanted and self.web.ranges and self.headers.get("If-Range", tag) == tag:
            start = int(wanted.removeprefix("bytes=").removesuffix("-"))
        faults = self.web.faults.get(self.path)
        if faults:
            faults.pop(0)(self, content, start)
            return
        headers = {"ETag": tag}
        if start:
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        self.answer(206 if start else 200, content[start:], headers)

    def answer(
        self, status: int, body: bytes, headers: dict[str, str] | None = None, length: int | None = None
    ) -> None:
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(body) if length is None else length)} | (headers or {})).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)
        if length is not None and length != len(body):
            self.close_connection = True

    def model_info(self, place: str) -> None:
        """The part of a hub's answer that matters: https://huggingface.co/docs/hub/api."""
        owner, name, *revision = place.split("/")
        prefix = f"/{owner}/{name}/resolve/{self.web.commit}/"
        names = [path.removeprefix(prefix) for path in self.web.files if path.startswith(prefix)]
        if not names:
            self.answer(404, b"{}", {"X-Error-Code": "RepoNotFound"})
            return
        if revision[1:] not in ([], ["main"], [self.web.commit]):
            self.answer(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
            return
        siblings: list[dict[str, Any]] = []
        for file in names:
            content = self.web.content(prefix + file)
            sibling: dict[str, Any] = {"rfilename": file, "size": len(content)}
            sibling["blobId"] = hashlib.sha1(f"blob {len(content)}\0".encode() + content).hexdigest()
            if file.endswith((".safetensors", ".gguf")):
                sha = self.web.lies.get(file) or hashlib.sha256(content).hexdigest()
                sibling["lfs"] = {"size": len(content), "sha256": sha, "pointerSize": 130}
            siblings.append(sibling)
        info = {
            "_id": "1", "id": f"{owner}/{name}", "sha": self.web.commit, "siblings": siblings, "private": False,
            "gated": "manual" if self.web.gated else False, "tags": [], "downloads": 0, "likes": 0,
            "cardData": {"license": "apache-2.0"},
        }  # fmt: skip
        self.answer(200, json.dumps(info).encode(), {"Content-Type": "application/json"})


def cut_at(fraction: float) -> Callable[[Handler, bytes, int], None]:
    """Announce everything, and close the connection after a part of it."""

    def answer(handler: Handler, content: bytes, start: int) -> None:
        rest = content[start:]
        headers = {"ETag": f'"{hashlib.md5(content).hexdigest()}"'}
        if start:
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        handler.answer(206 if start else 200, rest[: int(len(rest) * fraction)], headers, length=len(rest))

    return answer


def status(code: int) -> Callable[[Handler, bytes, int], None]:
    return lambda handler, content, start: handler.answer(code, b"")


class _Server(ThreadingHTTPServer):
    def handle_error(self, request: object, client_address: object) -> None:
        """A client that was killed is part of the test."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)  # type: ignore[arg-type]


@contextmanager
def serve() -> Iterator[Web]:
    web = Web()
    server = _Server(("127.0.0.1", 0), type("Bound", (Handler,), {"web": web}))
    web.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield web
    finally:
        server.shutdown()
        server.server_close()
