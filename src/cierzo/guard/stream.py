"""An answer on its way to the reader: every piece is judged, with what stands before it, before it is shown."""

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from cierzo.engine import Delta, Usage
from cierzo.guard.guard import Guard, Verdict, worse
from cierzo.guard.judge import Ask, Opinion
from cierzo.guard.text import SPAN


class OutputWatch:
    """Holds back the pieces of one answer until they are judged.

    A piece waits until what waits is twice as long as what was judged, and `policy.hold` characters at most (twice
    that for a word without an end): so the first token comes at once and a long answer costs a judgement a line. Judged
    is the span that ends with it. With `policy.lookahead` that many judged characters wait too.

    Args:
        n_prompt: tokens of the prompt, for the usage of an answer that is ended.
        whole: nothing is shown before the end, so what is refused is not shown at all.

    Attributes:
        verdict: the worst so far.
        refused: the last piece given was the end, and the answer is to be cancelled.
    """

    def __init__(
        self, guard: Guard, *, n_prompt: int, ask: Ask | None = None, about: Mapping[str, Any] | None = None,
        whole: bool = False,
    ) -> None:  # fmt: skip
        self._guard, self._n_prompt, self._ask, self._about, self._whole = guard, n_prompt, ask, about, whole
        self._waiting: deque[tuple[int, Delta]] = deque()
        self._recent = ""
        self._ids: list[int] = []
        self._seen = self._judged = self._shown = 0
        self._opinion: Opinion | None = None
        self._asked_at = 0
        self.verdict = Verdict()
        self.refused = False

    async def push(self, piece: Delta) -> list[Delta]:
        """A further piece; returns those that may be shown now."""
        policy = self._guard.policy
        # Only a name is a word of its own: arguments come in pieces of words.
        said = piece.text + "".join(
            (f" {call.name} " if call.name else "") + call.arguments for call in piece.tool_calls
        )
        self._seen += len(said)
        self._ids += piece.token_ids
        self._recent = (self._recent + said)[-max(SPAN, 2 * policy.hold) :]
        self._waiting.append((self._seen, piece))
        last = piece.finish_reason is not None
        if piece.finish_reason in ("cancelled", "error"):
            self._waiting.pop()  # nobody judges any more what waits, so nobody sees it
            return [*self._released(False), replace(piece, text="", tool_calls=(), logprobs=())]
        unjudged = self._seen - self._judged
        if unjudged and (last or self._due(unjudged, said)):
            await self._judge()
            if self.verdict.action == "refuse":
                self.refused = True
                return [self._refusal(piece)]
        return self._released(last)

    def _due(self, unjudged: int, said: str) -> bool:
        if not self._judged:
            return True  # the first piece comes without a delay: of many streams at once, a token is a long time
        enough = min(self._guard.policy.hold, 2 * self._judged)
        return unjudged >= enough and (not said[-1:].isalnum() or not said.isalnum() or unjudged >= 2 * enough)

    async def _judge(self) -> None:
        verdict = await self._guard.judge(
            [self._recent], "output", ask=None if self._ask is None else self._opinion_of, answer=self._ids,
            about=self._about,
        )  # fmt: skip
        self.verdict = worse(self.verdict, verdict)
        self._judged = self._seen

    async def _opinion_of(self, ids: Sequence[int]) -> Opinion:
        """The model is asked once about a span: asking for every line would cost more than the answer."""
        if self._opinion is None or self._seen - self._asked_at >= SPAN:
            assert self._ask is not None
            self._opinion, self._asked_at = await self._ask(ids), self._seen
        return self._opinion

    def _released(self, last: bool) -> list[Delta]:
        upto = self._seen if last else -1 if self._whole else self._judged - self._guard.policy.lookahead
        shown = []
        while self._waiting and self._waiting[0][0] <= upto:
            self._shown, piece = self._waiting.popleft()
            shown.append(piece)
        return shown

    def _refusal(self, piece: Delta) -> Delta:
        """The end of the answer; with the policy's text where nothing was shown yet."""
        usage = piece.usage or Usage(self._n_prompt, len(self._ids), 0.0, 0.0)
        text = "" if self._shown else self._guard.policy.refusal
        return Delta(text, finish_reason="content_filter", usage=usage)


def refused_deltas(text: str, n_prompt: int) -> list[Delta]:
    """The whole answer to a refused question."""
    return [Delta(text), Delta("", finish_reason="content_filter", usage=Usage(n_prompt, 0, 0.0, 0.0))]
