"""Quantising a model by what it computes on a text, layer by layer, in the memory of one layer.

Three things on top of rounding, all measured on the text:

- *Scaling* (AWQ, arXiv:2306.00978): large inputs get finer steps. Columns of a matrix are multiplied by a factor, and
  what makes those inputs is divided by it, which changes nothing but the rounding: norms for q/k/v and gate/up, the
  rows of v for the output projection, the rows of up for down.
- *Correction* (`gptq`): what rounding a column loses, later columns make up for. Each layer is rounded for what the
  rounded layers before it give.
- *Mixed precision*: a matrix is in 8 bits, not 4, where rounding it changes the layer's outcome most for its size.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from cierzo.errors import CierzoError, WeightsError
from cierzo.files import write_whole
from cierzo.ops import Format, PackedMatrix, quantize, reference
from cierzo.weights.gptq import Grid, Moments, grid, round_matrix
from cierzo.weights.layer import Layer, Weights, load_layer
from cierzo.weights.load import checked_finite
from cierzo.weights.packed import FORMATS, open_original, packed_formats, partial_model, work_on
from cierzo.weights.packing import PackedWriter
from cierzo.weights.scaling import scale_layer
from cierzo.weights.sensitivity import check_bits, mixed_formats, sensitivities
from cierzo.weights.source import WeightSource

_STATE = "calibration.pt"
_FORMATS = "calibration.json"


@dataclass(frozen=True)
class Method:
    """Which steps are taken; all of them, unless they are to be measured."""

    scaling: bool = True
    correction: bool = True
    bits: float | None = None
    """Bits a weight of the whole file at most; then matrices are in 4 or 8 bits as they need it."""


def quantize_calibrated(
    model: Path, out: Path, texts: Sequence[Sequence[int]], *, format: str = "q4t", method: Method | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> None:  # fmt: skip
    """Write the model at `model` as a packed folder `out`, as `quantize_model` does, rounded for `texts` of token ids.

    Work that was stopped goes on after the last whole layer. Raises `CierzoError` as
    `quantize_model` does.
    """
    method = method or Method()
    source, shapes = open_original(model, out)
    config = source.config
    if any(not 0 <= token < config.vocab_size for text in texts for token in text) or not any(texts):
        raise CierzoError("the calibration texts have no tokens, or tokens that are not this model's")
    if method.bits is not None:
        check_bits(source, shapes, method.bits, FORMATS[format])
    work = work_on(source, format, asdict(method), [list(text) for text in texts])
    with partial_model(model, out, work) as folder, torch.inference_mode():
        formats = _formats(source, shapes, texts, format, method, folder / _FORMATS)
        writer = PackedWriter(folder, config, shapes, formats)
        writer.check_space()
        _Run(source, writer, texts, method, folder, progress).run()
        writer.finish()
        for name in (_STATE, _FORMATS):
            (folder / name).unlink(missing_ok=True)


def _formats(
    source: WeightSource, shapes: Mapping[str, tuple[int, ...]], texts: Sequence[Sequence[int]], format: str,
    method: Method, kept: Path,
) -> dict[str, Format]:  # fmt: skip
    """The format of every matrix; what was measured for it is kept for a run that goes on."""
    plain = packed_formats(shapes, format)
    if method.bits is None:
        return plain
    if not kept.is_file():
        tensors = [torch.tensor(text) for text in texts if len(text)]
        write_whole(kept, json.dumps(sensitivities(source, tensors, FORMATS[format])))
    return mixed_formats(source, shapes, json.loads(kept.read_text()), method.bits, FORMATS[format])


class _Run:
    def __init__(
        self, source: WeightSource, writer: PackedWriter, texts: Sequence[Sequence[int]], method: Method, folder: Path,
        progress: Callable[[int, int], None] | None,
    ) -> None:  # fmt: skip
        self.source, self.writer, self.method, self.progress = source, writer, method, progress
        self.config, self.state = source.config, folder / _STATE
        self.texts = [torch.tensor(text) for text in texts if len(text)]
        self.rounded = 0

    def run(self) -> None:
        embeddings = self._single("tok_embeddings.weight")
        first, states = self._resumed()
        if not states:
            states = [embeddings[text] for text in self.texts]
        del embeddings
        for number in range(self.config.n_layers):
            layer = Layer(self.config, number, load_layer(self.source, number))
            if number >= first:
                self._layer(layer, states)
                self._keep(number + 1, states)
            self._count(layer.weights)
        norm = checked_finite(self.source, "norm.weight").float()
        self.writer.write("norm.weight", norm)
        if not self.config.tied_embeddings:
            moments = Moments(self.config.dim)
            for x in states:
                moments.add(reference.rms_norm(x, norm, self.config.norm_eps))
            self._matrix("output.weight", checked_finite(self.source, "output.weight"), moments)

    def _keep(self, first: int, states: list[Tensor]) -> None:
        new = self.state.with_suffix(".new")
        with new.open("wb") as file:  # to a path, PyTorch would call a full disk a RuntimeError
            torch.save([first, states], file)
        new.rename(self.state)

    def _resumed(self) -> tuple[int, list[Tensor]]:
        """The first layer that is left, and what enters it."""
        if not self.state.is_file():
            return 0, []
        first, states = torch.load(self.state, weights_only=True)
        return first, states

    def _single(self, name: str) -> Tensor:
        """A matrix that no inputs are known of: the embedding, whose rows are looked up. Returns it as rounded."""
        tensor = checked_finite(self.source, name).float()
        if name not in self.writer.done:
            packed = quantize(tensor, self.writer.formats[name])
            self.writer.write(name, packed.data)
            return packed.unpacked()
        return quantize(tensor, self.writer.formats[name]).unpacked()

    def _layer(self, layer: "Layer", states: list[Tensor]) -> None:
        if self.method.scaling:
            scale_layer(layer, states, {name: self._grid(layer, name) for name in layer.matrices})
        for names, moments in layer.stages(states):
            for name in names:
                packed = self._matrix(layer.full(name), layer.weights[name], moments)
                layer.weights[name] = packed.unpacked()
        for name, tensor in layer.weights.items():
            if name not in layer.matrices:
                self.writer.write(layer.full(name), tensor)

    def _grid(self, layer: "Layer", name: str) -> Grid:
        return grid(self.writer.formats[layer.full(name)])

    def _matrix(self, name: str, weights: Tensor, moments: Moments) -> PackedMatrix:
        try:
            packed = round_matrix(weights, grid(self.writer.formats[name]), moments, correct=self.method.correction)
        except ValueError as error:
            raise WeightsError(f"{self.source.path}: tensor {name!r}: {error}") from error
        self.writer.write(name, packed.data)
        return packed

    def _count(self, weights: Weights) -> None:
        self.rounded += sum(tensor.numel() for tensor in weights.values())
        if self.progress:
            self.progress(self.rounded, self.config.n_params)
