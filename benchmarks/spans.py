"""What rounding costs: perplexity by the span that activations share a scale over, and by the weights' format.

    python benchmarks/spans.py [--model MODEL] [--text FILE] [--windows 6] [--spans 128 256] [--no-speed]

The model's weights as float32 are the truth (SmolLM2-135M when left out: so small a model suffers more than a 7B, so
compare rows, not levels). Matrices of the layers are rounded, the output's are not. Perplexity is of `--windows` pieces
of `--tokens` tokens, evenly from the text, each alone, and is given in percent more than float32's, with its standard
error. With a C++ compiler and CMake the speed of Q4T's products with each span is measured too (benchmarks/rate.cpp,
256 rows, one thread). Prints tables and one JSON line.
"""

import argparse
import json
import math
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cierzo.model import Transformer
from cierzo.ops import Format, PackedContext, machine, packed_shape, quantize, reference
from cierzo.ops.coded import SPAN
from cierzo.tokens import load_tokenizer
from cierzo.weights import load_model
from cierzo.weights.load import is_matrix
from cierzo.weights.pull import resolve_model

ROOT = Path(__file__).parent.parent
SPANS = (32, 64, 128, 192, 256, 512)
KINDS = ("wq", "wk", "wv", "wo", "w1", "w3", "w2")


def rounded(x: Tensor, span: int) -> Tensor:
    """Activations [T, inputs] as int8 with one scale a span, and back."""
    parts = []
    for part in x.split(span, -1):
        scale = part.abs().amax(-1, keepdim=True).clamp(min=1e-30) / 127
        parts.append((part / scale).round() * scale)
    return torch.cat(parts, -1)


@contextmanager
def rounding(model: Transformer, span: int, kinds: tuple[str, ...]) -> Iterator[None]:
    """The reference rounds what goes into matrices of these kinds."""
    chosen = {id(p) for name, p in model.named_parameters() if name.split(".")[-2] in kinds}
    plain = reference.linear
    reference.linear = lambda x, weight: plain(rounded(x, span) if id(weight) in chosen else x, weight)
    try:
        yield
    finally:
        reference.linear = plain


@torch.inference_mode()
def losses(model: Transformer, windows: Tensor) -> Tensor:
    """Of every token but the first of each window."""
    return torch.cat(
        [
            torch.nn.functional.cross_entropy(
                model(window, PackedContext([len(window)]))[:-1], window[1:], reduction="none"
            )
            for window in windows
        ]
    )


@contextmanager
def weights_as(model: Transformer, format: Format) -> Iterator[float]:
    """The layers' matrices rounded to the format; gives the relative error of all."""
    kept, wrong, size = {}, 0.0, 0.0
    for name, parameter in model.named_parameters():
        if name.startswith("layers.") and is_matrix(name, tuple(parameter.shape)):
            kept[name] = parameter.data
            parameter.data = quantize(kept[name], format).unpacked()
            wrong += (parameter.data - kept[name]).square().sum().item()
            size += kept[name].square().sum().item()
    yield math.sqrt(wrong / size)
    for name, data in kept.items():
        model.get_parameter(name).data = data


def bits(format: Format, model: Transformer) -> float:
    """A weight of the layers takes, scales and filling included."""
    matrices = [
        p for name, p in model.named_parameters() if name.startswith("layers.") and is_matrix(name, tuple(p.shape))
    ]
    stored = sum(math.prod(packed_shape(format, *p.shape)) for p in matrices)
    return 8 * stored / sum(p.numel() for p in matrices)


def speed(span: int) -> str:
    """Of Q4T's products, 256 rows, one thread, on the best instruction set."""
    with tempfile.TemporaryDirectory() as folder:
        for command in (
            ["cmake", "-S", str(ROOT / "tests" / "native"), "-B", folder, f"-DCIERZO_SPAN={span}"],
            ["cmake", "--build", folder, "--target", "rate", "-j2"],
        ):
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        lines = subprocess.run(
            [f"{folder}/rate", machine().isa, "3"], check=True, stdout=subprocess.PIPE, text=True
        ).stdout.splitlines()
    return lines[-1].partition(":")[2].partition(",")[0].strip()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model")
    parser.add_argument("--text", type=Path, default=ROOT / "LICENSE")
    parser.add_argument("--windows", type=int, default=6)
    parser.add_argument("--tokens", type=int, default=512)
    parser.add_argument("--spans", type=int, nargs="+", default=SPANS)
    parser.add_argument("--no-speed", action="store_true")
    options = parser.parse_args()
    path = resolve_model(options.model, progress=True)
    model, tokenizer = load_model(path, dtype=torch.float32), load_tokenizer(path)
    ids = torch.tensor(tokenizer.encode(options.text.read_text(encoding="utf-8")))
    starts = torch.linspace(0, max(0, len(ids) - options.tokens), options.windows).long().tolist()
    windows = torch.stack([ids[start : start + options.tokens] for start in starts])
    truth = losses(model, windows)
    perplexity = math.exp(truth.mean())
    print(f"{path.name}, {options.text.name}: float32 perplexity {perplexity:.3f}, {windows.numel()} tokens\n")
    found: dict[str, Any] = {"model": path.name, "text": options.text.name, "tokens": windows.numel()}
    found |= {"perplexity": perplexity, "spans": {}, "formats": {}}

    def more(span: int | None = None, kinds: tuple[str, ...] = KINDS) -> tuple[float, float]:
        """Perplexity's growth, and its standard error, in percent."""
        with rounding(model, span or 1, kinds if span else ()):
            difference = losses(model, windows) - truth
        error = difference.std() / len(difference) ** 0.5
        return 100 * (math.exp(difference.mean()) - 1), 100 * error.item()

    def cell(value: tuple[float, float]) -> str:
        return f"{value[0]:+.2f} +- {value[1]:.2f} %".rjust(20)

    print(f"{'activations by':>16}{'all inputs':>20}{'w2 alone':>20}{'Q4T, 256 rows':>20}")
    for span in options.spans:
        row = [more(span), more(span, ("w2",))]
        rate = "-" if options.no_speed or not 64 <= span <= 512 else speed(span)
        found["spans"][span] = {"more": row, "rate": rate}
        print(f"{span:>16}" + "".join(map(cell, row)) + f"{rate:>20}", flush=True)
    print(f"\n{'weights':>16}{'bits':>14}{'error':>14}{'float inputs':>20}{'int8 inputs':>20}")
    for format, span in ((Format.Q4, 32), (Format.Q4T, SPAN)):
        size = bits(format, model)
        with weights_as(model, format) as error:
            row = [more(), more(span)]
        found["formats"][format.name] = {"bits": size, "error": error, "more": row}
        print(f"{format.name:>16}{size:>14.3f}{error:>14.4f}" + "".join(map(cell, row)), flush=True)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
