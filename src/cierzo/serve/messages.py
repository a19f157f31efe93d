"""`/v1/messages`: Anthropic's language, turned into OpenAI's and back."""

import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any
from uuid import uuid4

from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, Response

from cierzo import Completion, Delta, SamplingParams, Structure, Usage
from cierzo.engine import ToolCallDelta
from cierzo.serve.answers import Answers, Question, begin_answers, use_model, watched
from cierzo.serve.asked import check_size, tools_of
from cierzo.serve.errors import ApiError
from cierzo.serve.guarded import encoded_chat, guardrail_of, judged_chat
from cierzo.serve.schemas import anthropic as schema
from cierzo.serve.schemas.openai import ChatRequest
from cierzo.serve.sse import EventStream, message
from cierzo.serve.state import State, caller_of, state_of

router = APIRouter()
_PING = message({"type": "ping"}, "ping")


@router.post(
    "/v1/messages",
    response_model=schema.AnthropicMessage,
    responses={
        200: {"content": {"text/event-stream": {"schema": {"type": "string"}}}},
        "default": {"model": schema.ErrorAnswer},
    },
)
async def messages(body: schema.MessagesRequest, request: Request) -> Response:
    """Answer a conversation. With `stream`, the events of Anthropic's API."""
    async with AsyncExitStack() as stack:
        answers = await watched(request, _begin(body, request, stack))
        if body.stream:
            events = _Events(answers, request).events()
            return EventStream(request, events, anthropic_failed, stack.pop_all(), ping=_PING)
        [pieces] = await watched(request, answers.whole())
        return JSONResponse(_whole(answers, pieces, request))


@router.post("/v1/messages/count_tokens", responses={"default": {"model": schema.ErrorAnswer}})
async def count_tokens(body: schema.CountRequest, request: Request) -> schema.TokenCount:
    """How long the prompt of a conversation is."""
    return await watched(request, _counted(body, request))


async def _counted(body: schema.CountRequest, request: Request) -> schema.TokenCount:
    state = state_of(request)
    async with AsyncExitStack() as stack:
        _, llm = await use_model(request, body.model, stack)
        tools, forced = tools_of(_tool_request(body), llm, state)
        plain = openai_messages(body)
        continued = _continued(plain, forced or _structure(body, state))
        ids = await encoded_chat(llm, plain, tools, guardrail_of(state, None), continued=continued)
        return schema.TokenCount(input_tokens=len(ids))


def anthropic_failed(error: ApiError) -> bytes:
    return message(error.body("/v1/messages", ""), "error")


async def _begin(body: schema.MessagesRequest, request: Request, stack: AsyncExitStack) -> Answers:
    state, caller = state_of(request), caller_of(request)
    if body.metadata is not None and body.metadata.user_id is not None:
        caller.fields["user"] = body.metadata.user_id
    if state.settings.log_prompts:
        caller.fields["messages"] = body.model_dump(exclude_none=True, include={"system", "messages"})
    name, llm = await use_model(request, body.model, stack)
    tools, forced = tools_of(_tool_request(body), llm, state)
    structure = _structure(body, state)
    if tools and structure is not None:
        raise ApiError(400, "output_config.format and tools exclude each other", param="output_config")
    given = {n: value for n in ("temperature", "top_p", "top_k") if (value := getattr(body, n)) is not None}
    params = SamplingParams(
        **given, max_tokens=body.max_tokens, stop=tuple(body.stop_sequences or ()), structure=forced or structure
    )
    plain = openai_messages(body)
    continued = _continued(plain, forced or structure)
    prompt = await encoded_chat(llm, plain, tools, guardrail_of(state, None), continued=continued)
    question = Question(
        [prompt], params, continues=continued, tools=bool(tools), stop_param="stop_sequences",
        structure_param="tools" if forced else "output_config",
        **judged_chat(state, llm, plain, tools, continued=continued), streamed=bool(body.stream),
        verdicts=bool(body.guard_verdicts),
    )  # fmt: skip
    return await begin_answers(request, name, llm, question, stack, "messages")


