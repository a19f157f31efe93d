"""Who may ask: keys, which are never kept or compared in clear."""

import hmac
import re
import secrets
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from cierzo.errors import CierzoError

VARIABLE = "CIERZO_API_KEY"
_LINE = re.compile(r"([A-Za-z0-9._-]{1,64})\s+sha256:([0-9a-f]{64})")
_SHORTEST = 16


@dataclass(frozen=True)
class Key:
    """One that may ask, by name."""

    name: str
    digest: bytes


def new_key(name: str) -> tuple[str, str]:
    """A new key, and its line for the file of keys."""
    key = "sk-" + secrets.token_urlsafe(32)
    line = f"{name} sha256:{sha256(key.encode()).hexdigest()}"
    if not _LINE.fullmatch(line):
        raise CierzoError(f"{name!r} is no name for a key: use up to 64 letters, digits, dots, dashes")
    return key, line


def read_keys(file: str | None, variable: str | None) -> list[Key]:
    """The keys of a file, and the one in the environment.

    Raises:
        CierzoError: a file that cannot be read or has other lines, or a key that could be guessed.
    """
    keys = []
    if variable:
        if len(variable) < _SHORTEST:
            raise CierzoError(f"the key in {VARIABLE} is shorter than {_SHORTEST} characters: it could be guessed")
        keys.append(Key("environment", sha256(variable.encode()).digest()))
    if file is None:
        return keys
    try:
        lines = Path(file).expanduser().read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise CierzoError(f"cannot read the keys in {file}: {error}") from None
    for number, line in enumerate(map(str.strip, lines), 1):
        if not line or line.startswith("#"):
            continue
        found = _LINE.fullmatch(line)
        if found is None:
            raise CierzoError(f"{file}, line {number}: not `NAME sha256:HASH`; `cierzo serve --new-key NAME` makes one")
        if any(key.name == found[1] for key in keys):
            raise CierzoError(f"{file}, line {number}: there is another key called {found[1]}")
        keys.append(Key(found[1], bytes.fromhex(found[2])))
    if not keys:
        raise CierzoError(f"{file} has no keys: `cierzo serve --new-key NAME` makes one")
    return keys


def find(keys: list[Key], presented: bytes) -> Key | None:
    """The key that was presented; the time that it takes tells nothing."""
    digest, found = sha256(presented).digest(), None
    for key in keys:
        if hmac.compare_digest(key.digest, digest):
            found = key
    return found
