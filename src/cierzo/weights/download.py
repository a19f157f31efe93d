"""Files over HTTPS: resumed where they broke off, and only whole and right ones get their name.

While a file is on its way it is `NAME.part`, with `NAME.part.json` telling what it is a part of. A server that lost the
connection, sent too little or restarted is asked again for the rest; one that sends other bytes than it promised is
not believed.
"""

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NoReturn

from cierzo.errors import CierzoError, WeightsError
from cierzo.weights.store import check_space

if TYPE_CHECKING:
    import httpx2

ATTEMPTS = 6
"""Tries in a row that bring nothing, before it is an error."""
WAIT = 1.0
"""Seconds before the second try; doubled for each further one."""
_TIMEOUT = 30.0
_BLOCK = 1 << 20


class FetchError(CierzoError):
    """What a model is fetched from could not be reached, or does not have it."""


class DeniedError(FetchError):
    """Access has to be asked for first."""


@dataclass(frozen=True)
class RemoteFile:
    """One file of a model: `name` with slashes below the model's folder.

    `checksum` is "sha256:..." in hexadecimal, or "git:..." for git's own hash of a blob, or None when nobody tells one.
    """

    url: str
    name: str
    size: int | None = None
    checksum: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)


def fetch_file(file: RemoteFile, folder: Path, report: Callable[[int], None] = lambda done: None) -> str:
    """Bring one file into `folder`, going on from what is there; returns its checksum ("sha256:..." or "git:...").

    `report` hears how many of its bytes are there.

    Raises:
        FetchError: no answer, or a refusal.
        WeightsError: other bytes than promised, or a full disk; what was right so far stays for the next try.
    """
    target = folder / file.name
    if target.is_file():  # checked before it got its name
        report(target.stat().st_size)
        return file.checksum or f"sha256:{_hash_of(target, 'sha256')}"
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(target.name + ".part")
    try:
        found = _Transfer(file, part, report).run()
        os.replace(part, target)
        part.with_name(part.name + ".json").unlink(missing_ok=True)
    except OSError as error:
        raise WeightsError(
            f"cannot write {part}: {error.strerror}: make room, and run it again: it goes on from there"
        ) from error
    return found


class _LostError(Exception):
    """The connection broke, or a server that may recover failed; the message is for the user."""


