"""What is done to the scores of the next token before one is drawn, and what is told of it."""

import math
import random
from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor

from cierzo.engine.request import SamplingParams, TokenLogprob
from cierzo.errors import NOT_FINITE, EngineError
from cierzo.ops import Draw


def token_logprobs(logits: Tensor, tokens: Sequence[int], top: int, others: Sequence[int] = ()) -> list[TokenLogprob]:
    """The model's own log-probabilities, from scores [n, V]: of each row's token, and of `others` or the `top` best.

    Raises:
        EngineError: one of them is not finite. One score that is not makes all of its row so.
    """
    logprobs = logits.log_softmax(-1)
    of_tokens = logprobs.gather(1, torch.tensor(tokens, dtype=torch.int64, device=logits.device).unsqueeze(1))
    if others:
        ids = torch.tensor(others, dtype=torch.int64, device=logits.device).expand(len(logits), -1)
        values = logprobs.gather(1, ids)
    else:
        values, ids = logprobs.topk(min(top, logprobs.shape[1])) if top else (logprobs[:, :0], logprobs[:, :0].long())
    best = [tuple(zip(*row, strict=True)) for row in zip(ids.tolist(), values.tolist(), strict=True)]
    found = [TokenLogprob(*three) for three in zip(tokens, of_tokens.flatten().tolist(), best, strict=True)]
    if not all(math.isfinite(value) for one in found for value in (one.logprob, *(value for _, value in one.top))):
        raise EngineError(NOT_FINITE)
    return found


def adjusted(logits: Tensor, params: SamplingParams, ids: Sequence[int], n_prompt: int) -> Tensor:
    """Scores [V] after logit bias and the three penalties; the answer so far is `ids[n_prompt:]`."""
    scores = logits
    if params.logit_bias:
        biased = torch.tensor(list(params.logit_bias), device=logits.device)
        values = torch.tensor(list(params.logit_bias.values()), dtype=logits.dtype, device=logits.device)
        scores = scores.index_add(0, biased, values)
    if params.repetition_penalty != 1:
        seen = torch.tensor(list(set(ids)), device=logits.device)
        old = scores[seen]
        factor = params.repetition_penalty
        scores = scores.index_copy(0, seen, torch.where(old > 0, old / factor, old * factor))
    if len(ids) > n_prompt and (params.presence_penalty or params.frequency_penalty):
        times = Counter(ids[n_prompt:])
        said, counts = (torch.tensor(list(each), device=logits.device) for each in (times.keys(), times.values()))
        scores = scores.index_add(0, said, -(params.presence_penalty + params.frequency_penalty * counts).to(scores))
    return scores


def draw_of(
    logits: Tensor,
    params: SamplingParams,
    ids: Sequence[int],
    n_prompt: int,
    generator: random.Random,
    allowed: Tensor | None = None,
) -> Draw:
    """What `ops.sample` needs to choose the next token for scores [V]; takes one number from the generator."""
    scores = adjusted(logits, params, ids, n_prompt)
    draw = generator.random() if params.temperature else 0.0
    # Much below this, float32 has only zero, which means something else; the best token is as sure as it can be here.
    temperature = max(params.temperature, 1e-30) if params.temperature else 0.0
    return Draw(scores, temperature, params.top_k, params.top_p, params.min_p, draw, allowed)
