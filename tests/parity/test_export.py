"""Real weights out of our hands: llama.cpp says the same with exported GGUF files, and tokenizers come along."""

from pathlib import Path

import pytest
import torch

from cierzo import LLM, SamplingParams, load_tokenizer, tokenizer_files, tokenizer_metadata
from cierzo.weights import load_model
from cierzo.weights.export import export_huggingface
from cierzo.weights.export_gguf import export_gguf
from support.llama_cpp import llama_cpp_scores
from support.logits import packed_logits

NEW_TOKENS = 32
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


@pytest.fixture(scope="module")
def texts(folder: Path) -> list[list[int]]:
    """Ten prompts with what the model says next in float32, in PyTorch."""
    llm = LLM(folder, dtype="float32", max_seq_len=512)
    prompts = [llm.tokenizer.encode(prompt) for prompt in PROMPTS]
    params = SamplingParams(temperature=0, max_tokens=NEW_TOKENS, ignore_eos=True)
    answers = llm.generate(list(prompts), params)
    return [prompt + list(answer.token_ids) for prompt, answer in zip(prompts, answers, strict=True)]


@pytest.mark.parametrize("kind", ["f16", "q8_0", "q4_0"])
def test_llama_cpp_takes_the_same_tokens(folder: Path, texts: list[list[int]], kind: str, tmp_path: Path) -> None:
    """F16 writes the same texts; 8 and 4 bits pick the token of our float32 run of the same rounded weights in 97 %.

    Where the two best tokens are closer than float16's rounding of the cache, the pick is a toss.
    """
    out = tmp_path / f"{kind}.gguf"
    export_gguf(folder, out, kind=kind, vocabulary=tokenizer_metadata(folder), name="smollm2")
    theirs = llama_cpp_scores(out, texts)["best"]
    model = load_model(out, dtype=torch.float32)
    same = total = 0
    for text, best, prompt in zip(texts, theirs, PROMPTS, strict=True):
        start = len(text) - NEW_TOKENS - 1
        (scores,) = packed_logits(model, [torch.tensor(text[:-1])])
        picks = torch.tensor(best)[start:]
        ours = scores[start:].argmax(-1)
        gap = scores[start:].amax(-1) - scores[start:].gather(1, picks.unsqueeze(1)).squeeze(1)
        same += int((picks == ours).sum())
        total += NEW_TOKENS
        if kind == "f16":
            assert gap.max() < 0.02, prompt
    assert total == len(PROMPTS) * NEW_TOKENS
    assert same >= (0.99 if kind == "f16" else 0.97) * total, f"{same} of {total}"


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
    assert again.encode_chat(messages) == back.encode_chat(messages) == ours.encode_chat(messages)  # type: ignore[arg-type]
    assert again.stop_ids == back.stop_ids == ours.stop_ids
    assert tokenizer_metadata(folder)["tokenizer.ggml.pre"] == "smollm"


def test_sentencepiece_goes_there_and_back(tmp_path: Path) -> None:
    import shutil

    import mistral_common

    from cierzo.weights.gguf import read_metadata
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
