"""The real `anthropic` client on the default model's real weights."""

import json
from typing import Any

import anthropic
import httpx
import pytest

from cierzo.serve.schemas import anthropic as shapes
from support.server import Process

QUESTION: list[Any] = [{"role": "user", "content": "What is the capital of France?"}]
BEST: Any = {"temperature": 0}  # of the API, and no longer of this client
PARIS = "The capital of France is Paris."


@pytest.fixture(scope="module")
def client(smollm: Process) -> anthropic.Anthropic:
    return anthropic.Anthropic(base_url=smollm.url, api_key="none", max_retries=0)


def test_a_message(client: anthropic.Anthropic, smollm: Process) -> None:
    answer = client.messages.create(model="smollm", messages=QUESTION, max_tokens=20, extra_body=BEST)
    assert [block.text for block in answer.content if block.type == "text"] == [PARIS]
    assert answer.stop_reason == "end_turn"
    assert answer.usage.input_tokens + (answer.usage.cache_read_input_tokens or 0) == 37
    assert answer.usage.output_tokens == 8
    counted = client.messages.count_tokens(model="smollm", messages=QUESTION)
    assert counted.input_tokens == 37
    raw = httpx.post(
        f"{smollm.url}/v1/messages", json={"model": "smollm", "messages": QUESTION, "max_tokens": 2}, timeout=30
    )
    shapes.AnthropicMessage.model_validate(raw.json())


def test_a_stream(client: anthropic.Anthropic) -> None:
    with client.messages.stream(model="smollm", messages=QUESTION, max_tokens=20, extra_body=BEST) as stream:
        kinds = [event.type for event in stream]
        final = stream.get_final_message()
    assert kinds[0] == "message_start"
    assert kinds[-1] == "message_stop"
    assert [block.text for block in final.content if block.type == "text"] == [PARIS]
    assert final.stop_reason == "end_turn"
    assert final.usage.output_tokens == 8


def test_blocks_a_system_prompt_and_stops(client: anthropic.Anthropic) -> None:
    blocks: Any = [{"role": "user", "content": [{"type": "text", "text": "What is the capital of France?"}]}]
    system: Any = [{"type": "text", "text": "You are brief.", "cache_control": {"type": "ephemeral"}}]
    answer = client.messages.create(
        model="smollm", messages=blocks, system=system, max_tokens=30, extra_body=BEST, stop_sequences=["zzz", "e"]
    )
    assert (answer.stop_reason, answer.stop_sequence) == ("stop_sequence", "e")
    cut = client.messages.create(model="smollm", messages=blocks, max_tokens=2, extra_body=BEST)
    assert cut.stop_reason == "max_tokens"


def test_errors_have_its_shape(client: anthropic.Anthropic) -> None:
    def refused(kind: type[anthropic.APIStatusError], **changes: Any) -> Any:
        asked: Any = {"model": "smollm", "messages": QUESTION, "max_tokens": 4} | changes
        with pytest.raises(kind) as caught:
            client.messages.create(**asked)
        body = caught.value.response.json()
        shapes.ErrorAnswer.model_validate(body)
        assert caught.value.request_id == body["request_id"]
        return body["error"]

    assert refused(anthropic.NotFoundError, model="claude")["type"] == "not_found_error"
    thinking = refused(anthropic.BadRequestError, thinking={"type": "enabled", "budget_tokens": 1024})
    assert thinking["type"] == "invalid_request_error"
    assert thinking["message"].startswith("thinking")
    long = refused(anthropic.BadRequestError, messages=[{"role": "user", "content": "word " * 9000}])
    assert "maximum context length is 8192" in long["message"]


def test_a_json_schema(client: anthropic.Anthropic) -> None:
    schema = {
        "type": "object",
        "properties": {"city": {"enum": ["Paris", "Rome"]}},
        "required": ["city"],
        "additionalProperties": False,
    }
    wanted: Any = {"format": {"type": "json_schema", "schema": schema}}
    answer = client.messages.create(
        model="smollm", messages=QUESTION, max_tokens=40, output_config=wanted, extra_body=BEST
    )
    [block] = answer.content
    assert block.type == "text"
    assert json.loads(block.text)["city"] in ("Paris", "Rome")
