"""Rounding a matrix so that what it computes changes least, not each of its numbers (GPTQ, arXiv:2210.17323).

A matrix W [outputs, inputs] is used on inputs x whose second moments are H = sum x x^T. Its columns are rounded one
after the other; what a column loses is made up for by those that are not rounded yet, as far as H says that they can.
"""

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor

from cierzo.ops import Format, PackedMatrix, best_steps, coded, pack, pack_coded, quantize

_DAMPING = 0.01  # of the mean of H's diagonal
_COLUMNS = 192  # between updates of the rest of the matrix: whole spans of every grid
_WIDEST = 4096  # inputs that are taken together; H of more would not fit into memory beside the model
_ROWS = 1024  # that are rounded at a time: scratch takes several times their size


class Grid(Protocol):
    """The values that a format can hold: unit x code.

    The unit comes of a scale that an output has for `span` inputs, and a step that it has for `group` of them.
    """

    format: Format
    span: int
    group: int

    def fit(self, weights: Tensor, importance: Tensor) -> Tensor:
        """Scales [outputs] for weights [outputs, span or fewer]; errors of an input count by its importance [span]."""
        ...

    def steps(self, weights: Tensor, importance: Tensor, scale: Tensor) -> Tensor:
        """Numbers [...] of the best steps for weights [..., group or fewer], where the scales are [...]."""
        ...

    def unit(self, scale: Tensor, steps: Tensor) -> Tensor:
        """What a code is multiplied with."""
        ...

    def codes(self, values: Tensor, unit: Tensor) -> Tensor:
        """Integers of the nearest values on the grid."""
        ...

    def values(self, codes: Tensor, unit: Tensor) -> Tensor:
        """What integers stand for, float32."""
        ...

    def packed(self, codes: Tensor, scales: Tensor, steps: Tensor) -> PackedMatrix:
        """The matrix of integers [outputs, inputs], scales [outputs, spans] and steps [outputs, groups]."""
        ...


class Uniform:
    """Grids with even steps: Q4 (scale x -8..7, of either sign) and Q8 (scale x -127..127)."""

    span = group = 32

    def __init__(self, format: Format) -> None:
        self.format = format
        self.low, self.high = (-8, 7) if format is Format.Q4 else (-127, 127)
        # Steps that the largest value may take: in 4 bits, one that cuts it off a little often fits the rest better.
        fits_all = (-8.0, -8.5, -7.5, -9.0, -7.0, -9.5, -6.5, -6.0, 7.0, 6.5, 7.5, 6.0)
        self.fractions = fits_all if format is Format.Q4 else (-127.0,)

    def fit(self, weights: Tensor, importance: Tensor) -> Tensor:
        peak = weights.gather(-1, weights.abs().argmax(-1, keepdim=True)).squeeze(-1)
        tried = [(peak / fraction).half().float() for fraction in self.fractions]
        return _best(tried, lambda scale: _lost(self, weights, scale, importance))

    def steps(self, weights: Tensor, importance: Tensor, scale: Tensor) -> Tensor:
        return torch.zeros(weights.shape[:-1], dtype=torch.uint8)

    def unit(self, scale: Tensor, steps: Tensor) -> Tensor:
        return scale

    def codes(self, values: Tensor, unit: Tensor) -> Tensor:
        return (values * _inverse(unit)).round_().clamp_(self.low, self.high)

    def values(self, codes: Tensor, unit: Tensor) -> Tensor:
        return codes * unit

    def packed(self, codes: Tensor, scales: Tensor, steps: Tensor) -> PackedMatrix:
        whole = (codes + 8).to(torch.uint8) if self.format is Format.Q4 else codes.to(torch.int8)
        return pack(self.format, whole, scales)


