"""The interactive chat as a user meets it: a process of its own in a pseudo terminal."""

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pexpect
import pytest

TESTS = Path(__file__).parents[1]
FAKE_CHAT = """
import sys, cierzo
from support.fake_llm import FakeLLM
vars(cierzo)["LLM"] = lambda model, **options: FakeLLM({pieces!r}, delay={delay})
sys.argv = ["cierzo", "chat"]
from cierzo.cli import main
main()
"""


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    # prompt_toolkit would wait for an answer that only a real terminal gives.
    return os.environ | {
        "CIERZO_HOME": str(tmp_path / "home"),
        "PYTHONPATH": str(TESTS),
        "PROMPT_TOOLKIT_NO_CPR": "1",
        "TERM": "xterm-256color",
    }


class Chat:
    """A chat in a pseudo terminal of 80 columns."""

    def __init__(self, command: str, arguments: list[str], environment: dict[str, str], rows: int = 24) -> None:
        self.child = pexpect.spawn(
            command, arguments, env=environment, dimensions=(rows, 80), encoding="utf-8", timeout=60
        )

    def expect(self, text: str) -> None:
        self.child.expect_exact(text)

    def prompt(self) -> None:
        """Wait until the prompt is there (it turns bracketed paste on)."""
        self.child.expect_exact("\x1b[?2004h")

    def send(self, line: str) -> None:
        self.child.send(line + "\r")

    def leave(self) -> int | None:
        self.child.expect(pexpect.EOF)
        self.child.close()
        status: int | None = self.child.exitstatus
        return status


def fake(tmp_path: Path, environment: dict[str, str], pieces: list[str], delay: float = 0, to: str = "") -> Chat:
    script = tmp_path / "chat.py"
    script.write_text(FAKE_CHAT.format(pieces=pieces, delay=delay))
    if to:
        return Chat("/bin/sh", ["-c", f"'{sys.executable}' '{script}' > '{to}'"], environment)
    return Chat(sys.executable, [str(script)], environment)


@pytest.fixture
def slow(tmp_path: Path, environment: dict[str, str]) -> Iterator[Chat]:
    """A model that says 500 words, one in 50 ms."""
    chat = fake(tmp_path, environment, [f"word{n} " for n in range(500)], delay=0.05)
    yield chat
    chat.child.close(force=True)


def test_a_conversation(tmp_path: Path, environment: dict[str, str]) -> None:
    chat = fake(tmp_path, environment, ["**Hello**", " there"])
    chat.expect("fake: /help for help")
    chat.prompt()
    chat.send("Hi")
    chat.expect("Hello")
    chat.prompt()
    chat.send("/stats")
    chat.expect("3 tokens")
    chat.prompt()
    chat.send("/nonsense")
    chat.expect("there is no command /nonsense")
    chat.prompt()
    chat.send("/set top_p 2")
    chat.expect("top_p must be above 0 and at most 1, not 2")
    chat.prompt()
    chat.send(f"/save {tmp_path}/saved.json")
    chat.expect("saved 2 messages")
    chat.prompt()
    chat.child.send("not sent\x03")  # Ctrl-C clears the line
    chat.send("/exit")
    assert chat.leave() == 0
    assert [m["content"] for m in json.loads((tmp_path / "saved.json").read_text())["messages"]] == [
        "Hi",
        "**Hello** there",
    ]
    history = tmp_path / "home" / "chat_history"
    assert "+Hi\n" in history.read_text()
    assert "not sent" not in history.read_text()
    assert history.stat().st_mode & 0o077 == 0


def test_ctrl_c_stops_the_answer_and_keeps_what_was_said(tmp_path: Path, slow: Chat) -> None:
    slow.prompt()
    slow.send("Count")
    slow.expect("word3")
    slow.child.sendintr()
    slow.expect("(stopped)")
    slow.prompt()
    slow.send(f"/save {tmp_path}/saved.json")
    slow.expect("saved 2 messages")
    slow.prompt()
    said = json.loads((tmp_path / "saved.json").read_text())["messages"][1]["content"].split()
    assert said == [f"word{n}" for n in range(len(said))]
    assert 4 <= len(said) < 500
    slow.child.send("\x04")
    assert slow.leave() == 0


def test_many_ctrl_c_do_not_end_the_chat(slow: Chat) -> None:
    for _ in range(3):
        slow.prompt()
        slow.send("Count")
        slow.expect("word2")
        for _ in range(4):
            slow.child.sendintr()
        slow.expect("(stopped)")
    slow.prompt()
    slow.send("/exit")
    assert slow.leave() == 0


def test_what_is_typed_into_an_answer_is_not_shown_there(slow: Chat) -> None:
    slow.prompt()
    slow.send("Count")
    slow.expect("word3")
    slow.child.send("typed ahead")
    slow.expect("word9")
    assert "typed" not in slow.child.before
    slow.child.sendintr()


def test_answers_can_go_to_a_file(tmp_path: Path, environment: dict[str, str]) -> None:
    chat = fake(tmp_path, environment, ["**Hello**", " there"], to=str(tmp_path / "out.txt"))
    chat.prompt()
    chat.send("Hi")
    chat.prompt()
    chat.send("/set")
    chat.expect("top_p = 1.0")
    chat.prompt()
    chat.send("/exit")
    assert chat.leave() == 0
    assert (tmp_path / "out.txt").read_text() == "**Hello** there\n"


def test_the_default_model(default_gguf: Path, environment: dict[str, str]) -> None:
    chat = Chat(sys.executable, ["-m", "cierzo", "chat", str(default_gguf), "--temperature", "0"], environment)
    chat.prompt()
    chat.send("What is the capital of France?")
    chat.expect("Paris")
    chat.prompt()
    chat.send("/stats")
    chat.expect("of 8192 tokens")
    chat.prompt()
    chat.send("Count from one to five hundred.")
    chat.child.expect("[a-z0-9]+")
    chat.child.sendintr()
    chat.prompt()
    chat.child.send("\x04")
    assert chat.leave() == 0
