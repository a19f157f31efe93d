"""The application: routes, errors, the gate, and the page."""

from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response

from cierzo.errors import CierzoError
from cierzo.models import ModelUnavailableError
from cierzo.serve import chat, completions, embeddings, messages, moderations, page_api, system, tokens
from cierzo.serve.errors import ApiError, api_error, log_failure
from cierzo.serve.gate import Gate
from cierzo.serve.schemas.openai_answers import ErrorAnswer
from cierzo.serve.state import State, caller_of
from cierzo.version import __version__

PAGE = Path(__file__).parent / "page"


def create_app(state: State) -> FastAPI:
    """The server's application, on models and settings that are already there."""
    app = FastAPI(
        title="Cierzo",
        version=__version__,
        description="The APIs of OpenAI and Anthropic on this machine's models. Errors have the shape of the API.",
        docs_url=None,  # its page would load scripts from elsewhere
        redoc_url=None,
        openapi_url="/openapi.json",
        responses={"default": {"model": ErrorAnswer, "description": "What went wrong, and what to do about it."}},
    )
    app.state.server = state
    for module in (chat, completions, messages, embeddings, moderations, tokens, system, page_api):
        app.include_router(module.router)
    for kind in (ApiError, CierzoError, RequestValidationError, HTTPException):
        app.add_exception_handler(kind, _tell)
    _secure_in_document(app)
    app.add_middleware(Gate, state=state)
    if state.settings.cors_origins:
        app.add_middleware(
            CORSMiddleware, allow_origins=state.settings.cors_origins, allow_methods=["GET", "POST"],
            allow_headers=["*"], expose_headers=["x-request-id", "retry-after"],
        )  # fmt: skip
    page_api.add_page(app, PAGE)
    return app


async def _tell(request: Request, error: Exception) -> Response:
    told = api_error(error, error.body if isinstance(error, RequestValidationError) else None)
    caller = caller_of(request)
    caller.fields["error"] = told.code or told.message
    if isinstance(error, ModelUnavailableError):
        caller.fields["reason"] = str(error)  # a client is not told
    log_failure(error, told, caller.request_id)
    headers = getattr(error, "headers", None) if isinstance(error, HTTPException) else None
    return told.response(request.url.path, caller.request_id, headers)


def _secure_in_document(app: FastAPI) -> None:
    """Say in the OpenAPI document how keys are sent; the gate checks them."""
    make = app.openapi

    def openapi() -> dict[str, Any]:
        document = make()
        document["components"]["securitySchemes"] = {
            "bearer": {"type": "http", "scheme": "bearer"},
            "x-api-key": {"type": "apiKey", "in": "header", "name": "x-api-key"},
        }
        document["security"] = [{"bearer": []}, {"x-api-key": []}, {}]
        return document

    app.openapi = openapi  # type: ignore[method-assign]
