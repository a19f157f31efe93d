"""What strangers send: wrong keys, odd headers, bodies that are huge, slow, deep or no JSON."""

import json
import socket
import threading
import time
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import httpx
import pytest

from cierzo.serve import app
from cierzo.serve.auth import Key
from cierzo.serve.schemas.openai_answers import ErrorAnswer
from support.models import tiny_config, tiny_engine
from support.server import Served, served, until

ASKED: dict[str, Any] = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 4, "ignore_eos": True}
JSON = {"content-type": "application/json"}
LONG: dict[str, Any] = {**ASKED, "max_tokens": 3000, "stream": True}


def post(server: Served, path: str = "/v1/chat/completions", **options: Any) -> httpx.Response:
    if "json" not in options and "content" not in options:
        options["json"] = ASKED
    return httpx.post(f"{server.url}{path}", timeout=60, **options)


def told(response: httpx.Response) -> Any:
    """The error that a response tells, of OpenAI's shape."""
    ErrorAnswer.model_validate(response.json())
    assert response.headers["content-type"] == "application/json"
    return response.json()["error"]


@pytest.fixture(scope="module")
def keyed() -> Iterator[Served]:
    keys = [Key(name, sha256(f"{name}-secret-of-many-letters".encode()).digest()) for name in ("ann", "bob")]
    with served(tiny_engine(tiny_config(), max_running=8), keys=keys, max_per_key=2, min_priority=-1) as server:
        yield server
        assert server.until_idle()


def bearer(name: str) -> dict[str, str]:
    return {"authorization": f"Bearer {name}-secret-of-many-letters"}


def test_only_who_has_a_key_may_ask(keyed: Served) -> None:
    for path in ("/v1/models", "/metrics", "/v1/anything"):
        assert told(httpx.get(keyed.url + path))["code"] == "missing_api_key"
    assert told(post(keyed, headers={"authorization": "Bearer ann-secret"}))["code"] == "invalid_api_key"
    assert told(post(keyed, headers={"authorization": "Basic YTpi"}))["code"] == "missing_api_key"
    refused = post(keyed, "/v1/messages", headers={"x-api-key": "wrong"})
    assert refused.status_code == 401
    assert refused.json()["error"]["type"] == "authentication_error"
    assert post(keyed, headers=bearer("ann")).status_code == 200
    assert post(keyed, headers={"x-api-key": "bob-secret-of-many-letters"}).status_code == 200
    for path in ("/health", "/ready", "/openapi.json"):
        assert httpx.get(keyed.url + path).status_code == 200


def test_a_key_has_its_share(keyed: Served) -> None:
    with (
        httpx.stream("POST", f"{keyed.url}/v1/chat/completions", json=LONG, headers=bearer("ann")),
        httpx.stream("POST", f"{keyed.url}/v1/chat/completions", json=LONG, headers=bearer("ann")),
    ):
        refused = post(keyed, headers=bearer("ann"))
        assert refused.status_code == 429
        assert told(refused)["code"] == "key_limit"
        assert int(refused.headers["retry-after"]) >= 1
        assert post(keyed, headers=bearer("bob")).status_code == 200
        # The page asks for the HTML of the answers that it streams.
        assert post(keyed, "/page/render", json={"text": "*a*"}, headers=bearer("ann")).status_code == 200
    assert post(keyed, "/page/render", json={"text": "*a*"}).status_code == 401
    assert keyed.until_idle()
    assert post(keyed, headers=bearer("ann")).status_code == 200


def test_keys_and_salts_do_not_share_prompts(keyed: Served) -> None:
    def cached(name: str, **changes: Any) -> int:
        asked = {**ASKED, "messages": [{"role": "user", "content": "a secret plan " * 9}], **changes}
        answer = post(keyed, json=asked, headers=bearer(name)).json()
        return int(answer["usage"]["prompt_tokens_details"]["cached_tokens"])

    assert cached("ann") == 0
    assert cached("ann") > 0
    assert cached("bob") == 0
    assert cached("bob", cache_salt="x") == 0
    assert cached("bob", cache_salt="x") > 0


