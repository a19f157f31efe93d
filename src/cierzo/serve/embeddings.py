"""`/v1/embeddings`."""

import asyncio
import base64
from contextlib import AsyncExitStack
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, Response

from cierzo.errors import CierzoError
from cierzo.serve.answers import check_places, use_model, watched
from cierzo.serve.completions import prompts_of
from cierzo.serve.schemas.openai import EmbeddingRequest
from cierzo.serve.schemas.openai_answers import Embeddings
from cierzo.serve.state import caller_of, state_of

router = APIRouter()


@router.post("/v1/embeddings", response_model=Embeddings)
async def embeddings(body: EmbeddingRequest, request: Request) -> Response:
    """A vector of length 1 for each text."""
    if body.user is not None:
        caller_of(request).fields["user"] = body.user
    async with AsyncExitStack() as stack:
        return JSONResponse(await watched(request, _embedded(body, request, stack)))


async def _embedded(body: EmbeddingRequest, request: Request, stack: AsyncExitStack) -> dict[str, Any]:
    name, llm = await use_model(request, body.model, stack)
    prompts = await prompts_of(body.input, llm, request, "input")
    check_places(llm, state_of(request), len(prompts))
    pooling, salt = body.pooling or "mean", caller_of(request).salt(None)
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(llm.embed(prompt, pooling=pooling, cache_salt=salt)) for prompt in prompts]
    except* CierzoError as errors:
        raise errors.exceptions[0] from None
    vectors = [task.result().numpy() for task in tasks]
    if body.encoding_format == "base64":
        shown: list[Any] = [base64.b64encode(vector.astype("<f4").tobytes()).decode() for vector in vectors]
    else:
        shown = [vector.tolist() for vector in vectors]
    tokens = sum(map(len, prompts))
    caller_of(request).fields["prompt_tokens"] = tokens
    return {
        "object": "list",
        "data": [{"object": "embedding", "index": n, "embedding": one} for n, one in enumerate(shown)],
        "model": name,
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
    }