class Coded:
    """Q4T: scale x step x a code of a table."""

    format, span, group = Format.Q4T, coded.SPAN, coded.GROUP
    table = torch.tensor(coded.CODES, dtype=torch.float32)
    edges = (table[1:] + table[:-1]) / 2

    def fit(self, weights: Tensor, importance: Tensor) -> Tensor:
        """The scale that plain rounding takes; the steps are chosen by importance."""
        packed = quantize(weights, Format.Q4T)
        return coded.scales(packed.data, -(-weights.shape[1] // coded.TILE))[: len(weights), 0].float()

    def steps(self, weights: Tensor, importance: Tensor, scale: Tensor) -> Tensor:
        return best_steps(weights, importance, scale)

    def unit(self, scale: Tensor, steps: Tensor) -> Tensor:
        return scale * torch.tensor(coded.STEPS, dtype=torch.float32)[steps.long()]

    def codes(self, values: Tensor, unit: Tensor) -> Tensor:
        return torch.bucketize(values * _inverse(unit), self.edges)

    def values(self, codes: Tensor, unit: Tensor) -> Tensor:
        return self.table[codes.long()] * unit

    def packed(self, codes: Tensor, scales: Tensor, steps: Tensor) -> PackedMatrix:
        return pack_coded(codes.to(torch.uint8), scales, steps)


def _best(tried: Sequence[Tensor], lost: Callable[[Tensor], Tensor]) -> Tensor:
    """Of each row's choices, the one that loses least."""
    best, least = tried[0], torch.full_like(tried[0], torch.inf)
    for one in tried:
        loses = lost(one)
        better = loses < least
        best, least = torch.where(better, one, best), torch.where(better, loses, least)
    return best


def _lost(to: Grid, weights: Tensor, unit: Tensor, importance: Tensor) -> Tensor:
    """Squared error of weights [..., n] by importance, when each is rounded alone."""
    unit = unit.unsqueeze(-1)
    return to.values(to.codes(weights, unit), unit).sub_(weights).square_().mul_(importance).sum(-1)


def _inverse(unit: Tensor) -> Tensor:
    return torch.where(unit == 0, 0, 1 / unit)


def grid(format: Format) -> Grid:
    """The grid of a format. Raises ValueError for formats that only hold what came with a file."""
    if format is Format.Q4M:
        raise ValueError(f"{format.name} has no grid to round to")
    return Coded() if format is Format.Q4T else Uniform(format)


def nearest(weights: Tensor, to: Grid, importance: Tensor) -> Tensor:
    """Weights [outputs, inputs] rounded each alone, with scales for inputs of this importance [inputs]."""
    out = torch.empty_like(weights)
    for rows, part in zip(out.split(_ROWS), weights.split(_ROWS), strict=True):
        rows.copy_(_nearest(part, to, importance))
    return out


def _nearest(weights: Tensor, to: Grid, importance: Tensor) -> Tensor:
    outputs, inputs = weights.shape
    missing = -inputs % to.span
    spans = torch.nn.functional.pad(weights, (0, missing)).reshape(-1, to.span)
    weight_of = torch.nn.functional.pad(importance, (0, missing)).view(1, -1, to.span)
    weight_of = weight_of.expand(outputs, -1, -1).reshape(-1, to.span)
    scale = to.fit(spans, weight_of).unsqueeze(-1)
    groups, weight_of = (x.unflatten(-1, (-1, to.group)) for x in (spans, weight_of))
    scale = scale.expand(-1, groups.shape[1])
    unit = to.unit(scale, to.steps(groups, weight_of, scale)).unsqueeze(-1)
    return to.values(to.codes(groups, unit), unit).view(outputs, -1)[:, :inputs]


def blocks(inputs: int) -> list[slice]:
    """The inputs that are taken together: all, or about equal parts, at multiples of `_COLUMNS`."""
    parts = -(-inputs // _WIDEST)
    width = -(-inputs // parts // _COLUMNS) * _COLUMNS
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
    steps = torch.empty(outputs, -(-inputs // to.group), dtype=torch.uint8)
    for part, moment in zip(moments.blocks, moments.sums, strict=True):
        factor = _factor(moment) if correct else torch.eye(len(moment))
        span, group = part.start // to.span, part.start // to.group
        _round_block(
            left[:, part], codes[:, part], scales[:, span:], steps[:, group:], to, moment.diagonal(), factor
        )  # fmt: skip
    return to.packed(codes, scales, steps)


def _round_block(
    left: Tensor, codes: Tensor, scales: Tensor, steps: Tensor, to: Grid, importance: Tensor, factor: Tensor
) -> None:
    """Algorithm 1 of the article; scales and steps are fitted to what is left of their inputs when their turn comes."""
    for start in range(0, left.shape[1], _COLUMNS):
        stop = min(start + _COLUMNS, left.shape[1])
        some, lost = left[:, start:stop], torch.empty(left.shape[0], stop - start)
        within = factor[start:stop, start:stop]
        for column in range(stop - start):
            at = start + column
            if at % to.span == 0:
                span = slice(column, column + to.span)
                scale = to.fit(some[:, span], importance[at : at + to.span])
                scales[:, at // to.span] = scale
            if at % to.group == 0:
                group = slice(column, column + to.group)
                step = to.steps(some[:, group], importance[at : at + to.group], scale)
                steps[:, at // to.group] = step
                unit = to.unit(scale, step)
            code = to.codes(some[:, column], unit)
            codes[:, at] = code
            lost[:, column] = (some[:, column] - to.values(code, unit)) / within[column, column]
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
