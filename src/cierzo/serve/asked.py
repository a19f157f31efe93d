"""What OpenAI's requests mean to the engine."""

import json
from collections.abc import Sequence
from typing import Any

from cierzo import AsyncLLM, SamplingParams, Structure
from cierzo.serve.errors import ApiError, unsupported
from cierzo.serve.schemas.openai import ChatRequest, CompletionRequest, Message, NamedTool, Sampling, Tool
from cierzo.serve.state import State, check_count
from cierzo.serve.toolcalls import forced_calls

_SAME = (
    "temperature", "top_p", "top_k", "min_p", "presence_penalty", "frequency_penalty", "repetition_penalty", "seed",
    "ignore_eos",
)  # fmt: skip


def sampling_params(
    body: Sampling, *, max_tokens: int | None, logprobs: int | None, structure: Structure | None
) -> SamplingParams:
    given: dict[str, Any] = {name: value for name in _SAME if (value := getattr(body, name)) is not None}
    if body.logit_bias:
        given["logit_bias"] = {int(token): bias for token, bias in body.logit_bias.items()}
    if body.stop is not None:
        given["stop"] = (body.stop,) if isinstance(body.stop, str) else tuple(body.stop)
    return SamplingParams(
        **given, stop_token_ids=tuple(body.stop_token_ids or ()), max_tokens=max_tokens, logprobs=logprobs,
        structure=structure,
    )  # fmt: skip


def plain_messages(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """Messages as templates take them; a developer's message is a system message."""
    plain = [message.model_dump(exclude_none=True) for message in messages]
    return [{**m, "role": "system"} if m["role"] == "developer" else m for m in plain]


def check_continued(body: ChatRequest, messages: list[dict[str, Any]], form: Structure | None) -> bool:
    """Whether the last message is to be continued.

    Raises:
        ApiError: there is nothing to continue, or the answer must have a form, which would begin anew.
    """
    continued = bool(body.continue_final_message)
    if body.add_generation_prompt is not None and body.add_generation_prompt == continued:
        raise ApiError(
            400, "add_generation_prompt must be false when continue_final_message is true, else true or left out",
            param="add_generation_prompt", code="invalid_value",
        )  # fmt: skip
    if not continued:
        return False
    last = messages[-1]
    if last["role"] != "assistant" or "content" not in last or "tool_calls" in last:
        raise ApiError(
            400, "continue_final_message needs an assistant's message of text as the last one",
            param="continue_final_message", code="invalid_value",
        )  # fmt: skip
    if form is not None:
        raise ApiError(
            400, "an answer that must have a form cannot be continued: leave out continue_final_message or the form",
            param="continue_final_message", code="invalid_value",
        )  # fmt: skip
    return True


async def chat_ids(
    llm: AsyncLLM, messages: list[dict[str, Any]], tools: list[dict[str, Any]] | None, *, continued: bool
) -> list[int]:
    """Token ids of a conversation, ready for an answer; `continued`, for the rest of the last message.

    Raises:
        ChatError: what the model's template cannot hold.
    """
    if not continued:
        return await llm.encode_chat(messages, tools)
    *before, last = messages
    content = last["content"]
    text = content if isinstance(content, str) else "".join(part["text"] for part in content)
    begun = await llm.encode(text)
    if begun[:1] == [llm.tokenizer.bos_id]:
        begun = begun[1:]
    return await llm.encode_chat(before, tools) + begun


def plain_tools(tools: Sequence[Tool] | None) -> list[dict[str, Any]]:
    """Tools as templates take them, each with parameters."""
    plain = []
    for tool in tools or ():
        function = tool.function.model_dump(exclude_none=True, exclude={"strict"})
        if "parameters" not in function:
            function["parameters"] = {"type": "object", "properties": {}}
        plain.append({"type": "function", "function": function})
    return plain


def structure_of(body: ChatRequest | CompletionRequest, state: State) -> tuple[Structure | None, str | None]:
    """The form that an answer must have, and the parameter that says so.

    Raises:
        ApiError: two forms, or one that is too large.
    """
    found: list[tuple[Structure, str]] = []
    wanted = body.response_format if isinstance(body, ChatRequest) else None
    if wanted is not None and wanted.type == "json_object":
        found.append((Structure("json"), "response_format"))
    elif wanted is not None and wanted.type == "json_schema":
        found.append((Structure("json_schema", wanted.json_schema.schema_), "response_format"))
    if body.structured_outputs is not None:
        forms = body.structured_outputs.model_dump(exclude_none=True, by_alias=True)
        found += [
            (Structure("json_schema" if kind == "json" else kind, value), "structured_outputs")  # type: ignore[arg-type]
            for kind, value in forms.items()
        ]
        if len(forms) != 1:
            raise ApiError(
                400, "structured_outputs needs exactly one of json, regex, choice, grammar", param="structured_outputs",
                code="invalid_value",
            )  # fmt: skip
    if len(found) > 1:
        raise ApiError(
            400, "an answer has one form: leave out response_format or structured_outputs", param="structured_outputs",
            code="invalid_value",
        )  # fmt: skip
    if not found:
        return None, None
    structure, param = found[0]
    check_size(param, structure.value, state)
    return structure, param


def check_size(param: str, value: Any, state: State) -> None:
    """Refuse schemas and grammars that are too large.

    Raises:
        ApiError: that it is.
    """
    try:
        size = len(value) if isinstance(value, str) else len(json.dumps(value))
    except (RecursionError, ValueError):
        raise ApiError(400, f"{param} is nested too deeply", param=param, code="schema_too_deep") from None
    if size > state.settings.max_schema:
        check_count(f"{param} (characters)", size, state.settings.max_schema, "max_schema")


def tools_of(body: ChatRequest, llm: AsyncLLM, state: State) -> tuple[list[dict[str, Any]], Structure | None]:
    """The tools that the model is told of, and the form of its answer if it must call one.

    Raises:
        ApiError: tools that this model, or this combination, cannot have.
    """
    tools = plain_tools(body.tools)
    check_size("tools", tools, state)
    choice = body.tool_choice or ("auto" if tools else "none")
    if choice != "none" and not tools:
        raise ApiError(400, "tool_choice needs tools", param="tool_choice", code="invalid_value")
    if choice == "none":
        return [], None
    form = llm.tokenizer.tool_format
    if form is None:
        raise unsupported("tools", f"{llm.name} has no format for tools in its chat template: leave them out")
    if len({tool["function"]["name"] for tool in tools}) < len(tools):
        raise ApiError(400, "two tools have the same name", param="tools", code="invalid_value")
    if choice == "auto":
        if body.parallel_tool_calls is False:
            raise unsupported(
                "parallel_tool_calls", "parallel_tool_calls = false needs a tool_choice that forces a call"
            )
        return tools, None
    callable_ = tools
    if isinstance(choice, NamedTool):
        callable_ = [tool for tool in tools if tool["function"]["name"] == choice.function.name]
        if not callable_:
            raise ApiError(
                400, f"tool_choice names {choice.function.name!r}, which is not among the tools", param="tool_choice",
                code="invalid_value",
            )  # fmt: skip
    several = choice == "required" and body.parallel_tool_calls is not False
    return tools, forced_calls(form, callable_, several=several)
