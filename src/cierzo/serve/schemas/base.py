"""What all schemas share."""

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field


class Asked(BaseModel):
    """Part of a request: what is not known is refused, and nothing is converted in silence."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class Answered(BaseModel):
    """Part of an answer."""

    model_config = ConfigDict(extra="forbid")


JsonSchema = dict[str, Any]
TokenId = Annotated[int, Field(ge=0, lt=2**31)]
Text = Annotated[str, Field(min_length=1)]
