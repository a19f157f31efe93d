"""The first stage: a linear model over hashed pieces of words, fast enough for every text on any CPU.

A text's features are its runs of 2 to 5 characters within words, its words and its pairs of words, each hashed to a
bucket (Weinberger et al., arXiv:0902.2206), counted with diminishing weight, scaled by how rare it is (tf-idf) and to
length 1. Beside them stands one number for what a larger model of words thinks (`prior.py`). A category's probability
is a logistic function of one product. Weights are int8, and hold no text.

Of texts of which the words leave doubts an encoder's states (`encoder.py`) count as much as the words (`Heads`).
"""

import hashlib
import json
import math
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache, cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from cierzo.errors import CierzoError
from cierzo.guard.prior import Prior
from cierzo.guard.text import views

if TYPE_CHECKING:
    from cierzo.guard.encoder import Encoder

CATEGORIES = (
    "harassment", "harassment/threatening", "hate", "hate/threatening", "illicit", "illicit/violent", "self-harm",
    "self-harm/intent", "self-harm/instructions", "sexual", "sexual/minors", "violence", "violence/graphic",
)  # fmt: skip
"""OpenAI's, as its moderation API names them."""

NEVER = 2.0
"""A score that none reaches."""

ANY = "any"
"""That some category applies: more than the worst of them says, since weak signs of several add up."""

BUCKETS = 2**17
_REMEMBERED = 2**14  # words whose hashes are kept
_GRAMS = range(2, 6)
_PRIME = np.uint64(0x100000001B3)
_MIX = np.uint64(0x9E3779B97F4A7C15)
_HIGH = np.uint64(47)  # the highest bits, on which every character has an influence
_SPACE = np.uint64(32)
_LENGTHS = {n: np.uint64(n * int(_PRIME) ** n % 2**64) for n in _GRAMS}
"""What a run's length adds to its hash: as if it were a character in front."""
_SHIPPED = Path(__file__).with_name("classifier.safetensors")
SHIPPED_ENCODER = _SHIPPED.with_name("encoder.safetensors")
_MOST_READ = 32
"""Spans of a text that are read, those of which the words tell most: a megabyte must not take a minute."""

Floats = NDArray[np.float32]


def features(text: str) -> tuple[NDArray[np.int64], Floats]:
    """Buckets of a normalised text, each once, and the logarithm's weight of their counts: two arrays [n]."""
    codes = np.frombuffer(f" {text} ".encode("utf-32-le", "replace"), np.uint32).astype(np.uint64)
    spaces = np.concatenate(([0], np.cumsum(codes == _SPACE)))
    hashes = [_words(text)]
    run = codes
    for n in _GRAMS:
        last = len(codes) - n + 1
        if last < 1:
            break
        run = run[:last] * _PRIME + codes[n - 1 :]
        # A run may begin or end at a space, but not cross one.
        whole = spaces[n - 1 : last + n - 1] == spaces[1 : last + 1]
        hashes.append(run[whole] + _LENGTHS[n])
    buckets = np.sort((np.concatenate(hashes) * _MIX >> _HIGH).astype(np.uint32))
    first = np.flatnonzero(np.concatenate(([True], buckets[1:] != buckets[:-1])))
    counts = np.diff(first, append=len(buckets))
    return buckets[first].astype(np.int64), (1 + np.log(counts)).astype(np.float32)


def _words(text: str) -> NDArray[np.uint64]:
    """Hashes of words and of pairs of words."""
    words = np.array([_word(word) for word in text.split()], np.uint64)
    pairs = words[:-1] * _PRIME + words[1:] if len(words) > 1 else words[:0]
    return np.concatenate((words, pairs))


@lru_cache(_REMEMBERED)
def _word(word: str) -> int:
    return zlib.crc32(word.strip(".,;:!?\"'()[]").encode("utf-8", "replace")) + (1 << 33)


@dataclass(frozen=True)
class Heads:
    """What an encoder's states count: a category's logit is states x weights + words' logit x words + bias.

    Attributes:
        file: the encoder's.
        digest: SHA-256 of it, in hexadecimal.
        weights: float16 [features, C].
        words, bias: float32 [C].
    """

    file: Path
    digest: str
    weights: NDArray[np.float16]
    words: Floats
    bias: Floats

    @cached_property
    def encoder(self) -> "Encoder":
        """Loaded when a text is read for the first time, with PyTorch.

        Raises:
            CierzoError: the file is another one than these heads were learnt with.
        """
        from cierzo.guard.encoder import Encoder

        if digest_of(self.file) != self.digest:
            raise CierzoError(
                f"{self.file} is not the encoder that the classifier was trained with: put that one beside the "
                f"classifier, as {SHIPPED_ENCODER.name}, or train it again"
            )
        return Encoder.load(self.file)

    def logits(self, part: str, by_words: Floats) -> Floats:
        """Of a normalised span, [C]."""
        return self.encoder.read(part) @ self.weights.astype(np.float32) + by_words * self.words + self.bias


def digest_of(file: Path) -> str:
    """SHA-256 of a file, in hexadecimal.

    Raises:
        CierzoError: it cannot be read.
    """
    try:
        with file.open("rb") as opened:
            return hashlib.file_digest(opened, "sha256").hexdigest()
    except OSError as error:
        raise CierzoError(f"cannot read the encoder {file}: {error}") from None


