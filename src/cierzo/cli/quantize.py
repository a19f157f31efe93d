"""`cierzo quantize`: a model's matrices in few bits, in the layout that the kernels read."""

import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from cierzo.errors import CierzoError


class Format(StrEnum):
    """What weights can be rounded to."""

    q4t = "q4t"
    q4 = "q4"
    q8 = "q8"


def quantize(
    model: Annotated[Path, typer.Argument(help="A folder: consolidated or Hugging Face.")],
    out: Annotated[Path | None, typer.Argument(help="The new folder; MODEL-FORMAT when left out.")] = None,
    format: Annotated[
        Format, typer.Option(help="4 bits from a table (4.2 with scales), 4 bits as GGUF's Q4_0 (4.5), or 8 bits.")
    ] = Format.q4t,
) -> None:
    """Pack a model into few bits, rounded to nearest; `cierzo chat OUT` then runs it."""
    from cierzo.progress import progress_bar
    from cierzo.weights import quantize_model

    if not model.is_dir():
        raise CierzoError(
            f"{model} is no folder: give a consolidated or Hugging Face checkpoint (GGUF files run as they are)"
        )
    target = out or model.resolve().parent / f"{model.resolve().name}-{format}"
    with progress_bar(f"packing {model.resolve().name}", unit="weights") as report:
        quantize_model(model, target, format=format, progress=report)
    size = sum(file.stat().st_size for file in target.iterdir())
    print(f"wrote {target}: {size / 1e9:.2f} GB", file=sys.stderr)
