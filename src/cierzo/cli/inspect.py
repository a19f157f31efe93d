"""`cierzo inspect`: what a model's files are, and what is wrong with them."""

from typing import Annotated

import typer


def inspect(
    model: Annotated[str, typer.Argument(help="A GGUF file, a checkpoint's folder, or a name that is here.")],
    full: Annotated[bool, typer.Option("--full", help="Read every number, too.")] = False,
) -> None:
    """Say what a model's files are; the first thing that is wrong with them is an error."""
    from cierzo import load_tokenizer
    from cierzo.progress import progress_bar
    from cierzo.weights.inspect import inspect_model
    from cierzo.weights.pull import resolve_model

    path = resolve_model(model, progress=True)
    with progress_bar(f"reading {path.name}", wanted=full, unit="weights") as report:
        rows = inspect_model(path, full=full, report=report)
    rows = {"path": str(path), **rows}
    tokenizer = load_tokenizer(path)
    chats = "chats" if tokenizer.chat_refusal is None else f"does not chat: {tokenizer.chat_refusal}"
    rows["tokenizer"] = f"{tokenizer.vocab_size} tokens; {chats}"
    for name, value in rows.items():
        print(f"{name:<12} {value}")
