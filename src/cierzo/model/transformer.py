"""The one model: Mistral 7B's decoder (arXiv:2310.06825, section 2), and Llama's and Mixtral's with it.

Parameters carry the consolidated checkpoint's names (`layers.0.attention.wq.weight`), so `state_dict()` is that
checkpoint. `forward` runs over the flat tokens of one step; the `AttentionContext` says whose they are and where keys
and values are kept, so training, evaluation and serving run the same code.
"""

from dataclasses import replace
from functools import cached_property

import torch
from torch import Tensor, nn

from cierzo import ops
from cierzo.model.config import ModelConfig, MoeConfig
from cierzo.ops import AttentionContext, Expert, LayerWeights, PackedMatrix, PagedContext, Rotation


def _linear(inputs: int, outputs: int) -> nn.Linear:
    return nn.Linear(inputs, outputs, bias=False)


class RMSNorm(nn.Module):
    """The scale of a norm; the operation that needs the normed values applies it."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))


class Embedding(nn.Module):
    """A row of width dim for every token. (`nn.Embedding` would draw random numbers, 0.5-2 s on the meta device.)"""

    def __init__(self, vocab_size: int, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(vocab_size, dim))


class Attention(nn.Module):
    """Grouped-query attention; multi-head when n_kv_heads = n_heads, multi-query when it is 1."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.layer, self.window, self.eps = layer, config.windows[layer], config.norm_eps
        self.wq = _linear(config.dim, config.n_heads * config.head_dim)
        self.wk = _linear(config.dim, config.n_kv_heads * config.head_dim)
        self.wv = _linear(config.dim, config.n_kv_heads * config.head_dim)
        self.wo = _linear(config.n_heads * config.head_dim, config.dim)

    def forward(self, x: Tensor, norm: Tensor, rotation: Rotation, context: AttentionContext) -> Tensor:
        q, kv = ops.project_qkv(
            x, norm, self.wq.weight, self.wk.weight, self.wv.weight,
            eps=self.eps, rotation=rotation, context=context, layer=self.layer,
        )  # fmt: skip
        mixed = ops.attend(q, kv, window=self.window, context=context, layer=self.layer)
        return ops.project_out(mixed, self.wo.weight, x)


class FeedForward(nn.Module):
    """SwiGLU: w1 is the gate, w3 goes up, w2 comes down."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.eps = config.norm_eps
        self.w1 = _linear(config.dim, config.hidden_dim)
        self.w2 = _linear(config.hidden_dim, config.dim)
        self.w3 = _linear(config.dim, config.hidden_dim)

    def forward(self, x: Tensor, norm: Tensor) -> Tensor:
        return ops.down(ops.gate_up(x, norm, self.w1.weight, self.w3.weight, eps=self.eps), self.w2.weight, x)


class MixtureOfExperts(nn.Module):
    """Mixtral's feed-forward: a router and experts of which each token uses a few."""

    def __init__(self, config: ModelConfig, moe: MoeConfig) -> None:
        super().__init__()
        self.eps, self.chosen = config.norm_eps, moe.num_experts_per_tok
        self.gate = _linear(config.dim, moe.num_experts)
        self.experts = nn.ModuleList(FeedForward(config) for _ in range(moe.num_experts))

    def forward(self, x: Tensor, norm: Tensor) -> Tensor:
        experts = [Expert(e.w1.weight, e.w2.weight, e.w3.weight) for e in self.experts]  # type: ignore[union-attr, arg-type]
        return ops.mixture(x, norm, self.gate.weight, experts, chosen=self.chosen, eps=self.eps)


