"""Scores of texts that were judged before: a conversation that grows costs its new texts only."""

from collections.abc import Iterable, Mapping
from hashlib import blake2b

Scores = Mapping[str, float]


class Known:
    """Keeps the scores of the texts that were asked for last, by their hashes.

    Args:
        most: texts at most, of about a kilobyte each whatever their length.
    """

    def __init__(self, most: int = 4096) -> None:
        self._most = most
        self._scores: dict[bytes, Scores] = {}

    def find(self, names: Iterable[bytes]) -> dict[bytes, Scores]:
        """Those that are known, of texts by these names."""
        found = {name: self._scores.pop(name) for name in dict.fromkeys(names) if name in self._scores}
        self._scores |= found  # the last ones to go
        return found

    def keep(self, scores: Mapping[bytes, Scores]) -> None:
        self._scores |= scores
        while len(self._scores) > self._most:
            del self._scores[next(iter(self._scores))]


def name_of(text: str, salt: str) -> bytes:
    """Of a text with this salt: nobody finds out by the clock what somebody with another has asked."""
    key = blake2b(salt.encode("utf-8", "surrogatepass")).digest()
    return blake2b(text.encode("utf-8", "surrogatepass"), key=key, digest_size=32).digest()