@pytest.mark.parametrize(
    ("path", "asked"),
    [
        ("/v1/embeddings", {"input": "another secret plan " * 9, "pooling": "last"}),
        ("/v1/completions", {"prompt": "a third secret plan " * 9, "max_tokens": 0, "echo": True, "logprobs": 0}),
    ],
)
def test_keys_do_not_share_what_was_embedded_or_scored(keyed: Served, path: str, asked: dict[str, Any]) -> None:
    """Asked for by embedding it again: what of it is found in the cache is not computed."""
    text = asked.get("input") or asked["prompt"]

    def found(name: str) -> int:
        before = keyed.engine.metrics.cached_tokens
        again = {"input": text, "pooling": "last"}
        assert post(keyed, "/v1/embeddings", json=again, headers=bearer(name)).status_code == 200
        return keyed.engine.metrics.cached_tokens - before

    assert post(keyed, path, json=asked, headers=bearer("ann")).status_code == 200
    assert found("bob") == 0
    assert found("ann") > 0


def test_scores_have_a_salt(keyed: Served) -> None:
    asked = {"prompt": "a salted plan " * 9, "max_tokens": 1}
    scored = {**asked, "max_tokens": 0, "echo": True, "logprobs": 0, "cache_salt": "x"}
    assert post(keyed, "/v1/completions", json=scored, headers=bearer("ann")).status_code == 200
    for salt, shared in ({}, False), ({"cache_salt": "x"}, True):
        answer = post(keyed, "/v1/completions", json={**asked, **salt}, headers=bearer("ann")).json()
        assert (answer["usage"]["prompt_tokens_details"]["cached_tokens"] > 0) == shared


def test_a_page_elsewhere_cannot_use_a_server_without_keys(tiny: Served) -> None:
    assert told(httpx.get(f"{tiny.url}/v1/models", headers={"host": "evil.example"}))["code"] == "unknown_host"
    assert httpx.get(f"{tiny.url}/v1/models", headers={"host": f"localhost:{tiny.port}"}).status_code == 200
    preflight = {"origin": "https://evil.example", "access-control-request-method": "POST"}
    response = httpx.options(f"{tiny.url}/v1/chat/completions", headers=preflight)
    assert "access-control-allow-origin" not in response.headers
    plain = post(tiny, content=json.dumps(ASKED), headers={"content-type": "text/plain"})  # needs no preflight
    assert plain.status_code == 400


def test_cross_origin_requests_where_configured() -> None:
    with served(tiny_engine(tiny_config()), cors_origins=["https://chat.example"]) as server:
        preflight = {"origin": "https://chat.example", "access-control-request-method": "POST"}
        response = httpx.options(f"{server.url}/v1/chat/completions", headers=preflight)
        assert response.headers["access-control-allow-origin"] == "https://chat.example"
        other = {**preflight, "origin": "https://evil.example"}
        assert (
            "access-control-allow-origin"
            not in httpx.options(f"{server.url}/v1/chat/completions", headers=other).headers
        )


def test_request_ids(tiny: Served) -> None:
    assert post(tiny, headers={"x-request-id": "abc-1"}).headers["x-request-id"] == "abc-1"
    for odd in ("a b", "x" * 100, "a\tset-cookie: b", "<script>"):
        given = post(tiny, headers={"x-request-id": odd}).headers["x-request-id"]
        assert given != odd
        assert given.isalnum()
    with socket.create_connection(("127.0.0.1", tiny.port)) as raw:
        raw.sendall(b"GET /health HTTP/1.1\r\nhost: localhost\r\nx-request-id: a\rset-cookie: b\r\n\r\n")
        answer = raw.recv(4096)
    assert answer.startswith(b"HTTP/1.1 400") or b"set-cookie" not in answer