def _continued(plain: list[dict[str, Any]], form: Structure | None) -> bool:
    """Whether the answer goes on in the last message, as Anthropic's does when that is the assistant's.

    Raises:
        ApiError: it calls tools, or the answer must have a form, which would begin anew.
    """
    if plain[-1]["role"] != "assistant":
        return False
    if "tool_calls" in plain[-1]:
        raise ApiError(
            400, "the last message calls a tool: give its result after it", param="messages", code="invalid_messages"
        )
    if form is not None:
        raise ApiError(
            400, "an answer that must have a form cannot go on in the assistant's last message: leave out either",
            param="messages", code="invalid_messages",
        )  # fmt: skip
    return True


def _structure(body: schema.CountRequest, state: State) -> Structure | None:
    """The form that the answer must have."""
    if body.output_config is None or body.output_config.format is None:
        return None
    check_size("output_config", body.output_config.format.schema_, state)
    return Structure("json_schema", body.output_config.format.schema_)


def openai_messages(body: schema.CountRequest) -> list[dict[str, Any]]:
    """A conversation as templates take it: results of tools are messages of their own, before the user's text."""
    plain: list[dict[str, Any]] = []
    if body.system:
        plain.append({"role": "system", "content": _text(body.system)})
    for turn in body.messages:
        if isinstance(turn.content, str):
            plain.append({"role": turn.role, "content": turn.content})
            continue
        said = "".join(block.text for block in turn.content if isinstance(block, schema.TextBlock))
        calls = [
            {"id": b.id, "type": "function", "function": {"name": b.name, "arguments": json.dumps(b.input)}}
            for b in turn.content
            if isinstance(b, schema.ToolUseBlock)
        ]
        results = [
            {
                "role": "tool",
                "tool_call_id": b.tool_use_id,
                "content": ("Error: " if b.is_error else "") + _text(b.content),
            }
            for b in turn.content
            if isinstance(b, schema.ToolResultBlock)
        ]
        plain += results
        if calls:
            plain.append({"role": "assistant", **({"content": said} if said else {}), "tool_calls": calls})
        elif said or not results:
            plain.append({"role": turn.role, "content": said})
    return plain


def _text(content: str | list[schema.TextBlock]) -> str:
    return content if isinstance(content, str) else "".join(block.text for block in content)


def _tool_request(body: schema.CountRequest) -> ChatRequest:
    """The tools and their choice, in OpenAI's language."""
    tools = [
        {
            "type": "function",
            "function": {"name": t.name, "description": t.description, "parameters": t.input_schema},
        }
        for t in body.tools or ()
    ]
    choice: Any = None
    several = True
    if isinstance(body.tool_choice, schema.NamedChoice):
        choice = {"type": "function", "function": {"name": body.tool_choice.name}}
    elif body.tool_choice is not None:
        choice = {"auto": "auto", "any": "required", "none": "none"}[body.tool_choice.type]
    if isinstance(body.tool_choice, schema.AnyChoice):
        several = not body.tool_choice.disable_parallel_tool_use
    return ChatRequest.model_validate(
        {
            "messages": [{"role": "user", "content": ""}],
            "tools": tools or None,
            "tool_choice": choice,
            "parallel_tool_calls": None if several else False,
        }
    )


def _whole(answers: Answers, pieces: list[Delta], request: Request) -> dict[str, Any]:
    answer = Completion.of(pieces)
    content: list[dict[str, Any]] = [{"type": "text", "text": answer.text}] if answer.text else []
    content += [
        {"type": "tool_use", "id": call.id, "name": call.name, "input": _input(call.arguments)}
        for call in answer.tool_calls
    ]
    caller_of(request).fields["completion_tokens"] = answer.usage.completion_tokens
    reason, stop = _why(pieces[-1], called=bool(answer.tool_calls))
    return {
        **_head(answers),
        "content": content,
        "stop_reason": reason,
        "stop_sequence": stop,
        "usage": _usage(answer.usage),
        **answers.verdicts(),
    }