class TransformerBlock(nn.Module):
    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.attention = Attention(config, layer)
        self.attention_norm = RMSNorm(config.dim)
        self.feed_forward = MixtureOfExperts(config, config.moe) if config.moe else FeedForward(config)
        self.ffn_norm = RMSNorm(config.dim)

    def weights(self) -> LayerWeights:
        """Of a dense layer."""
        a, f = self.attention, self.feed_forward
        assert isinstance(f, FeedForward)
        return LayerWeights(
            self.attention_norm.weight, a.wq.weight, a.wk.weight, a.wv.weight, a.wo.weight,
            self.ffn_norm.weight, f.w1.weight, f.w2.weight, f.w3.weight, a.window,
        )  # fmt: skip

    def forward(self, x: Tensor, rotation: Rotation, context: AttentionContext) -> Tensor:
        x = self.attention(x, self.attention_norm.weight, rotation, context)
        fed: Tensor = self.feed_forward(x, self.ffn_norm.weight)
        return fed


class Transformer(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.tok_embeddings = Embedding(config.vocab_size, config.dim)
        self.layers = nn.ModuleList(TransformerBlock(config, i) for i in range(config.n_layers))
        self.norm = RMSNorm(config.dim)
        self.output = None if config.tied_embeddings else _linear(config.dim, config.vocab_size)

    @classmethod
    def without_weights(cls, config: ModelConfig) -> "Transformer":
        """The structure on the meta device: no memory until weights are assigned."""
        with torch.device("meta"):
            return cls(config)

    def look_back(self, sliding_window: int | None) -> None:
        """Give all layers another window, in tokens (None: none); before an engine is made of the model."""
        self.config = replace(self.config, sliding_window=sliding_window, window_dilation=1)
        self.__dict__.pop("_dense", None)
        for layer, window in zip(self.layers, self.config.windows, strict=True):
            layer.attention.window = window  # type: ignore[union-attr]

    @property
    def packed(self) -> bool:
        """Whether the matrices are in few bits, which native kernels compute with."""
        return isinstance(self.tok_embeddings.weight, PackedMatrix)

    @property
    def cache_dtype(self) -> torch.dtype:
        """Type to keep keys and values in: the weights' own, bfloat16 for packed ones."""
        return torch.bfloat16 if self.packed else self.norm.weight.dtype

    def hidden(self, tokens: Tensor, context: AttentionContext) -> Tensor:
        """What the last layer leaves for every token: [T] -> [T, dim], before the final norm."""
        rotation = ops.rotation(context.positions, self.config.head_dim, self.config.rope_theta)
        x = ops.embed(tokens, self.tok_embeddings.weight)
        if self._dense and isinstance(context, PagedContext) and ops.runs_layers(self._dense, context):
            return ops.run_layers(
                x,
                self._dense,
                n_heads=self.config.n_heads,
                eps=self.config.norm_eps,
                rotation=rotation,
                context=context,
            )
        for layer in self.layers:
            x = layer(x, rotation, context)
        return x

    @cached_property
    def _dense(self) -> list[LayerWeights]:
        """The layers' weights, for kernels that take all layers at once; none unless they are packed and dense."""
        if not self.packed or self.config.moe:
            return []
        return [layer.weights() for layer in self.layers]  # type: ignore[operator]

    def normed(self, hidden: Tensor) -> Tensor:
        """The final norm of `hidden` [T, dim]: what embeddings are made of."""
        return ops.rms_norm(hidden, self.norm.weight, self.config.norm_eps)

    def scores(self, hidden: Tensor, rows: Tensor | None = None) -> Tensor:
        """Float32 scores of the next token, [T, dim] -> [R, vocab_size], of the chosen rows [R] (all when None)."""
        head = self.tok_embeddings if self.output is None else self.output
        return ops.logits(hidden, self.norm.weight, head.weight, rows, eps=self.config.norm_eps)

    def forward(self, tokens: Tensor, context: AttentionContext, rows: Tensor | None = None) -> Tensor:
        """Float32 scores of the next token, [T] -> [R, vocab_size], for the chosen flat rows [R] (all when None)."""
        return self.scores(self.hidden(tokens, context), rows)
