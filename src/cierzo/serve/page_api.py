"""What the chat page needs beside the APIs: the models' state, Markdown as HTML, and its files, well locked up."""

from pathlib import Path
from typing import Annotated

from fastapi import APIRouter, FastAPI, Request
from pydantic import Field
from starlette.responses import Response
from starlette.routing import Route
from starlette.staticfiles import StaticFiles
from starlette.types import Scope

from cierzo.models import Entry
from cierzo.serve import render as markdown
from cierzo.serve.schemas.base import Answered, Asked
from cierzo.serve.state import state_of
from cierzo.version import __version__

router = APIRouter(prefix="/page", include_in_schema=False)

_POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self'",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
        "trusted-types cierzo",
    )
)
_HEADERS = {
    "content-security-policy": _POLICY,
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=()",
    "x-frame-options": "DENY",
    "cache-control": "no-cache",  # asked for again each time, answered by 304: a new version is seen at once
}


class PageFiles(StaticFiles):
    """The page's own files, with headers under which nothing else can run or load in it."""

    async def get_response(self, path: str, scope: Scope) -> Response:
        response = await super().get_response(path, scope)
        response.headers.update(_HEADERS)
        return response


def add_page(app: FastAPI, folder: Path) -> None:
    """Serve each file at its own path: a mount at `/` would also answer, by 404, for paths that have other methods."""
    files = PageFiles(directory=folder, html=True)
    for name in ("", *sorted(file.name for file in folder.iterdir())):
        app.router.routes.append(Route(f"/{name}", files, include_in_schema=False))


class RenderRequest(Asked):
    text: Annotated[str, Field(max_length=markdown.LONGEST)]


class RenderedBlock(Answered):
    html: str
    begin: int
    end: int


class Rendered(Answered):
    """Blocks with the lines that they are of; the first `closed` stay so whatever is appended to the text."""

    blocks: list[RenderedBlock]
    closed: int


class LayerWindow(Answered):
    """`layers` layers look back over `size` positions each; over all when null."""

    size: int | None
    layers: int


class PageModel(Answered):
    """Sizes in bytes, lengths in tokens; null where they are not known before the model is loaded."""

    name: str
    state: str
    weights: int | None
    cache: int | None
    context: int | None
    windows: list[LayerWindow] | None
    tools: bool | None
    refusal: str | None


class PageState(Answered):
    version: str
    default: str
    free: int
    models: list[PageModel]


@router.get("/state")
async def page_state(request: Request) -> PageState:
    """The models, whether they are loaded, and what they take."""
    models = state_of(request).models
    return PageState(
        version=__version__, default=models.default, free=models.free(),
        models=[_model(entry) for entry in models.entries.values()],
    )  # fmt: skip


def _model(entry: Entry) -> PageModel:
    llm = entry.llm
    if llm is None:
        return PageModel(
            name=entry.name, state=entry.state, weights=entry.size or None, cache=None, context=None, windows=None,
            tools=None, refusal=None,
        )  # fmt: skip
    groups = llm.config.window_groups
    return PageModel(
        name=entry.name,
        state=entry.state,
        weights=llm.card.weights,
        cache=llm.card.cache,
        context=llm.max_seq_len,
        windows=[LayerWindow(size=g.window.size if g.window else None, layers=len(g.layers)) for g in groups],
        tools=llm.tokenizer.tool_format is not None,
        refusal=llm.tokenizer.chat_refusal,
    )


@router.post("/render")
def page_render(body: RenderRequest) -> Rendered:
    """An answer's Markdown, or the part of it that is not closed yet, as HTML; on a thread of its own."""
    blocks = markdown.render(body.text)
    shown = [RenderedBlock(html=block.html, begin=block.begin, end=block.end) for block in blocks]
    return Rendered(blocks=shown, closed=markdown.closed(body.text, blocks))
