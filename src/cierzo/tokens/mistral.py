"""Mistral's own tokenizers and templates, by the `mistral-common` library: v1, v2, v3, v7 and tekken."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from cierzo.errors import WeightsError
from cierzo.tokens.fast import NO_TEMPLATE
from cierzo.tokens.interface import ChatError, Message, ToolFormat, encoding, reading, telling
from cierzo.tokens.messages import checked
from cierzo.tokens.sentencepiece import piece_bytes, read_model
from cierzo.weights.source import read_json, whole

if TYPE_CHECKING:
    from mistral_common.tokens.tokenizers.mistral import MistralTokenizer as LibraryTokenizer


_MOST_SPECIAL = 2**14


class MistralTokenizer:
    """A Mistral vocabulary with its instruct template.

    v1: 7B v0.1 and v0.2, `[INST]` as plain text, no tools; v2, v3: control tokens and tools; v7: system prompts have
    control tokens of their own; tekken: a byte-level vocabulary with v3's or v7's template.

    Args:
        path: `tokenizer.model`, `tokenizer.model.v3`, `tekken.json`, ...
        instruct: whether the weights were tuned for chats; base models share these files.
    """

    def __init__(self, path: Path, *, instruct: bool) -> None:
        self._library = _load(path)
        self._text = cast("Any", self._library.instruct_tokenizer.tokenizer)  # SentencePieceTokenizer or Tekkenizer
        self._pieces = None if path.suffix == ".json" else self._text._model
        self._instruct = instruct
        self.version: str = self._text.version.value
        self.vocab_size: int = self._text.n_words
        self.bos_id: int | None = self._text.bos_id
        self.stop_ids = frozenset({self._text.eos_id})
        self.adds_leading_space = self._pieces is not None

    @property
    def chat_refusal(self) -> str | None:
        return None if self._instruct else NO_TEMPLATE

    @property
    def tool_format(self) -> ToolFormat | None:
        if not self._instruct or self.version in ("v1", "v11"):  # v11 writes an id between name and arguments
            return None
        begin, arguments = self._controls("[TOOL_CALLS]"), self._controls("[ARGS]")
        return ToolFormat("mistral-arguments" if arguments else "mistral", begin, arguments)

    def _controls(self, spelled: str) -> frozenset[int]:
        """The control token that is spelled so, if there is one."""
        if self._pieces is not None:
            token: int = self._pieces.piece_to_id(spelled)
            return frozenset([token] if self._pieces.is_control(token) else [])
        return frozenset(t["rank"] for t in self._text._all_special_tokens if t["token_str"] == spelled)

    def encode(self, text: str, *, bos: bool = False) -> list[int]:
        with encoding(text):
            ids: list[int] = self._text.encode(text, bos=bos, eos=False)
        return ids

    def token_bytes(self, token: int) -> bytes:
        if self._pieces is not None:
            return piece_bytes(self._pieces, token)
        data: bytes = self._text.id_to_byte_piece(token) if token < self.vocab_size else b""
        return data

    def encode_chat(self, messages: Sequence[Message], tools: Sequence[dict[str, Any]] | None = None) -> list[int]:
        from mistral_common.protocol.instruct.request import ChatCompletionRequest

        if not self._instruct:
            raise ChatError(NO_TEMPLATE)
        messages = checked(messages)
        if self.version == "v1" and (tools or any(m["role"] == "tool" or "tool_calls" in m for m in messages)):
            raise ChatError("the v1 template of Mistral 7B v0.1 and v0.2 has no place for tools: leave them out")
        # The library raises its own errors, pydantic's, and those of JSON in a tool call's arguments.
        with telling(ChatError, f"Mistral's {self.version} template refuses these messages"):
            request: Any = ChatCompletionRequest.from_openai(
                messages=[_with_json_arguments(m) for m in messages], tools=None if tools is None else list(tools)
            )
            return list(self._library.encode_chat_completion(request).tokens)


def _with_json_arguments(message: Message) -> Message:
    """Tool calls as the OpenAI API writes them: arguments as JSON text."""
    if "tool_calls" not in message:
        return message
    calls = []
    for call in message["tool_calls"]:
        arguments = call["function"].get("arguments", "{}")
        text = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
        calls.append({"type": "function", **call, "function": {**call["function"], "arguments": text}})
    return {**message, "tool_calls": calls}


def _load(path: Path) -> "LibraryTokenizer[Any, Any, Any, Any, Any]":
    from mistral_common.protocol.instruct.normalize import get_normalizer
    from mistral_common.protocol.instruct.validator import ValidationMode, get_validator
    from mistral_common.tokens.tokenizers.base import TokenizerVersion
    from mistral_common.tokens.tokenizers.instruct import (
        InstructTokenizerV1,
        InstructTokenizerV3,
        InstructTokenizerV7,
    )
    from mistral_common.tokens.tokenizers.mistral import MistralTokenizer as LibraryTokenizer
    from mistral_common.tokens.tokenizers.sentencepiece import SentencePieceTokenizer

    with reading(path, "a Mistral tokenizer"):
        if path.suffix == ".json":
            _check_tekken(path)
        if path.name != "tokenizer.model":
            loaded = LibraryTokenizer.from_file(path)
            if path.suffix == ".json":
                _check_bytes(path, loaded.instruct_tokenizer.tokenizer)
            return loaded
        # The plain name says nothing: 7B v0.3 ships its v3 vocabulary under it too.
        pieces = read_model(path)
        known = {pieces.id_to_piece(token) for token in range(pieces.vocab_size()) if pieces.is_control(token)}
        version, template = TokenizerVersion.v1, InstructTokenizerV1
        if "[SYSTEM_PROMPT]" in known:
            version, template = TokenizerVersion.v7, InstructTokenizerV7
        elif "[INST]" in known:
            version, template = TokenizerVersion.v3, InstructTokenizerV3
        return LibraryTokenizer(
            template(SentencePieceTokenizer(path, version)),
            validator=get_validator(version, mode=ValidationMode.test),
            request_normalizer=get_normalizer(version, None),
        )


def _check_tekken(path: Path) -> None:
    """Before the library makes as many special tokens as the file declares, and takes its numbers for what they say."""
    values = read_json(path)
    config = values.get("config")
    if not isinstance(config, dict):
        raise WeightsError(f"{path}: no 'config' of a tekken vocabulary: fetch it again")
    whole(path, config, "default_vocab_size")
    whole(path, config, "default_num_special_tokens", most=_MOST_SPECIAL)


def _check_bytes(path: Path, text: Any) -> None:
    """The library panics over a byte of a text that is no token."""
    single = {text.id_to_byte_piece(token) for token in range(text.num_special_tokens, text.n_words)}
    if missing := [byte for byte in range(256) if bytes([byte]) not in single]:
        raise WeightsError(f"{path}: 'vocab' has no token for byte {missing[0]}: fetch it again")
