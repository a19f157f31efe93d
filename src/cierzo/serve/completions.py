"""`/v1/completions`: text that goes on, the older API that evaluation tools still speak."""

import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from itertools import accumulate
from typing import Any
from uuid import uuid4

from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, Response

from cierzo import AsyncLLM, Completion, Delta
from cierzo.engine import TokenLogprob
from cierzo.serve.answers import Answers, Question, begin_answers, check_length, usage_of, use_model, watched
from cierzo.serve.asked import sampling_params, structure_of
from cierzo.serve.chat import openai_failed, shown_logprob
from cierzo.serve.errors import ApiError
from cierzo.serve.schemas import openai_answers as answered
from cierzo.serve.schemas.openai import CompletionRequest
from cierzo.serve.sse import EventStream, message
from cierzo.serve.state import caller_of, check_count, state_of
from cierzo.tokens import decode

router = APIRouter()


@router.post(
    "/v1/completions",
    response_model=answered.Completion,
    responses={200: {"content": {"text/event-stream": {"schema": {"type": "string"}}}}},
)
async def completions(body: CompletionRequest, request: Request) -> Response:
    """Continue one or several prompts. With `stream`, events of `Completion`, then `[DONE]`."""
    _check(body)
    async with AsyncExitStack() as stack:
        name, llm = await watched(request, use_model(request, body.model, stack))
        prompts = await watched(request, prompts_of(body.prompt, llm, request, "prompt"))
        question = _question(body, prompts, request)
        if body.max_tokens == 0:
            answers = Answers(name, llm, question)
            return JSONResponse(await watched(request, _only_scored(answers, request)))
        answers = await watched(request, begin_answers(request, name, llm, question, stack, "prompt"))
        if body.stream:
            usage = bool(body.stream_options and body.stream_options.include_usage)
            return EventStream(request, _events(answers, request, usage), openai_failed, stack.pop_all())
        pieces = await watched(request, answers.whole())
        echoed = await watched(request, _echoed(answers, prompts, request)) if body.echo else None
        return JSONResponse(_whole(answers, pieces, request, echoed))


def _check(body: CompletionRequest) -> None:
    wrong = None
    if body.stream_options is not None and not body.stream:
        wrong = ("stream_options", "stream_options needs stream = true")
    elif body.max_tokens == 0 and not body.echo:
        wrong = ("max_tokens", "max_tokens = 0 needs echo = true: there would be nothing to answer")
    elif body.echo and body.stream:
        wrong = ("echo", "echo and stream exclude each other")
    if wrong is not None:
        raise ApiError(400, wrong[1], param=wrong[0], code="invalid_value")


async def prompts_of(given: Any, llm: AsyncLLM, request: Request, param: str) -> list[list[int]]:
    """One prompt or several, as text or token ids, as token ids of each.

    Raises:
        ApiError: none, an empty one, too many, or one that is too long.
    """
    one = isinstance(given, str) or (given and isinstance(given[0], int))
    several: list[Any] = [given] if one else given
    state, caller = state_of(request), caller_of(request)
    check_count(param, len(several), state.settings.max_prompts, "max_prompts")
    if state.settings.log_prompts:
        caller.fields["prompts"] = several
    prompts = []
    for prompt in several:
        ids = await llm.encode(prompt) if isinstance(prompt, str) else list(prompt)
        outside = [token for token in ids if token >= llm.config.vocab_size]
        if outside:
            raise ApiError(
                400, f"{param} has the token {outside[0]}, and the vocabulary {llm.config.vocab_size}", param=param,
                code="invalid_value",
            )  # fmt: skip
        check_length(llm, state, len(ids), param)
        prompts.append(ids)
    if not prompts or not all(prompts):
        raise ApiError(400, f"{param} is empty", param=param, code="invalid_value")
    return prompts


def _question(body: CompletionRequest, prompts: list[list[int]], request: Request) -> Question:
    if body.user is not None:
        caller_of(request).fields["user"] = body.user
    structure, param = structure_of(body, state_of(request))
    most = 1 if body.max_tokens == 0 else body.max_tokens  # nothing is answered then
    params = sampling_params(body, max_tokens=most, logprobs=body.logprobs, structure=structure)
    return Question(
        prompts, params, body.n or 1, continues=True, priority=body.priority or 0, cache_salt=body.cache_salt,
        structure_param=param, streamed=bool(body.stream), verdicts=bool(body.guard_verdicts),
    )  # fmt: skip


Scored = tuple[list[int], tuple[TokenLogprob, ...] | None]


