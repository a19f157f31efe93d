"""Tokenizers that the `tokenizers` library runs: `tokenizer.json` files, and byte-pair vocabularies of GGUF files."""

import json
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cierzo.errors import WeightsError
from cierzo.tokens.interface import ChatError, Message, ToolFormat, encoding, reading
from cierzo.tokens.template import ChatTemplate
from cierzo.weights.source import shown

if TYPE_CHECKING:
    import tokenizers


class FastTokenizer:
    """A `tokenizers.Tokenizer` whose texts never become control tokens.

    Args:
        library: the tokenizer, for a text's beginning.
        inner: the same for text that follows a control token, where it differs.
        piece_bytes: bytes of every piece that is not a control token.
        bos_id: what a plain text begins with, or None.
    """

    def __init__(
        self,
        library: "tokenizers.Tokenizer",
        *,
        inner: "tokenizers.Tokenizer | None" = None,
        piece_bytes: Mapping[int, bytes],
        bos_id: int | None,
        stop_ids: Iterable[int],
        adds_leading_space: bool,
        template: ChatTemplate | None,
    ) -> None:
        self._library, self._inner = library, inner or library
        self._piece_bytes = piece_bytes
        self.vocab_size: int = library.get_vocab_size()
        self.bos_id = bos_id
        self.stop_ids = frozenset(stop_ids)
        self.adds_leading_space = adds_leading_space
        self._template = template

    @property
    def chat_refusal(self) -> str | None:
        return None if self._template else NO_TEMPLATE

    @property
    def tool_format(self) -> ToolFormat | None:
        return self._template.tool_format if self._template else None

    def encode(self, text: str, *, bos: bool = False) -> list[int]:
        ids = _encoded(self._library, text)
        return [self.bos_id, *ids] if bos and self.bos_id is not None else ids

    def token_bytes(self, token: int) -> bytes:
        return self._piece_bytes.get(token, b"")

    def encode_chat(self, messages: Sequence[Message], tools: Sequence[dict[str, Any]] | None = None) -> list[int]:
        if self._template is None:
            raise ChatError(NO_TEMPLATE)
        ids: list[int] = []
        for piece in self._template.pieces(messages, tools):
            if isinstance(piece, int):
                ids.append(piece)
            else:
                ids += _encoded(self._inner if ids else self._library, piece)
        return ids


def _encoded(library: "tokenizers.Tokenizer", text: str) -> list[int]:
    with encoding(text):
        ids: list[int] = library.encode(text, add_special_tokens=False).ids
    return ids


_MOST_GROWTH = 64
"""How many times longer a text may become before it is cut into tokens."""

NO_TEMPLATE = (
    "this is a base model without a chat template: complete text with `cierzo generate`, "
    "or give a template with --chat-template"
)


