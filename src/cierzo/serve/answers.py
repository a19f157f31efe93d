"""From a checked request to the pieces of its answers, whichever language it was asked in."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any, TypeVar

from starlette.requests import Request
from starlette.types import Receive

from cierzo import AsyncLLM, Delta, SamplingParams
from cierzo.async_llm import Answer
from cierzo.errors import CierzoError, EngineError, QueueFullError
from cierzo.guard.stream import OutputWatch, refused_deltas
from cierzo.serve.errors import ApiError
from cierzo.serve.gate import ClientGoneError
from cierzo.serve.guarded import GuardedRequest
from cierzo.serve.state import State, caller_of, check_count, state_of

T = TypeVar("T")
_LONGEST_STOP = 256


@dataclass
class Question:
    """What is asked of a model.

    Attributes:
        prompts: token ids of each; `n` answers to every one.
        continues, tools: see `Engine.prepare`.
        structure_param, stop_param: the parts of the request that a form of the answer and stop texts come from.
        texts: what the guard judges of a conversation; of other prompts, their own text.
        with_guardrail: gives the prompt again with the guard's system text.
        streamed: pieces are shown as they come.
        verdicts: the answer tells what the guard found.
    """

    prompts: list[list[int]]
    params: SamplingParams
    n: int = 1
    continues: bool = False
    tools: bool = False
    priority: int = 0
    cache_salt: str | None = None
    structure_param: str | None = None
    stop_param: str = "stop"
    texts: list[str] | None = None
    with_guardrail: Callable[[], Awaitable[list[int]]] | None = None
    streamed: bool = False
    verdicts: bool = False

    def check(self, llm: AsyncLLM, state: State, param: str, answer: int | None = None) -> None:
        """Refuse, with the reason, what the limits or the model do not allow.

        Args:
            param: where the prompts come from.
            answer: tokens that there must be place for, if not those of `params`.

        Raises:
            ApiError: 400.
        """
        settings, params = state.settings, self.params
        answer = params.max_tokens or 1 if answer is None else answer
        check_count("n", self.n, settings.max_n, "max_n")
        check_count(param, len(self.prompts), settings.max_prompts, "max_prompts")
        check_count(self.stop_param, len(params.stop), settings.max_stop, "max_stop")
        if any(len(text) > _LONGEST_STOP for text in params.stop):
            raise ApiError(
                400, f"a stop text has at most {_LONGEST_STOP} characters", param=self.stop_param, code="stop_too_long"
            )
        if self.priority < settings.min_priority:
            raise ApiError(
                400, f"priority must be at least {settings.min_priority} here, not {self.priority}", param="priority",
                code="priority_too_low",
            )  # fmt: skip
        for name, ids in (("logit_bias", params.logit_bias), ("stop_token_ids", params.stop_token_ids)):
            if any(token >= llm.config.vocab_size for token in ids):
                raise ApiError(
                    400, f"{name} has a token outside the vocabulary of {llm.config.vocab_size}", param=name,
                    code="invalid_value",
                )  # fmt: skip
        for prompt in self.prompts:
            check_length(llm, state, len(prompt), param, answer=answer)


def check_length(llm: AsyncLLM, state: State, tokens: int, param: str, answer: int = 0) -> None:
    """Refuse a prompt that is too long, with the numbers.

    Raises:
        ApiError: 400, with OpenAI's word for it.
    """
    limit, most = llm.max_seq_len, state.settings.max_prompt
    code = "context_length_exceeded"
    if most is not None and tokens > most:
        raise ApiError(400, f"the prompt has {tokens} tokens, and {most} are the most here", param=param, code=code)
    if limit is not None and tokens + answer > limit:
        # OpenAI's words, by which clients know what is the matter.
        raise ApiError(
            400,
            f"this model's maximum context length is {limit} tokens; {tokens} of the prompt and {answer} of an answer "
            "pass it: shorten the prompt or lower max_tokens",
            param=param,
            code=code,
        )


def check_places(llm: AsyncLLM, state: State, count: int) -> None:
    """Refuse `count` answers when there is no place for them, before anything is computed for them.

    Raises:
        ApiError: 429, or 400 if there never is.
    """
    full = state.settings.max_running + state.settings.max_waiting
    if count > full:
        raise ApiError(
            400, f"{count} answers in one request are too many: {full} are the most", code="too_many_answers"
        )
    if llm.pending + count > full:
        raise _queue_full(state)


@dataclass
class Answers:
    """The answers to one question as they come; closed with the request's `AsyncExitStack`, which frees them."""

    name: str
    llm: AsyncLLM
    question: Question
    _queue: asyncio.Queue[tuple[int, Delta]] = field(default_factory=asyncio.Queue)
    _streams: list[Answer] = field(default_factory=list)
    _tasks: list[asyncio.Task[None]] = field(default_factory=list)
    _guarded: GuardedRequest | None = None

    async def begin(self, request: Request) -> None:
        """Queue every answer, or none.

        Raises:
            QueueFullError: there is no place for all of them.
            ApiError: a form that cannot be had.
        """
        asked, caller, state = self.question, caller_of(request), state_of(request)
        check_places(self.llm, state, self._count)
        salt = caller.salt(asked.cache_salt)
        if state.guard is not None and state.guard.policy.on:
            chat = asked.texts is not None
            self._guarded = GuardedRequest(state.guard, self.llm, request, chat, not asked.streamed, salt)
        for number, prompt in enumerate(asked.prompts):
            refusal = await self._refusal(number, prompt, state)
            for sample in range(asked.n):
                index = number * asked.n + sample
                if refusal is not None:
                    for delta in refused_deltas(refusal, len(prompt)):
                        self._queue.put_nowait((index, delta))
                    continue
                try:
                    stream = await self.llm.answer(
                        asked.prompts[number],
                        asked.params.for_sample(sample),
                        continues=asked.continues,
                        tools=asked.tools,
                        priority=asked.priority,
                        cache_salt=salt,
                    )
                except QueueFullError:
                    raise _queue_full(state) from None
                except EngineError:
                    raise
                except CierzoError as error:
                    raise ApiError(400, str(error), param=asked.structure_param, code="invalid_value") from None
                self._streams.append(stream)
                watch = self._guarded.watch(asked.prompts[number]) if self._guarded is not None else None
                self._tasks.append(asyncio.create_task(self._read(index, stream, watch)))

    async def _refusal(self, number: int, prompt: list[int], state: State) -> str | None:
        """What is answered instead of an answer, if the guard refuses the prompt; it may also change the prompt."""
        if self._guarded is None:
            return None
        asked, policy = self.question, self._guarded.guard.policy
        action = (await self._guarded.judge(prompt, asked.texts)).action
        if action == "prompt" and asked.with_guardrail is not None:
            asked.prompts[number] = await asked.with_guardrail()
            check_length(self.llm, state, len(asked.prompts[number]), "messages", answer=asked.params.max_tokens or 1)
        return policy.refusal if action == "refuse" else None

    async def _read(self, index: int, stream: Answer, watch: OutputWatch | None) -> None:
        """A reader for each, so that a client that reads slowly keeps nobody."""
        async for delta in stream:
            for piece in [delta] if watch is None else await watch.push(delta):
                self._queue.put_nowait((index, piece))
            if watch is not None and watch.refused:
                await stream.aclose()
                return

    async def __aiter__(self) -> AsyncIterator[tuple[int, Delta]]:
        """Pieces with the number of their answer, in the order in which they come; what waits already comes as one.

        So a client that reads slowly, and a guard that lets go of much at once, cost an event and not one a token.

        Raises:
            EngineError: an answer ended by one.
            ApiError: the server stopped.
        """
        left = self._count
        while left:
            waiting = [await self._queue.get()]
            while not self._queue.empty():
                waiting.append(self._queue.get_nowait())
            for (index, broken), pieces in groupby(waiting, lambda each: (each[0], _broken(each[1]))):
                delta = Delta.joined([piece for _, piece in pieces])
                if broken:
                    raise shutting_down() if delta.error is None else EngineError(delta.error)
                left -= delta.finish_reason is not None
                yield index, delta

    async def whole(self) -> list[list[Delta]]:
        """All pieces of each answer."""
        pieces: list[list[Delta]] = [[] for _ in range(self._count)]
        async for index, delta in self:
            pieces[index].append(delta)
        return pieces

    @property
    def _count(self) -> int:
        return len(self.question.prompts) * self.question.n

    def verdicts(self) -> dict[str, Any]:
        """The field `guard` of the answer, where it has one; known when the last answer has ended."""
        if self._guarded is not None:
            return self._guarded.report(self.question.verdicts)
        return {"guard": None} if self.question.verdicts else {}

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for stream in self._streams:
            await stream.aclose()


