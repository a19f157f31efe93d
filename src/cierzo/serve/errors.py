"""What goes wrong, told in the shape that the asking client expects."""

import logging
from collections.abc import Mapping
from typing import Any

from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse

from cierzo.errors import NOT_FINITE, CierzoError, EngineError, QueueFullError
from cierzo.models import ModelUnavailableError, UnknownModelError
from cierzo.serve.logs import event

ANTHROPIC = "/v1/messages"
"""Paths that begin so speak Anthropic's language."""

_LOAD_AGAIN = 10
"""Seconds after which a model that could not be loaded may be asked for again."""
_FORM = "the answer's form "

_OUT_OF_RANGE = "scores_not_finite"

_OPENAI_TYPES = {
    401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error",
}  # fmt: skip
_ANTHROPIC_TYPES = {
    401: "authentication_error", 403: "permission_error", 404: "not_found_error", 413: "request_too_large",
    429: "rate_limit_error", 503: "overloaded_error", 504: "timeout_error",
}  # fmt: skip


class ApiError(Exception):
    """A request that is refused or failed.

    Attributes:
        param: which part of the request is meant.
        code: a word for programs.
        retry_after: seconds after which the same request may succeed.
    """

    def __init__(
        self, status: int, message: str, *, param: str | None = None, code: str | None = None,
        retry_after: int | None = None,
    ) -> None:  # fmt: skip
        super().__init__(message)
        self.status, self.param, self.code, self.retry_after = status, param, code, retry_after
        self.message = str(CierzoError(message))  # one line that prints, whatever it quotes

    @property
    def headers(self) -> dict[str, str]:
        return {} if self.retry_after is None else {"retry-after": str(self.retry_after)}

    def body(self, path: str, request_id: str) -> dict[str, Any]:
        """As the API of `path` writes errors."""
        if path.startswith(ANTHROPIC):
            kind = _ANTHROPIC_TYPES.get(self.status, "api_error" if self.status >= 500 else "invalid_request_error")
            message = f"{self.param}: {self.message}" if self.param else self.message
            return {"type": "error", "error": {"type": kind, "message": message}, "request_id": request_id}
        kind = _OPENAI_TYPES.get(self.status, "server_error" if self.status >= 500 else "invalid_request_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    def response(self, path: str, request_id: str, extra: Mapping[str, str] | None = None) -> JSONResponse:
        return JSONResponse(self.body(path, request_id), self.status, {**self.headers, **(extra or {})})


def unsupported(param: str, why: str) -> ApiError:
    return ApiError(400, why, param=param, code="unsupported_parameter")


def api_error(error: BaseException, request_body: Any = None) -> ApiError:
    """What a client is told about an error; of our own faults, only that there was one."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, RequestValidationError):
        return _invalid(error, request_body)
    if isinstance(error, UnknownModelError):
        return ApiError(404, str(error), param="model", code="model_not_found")
    if isinstance(error, ModelUnavailableError):
        return ApiError(
            503, f"the model {error.name!r} cannot be used now: try again later, or use another", param="model",
            code="model_unavailable", retry_after=_LOAD_AGAIN,
        )  # fmt: skip
    if isinstance(error, QueueFullError):
        return ApiError(429, str(error), code="queue_full", retry_after=1)
    if isinstance(error, EngineError):
        if str(error).startswith(_FORM):  # found out only while it is followed
            return ApiError(400, str(error), code="form_too_complex")
        if str(error) == NOT_FINITE:
            return ApiError(500, NOT_FINITE, code=_OUT_OF_RANGE)
        return ApiError(500, "the engine failed; the server's log says more", code="engine_error")
    if isinstance(error, CierzoError):
        return ApiError(400, str(error))
    if isinstance(error, HTTPException):
        return ApiError(error.status_code, str(error.detail))
    return ApiError(500, "the server made a mistake; its log says more", code="internal_error")


def log_failure(error: BaseException, told: ApiError, request_id: str) -> None:
    """Log a fault of ours, of which the client is told only that there was one."""
    if told.status == 500 and told.code != _OUT_OF_RANGE:
        event("failure", level=logging.ERROR, raised=error, id=request_id)


def _invalid(error: RequestValidationError, request_body: Any) -> ApiError:
    """The first thing that is wrong with a body, by the name under which the client knows it.

    Of the alternatives of a union, what is wrong deepest inside is what the client meant; the others miss their parts.
    """
    found = [(_param(one["loc"][1:], request_body), one) for one in error.errors()]
    param, first = min(found, key=lambda each: (each[1]["type"] == "missing", -len(each[0])))
    if first["type"] == "extra_forbidden":
        return unsupported(param, f"{param} is not supported: leave it out")
    if first["type"] == "json_invalid":
        return ApiError(
            400, f"the body is no JSON: {first.get('ctx', {}).get('error', first['msg'])}", code="json_invalid"
        )
    if not param:
        return ApiError(400, "the body must be a JSON object, sent as application/json", code="json_invalid")
    what = "is missing" if first["type"] == "missing" else first["msg"]
    return ApiError(400, f"{param}: {what}", param=param, code="invalid_value")


def _param(loc: tuple[int | str, ...], body: Any) -> str:
    """`messages[0].content`: the parts of a location that are in the body, and the last one, which may be missing."""
    shown = ""
    for place, part in enumerate(loc):
        if isinstance(part, int) and isinstance(body, list) and part < len(body):
            shown, body = f"{shown}[{part}]", body[part]
        elif isinstance(part, str) and isinstance(body, dict) and (part in body or place == len(loc) - 1):
            shown, body = f"{shown}.{part}" if shown else part, body.get(part)
    return shown[:200]
