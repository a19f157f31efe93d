"""`continue_final_message`, as vLLM has it, and what else the page needs of the server."""

from collections.abc import Iterator
from hashlib import sha256
from typing import Any

import httpx
import pytest

from cierzo.serve.auth import Key
from cierzo.serve.messages import openai_messages
from cierzo.serve.schemas import anthropic
from support.scripted import ScriptedServer, scripted
from support.server import Process, Served, mistral_engine, served

_QUESTION: dict[str, Any] = {"role": "user", "content": "What is the capital of France?"}


def _chat(url: str, messages: list[dict[str, Any]], **more: Any) -> httpx.Response:
    body = {"messages": messages, "temperature": 0, "max_tokens": 40, **more}
    return httpx.post(f"{url}/v1/chat/completions", json=body, timeout=120)


def test_a_continued_answer_is_what_it_would_have_been(smollm: Process) -> None:
    whole = _chat(smollm.url, [_QUESTION]).json()["choices"][0]["message"]["content"]
    assert "Paris" in whole
    for begun in ("The capital", "The capital of France"):
        assert whole.startswith(begun)
        messages: list[dict[str, Any]] = [_QUESTION, {"role": "assistant", "content": begun}]
        answer = _chat(smollm.url, messages, continue_final_message=True, add_generation_prompt=False).json()
        assert begun + answer["choices"][0]["message"]["content"] == whole
    parts = [{"type": "text", "text": "The capital"}, {"type": "text", "text": " of France"}]
    messages = [_QUESTION, {"role": "assistant", "content": parts}]
    answer = _chat(smollm.url, messages, continue_final_message=True).json()
    assert begun + answer["choices"][0]["message"]["content"] == whole


def test_anthropics_last_message_of_the_assistant_goes_on(smollm: Process) -> None:
    def asked(*messages: dict[str, Any], path: str = "/v1/messages", **more: Any) -> Any:
        body = {"model": "smollm", "messages": [*messages], **more}
        answer = httpx.post(smollm.url + path, json=body, timeout=120)
        assert answer.status_code == 200, answer.text
        return answer.json()

    best: dict[str, Any] = {"max_tokens": 40, "temperature": 0}
    whole = asked(_QUESTION, **best)["content"][0]["text"]
    begun = {"role": "assistant", "content": "The capital"}
    answer = asked(_QUESTION, begun, **best)
    assert "The capital" + answer["content"][0]["text"] == whole
    usage = answer["usage"]
    counted = asked(_QUESTION, begun, path="/v1/messages/count_tokens")["input_tokens"]
    assert counted == usage["input_tokens"] + usage["cache_read_input_tokens"]


def test_what_anthropics_api_cannot_continue_is_refused(tiny: Served) -> None:
    begun: dict[str, Any] = {"role": "assistant", "content": "Well"}
    use = {"type": "tool_use", "id": "a", "name": "f", "input": {}}
    called = {"role": "assistant", "content": [{"type": "text", "text": "Well"}, use]}
    form = {"format": {"type": "json_schema", "schema": {"type": "object"}}}
    cases: list[tuple[dict[str, Any], dict[str, Any]]] = [(called, {}), (begun, {"output_config": form})]
    for last, more in cases:
        body = {"model": "tiny", "messages": [_QUESTION, last], "max_tokens": 4, **more}
        told = httpx.post(f"{tiny.url}/v1/messages", json=body, timeout=60)
        assert told.status_code == 400, told.text
        assert told.json()["error"]["message"].startswith("messages: ")


def test_errors_of_tools_and_of_stop_sequences_in_anthropics_words(tiny: Served) -> None:
    result = {"type": "tool_result", "tool_use_id": "a", "content": "no such city"}
    for is_error, text in ((True, "Error: no such city"), (False, "no such city")):
        turn = {"role": "user", "content": [{**result, "is_error": is_error}]}
        request = anthropic.CountRequest.model_validate({"model": "tiny", "messages": [turn]})
        assert openai_messages(request) == [{"role": "tool", "tool_call_id": "a", "content": text}]
    body = {"model": "tiny", "messages": [_QUESTION], "max_tokens": 4}
    for stops in (["x" * 257], ["x"] * 17):
        told = httpx.post(f"{tiny.url}/v1/messages", json={**body, "stop_sequences": stops}, timeout=60)
        assert told.status_code == 400
        assert told.json()["error"]["message"].startswith("stop_sequences: ")