@pytest.mark.parametrize(
    "body",
    [
        b"", b"{", b"[]", b"null", b"3", b'"text"', b"{'messages': []}", b"\xff\xfe", b'{"messages": NaN}',
        b"[" * 100_000, b'{"a":' * 100_000, b'{"messages": [{"role": "user", "content": "\\ud800"}]}',
        b'{"messages": ' + b"9" * 5000 + b"}", json.dumps({"messages": "x", "x" * 1000: 1}).encode(),
    ],
    ids=range(14),
)  # fmt: skip
def test_bad_bodies_are_told(tiny: Served, body: bytes) -> None:
    for path in ("/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/tokenize"):
        response = post(tiny, path, content=body, headers=JSON)
        assert response.status_code == 400, response.text
        assert len(told(response)["message"]) < 1200
    response = post(tiny, "/v1/messages", content=body, headers=JSON)
    assert response.status_code == 400
    assert response.json()["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    ("path", "asked"),
    [
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "TEXT"}], "max_tokens": 1}),
        ("/v1/completions", {"prompt": "TEXT", "max_tokens": 1}),
        ("/v1/embeddings", {"input": "TEXT"}),
        ("/v1/moderations", {"input": "TEXT"}),
        ("/tokenize", {"prompt": "TEXT"}),
        ("/v1/messages", {"model": "tiny", "messages": [{"role": "user", "content": "TEXT"}], "max_tokens": 1}),
    ],
)
def test_bodies_are_utf8(tiny: Served, path: str, asked: dict[str, Any]) -> None:
    plain = json.dumps(asked)
    assert post(tiny, path, content=plain, headers=JSON).status_code == 200
    half = plain.encode().replace(b"TEXT", b"\xed\xa0\x80")
    for body in (half, plain.encode("utf-16"), plain.encode("utf-16-le"), plain.encode("utf-32-be")):
        response = post(tiny, path, content=body, headers=JSON)
        assert response.status_code == 400
        assert "the body is not UTF-8" in response.json()["error"]["message"]


def test_huge_bodies(tiny: Served) -> None:
    def chunks() -> Iterator[bytes]:
        for _ in range(80):
            yield b" " * 65536

    assert told(post(tiny, content=b" " * (5 * 2**20)))["code"] == "body_too_large"
    streamed = post(tiny, content=chunks())
    assert streamed.status_code == 413
    raw = post(tiny, "/v1/messages", content=b" " * (5 * 2**20))
    assert raw.json()["error"]["type"] == "request_too_large"


def test_slow_bodies_and_heads() -> None:
    with served(tiny_engine(tiny_config()), body_timeout=0.5) as server:
        with socket.create_connection(("127.0.0.1", server.port), timeout=10) as raw:
            raw.sendall(b"POST /tokenize HTTP/1.1\r\nhost: localhost\r\ncontent-length: 100\r\n\r\n{")
            answer = b"".join(iter(lambda: raw.recv(4096), b""))
            assert b"408" in answer.split(b"\r\n")[0]
            assert b"body_timeout" in answer
        whole = b"GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n"
        for before, begun in ((b"", b""), (b"", b"GET /hea"), (whole, b"GET /hea")):
            with socket.create_connection(("127.0.0.1", server.port), timeout=10) as raw:
                raw.sendall(before)
                assert not before or raw.recv(4096)
                raw.sendall(begun)
                began = time.monotonic()
                while raw.recv(4096):
                    pass
                assert time.monotonic() - began < 5
        # A connection that waits between requests is not slow.
        with httpx.Client() as client:
            client.get(f"{server.url}/health")
            time.sleep(0.8)
            assert client.get(f"{server.url}/health").status_code == 200