async def use_model(request: Request, model: str | None, stack: AsyncExitStack) -> tuple[str, AsyncLLM]:
    """The model of a request, loaded, until the stack is closed; with the name that answers give it."""
    models = state_of(request).models
    name = model or models.default
    caller_of(request).fields["model"] = name if name in models.entries else "unknown"
    return name, await stack.enter_async_context(models.use(name))


async def begin_answers(
    request: Request, name: str, llm: AsyncLLM, question: Question, stack: AsyncExitStack, param: str
) -> Answers:
    """Check a question and queue its answers; closing the stack cancels what is not finished."""
    question.check(llm, state_of(request), param)
    fields = caller_of(request).fields
    fields["prompt_tokens"] = sum(map(len, question.prompts))
    answers = Answers(name, llm, question)
    stack.push_async_callback(answers.close)
    await answers.begin(request)
    return answers


async def watched(request: Request, work: Awaitable[T]) -> T:
    """The result of `work`, which is cancelled when the client leaves, the time is over, or the server stops.

    Raises:
        ClientGoneError, ApiError: these three.
    """
    state = state_of(request)
    task = asyncio.ensure_future(work)
    gone, stop = asyncio.create_task(_gone(request.receive)), asyncio.create_task(state.stop.wait())
    limit = state.settings.request_timeout
    try:
        await asyncio.wait((task, gone, stop), timeout=limit, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        if gone.done():
            raise ClientGoneError
        if stop.done():
            raise shutting_down()
        raise ApiError(504, f"the answer took longer than the {limit} s of request_timeout", code="timeout")
    finally:
        for each in (task, gone, stop):
            each.cancel()
        with suppress(asyncio.CancelledError):
            await asyncio.gather(task, gone, stop, return_exceptions=True)


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _broken(delta: Delta) -> bool:
    """Whether it says that an answer ended without an end."""
    return delta.error is not None or delta.finish_reason == "cancelled"


def shutting_down() -> ApiError:
    return ApiError(503, "the server is shutting down", code="shutting_down", retry_after=5)


def _queue_full(state: State) -> ApiError:
    return ApiError(
        429, "too many answers are running or waiting: try again later", code="queue_full",
        retry_after=state.retry_after(),
    )  # fmt: skip


def usage_of(answers: Answers, last: list[Delta]) -> dict[str, Any]:
    """OpenAI's count of tokens: each prompt once, all answers; `last` are the answers' last pieces in order."""
    usages = [delta.usage for delta in last if delta.usage is not None]
    prompt = sum(map(len, answers.question.prompts))
    completion = sum(usage.completion_tokens for usage in usages)
    cached = sum(usage.cached_tokens for usage in usages[:: answers.question.n])
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": cached},
    }