def test_what_cannot_be_continued_is_refused(tiny: Served) -> None:
    answered = {"role": "assistant", "content": "Well"}
    call = {"id": "a", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    called = {"role": "assistant", "content": "x", "tool_calls": [call]}
    schema = {"type": "json_object"}
    cases: list[tuple[list[dict[str, Any]], dict[str, Any], str]] = [
        ([_QUESTION], {}, "continue_final_message"),
        ([_QUESTION, called], {}, "continue_final_message"),
        ([_QUESTION, answered], {"response_format": schema}, "continue_final_message"),
        ([_QUESTION, answered], {"add_generation_prompt": True}, "add_generation_prompt"),
    ]
    for messages, more, param in cases:
        told = _chat(tiny.url, messages, continue_final_message=True, **more)
        assert told.status_code == 400, told.text
        assert told.json()["error"]["param"] == param
    told = _chat(tiny.url, [_QUESTION], add_generation_prompt=False)
    assert told.json()["error"]["param"] == "add_generation_prompt"
    assert _chat(tiny.url, [_QUESTION], add_generation_prompt=True, max_tokens=1).status_code == 200


def test_a_continued_prompt_begins_once() -> None:
    """Mistral's vocabulary has a begin-of-text token, which stands before the first message only."""
    engine = mistral_engine("mistral_instruct_tokenizer_240323.model.v3", max_seq_len=64)
    begun = {"role": "assistant", "content": "The capital"}
    tokenizer = engine.tokenizer
    with served(engine) as server:
        answer = _chat(server.url, [_QUESTION, begun], continue_final_message=True, max_tokens=1).json()
    expected = [*tokenizer.encode_chat([_QUESTION]), *tokenizer.encode("The capital")]
    assert answer["usage"]["prompt_tokens"] == len(expected)


@pytest.fixture(scope="module")
def keyed() -> Iterator[tuple[ScriptedServer, str]]:
    key = "ann-secret-of-many-letters"
    with scripted(lambda messages: ["x"], keys=[Key("ann", sha256(key.encode()).digest())]) as server:
        yield server, key


def test_the_page_needs_no_key_and_what_it_asks_for_does(keyed: tuple[ScriptedServer, str]) -> None:
    server, key = keyed
    for path in ("/", "/app.js", "/style.css", "/icon.svg"):
        found = httpx.get(server.url + path)
        assert found.status_code == 200
        policy = found.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert found.headers["x-frame-options"] == "DENY"
        assert httpx.get(server.url + path, headers={"if-none-match": found.headers["etag"]}).status_code == 304
    assert httpx.get(f"{server.url}/page/state").status_code == 401
    assert httpx.post(f"{server.url}/page/render", json={"text": "x"}).status_code == 401
    for path in ("/../page_api.py", "/%2e%2e/page_api.py", "/nothing.js"):
        assert httpx.get(server.url + path).status_code == 404
    assert httpx.post(f"{server.url}/app.js").status_code == 405
    headers = {"authorization": f"Bearer {key}"}
    assert httpx.get(f"{server.url}/page/state", headers=headers).json()["default"] == "script"


def test_rendering_has_limits(keyed: tuple[ScriptedServer, str]) -> None:
    server, key = keyed
    headers = {"authorization": f"Bearer {key}"}
    told = httpx.post(f"{server.url}/page/render", json={"text": "x" * 100_001}, headers=headers)
    assert told.status_code == 400
    rendered = httpx.post(f"{server.url}/page/render", json={"text": "a\n\nb\n\nc"}, headers=headers).json()
    assert [block["html"].strip() for block in rendered["blocks"]] == ["<p>a</p>", "<p>b</p>", "<p>c</p>"]
    assert rendered["closed"] == 1


def test_the_state_tells_what_a_model_takes(smollm: Process) -> None:
    state = httpx.get(f"{smollm.url}/page/state").json()
    (model,) = state["models"]
    assert model["name"] == state["default"] == "smollm"
    assert model["state"] == "loaded"
    assert model["context"] == 8192
    assert model["windows"] == [{"size": None, "layers": 30}]
    assert 50 * 2**20 < model["weights"] < 200 * 2**20
    assert state["free"] > 0
