"""The editor of the interactive chat: keys and completion. The whole of it runs in tests/e2e/test_terminal_chat.py."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from prompt_toolkit.application import create_app_session
from prompt_toolkit.completion import CompleteEvent
from prompt_toolkit.document import Document
from prompt_toolkit.history import InMemoryHistory
from prompt_toolkit.input import PipeInput, create_pipe_input
from prompt_toolkit.output import DummyOutput

from cierzo.cli.interactive import CommandCompleter, prompt_session


@pytest.fixture
def keyboard() -> Iterator[PipeInput]:
    with create_pipe_input() as keys, create_app_session(input=keys, output=DummyOutput()):
        yield keys


@pytest.mark.parametrize(
    ("typed", "sent"),
    [
        ("hello\r", "hello"),
        ("one\\\rtwo\r", "one\ntwo"),
        ("a\\b\r", "a\\b"),
        ("one\x1b\rtwo\r", "one\ntwo"),
        ("\x1b[200~one\ntwo\n\x1b[201~three\r", "one\ntwo\nthree"),
        ("wrong\x03right\r", "right"),
        ("/st\t\r", "/stats"),
    ],
    ids=["enter", "backslash", "backslash inside", "alt-enter", "paste", "ctrl-c", "tab"],
)
def test_keys(keyboard: PipeInput, typed: str, sent: str) -> None:
    keyboard.send_text(typed)
    assert prompt_session(InMemoryHistory(), to_stdout=True).prompt("> ") == sent


def test_ctrl_d_leaves(keyboard: PipeInput) -> None:
    keyboard.send_text("\x04")
    with pytest.raises(EOFError):
        prompt_session(InMemoryHistory(), to_stdout=True).prompt("> ")


def completed(text: str) -> list[str]:
    found = CommandCompleter().get_completions(Document(text), CompleteEvent(completion_requested=True))
    return [text[: len(text) + completion.start_position] + completion.text for completion in found]


def test_completion(tmp_path: Path) -> None:
    assert completed("/s") == ["/system", "/save", "/set", "/stats"]
    assert completed("/set top") == ["/set top_p", "/set top_k"]
    (tmp_path / "chat.json").touch()
    assert completed(f"/load {tmp_path}/ch") == [f"/load {tmp_path}/chat.json"]
    assert completed("hello /s") == []
    assert completed("") == []
