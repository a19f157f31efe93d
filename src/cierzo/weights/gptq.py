"""Rounding a matrix so that what it computes changes least, not each of its numbers (GPTQ, arXiv:2210.17323).

A matrix W [outputs, inputs] is used on inputs x whose second moments are H = sum x x^T. Its columns are rounded one
after the other; what a column loses is made up for by those that are not rounded yet, as far as H says that they can.
"""

from typing import Protocol

import torch
from torch import Tensor

from cierzo.ops import Format, PackedMatrix, pack

_DAMPING = 0.01  # of the mean of H's diagonal
_COLUMNS = 128  # between updates of the rest of the matrix
_WIDEST = 4096  # inputs that are taken together; H of more would not fit into memory beside the model


class Grid(Protocol):
    """The values that a format can hold: a scale of its own for each output and `span` inputs."""

    format: Format
    span: int

    def fit(self, weights: Tensor, importance: Tensor) -> Tensor:
        """Scales [outputs] for weights [outputs, span or fewer]; errors of an input count by its importance [span]."""
        ...

    def codes(self, values: Tensor, scale: Tensor) -> Tensor:
        """Integers [outputs, ...] of the nearest values on the grid."""
        ...

    def values(self, codes: Tensor, scale: Tensor) -> Tensor:
        """What integers stand for, float32."""
        ...

    def packed(self, codes: Tensor, scales: Tensor) -> PackedMatrix:
        """The matrix of integers [outputs, inputs] and scales [outputs, spans]."""
        ...


class Uniform:
    """Grids with even steps: Q4 (scale x -8..7, of either sign) and Q8 (scale x -127..127)."""

    span = 32

    def __init__(self, format: Format) -> None:
        self.format = format
        self.low, self.high = (-8, 7) if format is Format.Q4 else (-127, 127)
        # Steps that the largest value may take: in 4 bits, one that cuts it off a little often fits the rest better.
        fits_all = (-8.0, -8.5, -7.5, -9.0, -7.0, -9.5, -6.5, -6.0, 7.0, 6.5, 7.5, 6.0)
        self.steps = fits_all if format is Format.Q4 else (-127.0,)

    def fit(self, weights: Tensor, importance: Tensor) -> Tensor:
        peak = weights.gather(-1, weights.abs().argmax(-1, keepdim=True)).squeeze(-1)
        best, least = torch.zeros_like(peak), torch.full_like(peak, torch.inf)
        for step in self.steps:
            scale = (peak / step).half().float()
            lost = self.values(self.codes(weights, scale), scale).sub_(weights).square_().mul_(importance).sum(-1)
            better = lost < least
            best, least = torch.where(better, scale, best), torch.where(better, lost, least)
        return best

    def codes(self, values: Tensor, scale: Tensor) -> Tensor:
        inverse = torch.where(scale == 0, 0, 1 / scale)
        return (values * _beside(inverse, values)).round_().clamp_(self.low, self.high)

    def values(self, codes: Tensor, scale: Tensor) -> Tensor:
        return codes * _beside(scale, codes)

    def packed(self, codes: Tensor, scales: Tensor) -> PackedMatrix:
        whole = (codes + 8).to(torch.uint8) if self.format is Format.Q4 else codes.to(torch.int8)
        return pack(self.format, whole, scales)


def _beside(scale: Tensor, values: Tensor) -> Tensor:
    return scale if values.ndim == 1 else scale.unsqueeze(-1)


def grid(format: Format) -> Grid:
    """The grid of a format. Raises ValueError for formats that only hold what came with a file."""
    if format not in (Format.Q4, Format.Q8):
        raise ValueError(f"{format.name} has no grid to round to")
    return Uniform(format)


def blocks(inputs: int) -> list[slice]:
    """The inputs that are taken together: all, or about equal parts, at multiples of 64."""
    parts = -(-inputs // _WIDEST)
    width = -(-inputs // parts // 64) * 64
    return [slice(start, min(start + width, inputs)) for start in range(0, inputs, width)]


class Moments:
    """Second moments of a matrix's inputs, in blocks: H of each."""

    def __init__(self, inputs: int) -> None:
        self.blocks = blocks(inputs)
        self.sums = [torch.zeros(part.stop - part.start, part.stop - part.start) for part in self.blocks]

    def add(self, x: Tensor) -> None:
        """Inputs x [T, inputs]."""
        for part, total in zip(self.blocks, self.sums, strict=True):
            some = x[:, part]
            total.addmm_(some.T, some)

    @property
    def diagonal(self) -> Tensor:
        return torch.cat([total.diagonal() for total in self.sums])


def round_matrix(weights: Tensor, to: Grid, moments: Moments, *, correct: bool = True) -> PackedMatrix:
    """Weights [outputs, inputs] on a grid, for inputs with these moments; without `correct` each is rounded alone."""
    left = weights.float().clone()
    outputs, inputs = left.shape
    codes = torch.empty(outputs, inputs)
    scales = torch.empty(outputs, -(-inputs // to.span))
    for part, moment in zip(moments.blocks, moments.sums, strict=True):
        factor = _factor(moment) if correct else torch.eye(len(moment))
        _round_block(left[:, part], codes[:, part], scales, part.start // to.span, to, moment.diagonal(), factor)
    return to.packed(codes, scales)


def _round_block(
    left: Tensor, codes: Tensor, scales: Tensor, first: int, to: Grid, importance: Tensor, factor: Tensor
) -> None:
    """Algorithm 1 of the article; scales are fitted to what is left of a span when its turn comes."""
    for start in range(0, left.shape[1], _COLUMNS):
        stop = min(start + _COLUMNS, left.shape[1])
        some, lost = left[:, start:stop], torch.empty(left.shape[0], stop - start)
        within = factor[start:stop, start:stop]
        for column in range(stop - start):
            at = start + column
            if at % to.span == 0:
                span = slice(column, column + to.span)
                scale = to.fit(some[:, span], importance[at : at + to.span])
                scales[:, first + at // to.span] = scale
            code = to.codes(some[:, column], scale)
            codes[:, at] = code
            lost[:, column] = (some[:, column] - to.values(code, scale)) / within[column, column]
            some[:, column + 1 :].addr_(lost[:, column], within[column, column + 1 :], alpha=-1)
        left[:, stop:].addmm_(lost, factor[start:stop, stop:], alpha=-1)


def _factor(moment: Tensor) -> Tensor:
    """The upper Cholesky factor of H's inverse. Inputs that never came, and noise, are damped."""
    diagonal = moment.diagonal()
    level = float(diagonal.mean()) or 1.0
    for damping in (_DAMPING, 0.1, 1.0):
        damped = moment + torch.eye(len(moment)) * (damping * level)
        lower, wrong = torch.linalg.cholesky_ex(damped)
        if not wrong:
            upper, wrong = torch.linalg.cholesky_ex(torch.cholesky_inverse(lower), upper=True)
            if not wrong:
                return torch.as_tensor(upper)
    return torch.eye(len(moment))
