"""Chats to pieces of text and control tokens, by the template that a model brings.

A template writes one string in which control tokens are spelled out, so a user's text could spell them too. Before a
template sees a text, every control token spelled in it is broken by a mark; control tokens are then looked for in the
template's result, and the marks taken out of what is left, which is only ever text. (A text's end that could begin a
control token is marked as well, in case the template puts two texts side by side.)
"""

import re
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

from cierzo.tokens.interface import ChatError, Message, TemplateRefusalError, ToolFormat
from cierzo.tokens.messages import checked, merged, with_parsed_arguments
from cierzo.tokens.sandbox import TemplateSandbox

Piece = str | int
"""Plain text, or the id of a control token."""

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{{ '<|im_start|>assistant\n' }}"
)

_MARK = "\N{OBJECT REPLACEMENT CHARACTER}\N{WORD JOINER}\N{OBJECT REPLACEMENT CHARACTER}"


class ChatTemplate(Protocol):
    @property
    def tool_format(self) -> ToolFormat | None:
        """How answers by this template write tool calls; None when it has no place for tools."""
        ...

    def pieces(self, messages: Sequence[Message], tools: Sequence[dict[str, Any]] | None) -> list[Piece]:
        """The conversation, ready for an answer.

        Raises:
            ChatError: what this template cannot hold, and why.
        """
        ...


class ControlTokens:
    """The spelled control tokens of a vocabulary: breaks them in texts, finds them in templates' results."""

    def __init__(self, ids: Mapping[str, int]) -> None:
        # A single character cannot be broken, so it always means itself.
        self.ids = {text: token for text, token in ids.items() if len(text) > 1}
        spelled = sorted(self.ids, key=len, reverse=True)
        self._any = re.compile("|".join(map(re.escape, spelled)) or r"(?!)")
        self._sorted = sorted(spelled)
        self._longest = max(map(len, spelled), default=0)

    def broken(self, value: Any) -> Any:
        """`value` (nested lists and mappings of texts) in which no text spells a control token."""
        if isinstance(value, str):
            return self._broken_text(value)
        if isinstance(value, list | tuple):
            return [self.broken(item) for item in value]
        if isinstance(value, dict):
            return {self.broken(key): self.broken(item) for key, item in value.items()}
        return value

    def _broken_text(self, text: str) -> str:
        text = text.replace(_MARK, "")
        while self._any.search(text):  # again, for tokens that overlap
            text = self._any.sub(lambda found: found[0][0] + _MARK + found[0][1:], text)
        for length in range(min(len(text), self._longest - 1), 0, -1):
            if self._begins(text[-length:]):
                cut = len(text) - length + 1
                return text[:cut] + _MARK + text[cut:]
        return text

    def _begins(self, end: str) -> bool:
        """Whether a control token begins with `end`."""
        at = bisect_left(self._sorted, end)
        return at < len(self._sorted) and self._sorted[at].startswith(end)

    def split(self, rendered: str) -> list[Piece]:
        """Text and control tokens of a template's result, marks taken out."""
        pieces: list[Piece] = []
        at = 0
        for found in self._any.finditer(rendered):
            pieces += [rendered[at : found.start()].replace(_MARK, ""), self.ids[found[0]]]
            at = found.end()
        pieces.append(rendered[at:].replace(_MARK, ""))
        return [piece for piece in pieces if piece != ""]


class JinjaTemplate:
    """A model's own Jinja template, run in a sandbox. Consecutive messages of one role are merged if it refuses them.

    Args:
        source: the template.
        controls: spelled control tokens and their ids.
        names: `bos_token`, `eos_token` and the like, spelled, for the template to write.
    """

    def __init__(self, source: str, controls: Mapping[str, int], names: Mapping[str, str]) -> None:
        self._sandbox = TemplateSandbox(source)
        self._controls, self._names = ControlTokens(controls), dict(names)
        self.tool_format = _tool_format(source, controls)

    def pieces(self, messages: Sequence[Message], tools: Sequence[dict[str, Any]] | None) -> list[Piece]:
        messages = with_parsed_arguments(checked(messages))
        if self.tool_format is None and (tools or any(m["role"] == "tool" or "tool_calls" in m for m in messages)):
            raise ChatError("this model's chat template has no place for tools: leave them out")
        try:
            rendered = self._render(messages, tools)
        except TemplateRefusalError:
            joined = merged(messages)
            if len(joined) == len(messages):
                raise
            rendered = self._render(joined, tools)
        return self._controls.split(rendered)

    def _render(self, messages: Sequence[Message], tools: Sequence[dict[str, Any]] | None) -> str:
        broken = [{**self._controls.broken(m), "role": m["role"]} for m in messages]
        return self._sandbox.render(
            {
                **self._names,
                "messages": broken,
                "tools": None if tools is None else self._controls.broken(list(tools)),
                "documents": None,
                "add_generation_prompt": True,
            }
        )


def _tool_format(source: str, controls: Mapping[str, int]) -> ToolFormat | None:
    """The format of tool calls that a template shows; Hermes', which most ChatML models learnt, if it shows none."""
    if re.search(r"\btools\b", source) is None:
        return None

    def ids(spelled: str) -> frozenset[int]:
        return frozenset([controls[spelled]] if spelled in controls else [])

    if ids("[TOOL_CALLS]"):
        style: Literal["mistral", "mistral-arguments"] = "mistral-arguments" if "[ARGS]" in source else "mistral"
        return ToolFormat(style, ids("[TOOL_CALLS]"), ids("[ARGS]"))
    return ToolFormat("chatml", ids("<tool_call>"), end=ids("</tool_call>"))


class Llama2Template:
    """Llama 2's chat format (the model's own code: `[INST]`, `<<SYS>>`), which has neither tools nor control tokens."""

    tool_format = None

    def __init__(self, bos_id: int, eos_id: int) -> None:
        self._bos, self._eos = bos_id, eos_id

    def pieces(self, messages: Sequence[Message], tools: Sequence[dict[str, Any]] | None) -> list[Piece]:
        messages = merged(checked(messages))
        if tools or any(m["role"] == "tool" or "tool_calls" in m for m in messages):
            raise ChatError("Llama 2's chat format has no place for tools: leave them out")
        texts = [m["content"] for m in messages]
        if messages[0]["role"] == "system":
            # Only then stripped, as in the original: spaces between the system prompt and the question stay.
            texts = [f"<<SYS>>\n{texts[0]}\n<</SYS>>\n\n{''.join(texts[1:2])}", *texts[2:]]
            messages = messages[1:]
        roles = ["user", "assistant"] * len(messages)
        if [m["role"] for m in messages] != roles[: len(messages)] or len(messages) % 2 == 0:
            raise ChatError("Llama 2's chat format needs user and assistant in turns, a user's message last")
        *turns, last = [text.strip() for text in texts]
        pieces: list[Piece] = []
        for asked, answered in zip(turns[::2], turns[1::2], strict=True):
            pieces += [self._bos, f"[INST] {asked} [/INST] {answered} ", self._eos]
        return [*pieces, self._bos, f"[INST] {last} [/INST]"]


def template_source(name: str) -> str:
    """The Jinja source that `name` means: "chatml", or a file."""
    if name == "chatml":
        return CHATML
    try:
        return Path(name).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ChatError(
            f"chat template {name!r} is neither none, chatml, llama-2, mistral nor a readable file: {error}"
        ) from None