def _input(arguments: str) -> dict[str, Any]:
    """A call's arguments; an answer that was cut short may leave something that is none."""
    try:
        value = json.loads(arguments)
    except (ValueError, RecursionError):
        return {"unfinished_json": arguments}
    return value if isinstance(value, dict) else {"value": value}


def _why(last: Delta, *, called: bool) -> tuple[str, str | None]:
    """Anthropic's word for why an answer ended, and the stop text if it was one."""
    if last.finish_reason == "content_filter":
        return "refusal", None
    if last.finish_reason == "length":
        return "max_tokens", None
    if called:
        return "tool_use", None
    return ("end_turn", None) if last.stop_text is None else ("stop_sequence", last.stop_text)


def _usage(usage: Usage) -> dict[str, int]:
    return {
        "input_tokens": usage.prompt_tokens - usage.cached_tokens,
        "output_tokens": usage.completion_tokens,
        "cache_read_input_tokens": usage.cached_tokens,
        "cache_creation_input_tokens": 0,
    }


def _head(answers: Answers) -> dict[str, Any]:
    return {"id": f"msg_{uuid4().hex}", "type": "message", "role": "assistant", "model": answers.name}


class _Events:
    """The events of one streamed answer: blocks one after the other, each begun, continued and stopped."""

    def __init__(self, answers: Answers, request: Request) -> None:
        self._answers, self._request = answers, request
        self._block = -1
        self._kind: str | None = None  # of the open block: "text", or "call" and its number

    async def events(self) -> AsyncIterator[bytes]:
        usage = {"input_tokens": sum(map(len, self._answers.question.prompts)), "output_tokens": 0}
        start = {**_head(self._answers), "content": [], "stop_reason": None, "stop_sequence": None, "usage": usage}
        yield _event("message_start", message=start)
        called = False
        async for _, piece in self._answers:
            called = called or bool(piece.tool_calls)
            if piece.text:
                for event in self._open("text", {"type": "text", "text": ""}):
                    yield event
                yield self._delta({"type": "text_delta", "text": piece.text})
            for call in piece.tool_calls:
                for event in self._call(call):
                    yield event
            if piece.finish_reason is not None and piece.usage is not None:
                for event in self._close():
                    yield event
                reason, stop = _why(piece, called=called)
                caller_of(self._request).fields["completion_tokens"] = piece.usage.completion_tokens
                yield _event(
                    "message_delta", delta={"stop_reason": reason, "stop_sequence": stop}, usage=_usage(piece.usage),
                    **self._answers.verdicts(),
                )  # fmt: skip
        yield _event("message_stop")

    def _call(self, call: ToolCallDelta) -> list[bytes]:
        block: dict[str, Any] = {"type": "tool_use", "id": call.id, "name": call.name, "input": {}}
        events = self._open(f"call {call.index}", block)
        if call.arguments:
            events.append(self._delta({"type": "input_json_delta", "partial_json": call.arguments}))
        return events

    def _open(self, kind: str, block: dict[str, Any]) -> list[bytes]:
        if kind == self._kind:
            return []
        events = self._close()
        self._block, self._kind = self._block + 1, kind
        return [*events, _event("content_block_start", index=self._block, content_block=block)]

    def _close(self) -> list[bytes]:
        if self._kind is None:
            return []
        self._kind = None
        return [_event("content_block_stop", index=self._block)]

    def _delta(self, delta: dict[str, Any]) -> bytes:
        return _event("content_block_delta", index=self._block, delta=delta)


def _event(kind: str, **fields: Any) -> bytes:
    return message({"type": kind, **fields}, kind)
