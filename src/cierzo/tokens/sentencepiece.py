"""SentencePiece vocabularies, out of a `tokenizer.model` or rebuilt from a GGUF file's pieces and scores."""

import struct
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cierzo.tokens.fast import NO_TEMPLATE, sentencepiece_bytes
from cierzo.tokens.interface import ChatError, Message, ToolFormat, encoding, reading
from cierzo.tokens.template import ChatTemplate

if TYPE_CHECKING:
    from sentencepiece import SentencePieceProcessor


def read_model(path: Path) -> "SentencePieceProcessor":
    """A `tokenizer.model`."""
    with reading(path, "a SentencePiece model"):
        return processor(path.read_bytes())


def processor(model: bytes) -> "SentencePieceProcessor":
    """The library's processor of a serialised model. Raises what the library does for bytes that are none."""
    import sentencepiece

    loaded = sentencepiece.SentencePieceProcessor()
    loaded.LoadFromSerializedProto(model)
    return loaded


class SentencePieceTokenizer:
    """A SentencePiece processor whose texts never become control tokens (the library sees to it)."""

    def __init__(
        self,
        library: "SentencePieceProcessor",
        *,
        bos_id: int | None,
        stop_ids: Iterable[int],
        template: ChatTemplate | None,
    ) -> None:
        self._library = library
        self.vocab_size: int = library.vocab_size()
        self.bos_id = bos_id
        self.stop_ids = frozenset(stop_ids)
        self.adds_leading_space = library.encode("a", out_type=str)[:1] != ["a"]
        self._template = template

    @property
    def chat_refusal(self) -> str | None:
        return None if self._template else NO_TEMPLATE

    @property
    def tool_format(self) -> ToolFormat | None:
        return self._template.tool_format if self._template else None

    def encode(self, text: str, *, bos: bool = False) -> list[int]:
        ids = self._encoded(text)
        return [self.bos_id, *ids] if bos and self.bos_id is not None else ids

    def token_bytes(self, token: int) -> bytes:
        return piece_bytes(self._library, token)

    def encode_chat(self, messages: Sequence[Message], tools: Sequence[dict[str, Any]] | None = None) -> list[int]:
        if self._template is None:
            raise ChatError(NO_TEMPLATE)
        pieces = self._template.pieces(messages, tools)
        return [token for p in pieces for token in ([p] if isinstance(p, int) else self._encoded(p))]

    def _encoded(self, text: str) -> list[int]:
        with encoding(text):
            ids: list[int] = self._library.encode(text)
        return ids


def piece_bytes(library: "SentencePieceProcessor", token: int) -> bytes:
    """Bytes of a token; none for a control token, an unused one, or one past the vocabulary."""
    if token >= library.vocab_size() or library.is_control(token) or library.is_unused(token):
        return b""
    if library.is_unknown(token):
        return " \u2047 ".encode()  # what SentencePiece writes for a piece that it does not know
    return sentencepiece_bytes(library.id_to_piece(token))


def serialised_model(
    pieces: Sequence[str],
    scores: Sequence[float],
    kinds: Sequence[int],
    *,
    unk_id: int,
    bos_id: int,
    eos_id: int,
    add_dummy_prefix: bool,
) -> bytes:
    """A byte-pair `ModelProto` with byte fallback, as `sentencepiece_model.proto` numbers its fields.

    `kinds` are SentencePiece's piece types, which GGUF uses too: 1 normal, 2 unknown, 3 control, 4 user-defined,
    5 unused, 6 byte.
    """

    def field(number: int, payload: bytes | int) -> bytes:
        if isinstance(payload, int):
            return _varint(number << 3) + _varint(payload)
        return _varint(number << 3 | 2) + _varint(len(payload)) + payload

    model = bytearray()
    for piece, score, kind in zip(pieces, scores, kinds, strict=True):
        number = _varint(2 << 3 | 5) + struct.pack("<f", score)
        model += field(1, field(1, piece.encode()) + number + field(3, kind))
    trainer = field(3, 2) + field(35, 1) + field(40, unk_id) + field(41, bos_id) + field(42, eos_id)
    normalizer = field(1, b"identity") + field(3, int(add_dummy_prefix)) + field(4, 0) + field(5, 1)
    return bytes(model + field(2, trainer) + field(3, normalizer))


def _varint(value: int) -> bytes:
    value &= 2**64 - 1  # negative numbers (an absent id, -1) as protocol buffers write them
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])
