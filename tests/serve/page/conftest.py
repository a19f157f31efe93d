"""A browser: Debian's Chromium, at the sizes, languages and colours that the page promises."""

import re
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = Path("/usr/bin/chromium")
_SWITCHES = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
_SIZES: dict[str, dict[str, Any]] = {
    "desktop": {"viewport": {"width": 1280, "height": 800}},
    "phone": {"viewport": {"width": 390, "height": 780}, "has_touch": True, "is_mobile": True},
}


@dataclass
class Chat:
    """The page as somebody uses it, and everything that it should not have done."""

    page: Any
    faults: list[str] = field(default_factory=list)
    expected: str | None = None
    """Messages of the console that a test provokes."""

    def open(self, url: str) -> "Chat":
        self.page.on("console", self._said)
        self.page.on("pageerror", lambda error: self._fault(str(error)))
        self.page.on("request", lambda request: self._asked(request.url, url))
        self.page.goto(url)
        self.until("document.getElementById('model').value || document.querySelector('dialog[open]')")
        return self

    def until(self, expression: str, arg: Any = None) -> None:
        """Wait until this is true. (Playwright's own way needs eval, which the page's policy forbids.)"""
        end = time.monotonic() + 15
        while not self.page.evaluate(expression, arg):
            assert time.monotonic() < end, expression
            self.page.wait_for_timeout(30)

    def _said(self, said: Any) -> None:
        if said.type in ("error", "warning"):
            self._fault(said.text)

    def _asked(self, address: str, url: str) -> None:
        """The page asks nobody else for anything."""
        if not address.startswith((url, "blob:")):
            self._fault(address)

    def _fault(self, text: str) -> None:
        if self.expected is None or not re.search(self.expected, text):
            self.faults.append(text)

    def say(self, text: str) -> None:
        self.page.fill("#question", text)
        self.page.click("#send")

    def finished(self) -> None:
        """Wait until no answer is coming, and what came is shown."""
        self.page.wait_for_selector("#send:visible")
        self.until("!document.querySelector('article[aria-busy=true]')")

    def ask(self, text: str) -> str:
        self.say(text)
        self.finished()
        return self.answer()

    def answer(self) -> str:
        return str(self.page.locator("article.assistant .body").last.inner_text())

    def in_sidebar(self) -> Any:
        """The list of conversations, which a phone hides until it is asked for."""
        if not self.page.locator("#sidebar").is_visible():
            self.page.click("#menu")
        return self.page.locator("#sidebar")

    def press(self, name: str, nth: int = -1) -> None:
        self.page.get_by_role("button", name=name, exact=True).nth(nth).click()


@pytest.fixture(scope="module")  # no longer: while it is there, asyncio.run does not work on this thread
def browser() -> Iterator[Any]:
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if not CHROMIUM.exists():
        pytest.skip(f"there is no {CHROMIUM}: apt-get install chromium")
    with api.sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=str(CHROMIUM), args=_SWITCHES)
        yield opened
        opened.close()


@pytest.fixture(params=list(_SIZES))
def size(request: pytest.FixtureRequest) -> str:
    """Every test of the page runs at both sizes, unless it names its own."""
    return str(request.param)


@pytest.fixture
def new_chat(browser: Any, size: str) -> Iterator[Any]:
    """Makes a `Chat` in a context of its own: `new_chat(url, language="ja-JP", colours="dark")`."""
    chats: list[Chat] = []

    def make(url: str, language: str = "en-GB", colours: str = "light", expected: str | None = None) -> Chat:
        context = browser.new_context(
            **_SIZES[size], locale=language, color_scheme=colours, permissions=["clipboard-read", "clipboard-write"]
        )
        context.set_default_timeout(15_000)
        chats.append(Chat(context.new_page(), expected=expected))
        return chats[-1].open(url)

    yield make
    for chat in chats:
        chat.page.context.close()
        assert chat.faults == []
