"""An answer's text as its tokens come, ended by stop texts."""

from collections.abc import Sequence

from cierzo.tokens import Detokenizer, Tokenizer


class TextStream:
    """Text that is safe to show: never half a character, never the beginning of a stop text that may complete."""

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str] = (), *, continues: bool = False) -> None:
        self._detokenizer = Detokenizer(tokenizer, continues=continues)
        self._stop = stop
        self._held = ""
        self.stopped: str | None = None  # the stop text that has come; what follows it is dropped

    def push(self, token: int) -> str:
        """The text that can be shown after one more token."""
        return self._release(self._detokenizer.push([token]), last=False)

    def finish(self) -> str:
        """The rest, when no token follows."""
        return self._release(self._detokenizer.finish(), last=True)

    def _release(self, text: str, *, last: bool) -> str:
        if self.stopped is not None:
            return ""
        text = self._held + text
        found = [(at, stop) for at, stop in ((text.find(stop), stop) for stop in self._stop) if at >= 0]
        if found:
            at, self.stopped = min(found)
            self._held = ""
            return text[:at]
        keep = 0 if last else max((overlap(text, stop) for stop in self._stop), default=0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]


def overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that begins `stop`."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:n])), 0)
