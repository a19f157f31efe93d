"""`cierzo fit`: does a model run on this machine, and how fast."""

import os
from typing import Annotated

import typer

from cierzo.errors import CierzoError


def fit(
    model: Annotated[str, typer.Argument(help="A name (`cierzo ls --all`), a checkpoint's folder or a GGUF file.")],
    context: Annotated[
        int | None, typer.Option(help="Tokens of a text; 4096, or the model's limit when left out.")
    ] = None,
) -> None:
    """Say what a model would take here: memory in 4 and 8 bits, and tokens a second, measured with random weights."""
    from pathlib import Path

    from cierzo.weights.catalogue import catalogue
    from cierzo.weights.fit import fit as measure
    from cierzo.weights.inspect import attention_text, shape_text
    from cierzo.weights.pull import resolve_model
    from cierzo.weights.source import open_source
    from cierzo.weights.store import size_text

    entry = catalogue().find(model)
    if entry is not None and not Path(model).exists():
        from cierzo.weights.fit import preset

        config = preset(entry.shape)
    else:
        config = open_source(resolve_model(model, progress=True)).config
    context = min(4096, config.max_seq_len) if context is None else context
    if context < 1:
        raise CierzoError(f"--context must be at least 1, not {context}")
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    print(f"{model}: {shape_text(config)}; {attention_text(config)}")
    print(f"memory of this machine: {size_text(memory)}; context: {context} tokens")
    for format in ("q4t", "q8"):
        found = measure(config, format, context)
        total = found.weights + found.cache
        room = "fits" if total < 0.9 * memory else "does not fit"
        rate = f", about {found.rate:.3g} tokens/s" if found.rate else ""
        print(
            f"{format}: weights {size_text(found.weights)}, cache {size_text(found.cache)}, together "
            f"{size_text(total)}: {room}{rate}"
        )
