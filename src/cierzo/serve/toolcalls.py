"""Tool calls that must be made: a grammar of the model's own way to write them."""

import json
from collections.abc import Sequence
from typing import Any

from cierzo import Structure
from cierzo.tokens import ToolFormat

_COMPACT = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
_LINE = "\n"


def forced_calls(form: ToolFormat, tools: Sequence[dict[str, Any]], *, several: bool) -> Structure:
    """The form of an answer that calls one of `tools` (or several) and says nothing else.

    Args:
        tools: as in the OpenAI API.
    """
    rules = [_arguments(number, tool["function"].get("parameters")) for number, tool in enumerate(tools)]
    names = [tool["function"]["name"] for tool in tools]
    begin = _token(form.begin)
    if form.style == "mistral-arguments":
        middle = _token(form.arguments)
        call = " | ".join(f"{begin} {_text(name)} {middle} args{n}" for n, name in enumerate(names))
        return _grammar("call+" if several else "call", call, *rules)
    heads = [_text('{"name": ' + json.dumps(name) + ', "arguments": ') for name in names]
    call = " | ".join(f'{head} args{n} "}}"' for n, head in enumerate(heads))
    if form.style == "mistral":
        more = '(", " call)*' if several else ""
        return _grammar(f'{begin} " "? "[" call {more} "]"', call, *rules)
    opened = f"{begin} {_text(_LINE)}" if form.begin else _text("<tool_call>" + _LINE)
    closed = f"{_text(_LINE)} {_token(form.end)}" if form.end else _text(_LINE + "</tool_call>")
    more = f"({_text(_LINE)} marked)*" if several else ""
    return _grammar(f"marked {more}", call, f"marked: {opened} call {closed}", *rules)


def _grammar(start: str, call: str, *rules: str) -> Structure:
    return Structure("grammar", "\n".join([f"start: {start}", f"call: {call}", *rules]))


def _arguments(number: int, parameters: dict[str, Any] | None) -> str:
    """A rule for the arguments of a tool. Its schema stays a document of its own, so `$ref` finds `$defs`."""
    schema = {"type": "object", **(parameters or {}), "x-guidance": _COMPACT}
    return f"args{number}: %json {json.dumps(schema)}"


def _token(ids: frozenset[int]) -> str:
    return f"<[{min(ids)}]>" if ids else ""


def _text(text: str) -> str:
    return json.dumps(text)
