"""Real weights: SmolLM2-135M against the gguf library's own reader, and against `transformers` on the same weights."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from torch import Tensor

from cierzo.model import PRESETS, Transformer
from cierzo.ops import BlockTable, PagedCache, PagedContext, machine
from cierzo.weights import load_model, open_source, read_metadata
from support.checkpoints import huggingface_model
from support.logits import packed_logits, paged_logits

CONFIG = PRESETS["smollm2-135m"]
NEW_TOKENS = 64
PROMPTS = (
    "The capital of France is",
    "Once upon a time, in a village by the sea,",
    "def fibonacci(n):\n    ",
    "Water boils at",
    "The three primary colours are",
    "Dear Sir or Madam,\n\nI am writing to",
    "In 1969, the first human",
    "Photosynthesis is the process by which",
    "A recipe for bread needs flour,",
    "The opposite of hot is",
    "import numpy as np\n\nx = np.",
    "Q: What is 12 + 30?\nA:",
    "The mistral is a strong, cold wind that",
    "To be, or not to be,",
    "Le chat est sur la",
    "<|im_start|>user\nName three planets.<|im_end|>\n<|im_start|>assistant\n",
    "1, 2, 3, 4,",
    "The quick brown fox",
    "SELECT name FROM users WHERE",
    "Albert Einstein was born in",
)


@pytest.fixture(scope="module")
def reader(default_gguf: Path) -> gguf.GGUFReader:
    return gguf.GGUFReader(default_gguf)


@pytest.fixture(scope="module")
def model(default_gguf: Path) -> Transformer:
    return load_model(default_gguf)


@pytest.fixture(scope="module")
def reference(reader: gguf.GGUFReader) -> Any:
    """A LlamaForCausalLM of the dequantised weights, which reach it without any of the code under test."""
    layer_names = {
        "attn_norm": "attention_norm", "attn_q": "attention.wq", "attn_k": "attention.wk", "attn_v": "attention.wv",
        "attn_output": "attention.wo", "ffn_norm": "ffn_norm", "ffn_gate": "feed_forward.w1",
        "ffn_down": "feed_forward.w2", "ffn_up": "feed_forward.w3",
    }  # fmt: skip
    names = {"token_embd.weight": "tok_embeddings.weight", "output_norm.weight": "norm.weight"} | {
        f"blk.{n}.{old}.weight": f"layers.{n}.{new}.weight" for n in range(30) for old, new in layer_names.items()
    }
    weights = {
        names[t.name]: torch.from_numpy(np.array(gguf.dequantize(t.data, t.tensor_type))) for t in reader.tensors
    }
    return huggingface_model(CONFIG, weights, "Llama")


@pytest.fixture(scope="module")
def prompts(default_gguf: Path) -> list[Tensor]:
    from tokenizers import Tokenizer, models, pre_tokenizers

    metadata = read_metadata(default_gguf)
    tokens = metadata["tokenizer.ggml.tokens"]
    merges = [tuple(merge.split(" ")) for merge in metadata["tokenizer.ggml.merges"]]
    tokenizer = Tokenizer(models.BPE({token: n for n, token in enumerate(tokens)}, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.add_special_tokens(["<|im_start|>", "<|im_end|>"])
    return [torch.tensor(tokenizer.encode(prompt).ids) for prompt in PROMPTS]


def reference_logits(reference: Any, text: Tensor) -> Tensor:
    with torch.inference_mode():
        logits: Tensor = reference(text.unsqueeze(0)).logits[0]
    return logits


def greedy(model: Transformer, prompts: Sequence[Tensor], count: int) -> list[Tensor]:
    """Each prompt with its `count` likeliest tokens, all prompts together over one paged cache."""
    block, each = 16, max(-(-(len(prompt) + count) // 16) for prompt in prompts)
    cache = PagedCache(
        [range(CONFIG.n_layers)],
        [each * len(prompts)],
        block_size=block,
        n_kv_heads=CONFIG.n_kv_heads,
        head_dim=CONFIG.head_dim,
        dtype=torch.float32,
    )
    tables = [[BlockTable(0, tuple(range(s * each, (s + 1) * each))) for s in range(len(prompts))]]
    texts, done = list(prompts), [0] * len(prompts)
    for _ in range(count):
        lengths = [len(text) - start for text, start in zip(texts, done, strict=True)]
        tokens = torch.cat([text[start:] for text, start in zip(texts, done, strict=True)])
        with torch.inference_mode():
            rows = torch.tensor(lengths).cumsum(0) - 1
            picks = model(tokens, PagedContext(cache, lengths, done, tables), rows).argmax(-1)
        done = [len(text) for text in texts]
        texts = [torch.cat((text, pick.unsqueeze(0))) for text, pick in zip(texts, picks, strict=True)]
    return texts


def test_the_header_and_every_tensor_are_as_the_library_reads_them(default_gguf: Path, reader: gguf.GGUFReader) -> None:
    metadata = read_metadata(default_gguf)
    for key, field in reader.fields.items():
        if not key.startswith("GGUF."):
            assert metadata[key] == field.contents(), key
    source = open_source(default_gguf)
    assert source.config == CONFIG
    assert source.dtype == torch.float32
    assert len(source.shapes) == len(reader.tensors) == 272
    for tensor, ours in zip(reader.tensors, source.shapes, strict=True):
        expected = gguf.dequantize(tensor.data, tensor.tensor_type)
        np.testing.assert_array_equal(source.tensor(ours).numpy(), expected, err_msg=f"{ours} from {tensor.name}")


def test_logits_are_those_of_transformers(model: Transformer, reference: Any, prompts: list[Tensor]) -> None:
    text = torch.cat(prompts)
    expected = reference_logits(reference, text)
    torch.testing.assert_close(packed_logits(model, [text])[0], expected, atol=1e-3, rtol=0)
    torch.testing.assert_close(paged_logits(model, text, (64, 1, 33), 16), expected, atol=1e-3, rtol=0)


@pytest.fixture(scope="module")
def texts(model: Transformer, prompts: list[Tensor]) -> list[Tensor]:
    """Each prompt with what the model says next."""
    return greedy(model, prompts, NEW_TOKENS)


def test_greedy_tokens_are_those_of_transformers(reference: Any, prompts: list[Tensor], texts: list[Tensor]) -> None:
    """`transformers` picks the same token after every prefix of the text, so it would have written the same text."""
    for prompt, text in zip(prompts, texts, strict=True):
        scores = reference_logits(reference, text[:-1])[len(prompt) - 1 :]
        picked = scores.gather(1, text[len(prompt) :].unsqueeze(1)).squeeze(1)
        gap = scores.amax(1) - picked
        assert len(gap) == NEW_TOKENS
        # Zero where the picks agree; two tokens closer than the arithmetic's own error may change places.
        assert gap.max() < 1e-3


@pytest.mark.skipif(machine().kernels is None, reason="no native kernels in this installation")
def test_native_kernels_choose_the_same_tokens(default_gguf: Path, prompts: list[Tensor], texts: list[Tensor]) -> None:
    """The same weights in few bits, activations in int8, keys in bfloat16: at least 97 % of 20 x 64 best tokens."""
    packed = load_model(default_gguf, packed=True)
    assert packed.packed
    lengths = [len(text) - 1 for text in texts]
    blocks = [-(-length // 16) for length in lengths]
    cache = PagedCache(
        [range(CONFIG.n_layers)],
        [sum(blocks)],
        block_size=16,
        n_kv_heads=CONFIG.n_kv_heads,
        head_dim=CONFIG.head_dim,
        dtype=packed.cache_dtype,
    )
    tables = [BlockTable(0, tuple(range(sum(blocks[:n]), sum(blocks[: n + 1])))) for n in range(len(texts))]
    with torch.inference_mode():
        step = PagedContext(cache, lengths, [0] * len(texts), [tables])
        picks = packed(torch.cat([text[:-1] for text in texts]), step).argmax(-1).split(lengths)
    same = sum(
        int((pick[len(prompt) - 1 :] == text[len(prompt) :]).sum())
        for prompt, text, pick in zip(prompts, texts, picks, strict=True)
    )
    assert same >= 0.97 * len(prompts) * NEW_TOKENS
