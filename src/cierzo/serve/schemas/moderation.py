"""What the guard adds to requests and answers, and OpenAI's moderation API."""

from typing import Annotated, Literal

from pydantic import Field

from cierzo.serve.schemas.base import Answered, Asked, Text

GuardVerdicts = Annotated[
    bool | None,
    Field(description="Tell in the field `guard` what the guard found; null without one."),
]


class Judgement(Answered):
    action: Literal["allow", "log", "warn", "prompt", "refuse"]
    categories: dict[str, float]
    flagged: list[str] | None = None
    reflection: float | None = Field(None, description="What the model thinks: how likely the text is not acceptable.")
    error: str | None = Field(None, description="Why it could not be judged.")


class GuardReport(Answered):
    policy: str
    mode: Literal["shadow", "enforce"]
    input: Judgement
    output: Judgement


class GuardState(Answered):
    policy: str
    mode: Literal["shadow", "enforce"]


class ModeratedPart(Asked):
    type: Literal["text"]
    text: str


class ModerationRequest(Asked):
    input: str | list[str] | Annotated[list[ModeratedPart], Field(min_length=1)]
    model: Text | None = Field(None, description="Any name: there is one classifier.")


class ModerationResult(Answered):
    flagged: bool
    categories: dict[str, bool]
    category_scores: dict[str, float]
    category_applied_input_types: dict[str, list[Literal["text"]]]


class Moderation(Answered):
    id: str
    model: str
    results: list[ModerationResult]
