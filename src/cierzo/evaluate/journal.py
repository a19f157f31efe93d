"""What a run has answered so far, a line each, so that a run that was killed goes on and ends with the same numbers."""

import json
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from cierzo.errors import CierzoError


class Journal:
    """Answers by key, in the order in which they came. For `with`: closed at its end, and kept.

    Args:
        path: the file; made when it is not there.
        settings: what the answers depend on; those of another run are not taken.

    Raises:
        CierzoError: it belongs to a run with other settings, another process writes it, or it cannot be written.
    """

    def __init__(self, path: Path, settings: dict[str, Any]) -> None:
        self.path = path
        self.answers: dict[str, Any] = {}
        self._lock = FileLock(f"{path}.lock")
        try:
            self._lock.acquire(timeout=0)
        except Timeout:
            raise CierzoError(f"another run writes {path}: wait for it, or choose another --out") from None
        except OSError as error:
            raise CierzoError(f"cannot write beside {path}: {error.strerror}") from None
        try:
            self._read(settings)
            self._file = path.open("a", encoding="utf-8")
            if not path.stat().st_size:
                self._write(settings)
        except BaseException:
            self._lock.release()
            raise

    def _read(self, settings: dict[str, Any]) -> None:
        try:
            lines = self.path.read_bytes().splitlines(keepends=True)
        except FileNotFoundError:
            return
        whole = [line for line in lines if line.endswith(b"\n")]
        if len(whole) < len(lines):  # the last one was being written
            with self.path.open("r+b") as file:
                file.truncate(sum(map(len, whole)))
        try:
            entries = [json.loads(line) for line in whole]
            if entries and entries[0] != json.loads(json.dumps(settings)):
                raise CierzoError(
                    f"{self.path} is of a run with other settings ({', '.join(_different(settings, entries[0]))}): "
                    "delete it, or choose another --out"
                )
            self.answers = dict(entries[1:])
        except (ValueError, TypeError, AttributeError):
            raise CierzoError(f"{self.path} is no journal of a run: delete it, or choose another --out") from None

    def add(self, key: str, answer: Any) -> None:
        self.answers[key] = answer
        self._write([key, answer])

    def _write(self, entry: Any) -> None:
        self._file.write(json.dumps(entry) + "\n")
        self._file.flush()

    def delete(self) -> None:
        """The run has ended, and its record holds what matters."""
        self.path.unlink()

    def close(self) -> None:
        self._file.close()
        self._lock.release()
        Path(self._lock.lock_file).unlink(missing_ok=True)

    def __enter__(self) -> "Journal":
        return self

    def __exit__(self, *ignored: object) -> None:
        self.close()


def _different(one: dict[str, Any], other: dict[str, Any]) -> list[str]:
    """Names of the settings that differ; `model.context` of one within another."""
    names = []
    for key in sorted({*one, *other}):
        mine, theirs = one.get(key), other.get(key)
        if isinstance(mine, dict) and isinstance(theirs, dict):
            names += [f"{key}.{name}" for name in _different(mine, theirs)]
        elif json.dumps(mine) != json.dumps(theirs):  # of a tuple the file has a list
            names.append(key)
    return names
