"""The server is gone, busy, refuses, wants a key, or has a guard: said plainly, and nothing that was typed is lost."""

import json
from collections.abc import Iterator
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


def _server(**more: Any) -> Any:
    return scripted({"script": ScriptedLLM(_say, delay=0.03, context=600)}, **more)


def _notice(chat: Any, text: str) -> None:
    chat.until("text => document.getElementById('notice').innerText.includes(text)", arg=text)


def test_an_answer_goes_on_when_the_server_is_back(new_chat: Any) -> None:
    with _server() as server:
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


def test_a_question_to_a_server_that_is_gone_is_kept_and_sent(new_chat: Any) -> None:
    with _server() as server:
        chat = new_chat(server.url, "phone", "ja-JP")
        chat.expected = _FAILED
        server.stop()
        chat.say("hello")
        _notice(chat, "サーバーが応答しません")
        assert chat.page.locator("article.user .body").inner_text() == "hello"
        server.start()
        chat.finished()
        assert chat.answer() == "Answer to hello."


def test_drafts_survive_reloading(new_chat: Any) -> None:
    with _server() as server:
        chat = new_chat(server.url)
        chat.page.fill("#question", "half a thou")
        chat.page.reload()
        assert chat.page.input_value("#question") == "half a thou"
        chat.ask("sent")
        chat.page.fill("#question", "of this one")
        chat.page.click("#new")
        assert chat.page.input_value("#question") == ""
        chat.page.locator("#conversations .title").click()
        chat.page.wait_for_selector("article")
        assert chat.page.input_value("#question") == "of this one"


def test_an_answer_that_broke_off_with_the_page_can_be_continued(new_chat: Any) -> None:
    with _server() as server:
        chat = new_chat(server.url)
        chat.say("slow")
        chat.until("document.querySelector('article.assistant .body')?.innerText.includes('word5')")
        chat.page.wait_for_timeout(2200)  # copies are kept every two seconds
        chat.page.reload()
        chat.page.locator("#conversations .title").click()
        chat.page.wait_for_selector("article.assistant")
        assert chat.answer().startswith("word0 word1")
        chat.press("Continue")
        chat.finished()
        assert "word59" in chat.answer()


def test_busy(new_chat: Any) -> None:
    with _server() as server:
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


def test_what_the_server_refuses_is_said(new_chat: Any) -> None:
    with _server() as server:
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


@pytest.mark.parametrize("size", ["desktop", "phone"])
def test_a_key_is_asked_for_and_kept_for_the_session_only(new_chat: Any, size: str) -> None:
    with _server(keys=[Key("ann", sha256(_SECRET.encode()).digest())]) as server:
        chat = new_chat(server.url, size, expected="401")
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


def test_what_a_guard_says_is_shown(new_chat: Any) -> None:
    """The guard's part of answers, from a server that is told what to answer."""
    verdict = {
        "input": {"action": "allow", "categories": {"hate": 0.01}},
        "output": {"action": "refuse", "categories": {"violence": 0.93, "hate": 0.2}},
    }
    asked: list[dict[str, Any]] = []

    def answer(route: Any) -> None:
        asked.append(route.request.post_data_json)
        head = {"id": "x", "object": "chat.completion.chunk", "created": 1, "model": "script"}

        def chunk(delta: dict[str, str], reason: str | None = None, **more: Any) -> str:
            choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": reason}
            return f"data: {json.dumps({**head, 'choices': [choice], **more})}\n\n"

        body = chunk({"content": "Some of it"}) + chunk({}, "content_filter", guard=verdict) + "data: [DONE]\n\n"
        route.fulfill(status=200, content_type="text/event-stream", body=body)

    def health(route: Any) -> None:
        told = route.fetch().json()
        route.fulfill(json={**told, "guard": {"policy": "standard", "mode": "enforce"}})

    with _server() as server:
        chat = new_chat(server.url)
        chat.ask("without a guard")
        assert "Guard" not in chat.page.locator("article.assistant .foot").inner_text()
        chat.page.route("**/health", health)
        chat.page.route("**/v1/chat/completions", answer)
        chat.page.reload()
        chat.until("document.getElementById('model').value")
        assert chat.ask("with one") == "Some of it"
        assert "Guard: standard (enforce)" in chat.page.locator("#memory").inner_text()
        foot = chat.page.locator("article.assistant .foot").inner_text()
        assert "The guard ended this answer." in foot
        assert "Guard, question: nothing found" in foot
        assert "Guard, answer: refused (violence 0.93)" in foot
        assert chat.page.get_by_role("button", name="Continue").count() == 0
        assert asked[-1]["guard_verdicts"] is True
