"""Matrices in few bits: the layout is the one that is written down, and rounding is to the nearest."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cierzo.ops import GGML_GRIDS, Format, PackedMatrix, from_blocks, machine, pack, packed_shape, quantize
from cierzo.ops.coded import CODES, GROUP, SPAN, STEPS

GRIDS = [Format.Q4, Format.Q4M, Format.Q8]
FORMATS = st.sampled_from(GRIDS)
needs_kernels = pytest.mark.skipif(machine().kernels is None, reason="no native kernels in this installation")


def random_grid(format: Format, outputs: int, inputs: int) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Integers and float16 scales (and minima) of a random matrix."""
    torch.manual_seed(outputs * 1000 + inputs)
    groups = -(-inputs // GROUP)
    low, high, kind = (-128, 128, torch.int8) if format is Format.Q8 else (0, 16, torch.uint8)
    sides = [torch.randn(outputs, groups).half() for _ in range(2 if format is Format.Q4M else 1)]
    return torch.randint(low, high, (outputs, inputs), dtype=kind), sides


def plain_values(format: Format, values: torch.Tensor, sides: list[torch.Tensor]) -> torch.Tensor:
    """What the grid says, without any layout."""
    wide = [side.float().repeat_interleave(GROUP, 1)[:, : values.shape[1]] for side in sides]
    whole = values.float() - (8 if format is Format.Q4 else 0)
    return whole * wide[0] + (wide[1] if len(wide) > 1 else 0)


@given(FORMATS, st.integers(1, 70), st.integers(1, 200))
def test_packing_and_unpacking_lose_nothing(format: Format, outputs: int, inputs: int) -> None:
    values, sides = random_grid(format, outputs, inputs)
    packed = pack(format, values, *sides)
    assert packed.data.data_ptr() % 64 == 0
    assert torch.equal(packed.unpacked(), plain_values(format, values, sides))


@pytest.mark.parametrize("format", GRIDS)
def test_the_layout_is_the_documented_one(format: Format) -> None:
    """Byte for byte, by native/format.h's words."""
    values, sides = random_grid(format, 20, 130)
    packed = pack(format, values, *sides)
    for output, column in ((0, 0), (3, 31), (17, 32), (19, 63), (5, 64), (16, 129)):
        tile = packed.data[output // 16, column // 64]
        at, lane = column % 64, output % 16
        line, byte = at % 32 // 4 if format is not Format.Q8 else at // 4, at % 4
        stored = int(tile[format.header + 64 * line + 4 * lane + byte])
        expected = int(values[output, column]) % 256
        assert (stored if format is Format.Q8 else (stored >> 4 if at >= 32 else stored & 15)) == expected
        for number, side in enumerate(sides):
            start = 64 * number + 32 * (at // 32) + 2 * lane
            assert torch.equal(tile[start : start + 2].view(torch.float16)[0], side[output, column // 32])


@pytest.mark.parametrize(("format", "steps"), [(Format.Q4, 7), (Format.Q8, 127)])
def test_quantising_rounds_to_the_nearest(format: Format, steps: int) -> None:
    torch.manual_seed(0)
    weights = torch.randn(40, 96)
    weights[3] = 0
    error = (quantize(weights, format).unpacked() - weights).abs()
    limit = weights.unflatten(1, (-1, GROUP)).abs().amax(-1, keepdim=True) / steps * 0.501
    if format is Format.Q8:
        assert (error.unflatten(1, (-1, GROUP)) <= limit).all()
    relative = (error.square().sum() / weights.square().sum()).sqrt()
    assert relative < (0.09 if format is Format.Q4 else 0.006)
    assert not error[3].any()


def coded_grid(packed: PackedMatrix, output: int, column: int) -> tuple[float, int, int]:
    """Scale, step and nibble of one weight of Q4T, by native/format.h's words."""
    tiles = -(-packed.inputs // 64)
    panel, lane = packed.data[output // 16], output % 16
    scales = 32 * -(-tiles * 64 // SPAN)
    scale = panel[32 * (column // SPAN) + 2 * lane :][:2].view(torch.float16)
    steps = int(panel[scales + column // 64 * 16 + lane])
    header = -(-(scales + tiles * 16) // 64) * 64
    byte = int(panel[header + column // 64 * 512 + column % 32 // 4 * 64 + 4 * lane + column % 4])
    high = column % 64 >= 32
    return float(scale), STEPS[steps >> 4 if high else steps & 15], byte >> 4 if high else byte & 15


@needs_kernels
@pytest.mark.parametrize(("outputs", "inputs"), [(40, 576), (5, 33), (17, 1536), (1, 700)])
def test_q4t_rounds_to_the_nearest_of_its_grid(outputs: int, inputs: int) -> None:
    weights = torch.randn(outputs, inputs, generator=torch.Generator().manual_seed(inputs)) * 0.02
    weights[outputs // 2] = 0
    packed = quantize(weights, Format.Q4T)
    restored = packed.unpacked()
    codes = torch.tensor(CODES)
    for output in {0, outputs // 2, outputs - 1}:
        for column in {0, 31, 32, inputs // 2, inputs - 1}:
            scale, step, nibble = coded_grid(packed, output, column)
            assert restored[output, column] == scale * step * CODES[nibble]
            distances = (codes * step * scale - weights[output, column]).abs()
            assert distances[nibble] <= distances.min() * 1.0001
    assert not restored[outputs // 2].any() or outputs == 1


def searched_error(weights: torch.Tensor) -> float:
    """The least squared error of one span [n] over the scales that are tried first and all steps, by brute force."""
    groups = torch.nn.functional.pad(weights, (0, -len(weights) % GROUP)).view(-1, 1, GROUP, 1).double()
    grid = torch.tensor(STEPS).view(-1, 1, 1) * torch.tensor(CODES).double()  # [steps, 1, codes]
    errors = []
    for part in (1.08, 1.0, 0.94, 0.88, 0.82, 0.75):
        scale = (weights.abs().max() * part / 120).half().double()
        errors.append((groups - grid * scale).square().amin(-1).sum(-1).amin(-1).sum().item())
    return min(errors)


@needs_kernels
@pytest.mark.parametrize("heavy_tails", [False, True])
def test_q4t_finds_scales_and_steps_as_good_as_a_search_of_all(heavy_tails: bool) -> None:
    generator = torch.Generator().manual_seed(3)
    weights = torch.randn(64, 300, generator=generator)
    if heavy_tails:
        weights = weights / torch.rand(64, 300, generator=generator).clamp(min=0.05)
    found = (quantize(weights, Format.Q4T).unpacked() - weights).square().sum().item()
    best = sum(searched_error(part) for row in weights for part in row.split(SPAN))
    assert found <= best * 1.001


@needs_kernels
def test_q4t_refuses_what_float16_cannot_scale_and_keeps_tiny_weights() -> None:
    with pytest.raises(ValueError, match="not finite"):
        quantize(torch.full((3, 70), 1e8), Format.Q4T)
    tiny = quantize(torch.full((3, 70), 1e-12), Format.Q4T).unpacked()
    assert (tiny == 0).all()


@needs_kernels
def test_both_sides_know_the_same_span() -> None:
    kernels = machine().kernels
    assert kernels is not None
    assert kernels.SPAN == SPAN


def test_bits_a_weight() -> None:
    bits = {f: 8 * math.prod(packed_shape(f, 4096, 4096)) / 4096**2 for f in Format}
    assert bits == {Format.Q4: 4.5, Format.Q4M: 5, Format.Q8: 8.5, Format.Q4T: 4.2109375}


def test_what_does_not_fit_is_refused() -> None:
    values, sides = random_grid(Format.Q4, 16, 64)
    with pytest.raises(ValueError, match="needs a scale"):
        pack(Format.Q4M, values, *sides)
    with pytest.raises(ValueError, match="needs a scale"):
        pack(Format.Q4, values, sides[0][:, :1])
    with pytest.raises(ValueError, match="not finite"):
        pack(Format.Q4, values, sides[0] * torch.inf)
    with pytest.raises(ValueError, match="Q4M holds the grids of files"):
        quantize(torch.ones(2, 2), Format.Q4M)
    with pytest.raises(ValueError, match="Q4 of 17 x 64"):
        PackedMatrix(Format.Q4, 17, 64, torch.zeros(packed_shape(Format.Q4, 16, 64), dtype=torch.uint8))


@needs_kernels
@pytest.mark.parametrize(("outputs", "inputs"), [(1, 256), (37, 512), (64, 768)])
@pytest.mark.parametrize("kind", GGML_GRIDS)
def test_ggufs_blocks_are_taken_over(kind: int, outputs: int, inputs: int) -> None:
    """Against the gguf library: to the bit where the grid is ours; for Q4_K as far as float16 holds its scales."""
    import gguf

    block, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType(kind)]
    generator = np.random.default_rng(outputs)
    raw = generator.integers(0, 256, (outputs, inputs // block, size), dtype=np.uint8)
    sides = 2 if GGML_GRIDS[kind] is Format.Q4M else 1
    halves = generator.normal(size=(outputs, inputs // block, sides)).astype(np.float16)
    raw[..., : 2 * sides] = halves.view(np.uint8).reshape(outputs, -1, 2 * sides)
    expected = torch.from_numpy(gguf.dequantize(raw.reshape(outputs, -1), gguf.GGMLQuantizationType(kind)))
    packed = from_blocks(kind, torch.from_numpy(raw), outputs, inputs)
    error = (packed.unpacked() - expected).abs().max()
    assert error == 0 if block == 32 else error < 15 * 63 * 4 * 2**-11

    raw[-1, -1, 0:2] = 0, 0x7C  # an infinity
    with pytest.raises(ValueError, match="not finite"):
        from_blocks(kind, torch.from_numpy(raw), outputs, inputs)
    with pytest.raises(ValueError, match="do not fit the matrix"):
        from_blocks(kind, torch.from_numpy(raw).flatten()[:-1], outputs, inputs)
