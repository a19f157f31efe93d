"""Conversations as the OpenAI API writes them, checked once for every template."""

import json
from collections.abc import Sequence
from typing import Any

from cierzo.tokens.interface import ChatError, Message

ROLES = ("system", "user", "assistant", "tool")


def checked(messages: Sequence[Message]) -> list[Message]:
    """Plain copies of the messages, their text parts joined to one string.

    Raises:
        ChatError: no messages, an unknown role, or content that is no text.
    """
    if not messages:
        raise ChatError("a chat needs at least one message")
    return [_checked(message, number) for number, message in enumerate(messages, 1)]


def _checked(message: Message, number: int) -> Message:
    if not isinstance(message, dict):
        raise ChatError(f"message {number} must be a mapping with role and content, not {type(message).__name__}")
    role = message.get("role")
    if role not in ROLES:
        raise ChatError(f"message {number} has the role {role!r}: use one of {', '.join(ROLES)}")
    copy = {key: value for key, value in message.items() if value is not None}
    calls = copy.get("tool_calls")
    if calls is not None:
        copy["tool_calls"] = [_checked_call(call, number) for call in calls]
    if "content" in copy:
        copy["content"] = _text(copy["content"], number)
    elif not calls:
        raise ChatError(f"message {number} ({role}) has no content")
    return copy


def _text(content: Any, number: int) -> str:
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        for part in content:
            if not (isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str)):
                kind = part.get("type") if isinstance(part, dict) else type(part).__name__
                raise ChatError(f"message {number} has a content part of type {kind!r}: this model reads text only")
        return "".join(part["text"] for part in content)
    raise ChatError(f"the content of message {number} must be text, not {type(content).__name__}")


def _checked_call(call: Any, number: int) -> dict[str, Any]:
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise ChatError(f"message {number} has a tool call without a function name")
    return dict(call)


def with_parsed_arguments(messages: Sequence[Message]) -> list[Message]:
    """Tool calls' arguments as mappings, which Jinja templates expect, where they are JSON text."""
    parsed = []
    for message in messages:
        if "tool_calls" in message:
            calls = [{**call, "function": _parsed_function(call["function"])} for call in message["tool_calls"]]
            message = {**message, "tool_calls": calls}
        parsed.append(message)
    return parsed


def _parsed_function(function: dict[str, Any]) -> dict[str, Any]:
    arguments = function.get("arguments", {})
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments or "{}")
        except (ValueError, RecursionError) as error:
            raise ChatError(f"the arguments of the tool call {function['name']!r} are no JSON: {error}") from None
    return {**function, "arguments": arguments}


def merged(messages: Sequence[Message]) -> list[Message]:
    """Consecutive system, user or assistant messages joined by an empty line, as mistral-common joins them."""
    joined: list[Message] = []
    for message in messages:
        last = joined[-1] if joined else {}
        if message["role"] == last.get("role") and message["role"] != "tool":
            texts = [m["content"] for m in (last, message) if "content" in m]
            calls = [*last.get("tool_calls", ()), *message.get("tool_calls", ())]
            joined[-1] = {**last, **message}
            joined[-1] |= {"content": "\n\n".join(texts)} if texts else {}
            joined[-1] |= {"tool_calls": calls} if calls else {}
        else:
            joined.append(message)
    return joined
