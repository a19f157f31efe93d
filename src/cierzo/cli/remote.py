"""A model behind a server that speaks OpenAI's API, as the chat needs it."""

import json
import os
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import closing
from http.client import HTTPException, HTTPResponse
from typing import Any

from cierzo import Delta, FinishReason, Message, SamplingParams, Usage
from cierzo.errors import CierzoError

KEY_VARIABLE = "CIERZO_API_KEY"
_TIMEOUT = 600  # seconds without a byte
_SAME = (
    "top_p", "top_k", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty", "seed", "max_tokens",
)  # fmt: skip


class RemoteLLM:
    """Asks a server; its `tokenizer` asks it too.

    Args:
        url: of the server, with or without `/v1`.
        model: a name that the server knows; its first model when None.

    Raises:
        CierzoError: from here and from all methods, when the server cannot be reached or refuses.
    """

    def __init__(self, url: str, model: str | None) -> None:
        if not url.startswith(("http://", "https://")):
            raise CierzoError(f"{url!r} is no address of a server: give one like http://localhost:8000")
        self.url = url.rstrip("/").removesuffix("/v1")
        models = {m["id"]: m for m in self._json("/v1/models").get("data", ())}
        if not models:
            raise CierzoError(f"the server at {self.url} has no models")
        self.name = model or next(iter(models))
        if self.name not in models:
            raise CierzoError(f"the server at {self.url} has no model {self.name!r}: use one of {', '.join(models)}")
        self.max_seq_len: int | None = models[self.name].get("max_model_len")
        self.card = f"{self.name} at {self.url}"
        self.tokenizer = RemoteTokenizer(self)

    def stream_chat(self, messages: Sequence[Message], params: SamplingParams) -> Iterator[Delta]:
        """The answer, piece by piece. Closing the iterator ends it on the server too."""
        plain = SamplingParams()
        body: dict[str, Any] = {"model": self.name, "messages": list(messages), "temperature": params.temperature}
        body |= {name: value for name in _SAME if (value := getattr(params, name)) != getattr(plain, name)}
        body |= {"stop": list(params.stop)} if params.stop else {}
        response = self._open(
            "/v1/chat/completions", {**body, "stream": True, "stream_options": {"include_usage": True}}
        )
        with closing(response):
            yield from _deltas(event for event in _events(response))

    def tokens(self, body: dict[str, Any]) -> list[int]:
        """What the server's `/tokenize` answers; vLLM's has the same form."""
        tokens: list[int] = self._json("/tokenize", {"model": self.name, **body})["tokens"]
        return tokens

    def _json(self, path: str, body: dict[str, Any] | None = None) -> Any:
        with closing(self._open(path, body)) as response:
            return _parsed(response.read().decode("utf-8", "replace"))

    def _open(self, path: str, body: dict[str, Any] | None) -> HTTPResponse:
        headers = {"content-type": "application/json"}
        if key := os.environ.get(KEY_VARIABLE):
            headers["authorization"] = f"Bearer {key}"
        data = None if body is None else json.dumps(body).encode()
        try:
            response: HTTPResponse = urllib.request.urlopen(
                urllib.request.Request(self.url + path, data, headers), timeout=_TIMEOUT
            )
        except urllib.error.HTTPError as error:
            raise CierzoError(f"the server refused: {_reason(error)}") from None
        except (OSError, HTTPException, ValueError) as error:
            reason = getattr(error, "reason", error)
            raise CierzoError(f"cannot reach the server at {self.url}: {reason}") from None
        return response


class RemoteTokenizer:
    """Counts tokens where the model is."""

    def __init__(self, llm: RemoteLLM) -> None:
        self._llm = llm

    def encode_chat(self, messages: Sequence[Message]) -> list[int]:
        return self._llm.tokens({"messages": list(messages)})

    def encode(self, text: str) -> list[int]:
        return self._llm.tokens({"prompt": text, "add_special_tokens": False})


def _events(response: HTTPResponse) -> Iterator[Any]:
    """The data of server-sent events."""
    try:
        for line in response:
            if line.startswith(b"data:"):
                data = line[5:].strip().decode("utf-8", "replace")
                if data == "[DONE]":
                    return
                yield _parsed(data)
    except (OSError, HTTPException) as error:
        raise CierzoError(f"the server's answer broke off: {error or type(error).__name__}") from None
    raise CierzoError("the server's answer broke off")


def _deltas(events: Iterator[Any]) -> Iterator[Delta]:
    reason: FinishReason | None = None
    usage: Usage | None = None
    for event in events:
        if "error" in event:
            raise CierzoError(f"the server failed: {event['error'].get('message', event['error'])}")
        if event.get("usage"):
            usage = Usage(event["usage"]["prompt_tokens"], event["usage"]["completion_tokens"], 0, 0)
        for choice in event.get("choices", ()):
            if choice.get("finish_reason"):
                reason = "length" if choice["finish_reason"] == "length" else "stop"
            if text := choice.get("delta", {}).get("content"):
                yield Delta(text)
    yield Delta("", finish_reason=reason, usage=usage)


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        raise CierzoError(f"the server's answer is no JSON: {text[:100]!r}") from None


def _reason(error: urllib.error.HTTPError) -> str:
    try:
        return str(json.loads(error.read())["error"]["message"])
    except (ValueError, KeyError, TypeError, OSError):
        return f"{error.code} {error.reason}"
