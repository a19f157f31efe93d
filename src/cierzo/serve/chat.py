"""`/v1/chat/completions`."""

import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any
from uuid import uuid4

from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, Response

from cierzo import Completion, Delta
from cierzo.engine import TokenLogprob
from cierzo.serve.answers import Answers, Question, begin_answers, usage_of, use_model, watched
from cierzo.serve.asked import chat_ids, check_continued, plain_messages, sampling_params, structure_of, tools_of
from cierzo.serve.errors import ApiError, unsupported
from cierzo.serve.schemas import openai_answers as answered
from cierzo.serve.schemas.openai import ChatRequest
from cierzo.serve.sse import EventStream, message
from cierzo.serve.state import caller_of, state_of
from cierzo.tokens import ChatError, Tokenizer

router = APIRouter()
_LEAST_LOGPROB = -9999.0
"""JSON has no infinity; vLLM writes the same."""


@router.post(
    "/v1/chat/completions",
    response_model=answered.ChatCompletion,
    responses={200: {"content": {"text/event-stream": {"schema": {"type": "string"}}}}},
)
async def chat_completions(body: ChatRequest, request: Request) -> Response:
    """Answer a conversation. With `stream`, events of `ChatChunk`, then `[DONE]`."""
    async with AsyncExitStack() as stack:
        answers = await watched(request, _begin(body, request, stack))
        if body.stream:
            usage = bool(body.stream_options and body.stream_options.include_usage)
            return EventStream(request, _events(answers, request, usage), openai_failed, stack.pop_all())
        pieces = await watched(request, answers.whole())
        return JSONResponse(_whole(answers, pieces, request))


async def _begin(body: ChatRequest, request: Request, stack: AsyncExitStack) -> Answers:
    state, caller = state_of(request), caller_of(request)
    if body.safe_prompt:
        raise unsupported("safe_prompt", "safe_prompt is reserved: this server has no guard yet")
    if body.stream_options is not None and not body.stream:
        raise ApiError(400, "stream_options needs stream = true", param="stream_options", code="invalid_value")
    if body.top_logprobs and not body.logprobs:
        raise ApiError(400, "top_logprobs needs logprobs = true", param="top_logprobs", code="invalid_value")
    if body.max_tokens is not None and body.max_completion_tokens is not None:
        raise ApiError(
            400, "max_tokens and max_completion_tokens mean the same: leave one out", param="max_tokens",
            code="invalid_value",
        )  # fmt: skip
    if body.user is not None:
        caller.fields["user"] = body.user
    structure, param = structure_of(body, state)
    name, llm = await use_model(request, body.model, stack)
    tools, forced = tools_of(body, llm, state)
    if tools and structure is not None:
        raise ApiError(400, f"{param} and tools exclude each other", param=param, code="invalid_value")
    messages = plain_messages(body.messages)
    continued = check_continued(body, messages, forced or structure)
    if state.settings.log_prompts:
        caller.fields["messages"] = messages
    try:
        prompt = await chat_ids(llm, messages, tools or None, continued=continued)
    except ChatError as error:
        raise ApiError(400, str(error), param="messages", code="invalid_messages") from None
    params = sampling_params(
        body,
        max_tokens=body.max_completion_tokens or body.max_tokens,
        logprobs=(body.top_logprobs or 0) if body.logprobs else None,
        structure=forced or structure,
    )
    question = Question(
        [prompt], params, body.n or 1, continues=continued, tools=bool(tools), priority=body.priority or 0,
        cache_salt=body.cache_salt, structure_param="tools" if forced else param,
    )  # fmt: skip
    return await begin_answers(request, name, llm, question, stack, "messages")


def openai_failed(error: ApiError) -> bytes:
    return message(error.body("", ""))


def _whole(answers: Answers, pieces: list[list[Delta]], request: Request) -> dict[str, Any]:
    choices: list[dict[str, Any]] = []
    for index, deltas in enumerate(pieces):
        answer = Completion.of(deltas)
        calls = [
            {"id": c.id, "type": "function", "function": {"name": c.name, "arguments": c.arguments}}
            for c in answer.tool_calls
        ]
        said: dict[str, Any] = {"role": "assistant", "content": answer.text, "refusal": None}
        if calls:
            said |= {"tool_calls": calls, "content": answer.text or None}
        choices.append(
            {
                "index": index,
                "message": said,
                "logprobs": _logprobs(answers, answer.logprobs),
                "finish_reason": _reason(answer.finish_reason, called=bool(calls)),
            }
        )
    usage = usage_of(answers, [deltas[-1] for deltas in pieces])
    caller_of(request).fields["completion_tokens"] = usage["completion_tokens"]
    return {**_head(answers, "chat.completion"), "choices": choices, "usage": usage}


async def _events(answers: Answers, request: Request, with_usage: bool) -> AsyncIterator[bytes]:
    head = _head(answers, "chat.completion.chunk")
    usage: dict[str, None] = {"usage": None} if with_usage else {}
    count = answers.question.n
    last: dict[int, Delta] = {}
    called: set[int] = set()

    def chunk(index: int, delta: dict[str, Any], logprobs: Any = None, reason: str | None = None) -> bytes:
        choice = {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": reason}
        return message({**head, "choices": [choice], **usage})

    for index in range(count):
        yield chunk(index, {"role": "assistant", "content": ""})
    async for index, piece in answers:
        said: dict[str, Any] = {"content": piece.text} if piece.text else {}
        if piece.tool_calls:
            called.add(index)
            said["tool_calls"] = [_call_delta(call) for call in piece.tool_calls]
        logprobs = _logprobs(answers, piece.logprobs)
        if said or (logprobs and logprobs["content"]):
            yield chunk(index, said, logprobs)
        if piece.finish_reason is not None:
            last[index] = piece
            yield chunk(index, {}, reason=_reason(piece.finish_reason, called=index in called))
    counted = usage_of(answers, [last[index] for index in range(count)])
    caller_of(request).fields["completion_tokens"] = counted["completion_tokens"]
    if with_usage:
        yield message({**head, "choices": [], "usage": counted})
    yield message("[DONE]")


def _call_delta(call: Any) -> dict[str, Any]:
    if call.id is None:
        return {"index": call.index, "function": {"arguments": call.arguments}}
    return {
        "index": call.index,
        "id": call.id,
        "type": "function",
        "function": {"name": call.name, "arguments": call.arguments},
    }


def _head(answers: Answers, kind: str) -> dict[str, Any]:
    return {"id": f"chatcmpl-{uuid4().hex}", "object": kind, "created": int(time.time()), "model": answers.name}


def _reason(reason: str, *, called: bool) -> str:
    return "tool_calls" if called and reason == "stop" else reason


def _logprobs(answers: Answers, logprobs: tuple[TokenLogprob, ...]) -> dict[str, Any] | None:
    if answers.question.params.logprobs is None:
        return None
    tokenizer = answers.llm.tokenizer
    content = [
        {
            **shown_logprob(tokenizer, one.token_id, one.logprob),
            "top_logprobs": [shown_logprob(tokenizer, token, value) for token, value in one.top],
        }
        for one in logprobs
    ]
    return {"content": content, "refusal": None}


def shown_logprob(tokenizer: Tokenizer, token: int, logprob: float) -> dict[str, Any]:
    data = tokenizer.token_bytes(token)
    return {
        "token": data.decode("utf-8", "replace"),
        "logprob": max(logprob, _LEAST_LOGPROB),
        "bytes": list(data),
    }
