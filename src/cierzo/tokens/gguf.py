"""The tokenizers inside GGUF files: `llama` (SentencePiece with byte fallback) and `gpt2` (byte-level BPE)."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cierzo.errors import WeightsError
from cierzo.tokens.fast import FastTokenizer, byte_level_bytes
from cierzo.tokens.interface import Tokenizer, reading
from cierzo.tokens.sentencepiece import SentencePieceTokenizer, processor, serialised_model
from cierzo.tokens.template import ChatTemplate
from cierzo.weights.source import flag, shown

if TYPE_CHECKING:
    import tokenizers

NORMAL, UNKNOWN, CONTROL, USER_DEFINED = 1, 2, 3, 4
"""`tokenizer.ggml.token_type`."""

_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}DIGITS| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_DIGITS_FIRST = (r"\p{N}", _GPT2)

PRE_TOKENIZERS: dict[str, tuple[str, ...]] = {
    "gpt-2": (_GPT2,),
    "smollm": _DIGITS_FIRST,
    "starcoder": _DIGITS_FIRST,
    "refact": _DIGITS_FIRST,
    "command-r": _DIGITS_FIRST,
    "llama-bpe": (_LLAMA3.replace("DIGITS", "{1,3}"),),
    "qwen2": (_LLAMA3.replace("DIGITS", ""),),
    "tekken": (_TEKKEN,),
}
"""How llama.cpp cuts text before merging, by `tokenizer.ggml.pre`: patterns, one after the other."""

_WHOLE_WORDS_FIRST = {"llama-bpe", "tekken"}  # a word that is a token is taken whole, whatever the merges

_END_OF_ANSWER = {"<|im_end|>", "<|endoftext|>", "<|eot_id|>", "<|eom_id|>", "<|end|>", "<end_of_turn>", "</s>"}
"""Control tokens that end an answer even where the file does not say so."""


class Vocabulary:
    """The pieces in a GGUF file's metadata, checked, with their kinds and their scores if it has any."""

    def __init__(self, path: Path, metadata: Mapping[str, Any]) -> None:
        self.path, self.metadata = path, metadata
        self.pieces: list[str] = self._texts("tokens") or []
        if not self.pieces:
            raise WeightsError(f"{path}: tokenizer.ggml.tokens is missing: convert the model again with its vocabulary")
        self.kinds: list[int] = self._numbers("token_type") or [NORMAL] * len(self.pieces)
        self.scores = self._numbers("scores")
        self.merges = self._texts("merges") or []

    def _texts(self, name: str) -> list[str] | None:
        texts = self._value(name)
        if texts is not None and not (isinstance(texts, list) and all(isinstance(text, str) for text in texts)):
            raise WeightsError(f"{self.path}: tokenizer.ggml.{name} is no list of texts: convert the model again")
        return texts

    def _numbers(self, name: str) -> list[Any] | None:
        numbers = self._value(name)
        if numbers is None:
            return None
        if not isinstance(numbers, list) or len(numbers) != len(self.pieces):
            raise WeightsError(
                f"{self.path}: tokenizer.ggml.{name} does not have one entry a token ({len(self.pieces)})"
            )
        if not all(isinstance(n, int | float) and abs(n) < 1e38 for n in numbers):
            raise WeightsError(f"{self.path}: tokenizer.ggml.{name} holds what is no number: convert the model again")
        return numbers

    def id(self, name: str, default: int | None = None) -> int | None:
        """The token that `tokenizer.ggml.<name>_token_id` names. Some converters write -1, or 2^32 - 1, for none."""
        token = self.metadata.get(f"tokenizer.ggml.{name}_token_id", default)
        if token in (None, -1, 2**32 - 1):
            return None
        if not isinstance(token, int) or isinstance(token, bool) or not 0 <= token < len(self.pieces):
            raise WeightsError(
                f"{self.path}: tokenizer.ggml.{name}_token_id {shown(token)} is none of {len(self.pieces)} tokens"
            )
        return token

    def flag(self, name: str, default: bool) -> bool:
        key = f"tokenizer.ggml.{name}"
        return flag(self.path, {key: self.metadata.get(key, default)}, key)

    def _value(self, name: str) -> Any:
        return self.metadata.get(f"tokenizer.ggml.{name}")

    @property
    def controls(self) -> dict[str, int]:
        """The control tokens, spelled."""
        pairs = zip(self.pieces, self.kinds, strict=True)
        return {piece: token for token, (piece, kind) in enumerate(pairs) if kind == CONTROL}

    @property
    def stop_ids(self) -> set[int]:
        """Tokens that end an answer."""
        named = {self.id(name) for name in ("eos", "eot", "eom")}
        known = {token for piece, token in self.controls.items() if piece in _END_OF_ANSWER}
        return {token for token in named if token is not None} | known

    def bos_id(self, default: bool) -> int | None:
        """The token that a plain text begins with, if it does."""
        return self.id("bos") if self.flag("add_bos_token", default) else None