async def _echoed(answers: Answers, prompts: list[list[int]], request: Request) -> list[Scored]:
    """The prompts, each with the log-probabilities of its tokens but the first, if asked for."""
    asked, top = answers.question, answers.question.params.logprobs
    if top is None:
        return [(prompt, None) for prompt in prompts]
    salt = caller_of(request).salt(asked.cache_salt)

    async def scores(prompt: list[int]) -> tuple[TokenLogprob, ...]:
        if not prompt[1:]:
            return ()
        return await answers.llm.score(prompt, top=top, priority=asked.priority, cache_salt=salt)

    return [(prompt, await scores(prompt)) for prompt in prompts]


async def _only_scored(answers: Answers, request: Request) -> dict[str, Any]:
    """Nothing is answered: the prompts come back."""
    asked = answers.question
    asked.check(answers.llm, state_of(request), "prompt", answer=0)
    caller_of(request).fields["prompt_tokens"] = sum(map(len, asked.prompts))
    echoed = await _echoed(answers, asked.prompts, request)
    choices = [
        {
            "index": index,
            "text": decode(answers.llm.tokenizer, prompt),
            "logprobs": _logprobs(answers, (), (prompt, scores)),
            "finish_reason": "length",
        }
        for index, (prompt, scores) in enumerate(e for e in echoed for _ in range(asked.n))
    ]
    return {**_head(answers), "choices": choices, "usage": usage_of(answers, []), **answers.verdicts()}


def _whole(
    answers: Answers, pieces: list[list[Delta]], request: Request, echoed: list[Scored] | None
) -> dict[str, Any]:
    choices = []
    for index, deltas in enumerate(pieces):
        answer = Completion.of(deltas)
        prompt = echoed[index // answers.question.n] if echoed else None
        choices.append(
            {
                "index": index,
                "text": (decode(answers.llm.tokenizer, prompt[0]) if prompt else "") + answer.text,
                "logprobs": _logprobs(answers, answer.logprobs, prompt),
                "finish_reason": answer.finish_reason,
            }
        )
    usage = usage_of(answers, [deltas[-1] for deltas in pieces])
    caller_of(request).fields["completion_tokens"] = usage["completion_tokens"]
    return {**_head(answers), "choices": choices, "usage": usage, **answers.verdicts()}


async def _events(answers: Answers, request: Request, with_usage: bool) -> AsyncIterator[bytes]:
    head, count = _head(answers), answers.question.n * len(answers.question.prompts)
    usage: dict[str, None] = {"usage": None} if with_usage else {}
    last: dict[int, Delta] = {}
    offsets = [0] * count
    async for index, piece in answers:
        logprobs = _logprobs(answers, piece.logprobs, offset=offsets[index]) if piece.logprobs else None
        offsets[index] += sum(map(len, logprobs["tokens"])) if logprobs else 0
        if piece.finish_reason is not None:
            last[index] = piece
        if piece.text or logprobs or piece.finish_reason is not None:
            choice = {"index": index, "text": piece.text, "logprobs": logprobs, "finish_reason": piece.finish_reason}
            more = answers.verdicts() if len(last) == count and not with_usage else {}
            yield message({**head, "choices": [choice], **usage, **more})
    counted = usage_of(answers, [last[index] for index in range(count)])
    caller_of(request).fields["completion_tokens"] = counted["completion_tokens"]
    if with_usage:
        yield message({**head, "choices": [], "usage": counted, **answers.verdicts()})
    yield message("[DONE]")


def _head(answers: Answers) -> dict[str, Any]:
    return {
        "id": f"cmpl-{uuid4().hex}", "object": "text_completion", "created": int(time.time()), "model": answers.name,
    }  # fmt: skip


def _logprobs(
    answers: Answers, logprobs: tuple[TokenLogprob, ...], prompt: Scored | None = None, offset: int = 0
) -> dict[str, Any] | None:
    """The older shape: lists side by side. The first token of a prompt has nothing before it, and so no value."""
    top = answers.question.params.logprobs
    if top is None:
        return None
    tokenizer = answers.llm.tokenizer
    scored: list[TokenLogprob | None] = [*logprobs]
    ids = [one.token_id for one in logprobs]
    if prompt is not None and prompt[1] is not None:
        scored, ids = [None, *prompt[1], *logprobs], [*prompt[0], *ids]
    tokens = [shown_logprob(tokenizer, token, 0)["token"] for token in ids]

    def alternatives(one: TokenLogprob | None) -> dict[str, float] | None:
        if one is None:
            return None
        shown = [shown_logprob(tokenizer, token, value) for token, value in one.top]
        return {each["token"]: each["logprob"] for each in reversed(shown)}  # of two that look alike, the better

    return {
        "tokens": tokens,
        "token_logprobs": [
            None if one is None else shown_logprob(tokenizer, one.token_id, one.logprob)["logprob"] for one in scored
        ],
        "top_logprobs": [alternatives(one) for one in scored] if top else None,
        "text_offset": list(accumulate((len(token) for token in tokens[:-1]), initial=offset)) if tokens else [],
    }