class Classifier:
    """Probabilities of categories.

    Args:
        categories: names of the weights' columns.
        weights: int8 [BUCKETS, C]; a column times its scale, float32 [C].
        idf: float16 [BUCKETS], what a feature's weight is multiplied with.
        bias: float32 [C].
        prior: words' weights ...
        gain: ... and what their value counts for each category, float32 [C].
        heads: what an encoder adds to it, if there is one.
    """

    def __init__(
        self,
        categories: Iterable[str],
        weights: NDArray[np.int8],
        scale: Floats,
        idf: NDArray[np.float16],
        bias: Floats,
        prior: Prior,
        gain: Floats,
        heads: Heads | None = None,
    ) -> None:
        self.categories = tuple(categories)
        self.weights, self.scale, self.idf, self.bias = weights, scale, idf, bias
        self.prior, self.gain, self.heads = prior, gain, heads

    @classmethod
    def load(cls, path: Path | None = None) -> "Classifier":
        """The shipped one, or that of a file that `cierzo moderate train` wrote.

        Raises:
            CierzoError: there is no such file, or it is something else.
        """
        from safetensors import SafetensorError, safe_open

        file = path or _SHIPPED
        try:
            with safe_open(file, framework="numpy") as opened:
                about = opened.metadata() or {}
                categories = json.loads(about["categories"])
                parts = [opened.get_tensor(name) for name in ("weights", "scale", "idf", "bias", "gain")]
                words = [opened.get_tensor(f"prior.{name}") for name in ("hashes", "idf", "weights")]
                digest = about.get("encoder")
                read = [opened.get_tensor(f"heads.{name}") for name in ("weights", "words", "bias") if digest]
        except (OSError, SafetensorError, KeyError, ValueError) as error:
            raise CierzoError(f"{file} is no classifier: {error}; `cierzo moderate train` makes one") from None
        columns = len(categories)
        shapes = [(BUCKETS, columns), (columns,), (BUCKETS,), (columns,), (columns,)]
        shapes += [words[0].shape[:1]] * len(words)
        shapes += [(len(read[0]), columns), (columns,), (columns,)] if digest else []
        if [part.shape for part in (*parts, *words, *read)] != shapes or not set(categories) <= {*CATEGORIES, ANY}:
            raise CierzoError(f"{file} is a classifier of another version: train it again with `cierzo moderate train`")
        weights, scale, idf, bias, gain = parts
        beside = file.with_name(SHIPPED_ENCODER.name)
        heads = Heads(beside if beside.is_file() else SHIPPED_ENCODER, digest, *read) if digest else None
        return cls(categories, weights, scale, idf, bias, Prior(*words), gain, heads)

    def save(self, path: Path, about: Mapping[str, str]) -> None:
        """Write the weights; `about` tells what they were learnt from."""
        from safetensors.numpy import save_file

        partial = path.with_name(f".{path.name}.partial")
        tensors: dict[str, NDArray[Any]] = {
            "weights": self.weights,
            "scale": self.scale,
            "idf": self.idf,
            "bias": self.bias,
            "gain": self.gain,
            "prior.hashes": self.prior.hashes,
            "prior.idf": self.prior.idf,
            "prior.weights": self.prior.weights,
        }
        if self.heads is not None:
            tensors |= {f"heads.{name}": getattr(self.heads, name) for name in ("weights", "words", "bias")}
            about = {**about, "encoder": self.heads.digest}
        if not all(part.flags.c_contiguous for part in tensors.values()):
            raise ValueError("safetensors writes memory as it lies: weights must be contiguous")
        save_file(tensors, partial, {"categories": json.dumps(self.categories), **about})
        partial.replace(path)

    def scores(self, text: str, reads: float = 0.0) -> dict[str, float]:
        """Probability, 0 to 1, of every category and of `ANY`, each for the worst part of a text.

        Categories of which nothing was learnt have 0.

        Args:
            reads: the score of `ANY` by the words alone from which the encoder reads a part too.
        """
        parts = [(part, self._by_words(part)) for part in views(text)]
        scored = [self._probabilities(logits) for _, logits in parts]
        if self.heads is not None:
            doubtful = [number for number, scores in enumerate(scored) if scores[ANY] >= reads]
            for number in sorted(doubtful, key=lambda number: -scored[number][ANY])[:_MOST_READ]:
                scored[number] = self._probabilities(self.heads.logits(*parts[number]))
        names = (*CATEGORIES, ANY)
        return {name: max((scores.get(name, 0.0) for scores in scored), default=0.0) for name in names}

    def _by_words(self, part: str) -> Floats:
        """Logits of a normalised span, [C]."""
        buckets, counts = features(part)
        weights = counts * self.idf[buckets].astype(np.float32)
        weights /= max(math.sqrt(weights @ weights), 1e-12)
        logits = (weights @ self.weights[buckets].astype(np.float32)) * self.scale + self.bias
        return logits + self.prior.value(part) * self.gain

    def _probabilities(self, logits: Floats) -> dict[str, float]:
        scores = dict(zip(self.categories, (1 / (1 + np.exp(-logits))).tolist(), strict=True))
        return scores | {ANY: combined(scores)}


def combined(scores: Mapping[str, float]) -> float:
    """Mean of `ANY`'s own probability and of that some category applies if each were independent of the others."""
    none = math.prod(1 - score for name, score in scores.items() if name != ANY)
    return (scores.get(ANY, 0.0) + 1 - none) / 2


@cache
def shipped() -> Classifier:
    """The classifier that the package brings."""
    return Classifier.load()
