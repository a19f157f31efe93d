"""The server is gone, busy, refuses or wants a key: said plainly, and nothing that was typed is lost."""

from collections.abc import Iterator
from contextlib import ExitStack
from hashlib import sha256
from typing import Any

import pytest

from cierzo import Message
from cierzo.serve.auth import Key
from support.scripted import ScriptedLLM, scripted

_SECRET = "ann-secret-of-many-letters"
_FAILED = r"Failed to load resource|ERR_"


def _say(messages: list[Message]) -> Iterator[str]:
    if str(messages[-1]["content"]).startswith("slow"):
        yield from (f"word{n} " for n in range(60))
    else:
        yield f"Answer to {messages[-1]['content']}."


@pytest.fixture
def new_server() -> Iterator[Any]:
    """Makes servers of a test's own. Named before `new_chat`, so that they outlive its pages, which would complain."""
    with ExitStack() as stack:
        yield lambda **more: stack.enter_context(
            scripted({"script": ScriptedLLM(_say, delay=0.03, context=600)}, **more)
        )


def _notice(chat: Any, text: str) -> None:
    chat.until("text => document.getElementById('notice').innerText.includes(text)", arg=text)


def test_an_answer_goes_on_when_the_server_is_back(new_server: Any, new_chat: Any) -> None:
    server = new_server()
    chat = new_chat(server.url)
    chat.expected = _FAILED
    chat.say("slow")
    chat.until("document.querySelector('article.assistant .body')?.innerText.includes('word5')")
    server.stop()
    _notice(chat, "does not answer")
    begun = chat.answer()
    assert begun.startswith("word0 word1")
    chat.page.fill("#question", "typed meanwhile")
    server.start()
    chat.finished()
    llm = server._scripts["script"]
    assert llm.begun[-1].startswith(begun.strip())  # what came last may not have been shown yet
    assert chat.answer().startswith(f"{llm.begun[-1].strip()} word0")
    assert chat.page.locator("#notice").inner_text() == ""
    assert chat.page.input_value("#question") == "typed meanwhile"


def test_a_question_to_a_server_that_is_gone_is_kept_and_sent(new_server: Any, new_chat: Any) -> None:
    server = new_server()
    chat = new_chat(server.url, "ja-JP")
    chat.expected = _FAILED
    server.stop()
    chat.say("hello")
    _notice(chat, "サーバーが応答しません")
    assert chat.page.locator("article.user .body").inner_text() == "hello"
    server.start()
    chat.finished()
    assert chat.answer() == "Answer to hello."


def test_drafts_survive_reloading(new_server: Any, new_chat: Any) -> None:
    server = new_server()
    chat = new_chat(server.url)
    chat.page.fill("#question", "half a thou")
    chat.page.reload()
    assert chat.page.input_value("#question") == "half a thou"
    chat.ask("sent")
    chat.page.fill("#question", "of this one")
    chat.in_sidebar().locator("#new").click()
    assert chat.page.input_value("#question") == ""
    chat.in_sidebar().locator(".title").click()
    chat.page.wait_for_selector("article")
    assert chat.page.input_value("#question") == "of this one"


def test_an_answer_that_broke_off_with_the_page_can_be_continued(new_server: Any, new_chat: Any) -> None:
    server = new_server()
    chat = new_chat(server.url)
    chat.say("slow")
    chat.until("document.querySelector('article.assistant .body')?.innerText.includes('word5')")
    chat.page.wait_for_timeout(2200)  # copies are kept every two seconds
    chat.page.reload()
    chat.in_sidebar().locator(".title").click()
    chat.page.wait_for_selector("article.assistant")
    assert chat.answer().startswith("word0 word1")
    chat.press("Continue")
    chat.finished()
    assert "word59" in chat.answer()


def test_busy(new_server: Any, new_chat: Any) -> None:
    server = new_server()
    chat = new_chat(server.url)
    chat.expected = "429"
    server._scripts["script"].full = 2
    chat.say("hello")
    _notice(chat, "The server is busy. Trying again in")
    chat.finished()
    assert chat.answer() == "Answer to hello."
    server._scripts["script"].full = 1000
    chat.say("another")
    _notice(chat, "The server is busy")
    chat.page.click("#stop")
    chat.finished()
    assert "Stopped." in chat.page.locator("article .foot").last.inner_text()
    server._scripts["script"].full = 0
    chat.press("Again")
    chat.finished()
    assert chat.answer() == "Answer to another."


def test_what_the_server_refuses_is_said(new_server: Any, new_chat: Any) -> None:
    server = new_server()
    chat = new_chat(server.url)
    chat.expected = "400"
    chat.say("x" * 700)
    chat.finished()
    told = chat.page.locator("article.assistant .foot").inner_text()
    assert "maximum context length is 600 tokens" in told
    assert chat.page.locator("article.user .body").inner_text() == "x" * 700
    chat.press("Edit")
    chat.page.get_by_label("Edit the question").fill("short")
    chat.press("Send", 0)
    chat.finished()
    assert chat.answer() == "Answer to short."


def test_a_key_is_asked_for_and_kept_for_the_session_only(new_server: Any, new_chat: Any) -> None:
    server = new_server(keys=[Key("ann", sha256(_SECRET.encode()).digest())])
    chat = new_chat(server.url, expected="401")
    page = chat.page
    page.wait_for_selector("#key[open]")
    page.fill("#key-text", "wrong")
    page.click("#use-key")
    chat.until("document.getElementById('key-wrong').innerText.includes('not known')")
    page.fill("#key-text", _SECRET)
    page.keyboard.press("Enter")
    chat.until("document.getElementById('model').value")
    assert chat.ask("hello") == "Answer to hello."
    kept = page.evaluate("JSON.stringify({...localStorage})")
    assert _SECRET not in kept
    assert page.evaluate("sessionStorage.getItem('cierzo-key')") == _SECRET
    page.fill("#question", "x")
    page.click("#open-developer")
    assert "$CIERZO_API_KEY" in page.locator("#request").inner_text()
    assert _SECRET not in page.content()
    page.keyboard.press("Escape")
    page.reload()
    chat.until("document.getElementById('model').value")
    other = page.context.new_page()
    other.goto(server.url)
    other.wait_for_selector("#key[open]")
