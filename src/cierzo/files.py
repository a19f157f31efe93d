"""Files that are whole or not there."""

import json
import os
import tempfile
from pathlib import Path
from typing import Any

from cierzo.errors import CierzoError


def write_whole(path: Path, data: bytes | str, *, over: bool = True) -> None:
    """Write the whole file or none; text as UTF-8. Without `over`, a file that is there stays.

    Raises:
        CierzoError: it cannot be written, or is there already.
    """
    try:
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=".") as folder:
            part = Path(folder, path.name)
            part.write_bytes(data.encode() if isinstance(data, str) else data)
            if over:
                os.replace(part, path)
            else:
                _put_new(part, path)
    except FileExistsError:
        raise CierzoError(f"{path} is there already and is not written over: choose another name") from None
    except OSError as error:
        raise CierzoError(f"cannot write {path}: {error.strerror}") from None


def _put_new(part: Path, path: Path) -> None:
    """Give a file its name, unless there is one by now: a rename would put it over that."""
    try:
        os.link(part, path)
    except FileExistsError:
        raise
    except OSError:  # a filesystem without hard links: the name is taken first, and the rename is over our own file
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
        os.replace(part, path)


def read_own(path: Path, key: str, value: object, otherwise: str) -> dict[str, Any]:
    """A JSON object that says of itself what it is, by `value` at `key`.

    Raises:
        CierzoError: it cannot be read, or is something else: `otherwise` ends that sentence.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise CierzoError(f"cannot read {path}: {error.strerror}") from None
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict) or found.get(key) != value:
        raise CierzoError(f"{path} is {otherwise}")
    return found
