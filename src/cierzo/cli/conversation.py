"""What a chat is apart from the terminal: messages, settings, the answer's course, and its file."""

import json
import time
from collections.abc import Generator, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from cierzo import Delta, FinishReason, Message, SamplingParams
from cierzo.errors import CierzoError
from cierzo.files import read_own, write_whole

SETTINGS = (
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
    "seed",
    "max_tokens",
    "stop",
)
"""The fields of `SamplingParams` that a chat can change and keeps in its file."""

FORMAT = "cierzo chat 1"


class ChatTokenizer(Protocol):
    """What a conversation needs to count tokens."""

    def encode_chat(self, messages: list[Message], /) -> list[int]: ...

    def encode(self, text: str, /) -> list[int]: ...


class ChatModel(Protocol):
    """What a conversation needs of `cierzo.LLM`, or of a server's model."""

    name: str
    max_seq_len: int | None

    @property
    def tokenizer(self) -> ChatTokenizer: ...

    @property
    def card(self) -> object: ...

    def stream_chat(self, messages: list[Message], params: SamplingParams) -> Iterator[Delta]: ...


@dataclass
class Answer:
    """The course of the last answer, up to where it was stopped; times in seconds from the question."""

    tokens: int = 0
    first: float = 0.0
    seconds: float = 0.0
    finish_reason: FinishReason | None = None

    @property
    def rate(self) -> float:
        """Tokens per second after the first."""
        return (self.tokens - 1) / (self.seconds - self.first) if self.seconds > self.first else 0.0


class Conversation:
    """Messages of a user and a model, an optional system prompt before them, and how to sample."""

    def __init__(self, llm: ChatModel, settings: SamplingParams, system: str | None = None) -> None:
        self.llm = llm
        self.settings = settings
        self.system = system
        self.turns: list[Message] = []
        self.last: Answer | None = None

    @property
    def messages(self) -> list[Message]:
        system = [] if self.system is None else [_message("system", self.system)]
        return system + self.turns

    def ask(self, text: str) -> Generator[Delta, None, None]:
        """Answer a user's message.

        When the iterator is closed or fails, what was said so far stays as the answer; when nothing was said, the
        question is forgotten too.

        Raises:
            CierzoError: among others, a conversation longer than the model's limit.
        """
        question = _message("user", text)
        answer, said, begun, start = Answer(), "", False, time.perf_counter()
        self.last = answer
        try:
            for delta in self.llm.stream_chat([*self.messages, question], self.settings):
                answer.seconds = time.perf_counter() - start
                answer.first, begun = answer.first if begun else answer.seconds, True
                answer.tokens += len(delta.token_ids)
                if delta.usage is not None:
                    answer.tokens = delta.usage.completion_tokens
                answer.finish_reason = delta.finish_reason
                said += delta.text
                yield delta
        finally:
            if said:
                self.turns += [question, _message("assistant", said)]

    def reset(self) -> None:
        """Forget the messages; the system prompt and the settings stay."""
        self.turns.clear()
        self.last = None

    def context_used(self) -> int:
        """Tokens of the conversation so far, as the model's template writes it."""
        if not self.turns:
            return 0
        *asked, said = self.messages
        return len(self.llm.tokenizer.encode_chat(asked)) + len(self.llm.tokenizer.encode(said["content"]))

    def set(self, key: str, value: str) -> None:
        """Change one setting; `value` as JSON (0.5, 12, ["a", "b"]), "none", or plain text.

        Raises:
            CierzoError: no such setting, or a value out of its range.
        """
        if key not in SETTINGS:
            raise CierzoError(f"there is no setting {key!r}: choose one of {', '.join(SETTINGS)}")
        try:
            parsed = None if value.lower() == "none" else json.loads(value)
        except ValueError:
            parsed = value
        self.settings = replace(self.settings, **{key: _setting(key, parsed)})

    def save(self, path: Path) -> None:
        """Write the chat as JSON, all of it or nothing.

        Raises:
            CierzoError: the file cannot be written, or one that is no saved chat has this name.
        """
        if path.exists():
            _read(path)
        settings = {key: getattr(self.settings, key) for key in SETTINGS}
        chat = {"format": FORMAT, "model": self.llm.name, "settings": settings, "messages": self.messages}
        write_whole(path, json.dumps(chat, ensure_ascii=False, indent=2) + "\n")

    def load(self, path: Path) -> str:
        """Go on with a saved chat; returns the name of the model that it was held with.

        Raises:
            CierzoError: no file, or no saved chat; the present one then stays as it is.
        """
        chat = _read(path)
        settings, messages = chat.get("settings"), chat.get("messages")
        if not isinstance(settings, dict) or not isinstance(messages, list):
            raise CierzoError(f"{path}: a saved chat has settings (an object) and messages (a list)")
        unknown = set(settings) - set(SETTINGS)
        if unknown:
            raise CierzoError(f"{path}: unknown setting {min(unknown)!r}; known are {', '.join(SETTINGS)}")
        for number, message in enumerate(messages):
            _check_message(path, number, message)
        try:
            loaded = SamplingParams(**{key: _setting(key, value) for key, value in settings.items()})
        except CierzoError as error:
            raise CierzoError(f"{path}: {error}") from error
        system = messages.pop(0)["content"] if messages and messages[0]["role"] == "system" else None
        self.system, self.turns, self.settings, self.last = system, messages, loaded, None
        return str(chat.get("model"))


def _message(role: str, content: str) -> Message:
    return {"role": role, "content": content}


def _setting(key: str, value: object) -> Any:
    """A setting's value; `SamplingParams` checks its range."""
    if key != "stop":
        return value
    texts = [value] if isinstance(value, str) else value or []
    if not isinstance(texts, list):
        raise CierzoError(f"stop must be a text or a list of texts, not {value!r}")
    return tuple(texts)


def _read(path: Path) -> dict[str, Any]:
    return read_own(
        path, "format", FORMAT, f"not a chat that /save wrote (JSON with format {FORMAT!r}): choose another file"
    )


def _check_message(path: Path, number: int, message: object) -> None:
    roles = ("system", "user", "assistant") if number == 0 else ("user", "assistant")
    if not isinstance(message, dict) or set(message) != {"role", "content"}:
        raise CierzoError(f"{path}: message {number} must have exactly a role and a content")
    if message["role"] not in roles:
        raise CierzoError(f"{path}: message {number} has role {message['role']!r}, expected {' or '.join(roles)}")
    if not isinstance(message["content"], str):
        raise CierzoError(f"{path}: the content of message {number} must be a text")
