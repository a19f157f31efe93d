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
    source: Annotated[
        str,
        typer.Argument(metavar="MODEL", help="A folder, consolidated or Hugging Face, or a name that is here."),
    ],
    out: Annotated[Path | None, typer.Argument(help="The new folder; MODEL-FORMAT when left out.")] = None,
    format: Annotated[
        Format,
        typer.Option(help="4 bits from a table (4.2 with scales), 4 bits as GGUF's Q4_0 (4.5), or 8 bits."),
    ] = Format.q4t,
    calibrate: Annotated[
        Path | None, typer.Option(help="A text file, such as the model will read: rounds for what it computes there.")
    ] = None,
    tokens: Annotated[int, typer.Option(help="How much of the text is used, with --calibrate.")] = 16_384,
    bits: Annotated[
        float | None,
        typer.Option(help="With --calibrate, bits a weight in all: 8-bit matrices where 4 would harm most."),
    ] = None,
) -> None:
    """Pack a model into few bits; `cierzo chat OUT` then runs it. Work that was stopped goes on where it was."""
    from cierzo.progress import progress_bar
    from cierzo.weights import quantize_model
    from cierzo.weights.store import models_folder

    model = Path(source).expanduser()
    if not model.exists() and (models_folder() / source).is_dir():
        model = models_folder() / source
    if not model.is_dir():
        raise CierzoError(
            f"{source} is no folder: give a consolidated or Hugging Face checkpoint (GGUF files run as they are), or a "
            "name that `cierzo ls` shows"
        )
    if calibrate is None and bits is not None:
        raise CierzoError("--bits needs --calibrate FILE: which matrices need more bits is measured on a text")
    target = out or model.resolve().parent / f"{model.resolve().name}-{format}"
    with progress_bar(f"packing {model.resolve().name}", unit="weights") as report:
        if calibrate is None:
            quantize_model(model, target, format=format, progress=report)
        else:
            from cierzo.weights.calibrate import Method, quantize_calibrated

            texts = _texts(model, calibrate, tokens)
            quantize_calibrated(model, target, texts, format=format, method=Method(bits=bits), progress=report)
    size = sum(file.stat().st_size for file in target.iterdir())
    print(f"wrote {target}: {size / 1e9:.2f} GB", file=sys.stderr)


_LENGTH = 512
"""Tokens of a piece of the text at most; each is read by itself."""


def _texts(model: Path, file: Path, tokens: int) -> list[list[int]]:
    """Token ids of pieces from all over the text."""
    from cierzo import load_tokenizer

    if tokens < 1:
        raise CierzoError(f"--tokens must be at least 1, not {tokens}")
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise CierzoError(f"{file}: cannot be read as UTF-8 text ({error})") from error
    tokenizer = load_tokenizer(model)
    # Parts of equal length, of which each gives its first tokens: none is read twice.
    count = -(-tokens // _LENGTH)
    length = -(-tokens // count)
    part = -(-len(text) // count)
    cut = min(part, 8 * length)  # characters for more tokens than are kept: few vocabularies have more than 6 a token
    pieces = [tokenizer.encode(text[n * part : n * part + cut], bos=True)[:length] for n in range(count)]
    found = sum(map(len, pieces))
    if found < length // 2:
        raise CierzoError(f"{file}: {found} tokens are too few to calibrate with: give a longer text")
    if found < 0.9 * tokens:
        print(f"note: {file} has {found} tokens for --tokens {tokens}", file=sys.stderr)
    return [piece for piece in pieces if piece]
