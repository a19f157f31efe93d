"""What attention may see, and that training can go through it."""

from math import cos, sin

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cierzo.model import ModelConfig, MoeConfig
from cierzo.ops import PackedContext, Window
from cierzo.ops.reference import attend, rms_norm, rotate, rotation
from support.models import tiny_config, tiny_model


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 24), st.integers(1, 6), st.integers(1, 3), st.sampled_from([1, 2, 4]))
def test_attention_equals_a_plain_loop(length: int, size: int, dilation: int, n_kv_heads: int) -> None:
    torch.manual_seed(length)
    q, k, v = torch.randn(length, 4, 6), torch.randn(length, n_kv_heads, 6), torch.randn(length, n_kv_heads, 6)
    context = PackedContext([length])
    window = Window(size, dilation)
    got = attend(q, context.store(0, k, v), window=window, context=context, layer=0).view(length, 4, 6)
    for i in range(length):
        seen = list(range(i, -1, -dilation))[:size]
        for head in range(4):
            group = head // (4 // n_kv_heads)
            weights = (k[seen, group] @ q[i, head] / 6**0.5).softmax(0)
            torch.testing.assert_close(got[i, head], weights @ v[seen, group], atol=1e-5, rtol=1e-5)


def test_rotation_of_adjacent_pairs() -> None:
    angles = rotation(torch.tensor([0, 3]), 4, 100.0)
    x = torch.tensor([[[1.0, 0.0, 1.0, 0.0]]] * 2)
    expected = torch.tensor([[1.0, 0.0, 1.0, 0.0], [cos(3), sin(3), cos(0.3), sin(0.3)]])
    torch.testing.assert_close(rotate(x, angles)[:, 0], expected)


def test_rms_norm_has_unit_mean_square() -> None:
    x = torch.randn(3, 50) * torch.tensor([1e-2, 1.0, 1e3]).unsqueeze(1)
    normed = rms_norm(x, torch.ones(50), 1e-12)
    torch.testing.assert_close(normed.square().mean(-1), torch.ones(3))


@pytest.mark.parametrize(
    "config",
    [
        tiny_config(),
        tiny_config(sliding_window=3),
        tiny_config(sliding_window=(3, None), window_dilation=(2, 1)),
        tiny_config(moe=MoeConfig(4, 2), tied_embeddings=True),
    ],
    ids=["full", "sliding", "mixed", "experts"],
)
def test_packed_documents_do_not_see_each_other_and_are_differentiable(config: ModelConfig) -> None:
    """Logits and gradients of documents packed into one step equal those of each alone."""
    model = tiny_model(config).requires_grad_(True)
    documents = [torch.randint(0, 256, (n,), generator=torch.Generator().manual_seed(n)) for n in (7, 1, 12)]

    packed = model(torch.cat(documents), PackedContext([len(d) for d in documents]))
    packed.square().mean(-1).sum().backward()
    together = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    alone = [model(d, PackedContext([len(d)])) for d in documents]
    torch.cat(alone).square().mean(-1).sum().backward()

    torch.testing.assert_close(packed, torch.cat(alone), atol=1e-4, rtol=1e-4)
    assert len(together) == len(list(model.parameters()))
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(together[name], parameter.grad, atol=2e-3, rtol=1e-3)
        assert together[name].abs().max() > 0, f"{name} learns nothing"


def test_bfloat16_follows_float32() -> None:
    config = tiny_config()
    ids = torch.randint(0, 256, (40,), generator=torch.Generator().manual_seed(0))
    wide = tiny_model(config)(ids, PackedContext([40])).softmax(-1)
    narrow = tiny_model(config).bfloat16()(ids, PackedContext([40])).softmax(-1)
    assert (wide - narrow).abs().max() < 0.1
