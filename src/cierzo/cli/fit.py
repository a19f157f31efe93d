"""`cierzo fit`: does a model run on this machine, and how fast."""

from typing import Annotated

import typer

from cierzo.errors import CierzoError


def fit(
    model: Annotated[str, typer.Argument(help="A name (`cierzo ls --all`), a checkpoint's folder or a GGUF file.")],
    context: Annotated[
        int | None, typer.Option(help="Tokens of a text; 4096, or the model's limit when left out.")
    ] = None,
) -> None:
    """Say what a model would take here: memory in 4 and 8 bits (or as it is), and tokens a second, which are measured
    with random weights.
    """
    from pathlib import Path

    from cierzo.weights.catalogue import catalogue
    from cierzo.weights.fit import Formats, fit_unpacked, own_formats, preset, room
    from cierzo.weights.fit import fit as measure
    from cierzo.weights.inspect import attention_text, shape_text
    from cierzo.weights.load import computing_dtype
    from cierzo.weights.pull import in_store, resolve_model
    from cierzo.weights.source import dtype_name, open_source
    from cierzo.weights.store import size_text

    entry = catalogue().find(model)
    source = None
    if entry is not None and not Path(model).exists() and not in_store(entry.name):
        config = preset(entry.shape)
    else:
        source = open_source(resolve_model(model, progress=True))
        config = source.config
    context = min(4096, config.max_seq_len) if context is None else context
    if not 1 <= context <= config.max_seq_len:
        raise CierzoError(f"--context must be from 1 to the model's {config.max_seq_len} tokens, not {context}")
    memory = room()
    print(f"{model}: {shape_text(config)}; {attention_text(config)}")
    print(f"free memory for it: {size_text(memory)}; context: {context} tokens")
    forms: dict[str, Formats] = {"q4t": "q4t", "q8": "q8"}
    if source is not None and source.quantized:
        forms = {"as it is": own_formats(source)}
    fits = {name: measure(config, formats, context, memory) for name, formats in forms.items()}
    if source is not None and not source.quantized:
        dtype = computing_dtype(source)
        fits[f"as it is, in {dtype_name(dtype)}"] = fit_unpacked(config, dtype, context)
    for name, found in fits.items():
        total = found.weights + found.cache
        verdict = "fits" if total <= memory else "does not fit"
        rate = f", about {found.rate:.3g} tokens/s" if found.rate else ""
        print(
            f"{name}: weights {size_text(found.weights)}, cache {size_text(found.cache)}, together "
            f"{size_text(total)}: {verdict}{rate}"
        )
