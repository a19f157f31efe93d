"""An encoder's layers in one call: right against plain code over the same 8-bit products, the same on every set."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from cierzo.ops import EncoderLayers, EncoderWeights, Format, PackedMatrix, native
from support.kernels import FORMATS, needs_kernels, on_every_isa, random_matrix

pytestmark = needs_kernels
EPS = 1e-12


def random_layers(format: Format, n_heads: int, head_dim: int, hidden: int, count: int) -> list[EncoderWeights]:
    dim = n_heads * head_dim

    def matrix(outputs: int, inputs: int) -> PackedMatrix:
        return random_matrix(format, outputs, inputs)

    def norm() -> Tensor:
        return torch.stack([torch.rand(dim) + 0.5, torch.randn(dim)])

    def layer() -> EncoderWeights:
        qkv, out, up, down = matrix(3 * dim, dim), matrix(dim, dim), matrix(hidden, dim), matrix(dim, hidden)
        biases = [torch.randn(each.outputs) for each in (qkv, out, up, down)]
        return EncoderWeights(qkv, biases[0], out, biases[1], up, biases[2], down, biases[3], norm(), norm())

    return [layer() for _ in range(count)]


def plain(layers: list[EncoderWeights], x: Tensor, n_heads: int) -> Tensor:
    """PyTorch's norms, attention and GELU between the kernels' products, which tests of their own check."""
    means = []
    for w in layers:

        def biased(x: Tensor, matrix: PackedMatrix, bias: Tensor) -> Tensor:
            return native.project_out(x.contiguous(), matrix, bias.repeat(len(x), 1))

        def normed(x: Tensor, norm: Tensor) -> Tensor:
            return F.layer_norm(x, x.shape[-1:], norm[0], norm[1], EPS)

        q, k, v = (p.unflatten(1, (n_heads, -1)).transpose(0, 1) for p in biased(x, w.qkv, w.qkv_bias).chunk(3, -1))
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(0, 1).flatten(1)
        x = normed(x + biased(mixed, w.out, w.out_bias), w.attention_norm)
        x = normed(x + biased(F.gelu(biased(x, w.up, w.up_bias)), w.down, w.down_bias), w.ffn_norm)
        means.append(x.mean(0))
    return torch.stack(means)


@settings(deadline=None, max_examples=40)
@given(FORMATS, st.integers(1, 5), st.integers(1, 40), st.integers(1, 200), st.integers(1, 200))
def test_a_layer_is_that_of_plain_code(format: Format, n_heads: int, head_dim: int, hidden: int, tokens: int) -> None:
    layers = random_layers(format, n_heads, head_dim, hidden, 1)
    x = torch.randn(tokens, n_heads * head_dim)
    handle = EncoderLayers(layers, n_heads=n_heads, eps=EPS)
    got = on_every_isa(lambda: handle.means(x.clone()))
    expected = plain(layers, x, n_heads)
    # Rounding to 8 bits may go the other way where a sum differs in its last bit.
    assert (got - expected).abs().max() < 0.05 + 0.02 * expected.abs().max()
    assert (got - expected).abs().mean() < 2e-3 * (1 + expected.abs().mean())


def test_the_next_layer_takes_what_one_made_and_threads_change_nothing(isa: str, threads: int) -> None:
    layers = random_layers(Format.Q8, 3, 32, 128, 3)
    x = torch.randn(90, 96)
    given_x = x.clone()
    got = EncoderLayers(layers, n_heads=3, eps=EPS).means(given_x)
    assert got.shape == (3, 96)
    torch.testing.assert_close(given_x.mean(0), got[-1], atol=1e-5, rtol=1e-5)
    for number in range(3):
        assert torch.equal(EncoderLayers(layers[: number + 1], n_heads=3, eps=EPS).means(x.clone()), got[: number + 1])


def test_texts_longer_than_a_chunk_of_keys() -> None:
    layers = random_layers(Format.Q8, 2, 16, 64, 1)
    x = torch.randn(1100, 32)
    got = EncoderLayers(layers, n_heads=2, eps=EPS).means(x.clone())
    torch.testing.assert_close(got, plain(layers, x, 2), atol=1e-3, rtol=1e-3)


def test_what_does_not_fit_is_refused() -> None:
    good, other = random_layers(Format.Q8, 2, 16, 64, 1)[0], random_layers(Format.Q8, 2, 16, 96, 1)[0]
    with pytest.raises(ValueError, match="matrices of a layer"):
        EncoderLayers([good._replace(down=other.down)], n_heads=2, eps=EPS)
    with pytest.raises(ValueError, match="matrices of a layer"):
        EncoderLayers([good], n_heads=3, eps=EPS)
    with pytest.raises(ValueError, match="layers do not fit"):
        EncoderLayers([good, other], n_heads=2, eps=EPS)
    with pytest.raises(ValueError, match="float32"):
        EncoderLayers([good._replace(up_bias=torch.randn(63))], n_heads=2, eps=EPS)
    with pytest.raises(ValueError, match="heads do not fit"):
        EncoderLayers([good], n_heads=0, eps=EPS)
    with pytest.raises(ValueError, match="reads something"):
        EncoderLayers([good], n_heads=2, eps=EPS).means(torch.empty(0, 32))
    with pytest.raises(ValueError, match="float32"):
        EncoderLayers([good], n_heads=2, eps=EPS).means(torch.randn(4, 33))
