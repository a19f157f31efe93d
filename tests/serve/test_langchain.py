"""`langchain-openai` on the default model's real weights."""

import pytest
from langchain_core.messages import HumanMessage
from langchain_openai import ChatOpenAI, OpenAIEmbeddings
from pydantic import BaseModel, SecretStr

from support.server import Process


class City(BaseModel):
    name: str


@pytest.fixture(scope="module")
def model(smollm: Process) -> ChatOpenAI:
    return ChatOpenAI(base_url=f"{smollm.url}/v1", api_key=SecretStr("none"), model="smollm", temperature=0)


def test_chat_stream_and_usage(model: ChatOpenAI) -> None:
    question = [HumanMessage("What is the capital of France?")]
    answer = model.invoke(question)
    assert answer.content == "The capital of France is Paris."
    assert answer.usage_metadata is not None
    assert answer.usage_metadata["output_tokens"] == 8
    assert "".join(str(chunk.content) for chunk in model.stream(question)) == answer.content


def test_a_structured_answer(model: ChatOpenAI) -> None:
    chain = model.bind(max_tokens=40).with_structured_output(City, method="json_schema")
    assert isinstance(chain.invoke("Name a city in JSON."), City)


def test_embeddings(smollm: Process) -> None:
    embeddings = OpenAIEmbeddings(
        base_url=f"{smollm.url}/v1", api_key=SecretStr("none"), model="smollm", check_embedding_ctx_length=False
    )
    first, second = embeddings.embed_documents(["a wind", "another wind"])
    assert len(first) == len(second) == 576