def gguf_tokenizer(vocabulary: Vocabulary, template: ChatTemplate | None) -> Tokenizer:
    """The tokenizer that a GGUF file's metadata holds."""
    model = vocabulary.metadata.get("tokenizer.ggml.model")
    if model == "llama":
        return _sentencepiece(vocabulary, template)
    if model == "gpt2":
        return _byte_pair(vocabulary, template)
    raise WeightsError(f"{vocabulary.path}: tokenizer.ggml.model {shown(model)} is not supported; llama and gpt2 are")


def serialised(vocabulary: Vocabulary) -> bytes:
    """The vocabulary as a SentencePiece model."""
    if vocabulary.scores is None:
        raise WeightsError(f"{vocabulary.path}: tokenizer.ggml.scores is missing: convert the model again")
    kinds = vocabulary.kinds
    unknown = kinds.index(UNKNOWN) if UNKNOWN in kinds else 0
    unk_id, bos_id, eos_id = (
        vocabulary.id(name, default) for name, default in (("unknown", unknown), ("bos", 1), ("eos", 2))
    )
    return serialised_model(
        vocabulary.pieces,
        vocabulary.scores,
        kinds,
        unk_id=_or_absent(unk_id),
        bos_id=_or_absent(bos_id),
        eos_id=_or_absent(eos_id),
        add_dummy_prefix=vocabulary.flag("add_space_prefix", True),
    )


def _sentencepiece(vocabulary: Vocabulary, template: ChatTemplate | None) -> Tokenizer:
    with reading(vocabulary.path, "a SentencePiece vocabulary in tokenizer.ggml.tokens"):
        library = processor(serialised(vocabulary))
    return SentencePieceTokenizer(
        library, bos_id=vocabulary.bos_id(True), stop_ids=vocabulary.stop_ids, template=template
    )


def _or_absent(token: int | None) -> int:
    return -1 if token is None else token


def byte_pair(vocabulary: Vocabulary) -> "tokenizers.Tokenizer":
    """The vocabulary as a tokenizer of the library, without its control tokens: only templates make them."""
    from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers

    name = vocabulary.metadata.get("tokenizer.ggml.pre")
    if not isinstance(name, str) or name not in PRE_TOKENIZERS:
        known = ", ".join(PRE_TOKENIZERS)
        raise WeightsError(f"{vocabulary.path}: tokenizer.ggml.pre {shown(name)} is not supported; {known} are")
    merges = [(left, right) for left, _, right in (merge.partition(" ") for merge in vocabulary.merges)]
    ids = {piece: token for token, piece in enumerate(vocabulary.pieces)}
    with reading(vocabulary.path, "a byte-pair vocabulary whose tokenizer.ggml.merges fit it"):
        library = Tokenizer(models.BPE(vocab=ids, merges=merges, ignore_merges=name in _WHOLE_WORDS_FIRST))
    library.pre_tokenizer = pre_tokenizers.Sequence(cut(name))
    # Other added tokens are found in any text, as llama.cpp does.
    pairs = zip(vocabulary.pieces, vocabulary.kinds, strict=True)
    library.add_tokens([AddedToken(piece, normalized=False) for piece, kind in pairs if kind == USER_DEFINED])
    return library


def cut(name: str) -> list[Any]:
    """The steps that cut a text before merging, by one of `PRE_TOKENIZERS`' names."""
    from tokenizers import Regex, pre_tokenizers

    return [
        *(pre_tokenizers.Split(Regex(pattern), behavior="isolated") for pattern in PRE_TOKENIZERS[name]),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ]


def _byte_pair(vocabulary: Vocabulary, template: ChatTemplate | None) -> Tokenizer:
    library = byte_pair(vocabulary)
    kinds = list(enumerate(zip(vocabulary.pieces, vocabulary.kinds, strict=True)))
    return FastTokenizer(
        library,
        piece_bytes={
            token: piece.encode() if kind == USER_DEFINED else byte_level_bytes(piece)
            for token, (piece, kind) in kinds
            if kind != CONTROL
        },
        bos_id=vocabulary.bos_id(False),
        stop_ids=vocabulary.stop_ids,
        adds_leading_space=False,
        template=template,
    )
