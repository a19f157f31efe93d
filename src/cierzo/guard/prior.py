"""What a model of words that was learnt from many more texts thinks, as one further feature of the first stage.

It is alt-profanity-check's linear SVM (MIT) over tf-idf of single words, learnt from 200,000 texts: two
numbers a word, so it is copied into the classifier's own file, each word as its hash.
"""

import math
import re
import zlib
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

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
        total = squares = 0.0
        for word, count in Counter(_WORD.findall(text)).items():
            if (known := self._known.get(_hashed(word))) is not None:
                share = count * known[0]
                squares += share * share
                total += share * known[1]
        return total / math.sqrt(squares) if squares else 0.0

    @cached_property
    def _known(self) -> dict[int, tuple[float, float]]:
        """Of each hash. Texts have few words: looking them up one by one is faster than by arrays."""
        columns = (self.hashes.tolist(), self.idf.tolist(), self.weights.tolist())
        return {word: (idf, weight) for word, idf, weight in zip(*columns, strict=True)}


def _hashed(word: str) -> int:
    return zlib.crc32(word.encode("utf-8", "replace"))
