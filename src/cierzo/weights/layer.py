"""One layer of a model by itself, on whole texts: what calibration looks at."""

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from cierzo.model import ModelConfig
from cierzo.ops import Expert, PackedContext, reference
from cierzo.weights.gptq import Moments
from cierzo.weights.load import checked_finite, is_matrix
from cierzo.weights.source import WeightSource

_ELSEWHERE = 0.1
"""What a token counts at least for an expert that it does not go to: an expert may see few tokens of a short text."""

Weights = dict[str, Tensor]
"""A layer's, by their names inside it: `attention.wq.weight`."""


def load_layer(source: WeightSource, number: int) -> Weights:
    """A layer's weights, float32."""
    prefix = f"layers.{number}."
    return {
        name.removeprefix(prefix): checked_finite(source, name).float()
        for name in source.shapes
        if name.startswith(prefix)
    }


class Layer:
    """One layer in float32, run on whole texts, that tells what enters each of its matrices."""

    def __init__(self, config: ModelConfig, number: int, weights: Weights) -> None:
        self.config, self.number, self.weights = config, number, weights
        self.matrices = [name for name, tensor in weights.items() if is_matrix(name, tuple(tensor.shape))]
        self.experts = [""] if config.moe is None else [f"experts.{e}." for e in range(config.moe.num_experts)]

    def full(self, name: str) -> str:
        return f"layers.{self.number}.{name}"

    def normed(self, x: Tensor, norm: str) -> Tensor:
        return reference.rms_norm(x, self.weights[f"{norm}.weight"], self.config.norm_eps)

    def mixed(self, x: Tensor) -> Tensor:
        """What attention gives to the output projection."""
        config, w, context = self.config, self.weights, PackedContext([len(x)])
        q, kv = reference.project_qkv(
            x, w["attention_norm.weight"], *(w[f"attention.w{n}.weight"] for n in "qkv"), eps=config.norm_eps,
            rotation=reference.rotation(context.positions, config.head_dim, config.rope_theta),
            context=context, layer=self.number,
        )  # fmt: skip
        return reference.attend(q, kv, window=config.windows[self.number], context=context, layer=self.number)

    def attended(self, x: Tensor) -> Tensor:
        return reference.project_out(self.mixed(x), self.weights["attention.wo.weight"], x)

    def hidden(self, x: Tensor, expert: str = "") -> Tensor:
        """What gate and up give to the down projection of a feed-forward, for x after attention."""
        w1, w3 = (self.weights[f"feed_forward.{expert}w{n}.weight"] for n in (1, 3))
        return reference.gate_up(x, self.weights["ffn_norm.weight"], w1, w3, eps=self.config.norm_eps)

    def shares(self, x: Tensor) -> Tensor:
        """What each token of x after attention counts for each feed-forward [T, experts]: the router's weight, or 1."""
        if self.config.moe is None:
            return torch.ones(len(x), 1)
        h, gate = self.normed(x, "ffn_norm"), self.weights["feed_forward.gate.weight"]
        weights, picks = reference.routed(h, gate, self.config.moe.num_experts_per_tok)
        return torch.zeros(len(x), len(self.experts)).scatter_(1, picks, weights).clamp_(min=_ELSEWHERE)

    def fed(self, x: Tensor) -> Tensor:
        """What the layer leaves, for x after attention."""
        if self.config.moe is None:
            return reference.down(self.hidden(x), self.weights["feed_forward.w2.weight"], x)
        experts = [
            Expert(*(self.weights[f"feed_forward.{expert}w{n}.weight"] for n in (1, 2, 3))) for expert in self.experts
        ]
        return reference.mixture(
            x, self.weights["ffn_norm.weight"], self.weights["feed_forward.gate.weight"], experts,
            chosen=self.config.moe.num_experts_per_tok, eps=self.config.norm_eps,
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return self.fed(self.attended(x))

    def stages(self, states: list[Tensor]) -> Iterator[tuple[list[str], Moments]]:
        """Matrices with the moments of their inputs; those of one stage are to be rounded before the next is asked for.

        In the end `states` are what the layer leaves.
        """
        config, w = self.config, self.weights
        normed = (self.normed(x, "attention_norm") for x in states)
        yield [f"attention.w{n}.weight" for n in "qkv"], moments(config.dim, normed)
        mixed = [self.mixed(x) for x in states]
        yield ["attention.wo.weight"], moments(config.n_heads * config.head_dim, mixed)
        for index, x in enumerate(states):
            states[index] = reference.project_out(mixed[index], w["attention.wo.weight"], x)
        del mixed
        shares = [self.shares(x) for x in states]
        for number, expert in enumerate(self.experts):
            counts = [share[:, number, None] for share in shares]
            normed = (self.normed(x, "ffn_norm") * count for x, count in zip(states, counts, strict=True))
            yield [f"feed_forward.{expert}w{n}.weight" for n in (1, 3)], moments(config.dim, normed)
            hidden = (self.hidden(x, expert) * count for x, count in zip(states, counts, strict=True))
            yield [f"feed_forward.{expert}w2.weight"], moments(config.hidden_dim, hidden)
        for index, x in enumerate(states):
            states[index] = self.fed(x)  # computed once more, since a 7B's hidden numbers of all texts are a gigabyte


def moments(inputs: int, xs: Iterable[Tensor]) -> Moments:
    found = Moments(inputs)
    for x in xs:
        found.add(x)
    return found
