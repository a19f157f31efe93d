"""What a model of words that was learnt from many more texts thinks, as one further feature of the first stage.

It is alt-profanity-check's linear SVM (MIT) over tf-idf of single words, learnt from 200,000 texts: two
numbers a word, so it is copied into the classifier's own file, each word as its hash.
"""

import re
import zlib
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_WORD = re.compile(r"\b\w\w+\b")


@dataclass(frozen=True)
class Prior:
    """Weights of words.

    Attributes:
        hashes: uint32 [W], CRC-32 of each word, rising.
        idf: float16 [W], how rare a word is.
        weights: float16 [W], what it says.
    """

    hashes: NDArray[np.uint32]
    idf: NDArray[np.float16]
    weights: NDArray[np.float16]

    @classmethod
    def of(cls, words: Iterable[str], idf: Iterable[float], weights: Iterable[float]) -> "Prior":
        """From the words themselves."""
        hashes, first = np.unique(np.array([_hashed(word) for word in words], np.uint32), return_index=True)
        columns = [np.array(list(each), np.float16)[first] for each in (idf, weights)]
        return cls(hashes, *columns)

    def value(self, text: str) -> float:
        """The sum of weights over a normalised text, by tf-idf of length 1; 0 without a known word."""
        hashes, counts = np.unique(
            np.array([_hashed(word) for word in _WORD.findall(text)], np.uint32), return_counts=True
        )
        at = np.searchsorted(self.hashes, hashes)
        known = at < len(self.hashes)
        known[known] = self.hashes[at[known]] == hashes[known]
        shares = counts[known] * self.idf[at[known]].astype(np.float32)
        length = float(np.linalg.norm(shares))
        return float(shares @ self.weights[at[known]].astype(np.float32)) / length if length else 0.0


def _hashed(word: str) -> int:
    return zlib.crc32(word.encode("utf-8", "replace"))