class _Transfer:
    def __init__(self, file: RemoteFile, part: Path, report: Callable[[int], None]) -> None:
        self.file, self.part, self.report = file, part, report
        self.about = part.with_name(part.name + ".json")
        self.validator: str | None = None  # a strong ETag or a date: what the part is a part of
        self.size = file.size
        self.kind = (file.checksum or "sha256:").partition(":")[0]

    def run(self) -> str:
        self._take_up()
        failures = 0
        with self.part.open("r+b" if self.part.exists() else "w+b") as out:
            self.digest = self._digest(out)
            while self.size is None or out.tell() < self.size:
                before = out.tell()
                try:
                    self._request(out)
                    break
                except _LostError as error:
                    failures = 1 if out.tell() > before else failures + 1
                    if failures >= ATTEMPTS:
                        raise FetchError(
                            f"cannot fetch {self.file.url} ({error}; {ATTEMPTS} tries brought nothing more): run it "
                            "again, it goes on from what is there"
                        ) from error
                    time.sleep(WAIT * 2 ** (failures - 1))
            out.flush()
            os.fsync(out.fileno())
            self._check(out.tell())
        return f"{self.kind}:{self.digest.hexdigest()}"

    def _check(self, n_bytes: int) -> None:
        wrong = None
        if self.size is not None and n_bytes != self.size:
            wrong = f"has {n_bytes} bytes, expected {self.size}"
        found = f"{self.kind}:{self.digest.hexdigest()}"
        if self.file.checksum and found != self.file.checksum:
            wrong = f"has {found.replace(':', ' ')}, expected {self.file.checksum.partition(':')[2]}"
        if wrong:
            self._reject(wrong)

    def _reject(self, wrong: str) -> NoReturn:
        self.part.unlink(missing_ok=True)
        self.about.unlink(missing_ok=True)
        raise WeightsError(f"{self.file.url} {wrong}: it was not kept; try again, or take another source")

    def _take_up(self) -> None:
        """Keep an earlier part when it is one of the same file; else begin anew."""
        try:
            about = json.loads(self.about.read_text())
            same = about["url"] == self.file.url and about["checksum"] == self.file.checksum
            self.validator = about["validator"]
            if self.size is None:
                self.size = about["size"]
        except (OSError, ValueError, KeyError, TypeError):
            same = False
        if not same or not (self.validator or self.file.checksum):
            self.part.unlink(missing_ok=True)
            self.validator, self.size = None, self.file.size
        elif self.part.exists() and self.size is not None and self.part.stat().st_size > self.size:
            self.part.unlink()

    def _digest(self, out: BinaryIO) -> Any:
        """The hash of what is there; `out` is left at its end."""
        if self.kind == "git":  # https://git-scm.com/book/en/v2/Git-Internals-Git-Objects
            digest = hashlib.sha1(f"blob {self.size}\0".encode(), usedforsecurity=False)
        else:
            digest = hashlib.new(self.kind)
        out.seek(0)
        while block := out.read(_BLOCK):
            digest.update(block)
        return digest

    def _request(self, out: BinaryIO) -> None:
        """One request for all that is missing. Raises `_LostError` when it brought only some of it."""
        import httpx2

        have = out.tell()
        headers = {"Accept-Encoding": "identity", **self.file.headers}
        if have:
            headers["Range"] = f"bytes={have}-"
            if self.validator:
                headers["If-Range"] = self.validator
        try:
            with _client() as client, client.stream("GET", self.file.url, headers=headers) as response:
                self._accept(response, out, have)
                for block in response.iter_raw():
                    if self.size is not None and out.tell() + len(block) > self.size:
                        self._reject(f"goes on after the {self.size} bytes that it should have")
                    out.write(block)
                    self.digest.update(block)
                    self.report(out.tell())
        except httpx2.TransportError as error:
            raise _LostError(str(error) or type(error).__name__) from error
        except (httpx2.HTTPError, httpx2.InvalidURL) as error:
            raise FetchError(f"cannot fetch {self.file.url}: {error}") from error
        if self.size is not None and out.tell() < self.size:
            raise _LostError(f"{out.tell()} of {self.size} bytes came")

    def _accept(self, response: "httpx2.Response", out: BinaryIO, have: int) -> None:
        """Decide what an answer's body is; `out` then stands where it begins."""
        status = response.status_code
        if status in (408, 425, 429) or status >= 500:
            raise _LostError(f"the server says {status}")
        if status == 416 or (status == 206 and not self._continues(response, have)):
            self._restart(out)
            raise _LostError("the server has another file than the one that was begun")
        if status in (401, 403):
            raise DeniedError(f"cannot fetch {self.file.url}: the server says {status} {response.reason_phrase}")
        if status not in (200, 206):
            raise FetchError(f"cannot fetch {self.file.url}: the server says {status} {response.reason_phrase}")
        if status == 200:
            self._restart(out)
            declared = response.headers.get("Content-Length", "")
            length = int(declared) if declared.isdecimal() else None
            if self.file.size is not None and length not in (None, self.file.size):
                self._reject(f"has {length} bytes, as the server says, expected {self.file.size}")
            self.size = self.file.size if self.file.size is not None else length
            if self.size is None and self.file.checksum is None:
                raise FetchError(
                    f"{self.file.url}: the server does not say how long the file is, and there is no checksum: add "
                    "#sha256=... to the address"
                )
            if self.file.size is None and self.size is not None:  # nobody could look before
                check_space(self.part.parent, self.size, self.file.name)
            tag, date = response.headers.get("ETag", ""), response.headers.get("Last-Modified")
            self.validator = tag if tag.startswith('"') else date
            about = {"url": self.file.url, "checksum": self.file.checksum, "size": self.size}
            self.about.write_text(json.dumps(about | {"validator": self.validator}))

    def _continues(self, response: "httpx2.Response", have: int) -> bool:
        """Whether a partial answer goes on where we are, in a file of the same length."""
        place, _, total = response.headers.get("Content-Range", "").removeprefix("bytes ").partition("/")
        return place.startswith(f"{have}-") and (self.size is None or total in ("*", str(self.size)))

    def _restart(self, out: BinaryIO) -> None:
        out.seek(0)
        out.truncate()
        self.digest = self._digest(out)
        self.report(0)


def _hash_of(path: Path, kind: str) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, kind).hexdigest()


@contextmanager
def _client() -> Iterator["httpx2.Client"]:
    """httpx leaves authorisation out when it is sent on to another host, as hubs do."""
    import httpx2

    with httpx2.Client(follow_redirects=True, timeout=_TIMEOUT) as client:
        yield client
