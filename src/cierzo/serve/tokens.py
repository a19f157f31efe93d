"""`/tokenize` and `/detokenize`, as vLLM has them."""

from contextlib import AsyncExitStack

from fastapi import APIRouter, Request

from cierzo.serve.answers import use_model, watched
from cierzo.serve.asked import plain_messages, plain_tools
from cierzo.serve.errors import ApiError
from cierzo.serve.schemas.openai import DetokenizeRequest, TokenizeRequest
from cierzo.serve.schemas.openai_answers import Detokenized, Tokenized
from cierzo.tokens import ChatError, decode

router = APIRouter()


@router.post("/tokenize", response_model_exclude_none=True)
async def tokenize(body: TokenizeRequest, request: Request) -> Tokenized:
    """Token ids of a text, or of a conversation by the model's template."""
    if (body.prompt is None) == (body.messages is None):
        raise ApiError(400, "give either prompt or messages", param="prompt", code="invalid_value")
    return await watched(request, _tokenized(body, request))


async def _tokenized(body: TokenizeRequest, request: Request) -> Tokenized:
    async with AsyncExitStack() as stack:
        _, llm = await use_model(request, body.model, stack)
        if body.messages is not None:
            try:
                ids = await llm.encode_chat(plain_messages(body.messages), plain_tools(body.tools) or None)
            except ChatError as error:
                raise ApiError(400, str(error), param="messages", code="invalid_messages") from None
        else:
            ids = await llm.encode(body.prompt or "")
            if not body.add_special_tokens and ids[:1] == [llm.tokenizer.bos_id]:
                ids = ids[1:]
        strings = [llm.tokenizer.token_bytes(t).decode("utf-8", "replace") for t in ids]
        return Tokenized(
            count=len(ids), max_model_len=llm.max_seq_len, tokens=ids,
            token_strs=strings if body.return_token_strs else None,
        )  # fmt: skip


@router.post("/detokenize")
async def detokenize(body: DetokenizeRequest, request: Request) -> Detokenized:
    """The text of token ids; control tokens have none."""
    return await watched(request, _detokenized(body, request))


async def _detokenized(body: DetokenizeRequest, request: Request) -> Detokenized:
    async with AsyncExitStack() as stack:
        _, llm = await use_model(request, body.model, stack)
        if any(token >= llm.config.vocab_size for token in body.tokens):
            raise ApiError(
                400, f"tokens has one outside the vocabulary of {llm.config.vocab_size}", param="tokens",
                code="invalid_value",
            )  # fmt: skip
        return Detokenized(prompt=decode(llm.tokenizer, body.tokens))
