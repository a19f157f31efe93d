"""Anthropic's language: the messages API."""

from typing import Annotated, Any, Literal

from pydantic import Field

from cierzo.serve.schemas.base import Answered, Asked, JsonSchema, Text
from cierzo.serve.schemas.moderation import GuardReport, GuardVerdicts


class CacheControl(Asked):
    """Prompts are cached anyway."""

    type: Literal["ephemeral"]
    ttl: Literal["5m", "1h"] | None = None


class TextBlock(Asked):
    type: Literal["text"]
    text: str
    cache_control: CacheControl | None = None
    citations: None = None


class ToolUseBlock(Asked):
    type: Literal["tool_use"]
    id: str
    name: str
    input: dict[str, Any]
    cache_control: CacheControl | None = None
    caller: dict[str, Any] | None = None


class ToolResultBlock(Asked):
    type: Literal["tool_result"]
    tool_use_id: str
    content: str | list[TextBlock] = ""
    is_error: bool | None = None
    cache_control: CacheControl | None = None


UserBlock = Annotated[TextBlock | ToolResultBlock, Field(discriminator="type")]
AssistantBlock = Annotated[TextBlock | ToolUseBlock, Field(discriminator="type")]


class UserTurn(Asked):
    role: Literal["user"]
    content: str | list[UserBlock]


class AssistantTurn(Asked):
    role: Literal["assistant"]
    content: str | list[AssistantBlock]


Turn = Annotated[UserTurn | AssistantTurn, Field(discriminator="role")]


class Tool(Asked):
    type: Literal["custom"] | None = None
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{1,64}$")]
    description: str | None = None
    input_schema: JsonSchema
    cache_control: CacheControl | None = None


class AutoChoice(Asked):
    type: Literal["auto"]
    disable_parallel_tool_use: Literal[False] | None = None


class AnyChoice(Asked):
    type: Literal["any"]
    disable_parallel_tool_use: bool | None = None


class NamedChoice(Asked):
    type: Literal["tool"]
    name: str
    disable_parallel_tool_use: bool | None = None


class NoChoice(Asked):
    type: Literal["none"]


ToolChoice = Annotated[AutoChoice | AnyChoice | NamedChoice | NoChoice, Field(discriminator="type")]


class Metadata(Asked):
    user_id: str | None = Field(None, description="Written into the log.")


class Thinking(Asked):
    type: Literal["disabled"]


class OutputFormat(Asked):
    type: Literal["json_schema"]
    schema_: JsonSchema = Field(alias="schema")


class OutputConfig(Asked):
    format: OutputFormat | None = None


class CountRequest(Asked):
    """What is counted, and the beginning of every request."""

    model: str
    messages: Annotated[list[Turn], Field(min_length=1)]
    system: str | list[TextBlock] | None = None
    tools: list[Tool] | None = None
    tool_choice: ToolChoice | None = None
    thinking: Thinking | None = None
    cache_control: CacheControl | None = None
    output_config: OutputConfig | None = None


class MessagesRequest(CountRequest):
    max_tokens: Annotated[int, Field(ge=1, lt=2**31)]
    stream: bool | None = None
    temperature: Annotated[float, Field(ge=0, le=1)] | None = Field(None, description="0.7 when left out.")
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=0, lt=2**31)] | None = None
    stop_sequences: list[Text] | None = None
    metadata: Metadata | None = None
    service_tier: Literal["auto", "standard_only"] | None = None
    guard_verdicts: GuardVerdicts = None


class ErrorBody(Answered):
    type: str
    message: str


class ErrorAnswer(Answered):
    type: Literal["error"]
    error: ErrorBody
    request_id: str


class Usage(Answered):
    input_tokens: int = Field(description="Of the prompt, without those that were found in the cache.")
    output_tokens: int
    cache_read_input_tokens: int
    cache_creation_input_tokens: int


class AnsweredText(Answered):
    type: Literal["text"]
    text: str


class AnsweredToolUse(Answered):
    type: Literal["tool_use"]
    id: str
    name: str
    input: dict[str, Any]


class AnthropicMessage(Answered):
    id: str
    type: Literal["message"]
    role: Literal["assistant"]
    model: str
    content: list[AnsweredText | AnsweredToolUse]
    stop_reason: Literal["end_turn", "max_tokens", "stop_sequence", "tool_use", "refusal"]
    stop_sequence: str | None
    usage: Usage
    guard: GuardReport | None = None


class TokenCount(Answered):
    input_tokens: int
