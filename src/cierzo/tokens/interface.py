"""What every tokenizer can do."""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from cierzo.errors import CierzoError, WeightsError

Message = dict[str, Any]
"""One message of a chat as in the OpenAI API: `role`, `content`, and for tools `tool_calls` or `tool_call_id`."""


class ChatError(CierzoError):
    """Messages that the model's template cannot hold, or a model that has no template."""


class TemplateRefusalError(ChatError):
    """Messages that the model's own template raised an error about."""


@contextmanager
def telling(kind: type[CierzoError], what: str) -> Iterator[None]:
    """Turn whatever a library raises into `kind`, whose message is `what` and the library's own."""
    try:
        yield
    except CierzoError:
        raise
    except BaseException as error:
        # Of what is no Exception only a panic of a Rust library is about its input.
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise kind(f"{what}: {str(error) or type(error).__name__}") from None


def reading(path: Path, what: str) -> AbstractContextManager[None]:
    """What a library raises is that the file is not `what`: a `WeightsError`."""
    return telling(WeightsError, f"{path}: not {what}")


def encoding(text: str) -> AbstractContextManager[None]:
    """What a library raises is about the text, such as half a surrogate pair: a `CierzoError`."""
    return telling(CierzoError, f"the model's tokenizer cannot encode this text of {len(text)} characters")


@dataclass(frozen=True)
class ToolFormat:
    """How a model writes tool calls; `cierzo.engine.tools` reads them.

    Attributes:
        begin, arguments, end: control tokens that begin a call or a list of calls, stand between name and arguments,
            and end it; each empty where the format has none or spells it in text.
    """

    style: Literal["mistral", "mistral-arguments", "chatml"]
    begin: frozenset[int] = frozenset()
    arguments: frozenset[int] = frozenset()
    end: frozenset[int] = frozenset()


class Tokenizer(Protocol):
    """Text to ids and back. Only `encode_chat` and `bos` make control tokens; no text ever becomes one."""

    @property
    def vocab_size(self) -> int: ...

    @property
    def bos_id(self) -> int | None: ...

    @property
    def stop_ids(self) -> frozenset[int]:
        """Control tokens that end an answer."""
        ...

    @property
    def adds_leading_space(self) -> bool:
        """Whether `encode` puts a space in front of a text, which decoding takes away again."""
        ...

    @property
    def chat_refusal(self) -> str | None:
        """None, or why `encode_chat` would refuse any chat."""
        ...

    @property
    def tool_format(self) -> ToolFormat | None:
        """How the model writes tool calls; None when its template has no place for tools."""
        ...

    def encode(self, text: str, *, bos: bool = False) -> list[int]:
        """Ids of plain text, after the begin-of-text token if `bos` and the model has one."""
        ...

    def token_bytes(self, token: int) -> bytes:
        """UTF-8 bytes (perhaps part of a character) that a token stands for; none for a control token."""
        ...

    def encode_chat(self, messages: Sequence[Message], tools: Sequence[dict[str, Any]] | None = None) -> list[int]:
        """Ids of a conversation by the model's own template, ready for its answer.

        Raises:
            ChatError: no template, no tools in this template, or messages in an impossible order.
        """
        ...
