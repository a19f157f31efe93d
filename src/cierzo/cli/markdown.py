"""Markdown rendered while it is still being written."""

import time
from collections.abc import Iterable

from markdown_it import MarkdownIt
from rich.console import Console, ConsoleOptions, Group, RenderResult
from rich.live import Live
from rich.markdown import Markdown
from rich.segment import Segment
from rich.text import Text

# Raw HTML is shown as the text that it is: Rich would drop it.
_PARSER = MarkdownIt("commonmark", {"html": False}).enable(["table", "strikethrough"])

# Control characters could move the cursor or worse; their pictures are shown. New line, tab and return stay.
_CONTROLS = {code: 0x2400 + code for code in range(32) if chr(code) not in "\n\t\r"}
_CONTROLS |= {127: 0x2421} | dict.fromkeys(range(0x80, 0xA0), 0xFFFD)


class AnswerMarkdown(Markdown):
    """Markdown as Rich shows it, except that no text is lost and line ends stay line ends, as in other chats."""

    def __init__(self, text: str) -> None:
        super().__init__("")
        self.parsed = _PARSER.parse(text.translate(_CONTROLS))
        for token in self.parsed:
            for child in token.children or ():
                if child.type == "softbreak":
                    child.type = "hardbreak"


def split_finished(text: str) -> int:
    """Length of the part of a growing text that holds whole blocks which no further text can change.

    Block structure is decided line by line and only the last block is open, so all before it is finished; an
    unfinished line cannot be judged yet.
    """
    whole = text[: text.rfind("\n") + 1]
    starts = [token.map[0] for token in _PARSER.parse(whole) if token.level == 0 and token.map]
    lines = whole.splitlines(keepends=True)
    return sum(map(len, lines[: starts[-1]])) if starts else 0


class _Tail:
    """The last lines of the open block, as many as the screen holds."""

    def __init__(self, text: str) -> None:
        self.text = text

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        lines = console.render_lines(AnswerMarkdown(self.text), options, pad=False)
        for line in lines[-(console.height - 1) :]:
            yield from line
            yield Segment.line()


class MarkdownWriter:
    """Shows a growing Markdown text on a terminal: finished blocks for good, the open one redrawn in place.

    An open block that is taller than the screen is shown by its end, and whole once it is finished.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._live = Live(Text(), console=console, auto_refresh=False, transient=True)
        self._open = ""
        self._between = False  # a block has been printed: an empty line goes before the next
        self._next = 0.0

    def write(self, pieces: Iterable[str]) -> None:
        """Show the pieces as they come; when they end or fail, what came is shown for good."""
        with self._live:
            try:
                for piece in pieces:
                    self._open += piece
                    if time.monotonic() >= self._next:
                        self._draw()
            finally:
                self._live.update(Text())
                self._print(self._open)

    def _draw(self) -> None:
        start = time.monotonic()
        finished = split_finished(self._open)
        block, self._open = self._open[:finished], self._open[finished:]
        self._live.update(_Tail(self._open))
        if block.strip():
            self._print(block)
        else:
            self._live.refresh()
        now = time.monotonic()
        self._next = now + max(1 / 15, 10 * (now - start))  # drawing takes a tenth of the time at most

    def _print(self, block: str) -> None:
        if not block.strip():
            return
        block_lines = AnswerMarkdown(block)
        self._console.print(Group("", block_lines) if self._between else block_lines)
        self._between = True
