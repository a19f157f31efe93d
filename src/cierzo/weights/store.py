"""The user's own models: a folder with one folder or GGUF file for each, and what they came from.

Nothing half-written has a model's name: work goes on in a hidden folder beside it, which gets the name at the end.
"""

import hashlib
import json
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from stat import S_ISREG

from filelock import FileLock, Timeout

from cierzo.errors import CierzoError, WeightsError

ORIGIN = "cierzo-origin.json"
PARTIAL = ".partial"
_PLAN = ".plan"
_SPARE = 64 << 20  # bytes that stay free: logs and caches of others


def cierzo_home() -> Path:
    """The folder of what Cierzo keeps for a user: CIERZO_HOME, else `cierzo` in the XDG cache (not created here)."""
    if home := os.environ.get("CIERZO_HOME"):
        return Path(home).expanduser().absolute()
    cache = os.environ.get("XDG_CACHE_HOME", "")
    # The XDG specification says to ignore a relative path.
    return (Path(cache) if os.path.isabs(cache) else Path.home() / ".cache") / "cierzo"


def models_folder() -> Path:
    return cierzo_home() / "models"


@dataclass(frozen=True)
class Origin:
    """Where a model of the store came from."""

    source: str
    licence: str | None = None
    revision: str | None = None
    packed: str | None = None
    """The format that it was packed into while it was fetched."""
    hashes: dict[str, str] | None = None
    """What each fetched file was checked against."""
    asked: str | None = None
    """The revision as it was asked for: a branch or a tag, perhaps."""

    def write(self, folder: Path) -> None:
        (folder / ORIGIN).write_text(json.dumps(asdict(self), indent=1) + "\n", encoding="utf-8")


@dataclass(frozen=True)
class Stored:
    """A model that is there, or (`whole` false) a fetch that can go on."""

    name: str
    path: Path
    size: int
    whole: bool
    origin: Origin | None

    def remove(self) -> None:
        """Delete it; only whole folders and files of the store are ever asked for."""
        try:
            if not self.path.is_dir():
                self.path.unlink()
                return
            gone = self.path
            if self.whole:  # loses its name first, so that nothing half-deleted can be loaded
                gone = self.path.with_name(f".{self.name}.deleted")
                shutil.rmtree(gone, ignore_errors=True)
                os.rename(self.path, gone)
            shutil.rmtree(gone)
        except OSError as error:
            raise WeightsError(f"cannot delete {self.path}: {error.strerror}") from error


def stored_models() -> list[Stored]:
    """Everything in the store, by name."""
    folder = models_folder()
    if not folder.is_dir():
        return []
    found = []
    for path in folder.iterdir():
        if path.name.startswith(".") and path.name.endswith(PARTIAL):
            name = path.name[1 : -len(PARTIAL)]
            found.append(Stored(name, path, disk_size(path), False, None))
        elif not path.name.startswith(".") and (path.is_dir() or path.suffix == ".gguf"):
            name = path.name if path.is_dir() else path.stem
            found.append(Stored(name, path, disk_size(path), True, origin_of(path)))
    return sorted(found, key=lambda stored: (stored.name, stored.whole))


def origin_of(path: Path) -> Origin | None:
    """What a stored model's folder says of itself."""
    try:
        return Origin(**json.loads((path / ORIGIN).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def disk_size(path: Path) -> int:
    """Bytes that a file, or all files in a folder, take on the disk."""
    size = 0
    for file in (path, *path.rglob("*")):
        with suppress(FileNotFoundError):  # of a fetch that goes on meanwhile
            status = file.stat()
            size += status.st_blocks * 512 * S_ISREG(status.st_mode)
    return size


def check_space(folder: Path, wanted: int, what: str) -> None:
    """Raises `CierzoError` unless `wanted` bytes fit into the file system of `folder`."""
    free = shutil.disk_usage(folder).free
    if wanted + _SPARE > free:
        raise CierzoError(
            f"{what} needs {size_text(wanted + _SPARE)} in {folder}, and {size_text(free)} are free: make room, or set "
            "CIERZO_HOME to a folder on another disk"
        )


def size_text(n_bytes: float) -> str:
    return f"{n_bytes / 1e9:.1f} GB" if n_bytes >= 1e9 else f"{n_bytes / 1e6:.0f} MB"


@contextmanager
def locked(target: Path, *, progress: bool) -> Iterator[None]:
    """Keep other processes from making the same model. (The lock's file stays: to delete it is a race.)"""
    folder = cierzo_home() / "locks"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CierzoError(f"cannot make {folder}: {error.strerror}: set CIERZO_HOME to another folder") from error
    lock = FileLock(folder / hashlib.sha256(os.fsencode(target.absolute())).hexdigest()[:32])
    try:
        lock.acquire(timeout=0)
    except Timeout:
        if progress:
            print(f"waiting for another process that makes {target.name}", file=sys.stderr)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def partial_folder(target: Path) -> Path:
    return target.with_name(f".{target.name}{PARTIAL}")


def begin(target: Path, plan: str | None) -> Path:
    """The folder of a model that is not whole yet, by whoever holds its lock.

    What an earlier attempt left stays only if `plan`, which says what is made and of what, was the same; without one
    nothing stays.
    """
    folder, name = partial_folder(target), hashlib.sha256((plan or "").encode()).hexdigest()
    note = folder / _PLAN
    if folder.exists() and (plan is None or not note.is_file() or note.read_text() != name):
        shutil.rmtree(folder)
    folder.mkdir(exist_ok=True)
    note.write_text(name)
    return folder


def complete(partial: Path, target: Path) -> None:
    """Give a whole model its name."""
    (partial / _PLAN).unlink(missing_ok=True)
    os.chmod(partial, 0o755)
    os.rename(partial, target)
