"""Where the guard stands in a request: its prompt, the judgement of what is asked and of what is answered."""

import weakref
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial, reduce
from typing import Any

from starlette.requests import Request

from cierzo import AsyncLLM
from cierzo.guard.guard import Guard, Verdict, texts_of, with_guardrail, worse
from cierzo.guard.judge import Ask, Judge, Opinion
from cierzo.guard.policy import Policy
from cierzo.guard.stream import OutputWatch
from cierzo.serve.asked import chat_ids
from cierzo.serve.errors import ApiError
from cierzo.serve.state import State, caller_of, state_of
from cierzo.tokens import ChatError, Message, TemplateRefusalError, decode


def guardrail_of(state: State, safe_prompt: bool | None) -> str | None:
    """The system text in front of a chat; `safe_prompt` has one without a guard as well, as in Mistral's API."""
    policy = state.guard.policy if state.guard is not None else None
    if policy is not None and policy.guardrail_always and state.guard is not None and state.guard.enforces:
        return policy.guardrail_prompt
    if not safe_prompt:
        return None
    own = policy.guardrail_prompt if policy is not None else None
    return own or Policy.load("standard").guardrail_prompt


async def encoded_chat(
    llm: AsyncLLM,
    messages: list[Message],
    tools: list[dict[str, Any]] | None,
    guardrail: str | None,
    *,
    continued: bool = False,
) -> list[int]:
    """Token ids of a conversation with the guard's text where the template puts system prompts.

    Where a template has no place for one, it is the beginning of the first user message.

    Args:
        continued: for the rest of the last message.

    Raises:
        ApiError: messages that the template cannot hold.
    """
    try:
        if guardrail is None:
            return await chat_ids(llm, messages, tools or None, continued=continued)
        try:
            return await chat_ids(llm, with_guardrail(messages, guardrail), tools or None, continued=continued)
        except TemplateRefusalError:
            first = next((n for n, m in enumerate(messages) if m["role"] == "user"), None)
            if first is None or any(m["role"] == "system" for m in messages):
                raise
            joined = list(messages)
            joined[first] = {**joined[first], "content": _joined(guardrail, joined[first]["content"])}
            return await chat_ids(llm, joined, tools or None, continued=continued)
    except ChatError as error:
        raise ApiError(400, str(error), param="messages", code="invalid_messages") from None


def _joined(guardrail: str, content: Any) -> Any:
    if isinstance(content, str):
        return f"{guardrail}\n\n{content}"
    return [{"type": "text", "text": f"{guardrail}\n\n"}, *content]


def judged_chat(
    state: State,
    llm: AsyncLLM,
    messages: list[dict[str, Any]],
    tools: list[dict[str, Any]],
    *,
    continued: bool = False,
) -> dict[str, Any]:
    """What a `Question` tells the guard of a conversation."""
    if state.guard is None:
        return {}
    policy = state.guard.policy
    return {
        "texts": texts_of(messages, policy.turns),
        "with_guardrail": partial(encoded_chat, llm, messages, tools, policy.guardrail_prompt, continued=continued),
    }


@dataclass
class GuardedRequest:
    """The guard's part in one request.

    Attributes:
        chat: by the model's template; a plain text else.
        whole: the answer is not streamed.
    """

    guard: Guard
    llm: AsyncLLM
    request: Request
    chat: bool
    whole: bool
    cache_salt: str
    _input: list[Verdict] = field(default_factory=list)
    _outputs: list[OutputWatch] = field(default_factory=list)

    async def judge(self, prompt: list[int], texts: Sequence[str] | None) -> Verdict:
        """What is asked, before the answer begins; `texts` of a conversation, or the prompt's own."""
        judged = texts if texts is not None else [decode(self.llm.tokenizer, prompt)]
        verdict = await self.guard.judge(
            judged, "input", ask=self._ask(prompt), about=self._about(), salt=self.cache_salt
        )
        self._input.append(verdict)
        self._tell("guard_input", verdict)
        return verdict

    def watch(self, prompt: list[int]) -> OutputWatch:
        """What judges one answer to it."""
        watch = OutputWatch(
            self.guard, n_prompt=len(prompt), ask=self._ask(prompt), about=self._about(), whole=self.whole
        )
        self._outputs.append(watch)
        return watch

    def report(self, wanted: bool) -> dict[str, Any]:
        """The field `guard` of the answer: when it is wanted, or when the policy warns."""
        given, said = (
            reduce(worse, self._input, Verdict()),
            reduce(worse, (w.verdict for w in self._outputs), Verdict()),
        )
        self._tell("guard_output", said)
        if not wanted and "warn" not in (given.action, said.action):
            return {}
        about = {"policy": self.guard.policy.name, "mode": self.guard.mode}
        return {"guard": {**about, "input": given.shown(), "output": said.shown()}}

    def _ask(self, prompt: list[int]) -> Ask | None:
        reflection = self.guard.policy.reflection
        if reflection is None:
            return None
        judges = state_of(self.request).judges

        async def ask(answer: Sequence[int]) -> Opinion:
            self.guard.reflections += 1
            judge = judges.get(self.llm)
            if judge is None:  # it must not keep a model that is unloaded
                judge = judges[self.llm] = Judge(weakref.proxy(self.llm), reflection)
            return await judge.opinion([*prompt, *answer], chat=self.chat, cache_salt=self.cache_salt)

        return ask

    def _about(self) -> dict[str, Any]:
        caller = caller_of(self.request)
        return {"id": caller.request_id, "key": caller.key, "model": self.llm.name}

    def _tell(self, name: str, verdict: Verdict) -> None:
        """In the request's line of the log."""
        if verdict.would != "allow":
            caller_of(self.request).fields[name] = verdict.shown() | {"would": verdict.would}
