"""A conversation in the browser: answers that stream, branches, what is kept, settings and tools."""

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cierzo import Delta, Message
from cierzo.engine import ToolCallDelta
from cierzo.serve.app import PAGE
from support.scripted import ScriptedLLM, ScriptedServer, scripted
from support.server import Process

_MARKDOWN = (
    "## A title\n\nFirst *paragraph*.\n\n| name | size |\n|---|--:|\n| one | 1 |\n| two | 2 |\n\n"
    "```python\ndef f(x):\n    return x + 1\n```\n\n- a\n- b\n\nSee [there][1].\n\n[1]: https://a.example/there\n"
)


def _say(messages: list[Message]) -> Iterator[str | Delta]:
    """By the last question; `again` differs each time."""
    said = messages[-1]
    if said["role"] == "tool":
        yield f"It is {said['content']}."
        return
    text = str(said["content"])
    if text.startswith("markdown"):
        whole = _MARKDOWN + "And more. " * (300 if "long" in text else 0)
        yield from (whole[at : at + 7] for at in range(0, len(whole), 7))
    elif text.startswith("slow"):
        yield from (f"word{n} " for n in range(2000))
    elif text.startswith("tool"):
        yield Delta("", (7,), tool_calls=(ToolCallDelta(0, "call-1", "weather", '{"city": '),))
        yield Delta("", (7,), tool_calls=(ToolCallDelta(0, None, None, '"Zaragoza"}'),))
    elif text.startswith("long"):
        yield "y" * 500
    else:
        yield f"Answer to {text}, {len(messages)} messages."


@pytest.fixture(scope="module")
def server() -> Iterator[ScriptedServer]:
    with scripted(_models()) as server:
        yield server


def _models() -> dict[str, ScriptedLLM]:
    return {
        "windowed": ScriptedLLM(_say, delay=0.004, window=64, context=4096),
        "other": ScriptedLLM(_say, delay=0.004, context=None),
    }


def _llm(server: ScriptedServer, name: str = "windowed") -> ScriptedLLM:
    return server._scripts[name]


def test_markdown_streams_and_closed_blocks_are_not_touched(server: ScriptedServer, new_chat: Any) -> None:
    chat = new_chat(server.url)
    chat.say("markdown, and a long end")
    page = chat.page
    page.wait_for_selector("[aria-busy=true] .body > h4")
    page.evaluate("document.querySelector('article.assistant .body > h4').mark = 1")
    page.wait_for_selector("[aria-busy=true] .body > .framed")
    page.wait_for_selector("[aria-busy=true] .open p")
    assert page.evaluate("document.querySelector('article.assistant .body > h4').mark") == 1
    chat.finished()
    page.wait_for_selector("a[href='https://a.example/there']")  # its address came last: rendered once more as a whole
    assert page.locator("article.assistant td").all_inner_texts() == ["one", "1", "two", "2"]
    assert page.locator("article.assistant pre .k").first.inner_text() == "def"
    colour = "e => getComputedStyle(e).color"
    assert page.locator("pre .k").first.evaluate(colour) != page.locator("pre code").first.evaluate(colour)
    assert page.locator("#live").inner_text().startswith("## A title")
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_stop_and_continue(server: ScriptedServer, new_chat: Any) -> None:
    chat = new_chat(server.url)
    chat.say("slow")
    chat.until("document.querySelector('article.assistant .body')?.innerText.includes('word20')")
    closed = _llm(server).closed
    chat.page.keyboard.press("Escape")
    chat.finished()
    assert "Stopped." in chat.page.locator("article.assistant .foot").inner_text()
    text = chat.answer()
    assert 20 < len(text.split()) < 1000
    chat.page.wait_for_timeout(300)
    assert _llm(server).closed > closed
    chat.press("Continue")
    chat.until("n => document.querySelector('article.assistant .body').innerText.length > n", arg=len(text) + 50)
    chat.page.click("#stop")
    chat.finished()
    assert _llm(server).begun[-1].strip() == text.strip()
    assert chat.answer().startswith(f"{text.strip()}")
    assert chat.page.locator("article").count() == 2


