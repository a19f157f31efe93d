"""Real weights out of our hands: llama.cpp says the same with exported GGUF files, and tokenizers come along."""

from pathlib import Path

import pytest
import torch

from cierzo import LLM, SamplingParams, load_tokenizer, tokenizer_files, tokenizer_metadata
from cierzo.weights.export import export_huggingface
from cierzo.weights.export_gguf import export_gguf
from support.llama_cpp import llama_cpp_scores

PROMPTS = (
    "The capital of France is",
    "Once upon a time, in a village by the sea,",
    "def fibonacci(n):\n    ",
    "Water boils at",
    "The three primary colours are",
    "Dear Sir or Madam,\n\nI am writing to",
    "In 1969, the first human",
    "Photosynthesis is the process by which",
    "The mistral is a strong, cold wind that",
    "Le chat est sur la",
)


@pytest.fixture(scope="module")
def folder(default_gguf: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SmolLM2 as a Hugging Face folder, out of the GGUF file."""
    out = tmp_path_factory.mktemp("export") / "smollm2"
    export_huggingface(
        default_gguf, out, dtype=torch.float32, tokenizer=lambda folder: tokenizer_files(default_gguf, folder)
    )
    return out


@pytest.mark.heavy
@pytest.mark.parametrize(
    ("kind", "dtype", "tokens", "least"),
    [("f16", "float32", 32, 1.0), ("q8_0", "auto", 128, 0.97), ("q4_0", "auto", 128, 0.97)],
)
def test_llama_cpp_takes_the_same_tokens(
    folder: Path, kind: str, dtype: str, tokens: int, least: float, tmp_path: Path
) -> None:
    """After every prefix of what we say with the exported weights, llama.cpp picks the same token.

    With F16, in float32 here, it writes the same ten texts; with 8 and 4 bits activations are in int8 on both sides,
    and near ties fall otherwise at about 2 % of positions; a wrong block or scale would leave next to nothing.
    """
    out = tmp_path / f"{kind}.gguf"
    export_gguf(folder, out, kind=kind, vocabulary=tokenizer_metadata(folder), name="smollm2")
    llm = LLM(out, dtype=dtype, max_seq_len=512)
    prompts = [llm.tokenizer.encode(prompt) for prompt in PROMPTS]
    params = SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True)
    answers = [list(answer.token_ids) for answer in llm.generate(list(prompts), params)]
    theirs = llama_cpp_scores(out, [p + a for p, a in zip(prompts, answers, strict=True)])["best"]
    pairs = [pair for a, best in zip(answers, theirs, strict=True) for pair in zip(a, best[-len(a) :], strict=True)]
    assert len(pairs) == len(PROMPTS) * tokens
    assert sum(ours == best for ours, best in pairs) >= least * len(pairs)


def test_the_tokenizer_comes_along(default_gguf: Path, folder: Path, tmp_path: Path) -> None:
    import transformers

    ours = load_tokenizer(default_gguf)
    again = load_tokenizer(folder)
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    out = tmp_path / "out.gguf"
    export_gguf(folder, out, vocabulary=tokenizer_metadata(folder), name="smollm2")
    back = load_tokenizer(out)
    for text in (*PROMPTS, "x = 1234 + 5.6\n\n\t# naïve 日本語 <|im_start|>user", "  two  spaces "):
        expected = ours.encode(text)
        assert again.encode(text) == back.encode(text) == expected
        if "<|" not in text:
            assert theirs(text).input_ids == expected
    messages = [{"role": "user", "content": "Name three planets."}]
    assert again.encode_chat(messages) == back.encode_chat(messages) == ours.encode_chat(messages)
    assert again.stop_ids == back.stop_ids == ours.stop_ids
    assert tokenizer_metadata(folder)["tokenizer.ggml.pre"] == "smollm"


def test_sentencepiece_goes_there_and_back(tmp_path: Path) -> None:
    import shutil

    import mistral_common

    from cierzo.weights.gguf_header import read_metadata
    from support.checkpoints import random_weights, write_consolidated
    from support.models import tiny_config

    config = tiny_config(vocab_size=32_000)
    folder = write_consolidated(tmp_path / "tiny", config, random_weights(config))
    shutil.copy(Path(mistral_common.__file__).parent / "data" / "tokenizer.model.v1", folder / "tokenizer.model")
    out = tmp_path / "tiny.gguf"
    export_gguf(folder, out, vocabulary=tokenizer_metadata(folder), name="tiny")
    assert read_metadata(out)["tokenizer.ggml.token_type"][:4] == [2, 3, 3, 6]
    back = tmp_path / "back"
    export_huggingface(out, back, tokenizer=lambda folder: tokenizer_files(out, folder))
    expected = load_tokenizer(folder)
    for text in PROMPTS:
        assert load_tokenizer(out).encode(text) == load_tokenizer(back).encode(text) == expected.encode(text)