@cache
def byte_level_alphabet() -> dict[str, int]:
    """The characters by which byte-level vocabularies spell bytes (GPT-2's `bytes_to_unicode`, inverted)."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + n): byte for n, byte in enumerate(others)}


def byte_level_bytes(piece: str) -> bytes:
    """Bytes of a byte-level piece; a piece that is spelled otherwise (an added token) is its own text."""
    alphabet = byte_level_alphabet()
    if all(char in alphabet for char in piece):
        return bytes(alphabet[char] for char in piece)
    return piece.encode()


def sentencepiece_bytes(piece: str) -> bytes:
    """Bytes of a SentencePiece piece: U+2581 is a space, <0xE3> a byte."""
    if len(piece) == 6 and piece.startswith("<0x") and piece.endswith(">"):
        try:
            return bytes([int(piece[3:5], 16)])
        except ValueError:
            pass
    return piece.replace("\u2581", " ").encode()


def from_json(
    path: Path, spec: dict[str, Any], *, bos: str, stop: Iterable[str], template: ChatTemplate | None
) -> FastTokenizer:
    """The tokenizer of a `tokenizer.json`.

    Args:
        path: the file, for messages.
        spec: what is in it.
        bos: the begin-of-text token, spelled. Whether plain texts begin with it is the file's post-processor's to say.
        stop: control tokens that end an answer, spelled.
    """
    library = _library(path, spec)
    _check_template(path, spec)
    inner = _inner(path, spec)
    with reading(path, "a tokenizer that encodes"):
        begins_with = library.encode("", add_special_tokens=True).tokens[:1]
        spaced = library.encode("a", add_special_tokens=False).tokens[:1] != ["a"]
    decoders = {str(part.get("type")) for part in _parts(path, spec, "decoder")}
    added = {token["id"]: token for token in added_tokens(path, spec)}
    if "ByteLevel" in decoders:
        spell = byte_level_bytes
    elif decoders & {"ByteFallback", "Metaspace"}:
        spell = sentencepiece_bytes
    else:
        raise WeightsError(f"{path}: decoder {sorted(decoders)} is not supported; ByteLevel and ByteFallback are")
    piece_bytes = {
        token: piece.encode() if token in added else spell(piece)
        for piece, token in library.get_vocab(with_added_tokens=True).items()
        if not added.get(token, {}).get("special")
    }
    return FastTokenizer(
        library,
        inner=inner,
        piece_bytes=piece_bytes,
        bos_id=library.token_to_id(bos) if begins_with == [bos] else None,
        stop_ids=(token for token in map(library.token_to_id, stop) if token is not None),
        adds_leading_space=spell is sentencepiece_bytes and spaced,
        template=template,
    )


_SEQUENCES = {
    "normalizer": "normalizers",
    "pre_tokenizer": "pretokenizers",
    "post_processor": "processors",
    "decoder": "decoders",
}
"""Components of the pipeline, and where a sequence keeps its parts."""


def _parts(path: Path, spec: dict[str, Any], name: str) -> list[dict[str, Any]]:
    """A component of the pipeline with all that is in it."""
    found: list[dict[str, Any]] = []
    left = [part for part in [spec.get(name)] if part is not None]
    while left:
        part = left.pop()
        # The library also reads a list of a part's values, in which none of our checks would see what it does.
        if not isinstance(part, dict):
            raise WeightsError(f"{path}: {name!r} has a part that is no object with a type: fetch it again")
        found.append(part)
        inner = part.get(_SEQUENCES[name], [])
        left += inner if isinstance(inner, list) else [inner]
    return found


def added_tokens(path: Path, spec: dict[str, Any]) -> list[dict[str, Any]]:
    """The tokens beside the vocabulary, each with `id`, `content` and perhaps `special`."""
    tokens = spec.get("added_tokens") or []
    if not isinstance(tokens, list) or not all(
        isinstance(t, dict) and isinstance(t.get("content"), str) and isinstance(t.get("id"), int) for t in tokens
    ):
        raise WeightsError(f"{path}: 'added_tokens' is no list of tokens with id and content: fetch it again")
    return tokens


def _library(path: Path, spec: dict[str, Any]) -> "tokenizers.Tokenizer":
    """The library's tokenizer, which never looks for control tokens in a text."""
    import tokenizers

    _check_growth(path, spec)
    with reading(path, "a tokenizer that the tokenizers library reads"):
        library = tokenizers.Tokenizer.from_str(json.dumps(spec))
    library.no_truncation()  # a tokenizer.json may ask to cut texts in silence
    library.no_padding()
    library.encode_special_tokens = True
    return library


def _check_growth(path: Path, spec: dict[str, Any]) -> None:
    """Forty replacements of "a" by "aa" one after the other would make a terabyte of one letter."""
    growth = 1
    for part in [*_parts(path, spec, "normalizer"), *_parts(path, spec, "pre_tokenizer")]:
        if part.get("type") == "ByteLevel":
            growth *= 2
        elif isinstance(content := part.get("content"), str):
            pattern = part.get("pattern")
            inserts = not (isinstance(pattern, dict) and pattern.get("String"))  # a pattern may match nothing
            growth *= max(1, len(content) + inserts)
        if growth > _MOST_GROWTH:
            raise WeightsError(
                f"{path}: 'normalizer' and 'pre_tokenizer' can make texts more than {_MOST_GROWTH} times as long, "
                "which no model needs: fetch it again"
            )


def _check_template(path: Path, spec: dict[str, Any]) -> None:
    """The library panics over a token that a post-processor writes and does not define."""
    for part in _parts(path, spec, "post_processor"):
        defined = part.get("special_tokens") or {}
        for piece in [*(part.get("single") or []), *(part.get("pair") or [])]:
            written = piece.get("SpecialToken", {}).get("id") if isinstance(piece, dict) else None
            if part.get("type") == "TemplateProcessing" and written is not None and written not in defined:
                raise WeightsError(f"{path}: 'post_processor' does not define {shown(written)}: fetch it again")


def _inner(path: Path, spec: dict[str, Any]) -> "tokenizers.Tokenizer | None":
    """The tokenizer without the leading space that it adds only to a text's first part."""
    metaspaces = [
        part
        for part in _parts(path, spec, "pre_tokenizer")
        if part.get("type") == "Metaspace" and part.get("prepend_scheme") == "first"
    ]
    for part in metaspaces:
        part["prepend_scheme"] = "never"
    return _library(path, spec) if metaspaces else None