def test_again_edit_and_branches(server: ScriptedServer, new_chat: Any) -> None:
    chat = new_chat(server.url)
    chat.ask("one")
    chat.ask("two")
    chat.press("Again")
    chat.finished()
    assert "2 / 2" in chat.page.locator("article.assistant .foot").last.inner_text()
    chat.press("Edit", 0)
    chat.page.get_by_label("Edit the question").fill("other one")
    chat.page.keyboard.press("Control+Enter")
    chat.finished()
    assert chat.page.locator("article").count() == 2
    assert chat.answer() == "Answer to other one, 1 messages."
    chat.press("Branch before", 0)
    assert chat.page.locator("article").count() == 4
    # What is below a phone's screen has no inner text yet.
    chat.page.locator("article").last.scroll_into_view_if_needed()
    assert chat.answer() == "Answer to two, 3 messages."
    assert "Branch 1 of 2" in chat.page.locator("#live").inner_text()
    chat.page.reload()
    chat.in_sidebar().locator(".title").first.click()
    chat.page.wait_for_selector("article >> nth=3")
    assert chat.answer() == "Answer to two, 3 messages."
    assert [m["content"] for m in _llm(server).asked[-1]] == ["other one"]


def test_copying(server: ScriptedServer, new_chat: Any) -> None:
    chat = new_chat(server.url)
    chat.ask("markdown")
    chat.page.locator("article.assistant .code-head button").click()
    assert chat.page.evaluate("navigator.clipboard.readText()") == "def f(x):\n    return x + 1\n"
    chat.page.locator("article.assistant .actions").get_by_role("button", name="Copy").click()
    assert chat.page.evaluate("navigator.clipboard.readText()") == _MARKDOWN
    assert chat.page.locator("#live").inner_text() == "Copied"


def test_conversations_are_kept_found_renamed_carried_and_deleted(
    server: ScriptedServer, new_chat: Any, tmp_path: Path
) -> None:
    chat = new_chat(server.url)
    page = chat.page

    def shows(*titles: str) -> None:
        chat.in_sidebar()
        texts = "[...document.querySelectorAll('#conversations .title')].map(each => each.innerText)"
        chat.until(f"wanted => JSON.stringify({texts}) === JSON.stringify(wanted)", arg=list(titles))

    chat.ask("about apples")
    shows("about apples")
    page.click("#new")
    chat.ask("about pears")
    page.reload()
    shows("about pears", "about apples")
    page.fill("#search", "answer APPLES")
    shows("about apples")
    page.fill("#search", "nothing such")
    shows()
    assert page.locator("#none-found").is_visible()
    page.fill("#search", "")
    page.get_by_role("button", name="Options of about apples").click()
    page.fill("#title", "Fruit")
    page.keyboard.press("Enter")
    shows("about pears", "Fruit")
    with page.expect_download() as download:
        page.click("#export-all")
    file = tmp_path / "all.json"
    download.value.save_as(file)
    page.get_by_role("button", name="Options of about pears").click()
    page.click("#delete")
    assert page.locator("#delete").inner_text() == "Really delete?"
    page.click("#delete")
    shows("Fruit")

    other = new_chat(server.url)
    other.page.set_input_files("#import-file", file)
    other.page.wait_for_selector("#conversations li >> nth=1", state="attached")
    other.in_sidebar().get_by_role("button", name="Fruit", exact=True).click()
    other.page.wait_for_selector("article.assistant .body p")
    assert other.answer() == "Answer to about apples, 1 messages."
    other.page.set_input_files("#import-file", file)  # the same again makes no copies
    other.page.wait_for_timeout(200)
    assert other.page.locator("#conversations li").count() == 2
    for wrong in ("{", "[]", '{"format": "cierzo-conversations", "version": 1, "conversations": [{"id": "x"}]}'):
        file.write_text(wrong)
        other.page.set_input_files("#import-file", file)
        other.until("document.getElementById('notice').innerText.includes('holds no conversations')")
        assert other.page.locator("#conversations li").count() == 2


