"""What is served and how it is: models, health, readiness, metrics."""

import time
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, Response

from cierzo.models import Entry
from cierzo.serve.errors import ApiError
from cierzo.serve.metrics import exposition
from cierzo.serve.schemas.openai_answers import Health, ModelCard, ModelList
from cierzo.serve.state import State, state_of

router = APIRouter()
_BEGAN = int(time.time())


@router.get("/v1/models")
async def models(request: Request) -> ModelList:
    """The models that can be named."""
    entries = state_of(request).models.entries.values()
    return ModelList(object="list", data=[_card(entry) for entry in entries])


@router.get("/v1/models/{model:path}")
async def model(model: str, request: Request) -> ModelCard:
    """One of them."""
    entry = state_of(request).models.entries.get(model)
    if entry is None:
        raise ApiError(404, f"there is no model {model!r} here", param="model", code="model_not_found")
    return _card(entry)


def _card(entry: Entry) -> ModelCard:
    return ModelCard(
        id=entry.name, object="model", created=_BEGAN, owned_by="cierzo", state=entry.state,
        max_model_len=entry.llm.max_seq_len if entry.llm is not None else None,
    )  # fmt: skip


@router.get("/health", response_model=Health)
async def health(request: Request) -> Response:
    """Whether the process is well; 503 when an engine has stopped."""
    failed = any(e.llm is not None and e.llm.failure is not None for e in state_of(request).models.entries.values())
    return _told(state_of(request), "failed" if failed else "ok")


@router.get("/ready", response_model=Health)
async def ready(request: Request) -> Response:
    """Whether requests should be sent here; 503 while the first model loads, while draining, and after a failure."""
    return _told(state_of(request), _status(state_of(request)))


def _told(state: State, status: str) -> Response:
    told: dict[str, Any] = {"status": status}
    if state.guard is not None:
        told["guard"] = {"policy": state.guard.policy.name, "mode": state.guard.mode}
    return JSONResponse(told, 200 if status == "ok" else 503)


def _status(state: State) -> str:
    entries: Any = state.models.entries.values()
    if any(e.llm is not None and e.llm.failure is not None for e in entries):
        return "failed"
    if state.draining:
        return "draining"
    return "loading" if all(e.state == "loading" for e in entries) else "ok"


@router.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
async def metrics(request: Request) -> Response:
    """For Prometheus."""
    body, kind = exposition(state_of(request))
    return Response(body, headers={"content-type": kind})
