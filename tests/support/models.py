"""Tiny random models and a tokenizer of bytes, for tests that need no real weights."""

from collections.abc import Sequence
from typing import Any

import torch

from cierzo.engine import Engine, SamplingParams
from cierzo.engine import Sequence as EngineSequence
from cierzo.model import ModelConfig, Transformer
from cierzo.ops import Format, PackedContext, quantize
from cierzo.tokens import ChatError, Message
from cierzo.weights.load import is_matrix


def tiny_config(**changes: Any) -> ModelConfig:
    shape: dict[str, Any] = {
        "dim": 24, "n_layers": 2, "head_dim": 8, "hidden_dim": 40, "n_heads": 4, "n_kv_heads": 2, "vocab_size": 260,
        "max_seq_len": 4096,
    }  # fmt: skip
    return ModelConfig(**(shape | changes))


def tiny_model(config: ModelConfig, seed: int = 0) -> Transformer:
    """Random weights, large enough that every token counts in every later score."""
    torch.manual_seed(seed)
    model = Transformer(config)
    for name, parameter in model.named_parameters():
        if "norm" not in name:
            torch.nn.init.normal_(parameter, std=1.5 * parameter.shape[-1] ** -0.5)
    return model.requires_grad_(False).eval()


def packed_model(config: ModelConfig, format: Format) -> Transformer:
    """As `tiny_model`, its matrices in few bits: native kernels compute it."""
    model = tiny_model(config)
    for name, parameter in list(model.named_parameters()):
        if is_matrix(name, tuple(parameter.shape)):
            owner, _, attribute = name.rpartition(".")
            module = model.get_submodule(owner)
            delattr(module, attribute)
            setattr(module, attribute, quantize(parameter, format))
    return model


def tiny_engine(config: ModelConfig, **options: Any) -> Engine:
    settings: dict[str, Any] = {"max_seq_len": config.max_seq_len, "cache_tokens": config.max_seq_len}
    return Engine(tiny_model(config), ByteTokenizer(), **(settings | options))


def queue(engine: Engine, prompt: list[int], params: SamplingParams, **options: Any) -> EngineSequence:
    """A sequence that further steps answer."""
    return engine.add(engine.prepare(prompt, params, **options))


def recomputed_logits(model: Transformer, ids: Sequence[int]) -> torch.Tensor:
    """Scores [len(ids), V] of the whole text at once, without a cache."""
    with torch.inference_mode():
        logits: torch.Tensor = model(torch.tensor(ids), PackedContext([len(ids)]))
        return logits


class ByteTokenizer:
    """A token a byte; 256 begins a text, 257 ends an answer, 258 and 259 are control tokens without a text."""

    vocab_size = 260
    bos_id = 256
    stop_ids = frozenset({257})
    adds_leading_space = False
    chat_refusal = None
    tool_format = None

    def encode(self, text: str, *, bos: bool = False) -> list[int]:
        return [256] * bos + list(text.encode())

    def token_bytes(self, token: int) -> bytes:
        return bytes([token]) if token < 256 else b""

    def encode_chat(self, messages: Sequence[Message], tools: Sequence[dict[str, Any]] | None = None) -> list[int]:
        if tools:
            raise ChatError("no tools")
        return [t for m in messages for t in [256, *m["content"].encode(), 258]]
