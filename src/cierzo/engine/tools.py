"""Tool calls read out of an answer while it comes.

A parser splits the answer into the text for the user and the calls, and hands on a call's arguments as they are
written. What looks like a call and is none stays text, so nothing is lost.
"""

import json
from collections.abc import Iterable
from dataclasses import replace
from uuid import uuid4

from cierzo.engine.request import ToolCallDelta
from cierzo.engine.stream import overlap
from cierzo.tokens import ToolFormat

Piece = str | ToolCallDelta

_BEGIN, _END = "<tool_call>", "</tool_call>"


class ToolCallParser:
    """The calls of one answer, in the model's format.

    "mistral": a control token, then a JSON list of calls (v2, v3, v7); "mistral-arguments": for each call the control
    token, its name, a second control token, the arguments (v11 and later); "chatml": `<tool_call>`, a JSON call or list
    of calls, `</tool_call>`, in text or as control tokens.
    """

    def __init__(self, form: ToolFormat) -> None:
        self._form = form
        self._calls = _CallReader()
        self._inside = self._in_arguments = False
        self._held = ""

    def marks(self, token: int) -> bool:
        """Whether the token has a meaning in the format."""
        return token in self._form.begin or token in self._form.arguments or token in self._form.end

    def push(self, text: str, token: int | None, *, last: bool) -> tuple[str, tuple[ToolCallDelta, ...]]:
        """The user's text and the pieces of calls that `token` (None at the end) and the text shown with it bring."""
        pieces: list[Piece] = []
        if token is not None and token in self._form.begin:
            pieces += self._begin()
        elif token is not None and token in self._form.arguments:
            pieces += self._calls.named(self._held.strip())
            self._held, self._in_arguments = "", True
        elif token is not None and token in self._form.end:
            pieces += self._finish()
        pieces += self._read(text, last)
        if last:
            pieces += self._finish()
        calls: list[ToolCallDelta] = []
        for piece in (p for p in pieces if not isinstance(p, str)):
            if calls and piece.id is None and piece.index == calls[-1].index:
                calls[-1] = replace(calls[-1], arguments=calls[-1].arguments + piece.arguments)
            else:
                calls.append(piece)
        return "".join(p for p in pieces if isinstance(p, str)), tuple(calls)

    def _begin(self) -> list[Piece]:
        pieces = self._finish()
        self._inside = True
        return pieces

    def _finish(self) -> list[Piece]:
        """End the calls and the text held back."""
        pieces: list[Piece] = [*self._calls.finish(), *([self._held] if self._held else [])]
        self._inside = self._in_arguments = False
        self._held = ""
        return pieces

    def _read(self, text: str, last: bool) -> Iterable[Piece]:
        if self._form.style == "chatml":
            yield from self._marked(text, last)
        elif not self._inside:
            yield text
        elif self._form.style == "mistral-arguments":
            if self._in_arguments:
                yield from self._calls.arguments(text)
            else:
                self._held += text  # the name
        else:
            yield from self._calls.push(text)

    def _marked(self, text: str, last: bool) -> Iterable[Piece]:
        """Text in which markers are spelled out."""
        text, self._held = self._held + text, ""
        while text:
            marker = _END if self._inside else _BEGIN
            before, found, text = text.partition(marker)
            if not found and not last:
                keep = overlap(before, marker)
                before, self._held = before[: len(before) - keep], before[len(before) - keep :]
            if self._inside:
                yield from self._calls.push(before)
            else:
                yield before
            if found:
                if self._inside:
                    yield from self._calls.finish()
                self._inside = not self._inside


class _CallReader:
    """JSON calls, `{"name": ..., "arguments": {...}}` alone or in lists, read character by character."""

    def __init__(self) -> None:
        self._index = -1
        self._reset()

    def _reset(self) -> None:
        self._raw = ""  # of the call's object while it cannot be told to be a call
        self._depth = 0
        self._in_string = self._escaped = False
        self._key: str | None = None
        self._value = ""
        self._name: str | None = None
        self._id: str | None = None
        self._begun = False
        self._streaming: bool | None = None  # whether the arguments are handed on as they come
        self._waiting = ""  # arguments that came before the name
        self._has_arguments = False

    def push(self, text: str) -> Iterable[Piece]:
        for char in text:
            yield from self._next(char)

    def named(self, name: str) -> Iterable[Piece]:
        """A call of this name begins; its arguments follow."""
        self._name = name
        yield from self._begin()

    def arguments(self, text: str) -> Iterable[Piece]:
        """More of a named call's arguments."""
        if text:
            yield ToolCallDelta(self._index, arguments=text)

    def finish(self) -> Iterable[Piece]:
        """No more comes: what was no call is text."""
        if not self._begun and self._raw.strip():
            yield self._raw
        self._reset()

    def _begin(self) -> Iterable[Piece]:
        self._index += 1
        self._begun = True
        yield ToolCallDelta(self._index, self._id or uuid4().hex[:9], self._name, self._waiting)

    def _next(self, char: str) -> Iterable[Piece]:
        if self._depth == 0 and char == "{" and self._raw.strip():
            yield self._raw  # what stands before a call is no part of it
            self._raw = ""
        if not self._begun:
            self._raw += char
        if self._depth == 0:
            if char == "{":
                self._depth = 1
            elif char in "[], \n\r\t":
                self._raw = "" if not self._raw.strip("[], \n\r\t") else self._raw
            return
        outside = not self._in_string
        if self._in_string:
            self._in_string = self._escaped or char != '"'
            self._escaped = char == "\\" and not self._escaped
        elif char == '"':
            self._in_string = True
        if outside and char in "}]":
            self._depth -= 1
        at_top = outside and self._depth == 1 and self._key is not None
        if outside and self._depth == 1 and self._key is None and char == ":":
            self._key, self._value = _text(self._value), ""
        elif (at_top and char == ",") or self._depth == 0:
            yield from self._member()
            if self._depth == 0:
                yield from self._end()
        else:
            self._value += char
            if self._key == "arguments" and self._begun and self._streaming is not False:
                yield from self._stream(char)
        if outside and char in "{[":
            self._depth += 1

    def _stream(self, char: str) -> Iterable[Piece]:
        if self._streaming is None:
            if char.isspace():
                return
            self._streaming = char == "{"  # a JSON text within a string must be whole to be read
        if self._streaming:
            yield ToolCallDelta(self._index, arguments=char)

    def _member(self) -> Iterable[Piece]:
        """A key's value is whole."""
        key, value = self._key, self._value.strip()
        self._key, self._value = None, ""
        self._has_arguments |= key == "arguments"
        if key == "name":
            self._name = _text(value)
        elif key == "id":
            self._id = _text(value)
        elif key == "arguments" and not self._streaming:
            written = _text(value) if value.startswith('"') else "" if value == "null" else value
            if self._begun:
                yield ToolCallDelta(self._index, arguments=written or "{}")
            else:
                self._waiting = written or "{}"
        if key == "name" and self._name and not self._begun:
            yield from self._begin()

    def _end(self) -> Iterable[Piece]:
        """The call's object is whole."""
        if not self._begun:
            yield self._raw
        elif not self._has_arguments:
            yield ToolCallDelta(self._index, arguments="{}")
        self._reset()


def _text(value: str) -> str | None:
    """The text that a JSON string says."""
    try:
        text = json.loads(value)
    except (ValueError, RecursionError):
        return None
    # JSON can spell half a surrogate pair, which no UTF-8 can say.
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace") if isinstance(text, str) else None
