"""What the guard found, a JSON object a line in a file of its own."""

import hashlib
import json
import logging
import os
from datetime import UTC, datetime
from io import TextIOWrapper
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import Any

from cierzo.errors import CierzoError


class _Private(RotatingFileHandler):
    """Whose files nobody else can read, also the later ones."""

    def _open(self) -> TextIOWrapper:
        descriptor = os.open(self.baseFilename, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        return TextIOWrapper(os.fdopen(descriptor, "ab"), encoding="utf-8", write_through=True)


class Audit:
    """A file that is renamed to `FILE.1`, `FILE.2`, ... when it is full; the oldest one goes.

    Args:
        text: write texts as they are. Otherwise their SHA-256, by which a known text can be found again, and a short
            one guessed.
        size: bytes of a file at most.
        kept: full files beside the one that is written.

    Raises:
        CierzoError: the file cannot be written.
    """

    def __init__(self, path: Path, *, text: bool = False, size: int = 10 * 2**20, kept: int = 5) -> None:
        self._text = text
        try:
            self._handler = _Private(path, maxBytes=size, backupCount=kept, encoding="utf-8")
        except OSError as error:
            raise CierzoError(f"cannot write the guard's log {path}: {error.strerror}") from None

    def write(self, text: str, **fields: Any) -> None:
        """One finding about a text."""
        data = text.encode("utf-8", "replace")
        said = {"text": text} if self._text else {"sha256": hashlib.sha256(data).hexdigest(), "characters": len(text)}
        line = json.dumps({"time": datetime.now(UTC).isoformat(timespec="milliseconds"), **fields, **said})
        self._handler.emit(logging.LogRecord("guard", logging.INFO, "", 0, line, None, None))

    def close(self) -> None:
        self._handler.close()
