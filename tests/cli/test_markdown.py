"""Markdown that grows on a terminal: nothing is lost or doubled, however it arrives and however long it is."""

import io
from collections.abc import Iterator
from itertools import count, pairwise

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from rich.console import Console

from cierzo.cli.markdown import AnswerMarkdown, MarkdownWriter, split_finished
from support.terminal import Terminal

DOCUMENT = """# The wind

The cierzo is a **strong, dry** wind that blows in the
Ebro valley, *cold* in winter.

1. It comes from the north-west.

2. It is known since
   Cato the Elder.
   - it topples a wagon
   - and an armed man

| year | speed |
| ---- | ----: |
| 1954 | 160 km/h |

```python
def blow(speed: int) -> str:

    return "w" * speed  # <b>not</b> a tag
```

<div>raw</div> and <i>inline</i> stay text.

> A quote
> of two lines

---

The end: `code`, [a link](https://example.org), ~~gone~~.
"""


def screen(width: int = 50, height: int = 8) -> Console:
    return Console(file=io.StringIO(), force_terminal=True, width=width, height=height, color_system=None)


def shown(console: Console) -> list[str]:
    assert isinstance(console.file, io.StringIO)
    return Terminal(console.height).feed(console.file.getvalue()).text()


def at_once(text: str) -> list[str]:
    console = screen()
    console.print(AnswerMarkdown(text))
    return shown(console)


@pytest.fixture
def drawing_each_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock by which drawing takes no time and every piece comes late."""
    calls = count()
    monkeypatch.setattr("cierzo.cli.markdown.time.monotonic", lambda: 100.0 * (next(calls) // 3))


def pieces(text: str, cuts: list[int]) -> list[str]:
    bounds = [0, *sorted(cut % (len(text) + 1) for cut in cuts), len(text)]
    return [text[a:b] for a, b in pairwise(bounds)]


@pytest.mark.usefixtures("drawing_each_piece")
@settings(deadline=None, max_examples=30)
@given(cuts=st.lists(st.integers(0, 10_000), max_size=60))
@example(cuts=list(range(len(DOCUMENT))))
def test_the_end_is_as_if_it_had_come_at_once(cuts: list[int]) -> None:
    console = screen()
    MarkdownWriter(console).write(pieces(DOCUMENT, cuts))
    # An empty line more or less between two blocks is a matter of taste; every other line must be there once.
    assert [line for line in shown(console) if line] == [line for line in at_once(DOCUMENT) if line]


@pytest.mark.usefixtures("drawing_each_piece")
def test_an_answer_longer_than_the_screen() -> None:
    lines = [f"line {n}" for n in range(100)]
    console = screen(height=10)
    MarkdownWriter(console).write(line + "\n" for line in ["```", *lines, "```", "", "end"])
    assert [line.strip() for line in shown(console) if line.strip()] == [*lines, "end"]


@pytest.mark.usefixtures("drawing_each_piece")
def test_the_open_block_is_seen_before_it_is_finished() -> None:
    console = screen()
    seen: list[list[str]] = []

    def slow() -> Iterator[str]:
        for piece in ["One **two", "** three", "\n\n", "Four"]:
            yield piece
            seen.append(shown(console))

    MarkdownWriter(console).write(slow())
    assert seen == [["One **two"], ["One two three"], ["One two three"], ["One two three", "", "Four"]]


@pytest.mark.usefixtures("drawing_each_piece")
def test_what_came_before_a_failure_stays() -> None:
    console = screen()

    def failing() -> Iterator[str]:
        yield "One.\n\nTwo"
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        MarkdownWriter(console).write(failing())
    assert shown(console) == ["One.", "", "Two"]


def test_line_ends_html_and_controls_stay_visible() -> None:
    assert at_once("roses\nviolets <b>bold</b>\n\n<div>\n\n\x1b[2Jgone\x07") == [
        "roses",
        "violets <b>bold</b>",
        "",
        "<div>",
        "",
        "␛[2Jgone␇",
    ]


@pytest.mark.parametrize(
    ("text", "finished"),
    [
        ("", ""),
        ("one", ""),
        ("one\n\n", ""),
        ("one\n\ntwo", ""),  # the line may become anything yet
        ("one\n\ntwo\n", "one\n\n"),
        ("- a\n\n- b\n", ""),  # one list
        ("# head\ntext\n", "# head\n"),
        ("```\n\n# no head\n\n", ""),
        ("one\n\n```\ncode\n```\n", "one\n\n"),
    ],
)
def test_split_finished(text: str, finished: str) -> None:
    assert text[: split_finished(text)] == finished


blocks = st.sampled_from(
    ["para", "- item", "1. one", "   inner", "```", "> quote", "---", "# head", "a | b", "-|-", ""]
)


@given(lines=st.lists(blocks, max_size=12), more=st.lists(blocks, max_size=6))
def test_finished_blocks_do_not_change(lines: list[str], more: list[str]) -> None:
    text = "\n".join([*lines, ""])
    finished = split_finished(text)
    whole = text + "\n".join(more)
    apart = at_once(text[:finished]) + at_once(whole[finished:])
    assert [line for line in apart if line] == [line for line in at_once(whole) if line]
