"""Tool calls, by the clients that people use: forced ones on random weights, a round trip on real ones."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anthropic
import openai
import pytest
from langchain_core.messages import AIMessageChunk, HumanMessage, ToolMessage
from langchain_openai import ChatOpenAI
from openai import OpenAI
from pydantic import SecretStr

from cierzo import LoadOptions, load_engine
from support.server import CHATML_TOOLS, Served, mistral_engine, served

QUESTION: list[Any] = [{"role": "user", "content": "What is the weather in Paris?"}]
WEATHER = {
    "type": "object",
    "properties": {"city": {"$ref": "#/$defs/City"}, "days": {"type": "integer", "minimum": 1, "maximum": 5}},
    "required": ["city", "days"],
    "additionalProperties": False,
    "$defs": {"City": {"enum": ["Paris", "Rome"]}},
}
TOOLS: list[Any] = [
    {"type": "function", "function": {"name": "weather", "description": "The weather.", "parameters": WEATHER}},
    {
        "type": "function",
        "function": {"name": "time", "parameters": {"type": "object", "properties": {}, "additionalProperties": False}},
    },
]


@pytest.fixture(scope="module", params=["v3", "v7", "chatml"])
def server(
    request: pytest.FixtureRequest, default_gguf: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Served]:
    """Random weights with Mistral's vocabularies, whose calls begin with a control token; real ones with ChatML's."""
    if request.param == "chatml":
        template = tmp_path_factory.mktemp("template") / "tools.jinja"
        template.write_text(CHATML_TOOLS)
        engine = load_engine(
            default_gguf, LoadOptions(chat_template=str(template), cache_tokens=4096, max_seq_len=2048)
        ).engine
    else:
        names = {"v3": "mistral_instruct_tokenizer_240323.model.v3", "v7": "mistral_instruct_tokenizer_241114.model.v7"}
        engine = mistral_engine(names[request.param])
    with served(engine) as server:
        yield server
        assert server.until_idle()


@pytest.fixture
def client(server: Served) -> OpenAI:
    return OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)


def _checked(name: str, arguments: str) -> None:
    value = json.loads(arguments)
    if name == "weather":
        assert value["city"] in ("Paris", "Rome")
        assert 1 <= value["days"] <= 5
    else:
        assert (name, value) == ("time", {})


def test_a_named_tool_is_called(client: OpenAI) -> None:
    choice: Any = {"type": "function", "function": {"name": "weather"}}
    answer = client.chat.completions.create(
        model="tiny", messages=QUESTION, tools=TOOLS, tool_choice=choice, max_tokens=200, seed=1
    )
    message = answer.choices[0].message
    assert message.content is None
    [call] = message.tool_calls or []
    assert call.type == "function"
    assert call.function.name == "weather"
    _checked(call.function.name, call.function.arguments)
    assert answer.choices[0].finish_reason == "tool_calls"


def test_a_required_call_streams_and_its_result_goes_back(client: OpenAI, server: Served) -> None:
    calls: dict[int, dict[str, str]] = {}
    reason = None
    for chunk in client.chat.completions.create(
        model="tiny",
        messages=QUESTION,
        tools=TOOLS,
        tool_choice="required",
        parallel_tool_calls=False,
        max_tokens=200,
        stream=True,
        seed=2,
    ):
        for delta in chunk.choices[0].delta.tool_calls or []:
            assert delta.function is not None
            if delta.id:
                calls[delta.index] = {"id": delta.id, "name": delta.function.name or "", "arguments": ""}
            calls[delta.index]["arguments"] += delta.function.arguments or ""
        reason = chunk.choices[0].finish_reason or reason
    assert reason == "tool_calls"
    [call] = calls.values()
    _checked(call["name"], call["arguments"])
    called = {"id": call["id"], "type": "function", "function": {"name": call["name"], "arguments": call["arguments"]}}
    back: Any = [
        *QUESTION,
        {"role": "assistant", "content": None, "tool_calls": [called]},
        {"role": "tool", "tool_call_id": call["id"], "content": "Sunny."},
    ]
    answer = client.chat.completions.create(model="tiny", messages=back, tools=TOOLS, max_tokens=8, seed=3)
    assert answer.choices[0].finish_reason in ("length", "stop")
    prompt = server.engine.tokenizer.encode_chat(back, TOOLS)
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == len(prompt)


def test_what_tools_cannot_do_is_told(client: OpenAI) -> None:
    def refused(**changes: Any) -> openai.BadRequestError:
        with pytest.raises(openai.BadRequestError) as caught:
            client.chat.completions.create(**{"model": "tiny", "messages": QUESTION, "tools": TOOLS} | changes)
        return caught.value

    assert refused(tool_choice={"type": "function", "function": {"name": "other"}}).param == "tool_choice"
    assert refused(tools=openai.NOT_GIVEN, tool_choice="required").param == "tool_choice"
    assert refused(parallel_tool_calls=False).param == "parallel_tool_calls"
    assert refused(response_format={"type": "json_object"}).param == "response_format"
    assert refused(tools=[TOOLS[1], TOOLS[1]]).param == "tools"
    wrong = {"type": "function", "function": {"name": "f", "parameters": {"type": "nonsense"}}}
    assert refused(tools=[wrong], tool_choice="required").param in (
        "tools",
        "messages",
    )  # Mistral's template looks first


def test_anthropic_calls_a_tool(server: Served) -> None:
    client = anthropic.Anthropic(base_url=server.url, api_key="none", max_retries=0)
    tools: Any = [{"name": "weather", "description": "The weather.", "input_schema": WEATHER}]
    choice: Any = {"type": "any", "disable_parallel_tool_use": True}
    answer = client.messages.create(model="tiny", messages=QUESTION, max_tokens=200, tools=tools, tool_choice=choice)
    [block] = answer.content
    assert block.type == "tool_use"
    assert answer.stop_reason == "tool_use"
    _checked(block.name, json.dumps(block.input))
    with client.messages.stream(
        model="tiny", messages=QUESTION, max_tokens=200, tools=tools, tool_choice={"type": "tool", "name": "weather"}
    ) as stream:
        final = stream.get_final_message()
    [block] = final.content
    assert block.type == "tool_use"
    _checked(block.name, json.dumps(block.input))
    back: Any = [
        *QUESTION,
        {"role": "assistant", "content": final.content},
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": block.id, "content": "Sunny."}]},
    ]
    last = client.messages.create(model="tiny", messages=back, max_tokens=8, tools=tools)
    assert last.stop_reason in ("max_tokens", "end_turn")
    counted = client.messages.count_tokens(model="tiny", messages=back, tools=tools)
    assert counted.input_tokens == last.usage.input_tokens + (last.usage.cache_read_input_tokens or 0)


def test_langchain_calls_a_tool_and_gets_its_result_back(server: Served) -> None:
    model = ChatOpenAI(
        base_url=f"{server.url}/v1", api_key=SecretStr("none"), model="tiny", max_completion_tokens=200, seed=4
    )
    question = HumanMessage("What is the weather in Paris?")
    forced = model.bind_tools(TOOLS, tool_choice="weather")
    answer = forced.invoke([question])
    [call] = answer.tool_calls
    _checked(call["name"], json.dumps(call["args"]))
    whole: AIMessageChunk | None = None
    for chunk in forced.stream([question]):
        assert isinstance(chunk, AIMessageChunk)
        whole = chunk if whole is None else whole + chunk
    assert whole is not None
    assert [(c["name"], c["args"]) for c in whole.tool_calls] == [(call["name"], call["args"])], "the seed is the same"
    back = [question, answer, ToolMessage("Sunny.", tool_call_id=call["id"])]
    last = model.bind_tools(TOOLS).bind(max_tokens=8).invoke(back)
    assert last.response_metadata["finish_reason"] in ("length", "stop")
    assert last.usage_metadata is not None
    assert last.usage_metadata["input_tokens"] > answer.usage_metadata["input_tokens"]  # type: ignore[index]
