"""`/v1/moderations`, as OpenAI has it: the guard's first stage, for texts that no model here answers."""

import asyncio
from collections.abc import Mapping
from functools import cache
from uuid import uuid4

from fastapi import APIRouter, Request

from cierzo.guard import Guard
from cierzo.guard.classifier import CATEGORIES
from cierzo.guard.policy import Category
from cierzo.serve.answers import watched
from cierzo.serve.errors import ApiError
from cierzo.serve.schemas.moderation import Moderation, ModerationRequest, ModerationResult
from cierzo.serve.state import check_count, state_of

router = APIRouter()
_MODEL = "cierzo-moderation"


@router.post("/v1/moderations")
async def moderations(body: ModerationRequest, request: Request) -> Moderation:
    """Scores of each text; flagged by the thresholds of the guard's policy, or of `standard` where no guard judges."""
    state = state_of(request)
    given = [body.input] if isinstance(body.input, str) else body.input
    if not given:
        raise ApiError(400, "input is empty", param="input", code="invalid_value")
    # Texts are inputs of their own; parts are one together, as in OpenAI's API.
    texts, parts = [one for one in given if isinstance(one, str)], [one for one in given if not isinstance(one, str)]
    texts += ["\n".join(part.text for part in parts)] if parts else []
    check_count("input", len(texts), state.settings.max_prompts, "max_prompts")
    guard = state.guard if state.guard is not None and state.guard.policy.categories else _standard()
    limits = guard.policy.categories

    def judged() -> list[ModerationResult]:
        return [_result(guard.scores(text), limits) for text in texts]

    results = await watched(request, asyncio.to_thread(judged))
    return Moderation(id=f"modr-{uuid4().hex}", model=_MODEL, results=results)


@cache
def _standard() -> Guard:
    return Guard("standard")


def _result(scores: Mapping[str, float], limits: Mapping[str, Category]) -> ModerationResult:
    flagged = {name: scores[name] >= limit.threshold for name, limit in limits.items()}
    return ModerationResult(
        flagged=any(flagged.values()),
        categories={name: flagged.get(name, False) for name in CATEGORIES},
        category_scores={name: scores[name] for name in CATEGORIES},
        category_applied_input_types={name: ["text"] for name in CATEGORIES},
    )
