"""Markdown to HTML: what is shown, what cannot be, and that streamed blocks stay."""

import time
from html.parser import HTMLParser

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from cierzo.serve.render import closed, render
from support.hostile import SCRIPTS

_LINES = (
    "word", "**bold** and `code`", "# head", "#", "- item", "  more of it", "1. one", "> quoted", "```python", "```",
    "def f(): return 1", "| a | b |", "|---|--:|", "| 1 | 2 |", "---", "===", "", "    indented", "*", "a\\", "&amp;",
)  # fmt: skip


SHOWN = {
    "a", "br", "code", "em", "h3", "li", "ol", "p", "pre", "s", "span", "strong", "table", "tbody", "td", "th", "thead",
    "tr", "ul",
}  # fmt: skip


class _Elements(HTMLParser):
    def __init__(self, html: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


def _html(text: str) -> str:
    return "".join(block.html for block in render(text))


def test_what_answers_are_made_of() -> None:
    html = _html(
        "# Title\n\nA *word* and ~~another~~.\nNext line.\n\n| left | right |\n|:--|--:|\n| 1 | 2 |\n\n"
        "```python\ndef f(): return 'x'\n```\n\n1. one\n2. two\n\n> said\n\n<https://a.example>"
    )
    assert "<h3>Title</h3>" in html
    assert "<em>word</em>" in html
    assert "<s>another</s>" in html
    assert "<br>" in html
    assert '<td align="right">2</td>' in html
    assert '<pre data-language="python"><code><span class="k">def</span>' in html
    assert '<span class="s1">&#39;x&#39;</span>' in html or "<span class=\"s1\">'x'</span>" in html
    assert '<a href="https://a.example" target="_blank" rel="noopener noreferrer nofollow">' in html


def test_code_of_unknown_languages_and_long_code_is_plain() -> None:
    assert "<span" not in _html("```brainwave\ndef f(): pass\n```")
    assert "<span" not in _html("```python\n" + "x = 1\n" * 4000 + "```")
    assert "<span" not in _html("    def f(): pass")


@pytest.mark.parametrize("text", SCRIPTS)
def test_nothing_of_a_model_runs_or_loads(text: str) -> None:
    for tag, attributes in _Elements(_html(f"before\n\n{text}\n\nafter {text}")).found:
        assert tag in SHOWN
        assert set(attributes) <= {"href", "title", "rel", "target", "class", "align", "data-language", "start"}
        href = attributes.get("href")
        assert href is None or href.startswith(("http://", "https://", "mailto:"))


@given(st.text(alphabet=st.sampled_from("<>\"'&=/ab:[]()!`*_\n\\ \x00"), max_size=60))
@example("<a onload=b>")
def test_any_text_stays_harmless(text: str) -> None:
    for tag, attributes in _Elements(_html(f"<script>{text}[a]({text})")).found:
        assert tag not in ("script", "img", "style", "iframe", "svg")
        assert set(attributes) <= {"href", "title", "rel", "target", "class", "align", "data-language", "start"}


@given(st.lists(st.sampled_from(_LINES), max_size=12).map("\n".join), st.data())
@example("word\n\n#", None)
def test_closed_blocks_stay_as_they_are(text: str, data: st.DataObject | None) -> None:
    cut = len(text) if data is None else data.draw(st.integers(0, len(text)))
    text = f"{text}tag" if data is None else text
    shown = render(text[:cut])
    count = closed(text[:cut], shown)
    assert [block.html for block in shown[:count]] == [block.html for block in render(text)[:count]]


@given(st.lists(st.sampled_from(_LINES), max_size=12).map("\n".join), st.lists(st.integers(1, 9), min_size=1))
def test_streamed_is_the_same_as_whole(text: str, steps: list[int]) -> None:
    """As the page does it: closed blocks are put away, the lines from the first open one on are rendered again."""
    kept, left, at, turn = [], "", 0, 0
    while at < len(text):
        step = steps[turn % len(steps)]
        left, at, turn = left + text[at : at + step], at + step, turn + 1
        blocks = render(left)
        count = closed(left, blocks)
        kept += [block.html for block in blocks[:count]]
        if count:
            left = "\n".join(left.split("\n")[blocks[count].begin :])
    assert "".join([*kept, *(block.html for block in render(left))]) == _html(text)


@pytest.mark.parametrize(
    "text",
    ["[" * 20_000, "*a " * 20_000, "> " * 30_000 + "x", "`" * 50_000, "- " * 20_000, "|a" * 9000 + "\n" + "|-" * 9000],
    ids=["brackets", "stars", "quotes", "ticks", "lists", "table"],
)  # fmt: skip
def test_absurd_texts_are_rendered_in_time(text: str) -> None:
    began = time.process_time()
    render(text)
    assert time.process_time() - began < 10