@pytest.mark.parametrize(
    ("changes", "param", "code"),
    [
        ({"model": "../../../etc/passwd"}, "model", "model_not_found"),
        ({"model": "tiny\r\nset-cookie: a=b"}, "model", "model_not_found"),
        ({"model": "x" * 10_000}, "model", "model_not_found"),
        ({"n": 9}, "n", "max_n_exceeded"),
        ({"n": 0}, "n", "invalid_value"),
        ({"stop": [str(n) for n in range(17)]}, "stop", "max_stop_exceeded"),
        ({"stop": ["x" * 257]}, "stop", "stop_too_long"),
        ({"stop": [""]}, "stop[0]", "invalid_value"),
        ({"priority": -1}, "priority", "priority_too_low"),
        ({"logit_bias": {"260": 1}}, "logit_bias", "invalid_value"),
        ({"logit_bias": {"x": 1}}, "logit_bias.x", "invalid_value"),
        ({"temperature": "0.5"}, "temperature", "invalid_value"),
        ({"max_tokens": 10**9}, "messages", "context_length_exceeded"),
        ({"max_completion_tokens": 2}, "max_tokens", "invalid_value"),
        ({"top_logprobs": 2}, "top_logprobs", "invalid_value"),
        ({"stream_options": {"include_usage": True}}, "stream_options", "invalid_value"),
        ({"modalities": ["audio"]}, "modalities", "unsupported_parameter"),
        ({"best_of": 2}, "best_of", "unsupported_parameter"),
        ({"response_format": {"type": "xml"}}, "response_format", "invalid_value"),
        ({"structured_outputs": {"regex": "a", "choice": ["b"]}}, "structured_outputs", "invalid_value"),
        ({"structured_outputs": {"regex": "("}}, "structured_outputs", "invalid_value"),
        ({"structured_outputs": {"grammar": "start: nothing"}}, "structured_outputs", "invalid_value"),
    ],
)
def test_what_is_not_possible_is_named(tiny: Served, changes: dict[str, Any], param: str, code: str) -> None:
    response = post(tiny, json={**ASKED, **changes})
    error = told(response)
    assert response.status_code in (400, 404)
    assert (error["param"], error["code"]) == (param, code), error
    assert "\n" not in error["message"]


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"n": 10**9}, "max_n_exceeded"),
        ({"stop": ["x" * 257]}, "stop_too_long"),
        ({"priority": -1}, "priority_too_low"),
        ({"logit_bias": {"260": 1}}, "invalid_value"),
    ],
)
def test_scoring_has_the_limits_of_answering(tiny: Served, changes: dict[str, Any], code: str) -> None:
    asked = {"prompt": "abc", "max_tokens": 0, "echo": True, **changes}
    assert told(post(tiny, "/v1/completions", json=asked))["code"] == code
    assert tiny.until_idle()


def test_scores_of_a_prompt_that_fills_the_context(tiny: Served) -> None:
    asked = {"prompt": [65] * 4096, "max_tokens": 0, "echo": True, "n": 2, "guard_verdicts": True}
    answer = post(tiny, "/v1/completions", json=asked).json()
    assert [choice["text"] for choice in answer["choices"]] == ["A" * 4096] * 2
    assert answer["guard"] is None  # prompts that nobody answers are not judged


def _deep(levels: int) -> str:
    """By hand: Python's own writer gives up long before."""
    return '{"type":"object","properties":{"a":' * levels + '{"type":"string"}' + "}}" * levels


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "object", "properties": {f"k{n}": {"type": "string", "description": "x" * 100} for n in range(900)}},
        _deep(150),
        _deep(2000),
        {"type": "string", "pattern": "^(a+)+$"},
        {"type": "string", "pattern": "(a|aa)*(b|a?){500}c{1000}"},
        {"type": "string", "pattern": "((a{1,200}){1,200}){1,200}"},
        {"type": "string", "pattern": "(x?" * 60 + ")*" * 60},
        {"$ref": "#"},
        {"allOf": [{"$ref": "#/$defs/a"}], "$defs": {"a": {"anyOf": [{"$ref": "#/$defs/a"}, {"$ref": "#/$defs/a"}]}}},
        {"type": "array", "minItems": 10**9, "items": {"type": "string"}},
        {"enum": ["x" * 1000] * 60},
    ],
    ids=["large", "deep", "deeper", "a+", "alternatives", "counted", "nested", "itself", "circle", "billion", "enum"],
)
def test_absurd_forms_stop_nobody(tiny: Served, schema: dict[str, Any] | str) -> None:
    """Answered or refused soon, and meanwhile the server lives."""
    wanted = {"type": "json_schema", "json_schema": {"name": "x", "schema": "SCHEMA"}}
    text = json.dumps({**ASKED, "response_format": wanted, "max_tokens": 8})
    body = text.replace('"SCHEMA"', schema if isinstance(schema, str) else json.dumps(schema))
    with httpx.Client(timeout=60) as client:
        slowest, done = 0.0, []
        asking = threading.Thread(target=lambda: done.append(post(tiny, content=body, headers=JSON)))
        began = time.monotonic()
        asking.start()
        while asking.is_alive():
            before = time.monotonic()
            assert client.get(f"{tiny.url}/health").status_code == 200
            slowest = max(slowest, time.monotonic() - before)
            time.sleep(0.01)
    assert time.monotonic() - began < 20
    assert done[0].status_code in (200, 400, 500), done[0].text
    if done[0].status_code != 200:
        assert told(done[0])["message"]
    assert slowest < 2
    assert tiny.until_idle()