def test_system_prompt_and_sampling(server: ScriptedServer, new_chat: Any) -> None:
    chat = new_chat(server.url)
    page = chat.page
    page.click("#open-settings")
    page.fill("#system", "Be brief.")
    page.get_by_label("Temperature").fill("0.2")
    page.get_by_label("Top k").fill("5")
    page.get_by_label("Longest answer").fill("77")
    page.get_by_label("Seed").fill("3")
    described = page.get_by_label("Temperature").get_attribute("aria-describedby")
    assert "chance" in page.locator(f"#{described}").inner_text()
    page.get_by_label("Use these for new conversations too").check()
    page.keyboard.press("Escape")
    chat.ask("hello")
    params = _llm(server).params[-1]
    assert (params.temperature, params.top_k, params.max_tokens, params.seed) == (0.2, 5, 77, 3)
    assert _llm(server).asked[-1][0] == {"role": "system", "content": "Be brief."}
    page.reload()
    chat.until("document.getElementById('model').value")
    chat.ask("hello")
    assert _llm(server).params[-1].max_tokens == 77
    page.click("#open-settings")
    page.get_by_label("Temperature").fill("9")
    page.get_by_label("Top k").focus()
    page.click("#settings [data-close]")
    chat.ask("hello")
    assert _llm(server).params[-1].temperature == 0.2


@pytest.fixture
def fresh_server() -> Iterator[ScriptedServer]:
    """Whose second model nobody has loaded."""
    with scripted(_models()) as server:
        yield server


def test_models_are_picked_and_loaded(fresh_server: ScriptedServer, new_chat: Any) -> None:
    server = fresh_server
    chat = new_chat(server.url)
    page = chat.page
    options = page.locator("#model option").all_inner_texts()
    assert options == ["windowed (loaded, 150 MiB)", "other (not loaded)"]
    assert "150 MiB" in page.locator("#memory").text_content()
    page.select_option("#model", "other")
    chat.until("document.getElementById('model').innerText.includes('other (loaded, 150 MiB)')")
    assert "300 MiB" in page.locator("#memory").text_content()
    chat.ask("hello")
    assert page.locator("article.assistant h2").inner_text() == "other"
    assert _llm(server, "other").asked[-1][-1]["content"] == "hello"


def test_context_and_window_are_shown(server: ScriptedServer, new_chat: Any) -> None:
    chat = new_chat(server.url)
    chat.ask("long")
    told = chat.page.locator("#context").inner_text()
    assert told == "7 of 4,096 tokens of context used · the sliding window sees the last 64 (the coloured part)"
    prompt = "x" * 397
    chat.ask(prompt)
    # Of the prompt: two more tokens a message. The answer is one piece, and so one token.
    assert chat.page.locator("#context").inner_text().startswith(f"{6 + 502 + 399 + 1:,} of 4,096")
    width = chat.page.locator("#bar").evaluate("e => e.clientWidth")
    past, seen = chat.page.evaluate("[...document.getElementById('bar').children].map(e => e.clientWidth)")
    assert seen == pytest.approx(width * 64 / 4096, abs=1)
    assert past == pytest.approx(width * (908 - 64) / 4096, abs=1)
    assert "64" in chat.page.locator("#bar").get_attribute("aria-label")
    chat.say("slow")
    chat.until("document.querySelectorAll('article')[5]?.innerText.includes('word30')")
    chat.page.click("#stop")
    chat.finished()
    stats = chat.page.locator(".stats").last.inner_text()
    assert "tokens/s" in stats
    assert "first token after" in stats


