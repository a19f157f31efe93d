"""The tokenizers inside GGUF files: `llama` (SentencePiece with byte fallback) and `gpt2` (byte-level BPE)."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from cierzo.errors import WeightsError
from cierzo.tokens.fast import FastTokenizer, byte_level_bytes
from cierzo.tokens.interface import Tokenizer
from cierzo.tokens.sentencepiece import SentencePieceTokenizer, processor, serialised_model
from cierzo.tokens.template import ChatTemplate

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


def gguf_tokenizer(path: Path, metadata: Mapping[str, Any], template: ChatTemplate | None) -> Tokenizer:
    """The tokenizer that a GGUF file's metadata holds."""
    pieces, kinds = _vocabulary(path, metadata)
    stop_ids = stop_tokens(metadata, pieces, kinds)
    model = metadata.get("tokenizer.ggml.model")
    if model == "llama":
        return _sentencepiece(path, metadata, pieces, kinds, stop_ids, template)
    if model == "gpt2":
        return _byte_pair(path, metadata, pieces, kinds, stop_ids, template)
    raise WeightsError(f"{path}: tokenizer.ggml.model {model!r} is not supported; llama and gpt2 are")


def _vocabulary(path: Path, metadata: Mapping[str, Any]) -> tuple[list[str], list[int]]:
    pieces = metadata.get("tokenizer.ggml.tokens")
    if not isinstance(pieces, list) or not pieces or not all(isinstance(piece, str) for piece in pieces):
        raise WeightsError(f"{path}: tokenizer.ggml.tokens is missing: convert the model again with its vocabulary")
    kinds = metadata.get("tokenizer.ggml.token_type", [NORMAL] * len(pieces))
    if not isinstance(kinds, list) or len(kinds) != len(pieces):
        raise WeightsError(f"{path}: tokenizer.ggml.token_type does not have one entry a token ({len(pieces)})")
    return pieces, kinds


def control_tokens(metadata: Mapping[str, Any]) -> dict[str, int]:
    """The vocabulary's control tokens, spelled."""
    pieces, kinds = metadata.get("tokenizer.ggml.tokens", []), metadata.get("tokenizer.ggml.token_type", [])
    return {piece: token for token, (piece, kind) in enumerate(zip(pieces, kinds, strict=False)) if kind == CONTROL}


def stop_tokens(metadata: Mapping[str, Any], pieces: list[str], kinds: list[int]) -> set[int]:
    """Tokens that end an answer."""
    named = {metadata.get(f"tokenizer.ggml.{name}_token_id") for name in ("eos", "eot", "eom")}
    known = {
        t for t, (p, kind) in enumerate(zip(pieces, kinds, strict=True)) if kind == CONTROL and p in _END_OF_ANSWER
    }
    return {token for token in named if isinstance(token, int)} | known


def _bos(metadata: Mapping[str, Any], default: bool) -> int | None:
    """The token that a plain text begins with, if it does."""
    token = metadata.get("tokenizer.ggml.bos_token_id")
    return token if isinstance(token, int) and metadata.get("tokenizer.ggml.add_bos_token", default) else None


def _sentencepiece(
    path: Path,
    metadata: Mapping[str, Any],
    pieces: list[str],
    kinds: list[int],
    stop_ids: Iterable[int],
    template: ChatTemplate | None,
) -> Tokenizer:
    scores = metadata.get("tokenizer.ggml.scores")
    if not isinstance(scores, list) or len(scores) != len(pieces):
        raise WeightsError(f"{path}: tokenizer.ggml.scores does not have one entry a token ({len(pieces)})")
    model = serialised_model(
        pieces,
        scores,
        kinds,
        unk_id=metadata.get("tokenizer.ggml.unknown_token_id", kinds.index(UNKNOWN) if UNKNOWN in kinds else 0),
        bos_id=metadata.get("tokenizer.ggml.bos_token_id", 1),
        eos_id=metadata.get("tokenizer.ggml.eos_token_id", 2),
        add_dummy_prefix=metadata.get("tokenizer.ggml.add_space_prefix", True),
    )
    try:
        library = processor(model)
    except RuntimeError as error:
        raise WeightsError(
            f"{path}: the vocabulary in tokenizer.ggml.tokens is no SentencePiece one: {error}"
        ) from None
    return SentencePieceTokenizer(library, bos_id=_bos(metadata, True), stop_ids=stop_ids, template=template)


def _byte_pair(
    path: Path,
    metadata: Mapping[str, Any],
    pieces: list[str],
    kinds: list[int],
    stop_ids: Iterable[int],
    template: ChatTemplate | None,
) -> Tokenizer:
    from tokenizers import AddedToken, Regex, Tokenizer, models, pre_tokenizers

    name = metadata.get("tokenizer.ggml.pre")
    if name not in PRE_TOKENIZERS:
        known = ", ".join(PRE_TOKENIZERS)
        raise WeightsError(f"{path}: tokenizer.ggml.pre {name!r} is not supported; {known} are")
    merges = [tuple(merge.split(" ", 1)) for merge in metadata.get("tokenizer.ggml.merges", [])]
    vocabulary = {piece: token for token, piece in enumerate(pieces)}
    try:
        library = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, ignore_merges=name in _WHOLE_WORDS_FIRST))
    except Exception as error:  # the library raises plain Exception
        raise WeightsError(f"{path}: tokenizer.ggml.merges does not fit the vocabulary: {error}") from None
    library.pre_tokenizer = pre_tokenizers.Sequence(
        [
            *(pre_tokenizers.Split(Regex(pattern), behavior="isolated") for pattern in PRE_TOKENIZERS[name]),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    # Control tokens are not added: only templates make them. The others are found in any text, as llama.cpp does.
    own = [piece for piece, kind in zip(pieces, kinds, strict=True) if kind == USER_DEFINED]
    library.add_tokens([AddedToken(piece, normalized=False) for piece in own])
    return FastTokenizer(
        library,
        piece_bytes={
            token: piece.encode() if kind == USER_DEFINED else byte_level_bytes(piece)
            for token, (piece, kind) in enumerate(zip(pieces, kinds, strict=True))
            if kind != CONTROL
        },
        bos_id=_bos(metadata, False),
        stop_ids=stop_ids,
        adds_leading_space=False,
        template=template,
    )
