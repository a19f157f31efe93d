"""`cierzo export`: a model in a format that others read."""

import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from cierzo.errors import CierzoError


def export(
    model: Annotated[str, typer.Argument(help="A checkpoint's folder, a GGUF file, or a name that is here.")],
    out: Annotated[Path, typer.Argument(help="The new folder, or FILE.gguf.")],
    to: Annotated[
        Literal["huggingface", "consolidated", "gguf"] | None,
        typer.Option(help="The format; huggingface when left out, or gguf for FILE.gguf."),
    ] = None,
    type: Annotated[
        Literal["bfloat16", "float16", "float32", "f16", "q8_0", "q4_0"] | None,
        typer.Option(help="Of the weights: bfloat16 when left out, or f16 in GGUF, where q8_0 and q4_0 are, too."),
    ] = None,
    lora: Annotated[Path | None, typer.Option(help="A PEFT adapter's folder, merged in.")] = None,
) -> None:
    """Write a model, of any format that is read, in another one."""
    from cierzo import tokenizer_files, tokenizer_metadata
    from cierzo.progress import progress_bar
    from cierzo.weights import export as folders
    from cierzo.weights import export_gguf as files
    from cierzo.weights.pull import resolve_model

    to = to or ("gguf" if out.suffix == ".gguf" else "huggingface")
    if out.suffix == ".gguf" and to != "gguf":
        raise CierzoError(f"{out} would be a folder in format {to}: name it otherwise, or choose --to gguf")
    allowed = files.KINDS if to == "gguf" else tuple(folders.DTYPES)
    chosen = type or ("f16" if to == "gguf" else "bfloat16")
    if chosen not in allowed:
        raise CierzoError(f"{to} holds {', '.join(allowed)}, not {chosen}: choose --type")
    path = resolve_model(model, progress=True)
    with progress_bar(f"writing {out.name}", unit="weights") as report:
        if to == "gguf":
            vocabulary = tokenizer_metadata(path)
            whole = path.resolve()
            name = whole.stem if whole.is_file() else whole.name
            files.export_gguf(path, out, kind=chosen, vocabulary=vocabulary, name=name, lora=lora, progress=report)
        else:
            write = folders.export_huggingface if to == "huggingface" else folders.export_consolidated
            write(
                path, out, dtype=folders.DTYPES[chosen], lora=lora, progress=report,
                tokenizer=lambda folder: tokenizer_files(path, folder),
            )  # fmt: skip
    size = sum(file.stat().st_size for file in out.iterdir()) if out.is_dir() else out.stat().st_size
    print(f"wrote {out}: {size / 1e9:.2f} GB", file=sys.stderr)