def test_schema_and_request_as_code(server: ScriptedServer, new_chat: Any) -> None:
    chat = new_chat(server.url)
    page = chat.page
    page.fill("#question", 'it\'s "quoted" and 日本語')
    page.click("#open-developer")
    page.fill("#schema", '{"type": ')
    assert "not JSON yet" in page.locator("#schema-wrong").inner_text()
    page.fill("#schema", "[]")
    assert "must be an object" in page.locator("#schema-wrong").inner_text()
    page.fill("#schema", '{"type": "object"}')
    assert page.locator("#schema-wrong").inner_text() == ""
    page.select_option("#request-form", "json")
    body = json.loads(page.locator("#request").inner_text())
    assert body["response_format"]["json_schema"]["schema"] == {"type": "object"}
    assert body["messages"] == [{"role": "user", "content": 'it\'s "quoted" and 日本語'}]
    page.select_option("#request-form", "python")
    code = page.locator("#request").text_content()
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert told.stdout == 'Answer to it\'s "quoted" and 日本語, 1 messages.\n', told.stderr
    page.select_option("#request-form", "curl")
    command = page.locator("#request").text_content()
    assert command.startswith(f"curl {server.url}/v1/chat/completions")
    shown = subprocess.run(
        ["bash", "-c", f"curl() {{ printf '%s' \"${{!#}}\"; }}; {command}"], capture_output=True, text=True
    )
    assert json.loads(shown.stdout) == body
    page.click("#copy-request")
    assert page.evaluate("navigator.clipboard.readText()") == command
    page.keyboard.press("Escape")
    page.click("#send")
    chat.finished()
    assert page.locator("article.assistant pre").count() == 1
    assert _llm(server).params[-1].structure is not None


def test_tools_are_called_and_given_results(server: ScriptedServer, new_chat: Any) -> None:
    chat = new_chat(server.url)
    page = chat.page
    page.click("#open-developer")
    page.fill("#tools", '[{"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}]')
    page.click("#developer [data-close]")
    chat.say("tool")
    chat.finished()
    assert "Calls weather" in page.locator("article.assistant .foot").inner_text()
    assert '{"city": "Zaragoza"}' in page.locator("article.assistant .foot").inner_text()
    page.get_by_label("Result of weather").fill("windy")
    chat.press("Send results")
    chat.finished()
    assert chat.answer() == "It is windy."
    assert [m["role"] for m in _llm(server).asked[-1]] == ["user", "assistant", "tool"]
    assert _llm(server).asked[-1][-1]["tool_call_id"] == "call-1"


def test_japanese_and_composition(server: ScriptedServer, new_chat: Any, size: str) -> None:
    chat = new_chat(server.url, language="ja-JP", colours="dark")
    page = chat.page
    assert page.locator("html").get_attribute("lang") == "ja"
    assert page.locator("#send").inner_text() == "送信"
    keys = page.evaluate("import('/japanese.js').then(m => Object.keys(m.JAPANESE).sort())")
    used = page.evaluate(
        """[...document.querySelectorAll('*')]
            .flatMap(({ dataset }) => [dataset.t, dataset.tLabel, dataset.tPlaceholder]).filter(Boolean)"""
    )
    assert set(used) <= set(keys)
    asked = len(_llm(server).asked)
    page.focus("#question")
    devtools = page.context.new_cdp_session(page)
    devtools.send("Input.imeSetComposition", {"text": "にほん", "selectionStart": 3, "selectionEnd": 3})
    for more in ({"isComposing": True}, {"keyCode": 229}):
        page.evaluate(
            "more => document.activeElement.dispatchEvent(new KeyboardEvent('keydown', "
            "{key: 'Enter', bubbles: true, cancelable: true, ...more}))", more
        )  # fmt: skip
    page.wait_for_timeout(100)
    assert page.locator("article").count() == 0
    devtools.send("Input.insertText", {"text": "日本"})
    assert page.input_value("#question") == "日本"
    assert len(_llm(server).asked) == asked
    if size == "phone":  # where Enter is a new line
        page.click("#send")
    else:
        page.keyboard.press("Enter")
    chat.finished()
    assert page.locator("article.user .body").inner_text() == "日本"
    assert page.locator("article.user h2").inner_text() == "あなた"
    page.click("#open-settings")
    page.select_option("#language", "en")
    page.click("#settings [data-close]")
    assert page.locator("#send").inner_text() == "Send"
    assert page.locator("article.user h2").inner_text() == "You"
    page.reload()
    assert page.locator("#send").inner_text() == "Send"


