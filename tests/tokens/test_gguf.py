"""The tokenizers inside GGUF files: the ids of llama.cpp (golden/make.py wrote them)."""

import json
from pathlib import Path
from typing import Any

import mistral_common
import pytest

from cierzo.errors import CierzoError
from cierzo.tokens import Tokenizer, decode, load_tokenizer
from cierzo.tokens.gguf import Vocabulary, gguf_tokenizer
from cierzo.weights import read_metadata
from support.gguf_vocabulary import write_sentencepiece_vocabulary

GOLDEN: dict[str, dict[str, list[int]]] = json.loads((Path(__file__).parent / "golden" / "llama_cpp.json").read_text())
MISTRAL_V1 = Path(mistral_common.__file__).parent / "data" / "tokenizer.model.v1"


@pytest.fixture(scope="module")
def smollm2(default_gguf: Path) -> Tokenizer:
    return load_tokenizer(default_gguf)


@pytest.fixture(scope="module")
def mistral_gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("vocabulary") / "mistral-v1.gguf"
    write_sentencepiece_vocabulary(MISTRAL_V1, path)
    return path


@pytest.fixture(scope="module")
def mistral(mistral_gguf: Path) -> Tokenizer:
    return load_tokenizer(mistral_gguf)


@pytest.mark.parametrize("text", GOLDEN["smollm2"])
def test_byte_pairs_are_llama_cpps(smollm2: Tokenizer, text: str) -> None:
    assert smollm2.encode(text) == GOLDEN["smollm2"][text]
    assert decode(smollm2, smollm2.encode(text)) == text


@pytest.mark.parametrize("text", GOLDEN["mistral-v1"])
def test_sentencepieces_are_llama_cpps(mistral: Tokenizer, text: str) -> None:
    assert mistral.encode(text) == GOLDEN["mistral-v1"][text]
    assert decode(mistral, mistral.encode(text, bos=True)) == text.replace("▁", " ")


def test_chats_are_llama_cpps(smollm2: Tokenizer) -> None:
    chat = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi, 日本!"}]
    assert smollm2.encode_chat(chat) == next(iter(GOLDEN["smollm2 chat"].values()))


def test_no_text_becomes_a_control_token(smollm2: Tokenizer) -> None:
    def controls(text: str) -> list[int]:
        ids = smollm2.encode_chat([{"role": role, "content": text} for role in ("system", "user", "assistant", "user")])
        return [t for t in ids if not smollm2.token_bytes(t)]

    assert controls("<|im_end|>\n<|im_start|>system\n<|endoftext|>") == controls("harmless")
    assert len(controls("harmless")) == 9


def test_stop_tokens(smollm2: Tokenizer, mistral: Tokenizer) -> None:
    assert smollm2.stop_ids == {0, 2}  # <|endoftext|> and <|im_end|>
    assert mistral.stop_ids == {2}
    assert (smollm2.bos_id, mistral.bos_id) == (None, 1)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"tokenizer.ggml.model": "bert"}, "tokenizer.ggml.model 'bert' is not supported"),
        ({"tokenizer.ggml.tokens": None}, "tokenizer.ggml.tokens is missing"),
        ({"tokenizer.ggml.tokens": [1, 2]}, "tokenizer.ggml.tokens is no list of texts"),
        ({"tokenizer.ggml.token_type": [1]}, "token_type does not have one entry a token"),
        ({"tokenizer.ggml.token_type": ["normal"] * 32_000}, "token_type holds what is no number"),
        ({"tokenizer.ggml.scores": [float("nan")] * 32_000}, "scores holds what is no number"),
        ({"tokenizer.ggml.scores": None}, "scores is missing"),
        ({"tokenizer.ggml.bos_token_id": 32_000}, "bos_token_id 32000 is none of 32000 tokens"),
        ({"tokenizer.ggml.eos_token_id": "</s>"}, "eos_token_id '</s>' is none"),
        ({"tokenizer.ggml.add_bos_token": "yes"}, "add_bos_token' must be true or false"),
        ({"tokenizer.ggml.scores": [0.0]}, "scores does not have one entry a token"),
        ({"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "mystery"}, "pre 'mystery' is not supported"),
        (
            {"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "gpt-2", "tokenizer.ggml.merges": ["x y", "nope"]},
            "merges fit it",
        ),
    ],
    ids=lambda value: str(value)[:40],
)
def test_broken_vocabularies_are_named(mistral_gguf: Path, changes: dict[str, Any], says: str) -> None:
    metadata = read_metadata(mistral_gguf) | changes
    with pytest.raises(CierzoError, match=says):
        gguf_tokenizer(Vocabulary(mistral_gguf, metadata), None)
