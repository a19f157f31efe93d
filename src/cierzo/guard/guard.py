"""What a server, or a program, asks before a text goes on its way."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from cierzo.errors import CierzoError
from cierzo.guard.audit import Audit
from cierzo.guard.classifier import ANY, CATEGORIES, NEVER, Classifier, shipped
from cierzo.guard.judge import Ask
from cierzo.guard.known import Known, Scores, name_of
from cierzo.guard.policy import ACTIONS, Action, Category, Mode, Policy, Stage

if TYPE_CHECKING:
    from cierzo.tokens import Message

_AT_ONCE = 4000
"""Characters whose words are judged in the event loop (about 3 ms); longer texts go to a thread."""
_READ_AT_ONCE = 200
"""Characters that are read in the event loop (about 3 ms)."""


@dataclass(frozen=True)
class Verdict:
    """What was found in a text.

    Attributes:
        action: what is done about it; in shadow mode never more than to log it.
        would: what the policy says.
        categories: score, 0 to 1, of each.
        flagged: those for which it acts.
        reflection: what the model thinks, if it was asked: how likely the text is not acceptable.
        error: why the text could not be judged.
    """

    action: Action = "allow"
    would: Action = "allow"
    categories: Mapping[str, float] = field(default_factory=dict)
    flagged: tuple[str, ...] = ()
    reflection: float | None = None
    error: str | None = None

    def shown(self) -> dict[str, Any]:
        """For answers and logs."""
        more = {"flagged": list(self.flagged), "reflection": self.reflection, "error": self.error}
        scores = {name: round(score, 4) for name, score in self.categories.items()}
        return {"action": self.action, "categories": scores} | {k: v for k, v in more.items() if v not in (None, [])}


def worse(one: Verdict, two: Verdict) -> Verdict:
    """The harder of two verdicts, with the highest score of each category."""
    harder = max(one, two, key=lambda each: ACTIONS.index(each.would))
    scores = {n: max(one.categories.get(n, 0), two.categories.get(n, 0)) for n in {**one.categories, **two.categories}}
    return Verdict(harder.action, harder.would, scores, harder.flagged, harder.reflection, one.error or two.error)


class Guard:
    """Judges texts by a policy.

    >>> Guard("standard").check("What is the capital of France?").action
    'allow'

    Args:
        policy: one, or the name or file of one.
        mode: instead of the policy's.
        classifier: instead of the shipped one.

    Attributes:
        verdicts: how often each action was the policy's, by stage.
        errors, reflections, seconds: texts that could not be judged; times that a model was asked, which who asks it
            counts; time that judging took.

    Raises:
        CierzoError: no such policy.
    """

    def __init__(
        self, policy: Policy | str = "standard", *, mode: Mode | None = None, classifier: Classifier | None = None,
        audit: Audit | None = None,
    ) -> None:  # fmt: skip
        self.policy = policy if isinstance(policy, Policy) else Policy.load(policy)
        self.mode: Mode = mode or self.policy.mode
        self._classifier, self._audit, self._known = classifier or shipped(), audit, Known()
        self.verdicts: Counter[tuple[Stage, Action]] = Counter()
        self.errors = self.reflections = 0
        self.seconds = 0.0

    @property
    def enforces(self) -> bool:
        return self.mode == "enforce"

    def prepare(self) -> None:
        """Load the encoder now, so that no first text waits for it."""
        if self._classifier.heads is not None and self.policy.on:
            _ = self._classifier.heads.encoder

    def scores(self, text: str) -> dict[str, float]:
        """Probability, 0 to 1, of every category for the worst part of a text, whatever the policy says of them."""
        return self._classifier.scores(text)

    def check(self, text: str, stage: Stage = "input") -> Verdict:
        """Judge a text by the first stage alone."""
        return self._verdict(stage, self._classifier.scores(text, self.policy.reads_from(stage)), None, None)

    async def judge(
        self, texts: Sequence[str], stage: Stage, *, ask: Ask | None = None, answer: Sequence[int] = (),
        about: Mapping[str, Any] | None = None, salt: str | None = None,
    ) -> Verdict:  # fmt: skip
        """Judge texts together: the worst of them counts.

        Whatever fails is the policy's `on_error` to decide, and told in the verdict, the log and the counters.

        Args:
            ask: asks the model, with the token ids of its `answer` so far.
            about: further fields of the log.
            salt: keep the scores, for texts that come again with the same salt.
        """
        began = time.perf_counter()
        try:
            judged = bool(self.policy.judged(stage))
            verdict = await self._judged(texts, stage, ask, answer, salt) if judged else Verdict()
        except Exception as error:
            self.errors += 1
            would: Action = "refuse" if self.policy.on_error == "refuse" else "log"
            verdict = self._made(would, {}, (), None, _told(error))
        self.seconds += time.perf_counter() - began
        time.sleep(0)  # who else waits for the interpreter goes first: an engine's step must not wait for many texts
        self.verdicts[stage, verdict.would] += 1
        if self._audit is not None and verdict.would != "allow":
            fields = {"stage": stage, "policy": self.policy.name, "mode": self.mode, "would": verdict.would}
            self._audit.write("\n".join(texts), **(about or {}), **fields, **verdict.shown())
        return verdict

    async def _judged(
        self, texts: Sequence[str], stage: Stage, ask: Ask | None, answer: Sequence[int], salt: str | None
    ) -> Verdict:
        by_name = {name_of(text, salt or ""): text for text in texts}
        found = {} if salt is None else self._known.find(by_name)
        new = {name: text for name, text in by_name.items() if name not in found}
        reads = NEVER if self._classifier.heads is None else self.policy.reads_from(stage)
        if sum(map(len, new.values())) > _AT_ONCE:
            scored = await asyncio.to_thread(self._scored, new, reads)
        else:
            scored = self._scored(new, NEVER)
            if doubtful := {name: new[name] for name, scores in scored.items() if scores[ANY] >= reads}:
                if sum(map(len, doubtful.values())) > _READ_AT_ONCE:
                    scored |= await asyncio.to_thread(self._scored, doubtful, reads)
                else:
                    scored |= self._scored(doubtful, reads)
        if salt is not None:
            self._known.keep(scored)
        scores = _worst([*found.values(), *scored.values()])
        opinion = error = None
        if ask is not None and any(self._unsure(c, scores[name]) for name, c in self.policy.judged(stage).items()):
            try:
                opinion = (await ask(answer)).unacceptable
            except Exception as failed:
                # A context that is full must not be a way around the first stage: it decides alone then.
                if self.policy.on_error == "refuse":
                    raise
                self.errors += 1
                error = _told(failed)
        return self._verdict(stage, scores, opinion, error)

    def _scored(self, texts: Mapping[bytes, str], reads: float) -> dict[bytes, Scores]:
        return {name: self._classifier.scores(text, reads) for name, text in texts.items()}

    def _unsure(self, category: Category, score: float) -> bool:
        """Whether the model is to decide."""
        reflection = self.policy.reflection
        return reflection is not None and reflection.asks * category.threshold <= score < reflection.sure

    def _verdict(self, stage: Stage, scores: Scores, opinion: float | None, error: str | None) -> Verdict:
        reflection = self.policy.reflection
        flagged: dict[str, Action] = {}
        for name, category in self.policy.judged(stage).items():
            by_model = opinion is not None and reflection is not None and self._unsure(category, scores[name])
            bad = opinion >= reflection.threshold if by_model else scores[name] >= category.threshold  # type: ignore[operator, union-attr]
            if bad:
                flagged[name] = category.action
        would: Action = max(flagged.values(), key=ACTIONS.index, default="allow")
        if error is not None and would == "allow":
            would = "log"
        return self._made(would, scores, tuple(flagged), opinion, error)

    def _made(
        self, would: Action, scores: Scores, flagged: tuple[str, ...], opinion: float | None,
        error: str | None,
    ) -> Verdict:  # fmt: skip
        action = would if self.enforces or would == "allow" else "log"
        return Verdict(action, would, scores, flagged, opinion, error)


def _worst(each: Sequence[Scores]) -> Scores:
    """The highest score of each category."""
    return {name: max((one[name] for one in each), default=0.0) for name in (*CATEGORIES, ANY)}


def _told(error: Exception) -> str:
    return str(error)[:500] if isinstance(error, CierzoError) else f"{type(error).__name__}: {error}"[:500]


def texts_of(messages: Sequence[Message], turns: int) -> list[str]:
    """What is judged of a conversation: every message but the model's, the last one, and the last turns as one text.

    The model's own answers were judged when they were given; those that a client invents can only be judged as the last
    message. That the others were judged before is only the client's word, so all are. Results of tools are the users'
    text as far as a guard is concerned.
    """
    single = [_text(m) for m in [*(m for m in messages[:-1] if m["role"] != "assistant"), *messages[-1:]]]
    recent = [m for n, m in enumerate(messages) if m["role"] == "system" or n >= len(messages) - turns]
    together = " ".join(_text(m) for m in recent if m["role"] != "assistant")
    return [text for text in dict.fromkeys([*single, together]) if text.strip()]


def _text(message: Message) -> str:
    content = message.get("content")
    if isinstance(content, list):
        return "".join(part.get("text", "") for part in content)
    return content or ""


def with_guardrail(messages: Sequence[Message], prompt: str) -> list[Message]:
    """The conversation with a system text in front of the user's own, so that every template puts it first."""
    first = messages[0] if messages else None
    if first is not None and first["role"] == "system":
        return [{**first, "content": f"{prompt}\n\n{_text(first)}"}, *messages[1:]]
    return [{"role": "system", "content": prompt}, *messages]
