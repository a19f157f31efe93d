"""What the guard says, and what it does to an answer, as somebody sees it."""

from collections.abc import Iterator
from typing import Any

import pytest

from cierzo import Message
from cierzo.guard import Guard
from support.guards import WordClassifier, policy
from support.scripted import ScriptedLLM, ScriptedServer, scripted


def _say(messages: list[Message]) -> Iterator[str]:
    """Says what it was asked to say."""
    yield from (f"{word} " for word in str(messages[-1]["content"]).removeprefix("say ").split())


def _foot(chat: Any) -> str:
    return str(chat.page.locator("article.assistant .foot").last.inner_text())


@pytest.fixture
def guarded() -> Iterator[ScriptedServer]:
    """Judges answers only, so that a question can say what is to be found."""
    categories = {
        "hate": {"description": "hatred", "threshold": 0.8, "stage": "output"},
        "harassment": {"description": "insults", "threshold": 0.8, "action": "warn", "stage": "output"},
        "violence": {"description": "injury", "threshold": 0.8, "action": "refuse", "stage": "input"},
    }
    guard = Guard(policy(categories=categories), classifier=WordClassifier())
    with scripted({"script": ScriptedLLM(_say, delay=0.002)}, guard=guard) as server:
        yield server


def test_verdicts_are_shown(guarded: ScriptedServer, new_chat: Any) -> None:
    chat = new_chat(guarded.url)
    assert "Guard: test (enforce)" in chat.page.locator("#memory").text_content()
    assert chat.ask("say good morning").split() == ["good", "morning"]
    assert "Guard, question: nothing found" in _foot(chat)
    assert "Guard, answer: nothing found" in _foot(chat)
    chat.ask("say something rude")
    assert "harassment 0.95" in _foot(chat)
    assert chat.answer().split() == ["something", "rude"]


def test_a_refused_question(guarded: ScriptedServer, new_chat: Any) -> None:
    chat = new_chat(guarded.url)
    assert chat.ask("a gory story") == "No."
    assert "Guard, question: refused (violence 0.95)" in _foot(chat)
    assert guarded._scripts["script"].params == []  # nobody was asked
    assert chat.page.get_by_role("button", name="Continue").count() == 0
    chat.in_sidebar().locator("#new").click()  # what was refused would be judged with the next question
    assert chat.ask("say hello") == "hello"


def test_an_answer_that_the_guard_ends(guarded: ScriptedServer, new_chat: Any) -> None:
    chat = new_chat(guarded.url)
    harmless = "one two three four five. " * 100
    chat.ask(f"say {harmless} and then a vile thing")
    assert "vile" not in chat.answer()
    assert chat.answer().startswith("one two three")
    assert "The guard ended this answer." in _foot(chat)
    assert "Guard, answer: refused (hate 0.95)" in _foot(chat)
    assert chat.page.get_by_role("button", name="Continue").count() == 0


@pytest.fixture
def unguarded() -> Iterator[ScriptedServer]:
    with scripted({"script": ScriptedLLM(_say)}) as server:
        yield server


def test_without_a_guard_nothing_is_said_of_it(unguarded: ScriptedServer, new_chat: Any) -> None:
    chat = new_chat(unguarded.url)
    chat.ask("say hello")
    assert "Guard" not in _foot(chat)
    assert "Guard" not in chat.page.locator("#memory").text_content()
