"""From the scores of the next token to a token."""

from collections.abc import Sequence

import torch
from torch import Tensor

from cierzo.engine.request import SamplingParams, TokenLogprob


def token_logprobs(logits: Tensor, tokens: Sequence[int], top: int) -> list[TokenLogprob]:
    """The model's own log-probabilities, from scores [n, V]: of each row's token, and of the `top` best there."""
    logprobs = logits.log_softmax(-1)
    of_tokens = logprobs.gather(1, torch.tensor(tokens, dtype=torch.int64, device=logits.device).unsqueeze(1))
    values, ids = logprobs.topk(min(top, logprobs.shape[1])) if top else (logprobs[:, :0], logprobs[:, :0].long())
    best = [tuple(zip(*row, strict=True)) for row in zip(ids.tolist(), values.tolist(), strict=True)]
    return [TokenLogprob(*three) for three in zip(tokens, of_tokens.flatten().tolist(), best, strict=True)]


def adjusted(logits: Tensor, params: SamplingParams, ids: Sequence[int], n_prompt: int) -> Tensor:
    """Scores [V] after logit bias and the three penalties; the answer so far is `ids[n_prompt:]`."""
    scores = logits
    if params.logit_bias:
        biased = torch.tensor(list(params.logit_bias), device=logits.device)
        values = torch.tensor(list(params.logit_bias.values()), dtype=logits.dtype, device=logits.device)
        scores = scores.index_add(0, biased, values)
    if params.repetition_penalty != 1:
        seen = torch.tensor(ids, device=logits.device).unique()
        old = scores[seen]
        factor = params.repetition_penalty
        scores = scores.index_copy(0, seen, torch.where(old > 0, old / factor, old * factor))
    if len(ids) > n_prompt and (params.presence_penalty or params.frequency_penalty):
        said, counts = torch.tensor(ids[n_prompt:], device=logits.device).unique(return_counts=True)
        scores = scores.index_add(0, said, -(params.presence_penalty + params.frequency_penalty * counts).to(scores))
    return scores


def distribution(scores: Tensor, params: SamplingParams) -> Tensor:
    """Probabilities [V], float64, after temperature (above 0), top-k, top-p and min-p."""
    scores = scores.double() / params.temperature
    if 0 < params.top_k < scores.numel():
        kept = torch.full_like(scores, -torch.inf)
        values, ids = scores.topk(params.top_k)
        scores = kept.index_copy(0, ids, values)
    probabilities = scores.softmax(-1)
    if params.top_p < 1:
        ordered, ids = probabilities.sort(descending=True, stable=True)
        before = ordered.cumsum(0) - ordered  # a token stays while the better ones have not reached top_p
        ordered[before >= params.top_p] = 0
        probabilities = torch.zeros_like(probabilities).index_copy(0, ids, ordered)
    if params.min_p:
        probabilities = probabilities * (probabilities >= params.min_p * probabilities.max())
    return probabilities / probabilities.sum()


def choose(
    logits: Tensor,
    params: SamplingParams,
    ids: Sequence[int],
    n_prompt: int,
    generator: torch.Generator,
    allowed: Tensor | None = None,
) -> int:
    """The next token for scores [V], of those `allowed` [V]. Draws one number unless the temperature is 0."""
    scores = adjusted(logits, params, ids, n_prompt)
    if allowed is not None:
        scores = scores.masked_fill(~allowed.to(scores.device), -torch.inf)
    if params.temperature == 0:
        return int(scores.argmax())
    cumulative = distribution(scores, params).cumsum(0)
    draw = torch.rand((), dtype=torch.float64, generator=generator).to(cumulative.device)
    # right=True passes over tokens of probability 0, whose cumulative sum repeats the one before.
    return int(torch.searchsorted(cumulative, draw * cumulative[-1], right=True))
