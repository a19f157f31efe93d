"""OpenAI's language: requests. Fields that are not here are not supported, and an error names them."""

from typing import Annotated, Any, Literal

from pydantic import Field

from cierzo.serve.schemas.base import Asked, JsonSchema, Text, TokenId

Model = Annotated[str | None, Field(description="A name of /v1/models; the first model when left out.")]


class TextPart(Asked):
    type: Literal["text"]
    text: str


class FunctionCall(Asked):
    name: str
    arguments: str = Field("{}", description="JSON text.")


class ToolCall(Asked):
    id: str
    type: Literal["function"] = "function"
    function: FunctionCall


Content = str | list[TextPart]


class SystemMessage(Asked):
    role: Literal["system", "developer"]
    content: Content


class UserMessage(Asked):
    role: Literal["user"]
    content: Content


class AssistantMessage(Asked):
    """Fields of which only null or nothing is allowed are those that answers have, so that they can be sent back."""

    role: Literal["assistant"]
    content: Content | None = None
    tool_calls: list[ToolCall] | None = None
    refusal: None = None
    audio: None = None
    function_call: None = None
    annotations: Annotated[list[Any], Field(max_length=0)] | None = None


class ToolMessage(Asked):
    role: Literal["tool"]
    content: Content
    tool_call_id: str
    name: str | None = None


Message = Annotated[SystemMessage | UserMessage | AssistantMessage | ToolMessage, Field(discriminator="role")]


class Function(Asked):
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{1,64}$")]
    description: str | None = None
    parameters: JsonSchema | None = None
    strict: bool | None = Field(
        None,
        description="Forced calls always keep to `parameters`; calls of the model's own choice are not held to it.",
    )


class Tool(Asked):
    type: Literal["function"]
    function: Function


class NamedFunction(Asked):
    name: str


class NamedTool(Asked):
    type: Literal["function"]
    function: NamedFunction


class JsonSchemaFormat(Asked):
    name: str
    description: str | None = None
    schema_: JsonSchema = Field(alias="schema")
    strict: bool | None = Field(None, description="Answers always keep to the schema.")


class TextFormat(Asked):
    type: Literal["text"]


class JsonObjectFormat(Asked):
    type: Literal["json_object"]


class JsonSchemaFormatRequest(Asked):
    type: Literal["json_schema"]
    json_schema: JsonSchemaFormat


ResponseFormat = Annotated[TextFormat | JsonObjectFormat | JsonSchemaFormatRequest, Field(discriminator="type")]


class StructuredOutputs(Asked):
    """vLLM's: exactly one of these."""

    json_: JsonSchema | None = Field(None, alias="json", description="A JSON schema.")
    regex: Text | None = Field(None, description="A regular expression of the whole answer, without look-around.")
    choice: list[Text] | None = None
    grammar: Text | None = Field(None, description="Lark, as llguidance reads it.")


class StreamOptions(Asked):
    include_usage: bool | None = None
    include_obfuscation: Literal[False] | None = None


class Sampling(Asked):
    """How to sample and when to stop; shared by chats and completions."""

    model: Model = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: Annotated[int, Field(ge=1)] | None = None
    temperature: Annotated[float, Field(ge=0, le=100)] | None = Field(None, description="0.7 when left out.")
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=0, lt=2**31)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    presence_penalty: Annotated[float, Field(ge=-100, le=100)] | None = None
    frequency_penalty: Annotated[float, Field(ge=-100, le=100)] | None = None
    repetition_penalty: Annotated[float, Field(gt=0, le=100)] | None = None
    logit_bias: dict[Annotated[str, Field(pattern=r"^\d{1,9}$")], Annotated[float, Field(ge=-100, le=100)]] | None = (
        None
    )
    seed: Annotated[int, Field(ge=0, lt=2**63)] | None = None
    stop: Text | list[Text] | None = None
    stop_token_ids: list[TokenId] | None = None
    ignore_eos: bool | None = Field(None, description="Go on past the model's end tokens, for measurements.")
    structured_outputs: StructuredOutputs | None = None
    priority: Annotated[int, Field(lt=2**31)] | None = Field(
        None, description="Lower ones stand in front; 0 when left out."
    )
    cache_salt: Annotated[str, Field(max_length=256)] | None = Field(
        None, description="Only requests with the same salt (and key) share cached prompts."
    )
    user: str | None = Field(None, description="Written into the log.")


class ChatRequest(Sampling):
    messages: Annotated[list[Message], Field(min_length=1)]
    max_tokens: Annotated[int, Field(ge=1, lt=2**31)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1, lt=2**31)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    response_format: ResponseFormat | None = None
    tools: list[Tool] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedTool | None = None
    parallel_tool_calls: bool | None = Field(None, description="false needs a tool_choice that forces a call.")
    continue_final_message: bool | None = Field(
        None, description="vLLM's: go on in the last message, which is the assistant's, as if it had not ended."
    )
    add_generation_prompt: bool | None = Field(
        None, description="What vLLM's clients send with it: false when the last message is continued, else true."
    )
    safe_prompt: bool | None = Field(None, description="Reserved: there is no guard yet.")
    store: Literal[False] | None = None
    service_tier: Literal["auto", "default"] | None = None


class CompletionRequest(Sampling):
    prompt: str | list[str] | list[TokenId] | list[list[TokenId]]
    max_tokens: Annotated[int, Field(ge=0, lt=2**31)] | None = Field(16, description="0 needs `echo`.")
    logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    echo: bool | None = None


class EmbeddingRequest(Asked):
    model: Model = None
    input: str | list[str] | list[TokenId] | list[list[TokenId]]
    encoding_format: Literal["float", "base64"] | None = None
    pooling: Literal["mean", "last"] | None = Field(None, description="Of the last layer's states; mean when left out.")
    user: str | None = Field(None, description="Written into the log.")


class TokenizeRequest(Asked):
    """vLLM's: a text, or messages by the model's template."""

    model: Model = None
    prompt: str | None = None
    messages: Annotated[list[Message], Field(min_length=1)] | None = None
    tools: list[Tool] | None = None
    add_special_tokens: bool = Field(True, description="Begin a text as prompts do.")
    return_token_strs: bool | None = None


class DetokenizeRequest(Asked):
    model: Model = None
    tokens: list[TokenId]