def test_metrics_have_vllms_names(tiny: Served) -> None:
    post(tiny)
    response = httpx.get(f"{tiny.url}/metrics")
    assert response.headers["content-type"].startswith("text/plain; version=0.0.4")
    for name in (
        'vllm:num_requests_running{model_name="tiny"} 0.0', 'vllm:generation_tokens_total{model_name="tiny"}',
        'vllm:time_to_first_token_seconds_bucket{le="0.1",model_name="tiny"}', "vllm:kv_cache_usage_perc",
        'vllm:request_success_total{finished_reason="length",model_name="tiny"}',
        'cierzo:http_requests_total{path="/v1/chat/completions",status="200"}',
    ):  # fmt: skip
        assert name in response.text


def test_unknown_paths_and_methods(tiny: Served) -> None:
    assert httpx.get(f"{tiny.url}/v1/nothing").status_code == 404
    response = httpx.get(f"{tiny.url}/v1/chat/completions")
    assert response.status_code == 405
    assert response.headers["allow"] == "POST"
    told(response)
    for path in ("/../../etc/passwd", "/%2e%2e/%2e%2e/etc/passwd", "/v1/models/..%2f..%2fetc%2fpasswd"):
        with socket.create_connection(("127.0.0.1", tiny.port)) as raw:
            raw.sendall(f"GET {path} HTTP/1.1\r\nhost: localhost\r\n\r\n".encode())
            assert raw.recv(4096).startswith(b"HTTP/1.1 404")


def test_a_page_is_served_where_there_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "page").mkdir()
    (tmp_path / "page" / "index.html").write_text("<!doctype html>chat")
    (tmp_path / "secret").write_text("secret")
    monkeypatch.setattr(app, "PAGE", tmp_path / "page")
    with served(tiny_engine(tiny_config()), keys=[Key("ann", b"0" * 32)]) as server:
        assert httpx.get(f"{server.url}/").text == "<!doctype html>chat"
        with socket.create_connection(("127.0.0.1", server.port)) as raw:
            raw.sendall(b"GET /..%2fsecret HTTP/1.1\r\nhost: localhost\r\n\r\n")
            assert raw.recv(4096).startswith(b"HTTP/1.1 404")
        assert told(httpx.get(f"{server.url}/v1/models"))["code"] == "missing_api_key"


def test_the_log_has_no_prompts_unless_asked(caplog: pytest.LogCaptureFixture) -> None:
    for wanted in (False, True):
        with served(tiny_engine(tiny_config()), log_level="info", log_prompts=wanted) as server:
            caplog.clear()
            with caplog.at_level("INFO", "cierzo.serve"):
                asked = {**ASKED, "messages": [{"role": "user", "content": "a secret"}], "user": "u-1"}
                given = post(server, json=asked).headers["x-request-id"]
                assert until(lambda: caplog.records)
        [fields] = [vars(r)["fields"] for r in caplog.records if r.getMessage() == "request"]
        assert (fields["id"], fields["status"], fields["user"]) == (given, 200, "u-1")
        assert (fields["prompt_tokens"], fields["completion_tokens"]) == (10, 4)
        assert ("a secret" in repr(fields)) == wanted


def test_the_log_says_why_a_request_was_refused(caplog: pytest.LogCaptureFixture) -> None:
    with (
        served(tiny_engine(tiny_config()), log_level="info") as server,
        caplog.at_level("INFO", "cierzo.serve"),
    ):
        post(server, json={**ASKED, "max_tokens": -1})
        assert until(lambda: any(r.getMessage() == "request" for r in caplog.records))
    [record] = [r for r in caplog.records if r.getMessage() == "request"]
    assert vars(record)["fields"]["error"]
    assert not record.exc_info
