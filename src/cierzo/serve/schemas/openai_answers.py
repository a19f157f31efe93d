"""OpenAI's language: answers."""

from typing import Literal

from pydantic import Field

from cierzo.serve.schemas.base import Answered
from cierzo.serve.schemas.moderation import GuardReport, GuardState

Reason = Literal["stop", "length", "tool_calls", "content_filter"]


class ErrorBody(Answered):
    message: str
    type: str
    param: str | None
    code: str | None


class ErrorAnswer(Answered):
    error: ErrorBody


class PromptDetails(Answered):
    cached_tokens: int


class Usage(Answered):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptDetails


class TopLogprob(Answered):
    token: str
    logprob: float
    bytes: list[int]


class ContentLogprob(TopLogprob):
    top_logprobs: list[TopLogprob]


class ChoiceLogprobs(Answered):
    content: list[ContentLogprob]
    refusal: None = None


class CalledFunction(Answered):
    name: str
    arguments: str


class AnsweredToolCall(Answered):
    id: str
    type: Literal["function"]
    function: CalledFunction


class AnsweredMessage(Answered):
    role: Literal["assistant"]
    content: str | None
    refusal: None = None
    tool_calls: list[AnsweredToolCall] | None = None


class ChatChoice(Answered):
    index: int
    message: AnsweredMessage
    logprobs: ChoiceLogprobs | None
    finish_reason: Reason


class ChatCompletion(Answered):
    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage
    guard: GuardReport | None = None


class FunctionDelta(Answered):
    name: str | None = None
    arguments: str | None = None


class ToolCallDelta(Answered):
    index: int
    id: str | None = None
    type: Literal["function"] | None = None
    function: FunctionDelta


class MessageDelta(Answered):
    role: Literal["assistant"] | None = None
    content: str | None = None
    tool_calls: list[ToolCallDelta] | None = None


class ChunkChoice(Answered):
    index: int
    delta: MessageDelta
    logprobs: ChoiceLogprobs | None = None
    finish_reason: Reason | None


class ChatChunk(Answered):
    """One event of a streamed chat; the stream ends with the event `[DONE]`."""

    id: str
    object: Literal["chat.completion.chunk"]
    created: int
    model: str
    choices: list[ChunkChoice]
    usage: Usage | None = None
    guard: GuardReport | None = None


class CompletionLogprobs(Answered):
    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None] | None
    text_offset: list[int]


class CompletionChoice(Answered):
    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: Reason | None


class Completion(Answered):
    """A completion, or one event of a streamed one."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: Usage | None = None
    guard: GuardReport | None = None


class Embedding(Answered):
    object: Literal["embedding"]
    index: int
    embedding: list[float] | str = Field(description="Of length 1; as base64 of float32, lowest byte first, if asked.")


class EmbeddingUsage(Answered):
    prompt_tokens: int
    total_tokens: int


class Embeddings(Answered):
    object: Literal["list"]
    data: list[Embedding]
    model: str
    usage: EmbeddingUsage


class ModelCard(Answered):
    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    state: Literal["unloaded", "loading", "loaded", "unloading"]
    max_model_len: int | None = Field(
        description="Longest prompt and answer together; null when not loaded or endless."
    )


class ModelList(Answered):
    object: Literal["list"]
    data: list[ModelCard]


class Tokenized(Answered):
    count: int
    max_model_len: int | None
    tokens: list[int]
    token_strs: list[str] | None = None


class Detokenized(Answered):
    prompt: str


class Health(Answered):
    status: Literal["ok", "loading", "draining", "failed"]
    guard: GuardState | None = Field(None, description="What judges questions and answers, where something does.")
