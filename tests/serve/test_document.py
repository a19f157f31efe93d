"""The OpenAPI document tells the truth: schemathesis finds no answer that it does not describe, and none above 499."""

from collections.abc import Iterator
from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis.checks import not_a_server_error
from schemathesis.core.result import Ok
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from support.server import Served, mistral_engine, served

CHECKS = [
    not_a_server_error, status_code_conformance, content_type_conformance, response_headers_conformance,
    response_schema_conformance,
]  # fmt: skip


@pytest.fixture(scope="module")
def server() -> Iterator[Served]:
    with served(mistral_engine("mistral_instruct_tokenizer_240323.model.v3", max_seq_len=64)) as server:
        yield server
        assert server.until_idle()


def test_every_answer_is_described(server: Served) -> None:
    """Not by schemathesis' plugin, which this pytest is too new for."""
    schema = schemathesis.openapi.from_url(f"{server.url}/openapi.json")
    tried = 0
    for result in schema.get_all_operations():
        assert isinstance(result, Ok), result
        operation = result.ok()

        @settings(
            max_examples=15, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True, database=None
        )
        @given(case=operation.as_strategy())
        def answered(case: Any) -> None:
            case.call_and_validate(checks=CHECKS, timeout=30)

        answered()
        tried += 1
    assert tried == 13


def test_what_is_described(server: Served) -> None:
    document = httpx.get(f"{server.url}/openapi.json").json()
    assert set(document["paths"]) == {
        "/v1/chat/completions", "/v1/completions", "/v1/messages", "/v1/messages/count_tokens", "/v1/embeddings",
        "/v1/moderations",
        "/tokenize", "/detokenize", "/v1/models", "/v1/models/{model}", "/health", "/ready", "/metrics",
    }  # fmt: skip
    for path, methods in document["paths"].items():
        for method in methods.values():
            assert "422" not in method["responses"], path
            assert "default" in method["responses"], path