def test_every_text_has_both_languages(server: ScriptedServer, new_chat: Any) -> None:
    """Whatever name the modules ask for."""
    chat = new_chat(server.url)
    japanese = set(chat.page.evaluate("import('/japanese.js').then(m => Object.keys(m.JAPANESE))"))
    texts = (PAGE / "i18n.js").read_text()
    english = set(re.findall(r'^  "?([\w-]+)"?: "', texts, re.M))
    document = set(re.findall(r'data-t(?:-\w+)?="(\w+)"', (PAGE / "index.html").read_text()))
    assert len(english) > 50
    assert english | document == japanese
    code = "".join(file.read_text() for file in PAGE.glob("*.js"))
    assert set(re.findall(r'\bt\("([\w-]+)"', code)) <= japanese


@pytest.mark.parametrize("size", ["phone"])
def test_enter_on_a_phone(server: ScriptedServer, new_chat: Any) -> None:
    chat = new_chat(server.url)
    chat.page.focus("#question")
    chat.page.keyboard.type("first")
    chat.page.keyboard.press("Enter")
    chat.page.keyboard.type("line")
    assert chat.page.input_value("#question") == "first\nline"
    chat.page.click("#send")
    chat.finished()
    assert chat.page.locator("article.user .body").inner_text() == "first\nline"


@pytest.mark.parametrize("size", ["desktop"])
def test_everything_by_keyboard(server: ScriptedServer, new_chat: Any) -> None:
    chat = new_chat(server.url)
    page = chat.page
    keyboard = page.keyboard
    keyboard.type("first")
    keyboard.press("Shift+Enter")
    keyboard.type("line")
    keyboard.press("Enter")
    chat.finished()
    assert page.locator("article.user .body").inner_text() == "first\nline"
    keyboard.press("ArrowUp")
    keyboard.press("End")
    keyboard.type("s")
    keyboard.press("Control+Enter")
    chat.finished()
    assert "1 / 2" not in page.locator("article.user .foot").inner_text()
    assert "2 / 2" in page.locator("article.user .foot").inner_text()
    keyboard.press("Control+Shift+O")
    assert page.evaluate("document.activeElement.id") == "question"
    assert page.locator("article").count() == 0
    keyboard.press("Control+K")
    assert page.evaluate("document.activeElement.id") == "search"
    keyboard.press("Control+/")
    assert page.locator("#help").is_visible()
    keyboard.press("Escape")
    page.evaluate("document.activeElement.blur(); document.body.focus()")
    reached = set()
    for _ in range(40):
        keyboard.press("Tab")
        reached.add(page.evaluate("document.activeElement.id || document.activeElement.className"))
    assert {
        "new",
        "search",
        "title",
        "icon",
        "import",
        "menu",
        "model",
        "open-settings",
        "open-developer",
        "messages",
        "question",
        "send",
    } <= reached


def test_the_real_model(smollm: Process, new_chat: Any) -> None:
    chat = new_chat(smollm.url)
    page = chat.page
    page.click("#open-settings")
    page.get_by_label("Temperature").fill("0")
    page.click("#settings [data-close]")
    assert "Paris" in chat.ask("What is the capital of France?")
    assert "tokens/s" in page.locator(".stats").last.inner_text()
    chat.say("Write a very long story about the wind.")
    chat.until("document.querySelectorAll('article')[3]?.innerText.length > 80")
    page.click("#stop")
    chat.finished()
    begun = chat.answer()
    chat.press("Continue")
    chat.until("n => document.querySelectorAll('article')[3].innerText.length > n + 60", arg=len(begun))
    page.click("#stop")
    chat.finished()
    assert chat.answer().startswith(begun[:60])
