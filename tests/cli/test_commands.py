"""Slash commands: what they do and say."""

from pathlib import Path

import pytest

from cierzo import SamplingParams
from cierzo.cli import commands
from cierzo.cli.conversation import Conversation
from cierzo.errors import CierzoError
from support.fake_llm import FakeLLM


@pytest.fixture
def conversation() -> Conversation:
    return Conversation(FakeLLM(), SamplingParams())


def test_help_names_every_command(conversation: Conversation) -> None:
    shown = commands.run(conversation, "/help")
    assert all(command.usage in shown and command.help in shown for command in commands.COMMANDS.values())
    assert set(commands.COMMANDS) == {"/help", "/system", "/reset", "/save", "/load", "/set", "/stats", "/exit"}


def test_system(conversation: Conversation) -> None:
    assert commands.run(conversation, "/system") == "no system prompt"
    assert commands.run(conversation, "/system  Be brief. ") == "system prompt: Be brief."
    assert conversation.system == "Be brief."
    commands.run(conversation, "/system none")
    assert conversation.system is None


def test_set_shows_and_changes(conversation: Conversation) -> None:
    assert "top_p = 1.0" in commands.run(conversation, "/set")
    assert commands.run(conversation, "/set top_p 0.5") == "top_p = 0.5"
    with pytest.raises(CierzoError, match="needs a value"):
        commands.run(conversation, "/set top_p")


def test_stats(conversation: Conversation) -> None:
    assert commands.run(conversation, "/stats") == "no answer yet\ncontext: 0 of 1000 tokens"
    list(conversation.ask("Hi"))
    speed, context = commands.run(conversation, "/stats").splitlines()
    assert speed.startswith("last answer: 3 tokens, first after 0.0")
    assert context == "context: 15 of 1000 tokens"
    conversation.llm.max_seq_len = None
    assert "of unlimited tokens" in commands.run(conversation, "/stats")


def test_save_reset_load(conversation: Conversation, tmp_path: Path) -> None:
    list(conversation.ask("Hi"))
    path = tmp_path / "a chat.json"
    assert commands.run(conversation, f"/save {path}") == f"saved 2 messages to {path}"
    commands.run(conversation, "/reset")
    assert conversation.turns == []
    assert commands.run(conversation, f"/load {path}") == f"loaded 2 messages from {path}"
    assert conversation.turns[1]["content"] == "Hello there"
    conversation.llm.name = "other"
    assert "held with fake" in commands.run(conversation, f"/load {path}")


@pytest.mark.parametrize("line", ["/save", "/load"])
def test_a_file_is_needed(conversation: Conversation, line: str) -> None:
    with pytest.raises(CierzoError, match=f"{line} needs the name of a file"):
        commands.run(conversation, line)


def test_unknown_command(conversation: Conversation) -> None:
    with pytest.raises(CierzoError, match="there is no command /hlep: /help"):
        commands.run(conversation, "/hlep me")


def test_exit(conversation: Conversation) -> None:
    with pytest.raises(commands.Leave):
        commands.run(conversation, "/exit")
