"""`cierzo ls` and `cierzo rm`: the models that are here."""

import sys
from typing import Annotated

import typer


def ls(
    everything: Annotated[bool, typer.Option("--all", help="Show the names that can be fetched, too.")] = False,
) -> None:
    """Show the models that were fetched: name, size on the disk, and where each came from."""
    from cierzo.weights.catalogue import catalogue
    from cierzo.weights.store import models_folder, size_text, stored_models

    stored = stored_models()
    rows = []
    for model in stored:
        origin = model.origin
        about = "not whole: `cierzo pull` goes on, `cierzo rm` deletes it"
        if model.whole:
            revision = f"@{origin.revision[:8]}" if origin and origin.revision else ""
            about = f"{origin.source}{revision}, {origin.licence or 'licence unknown'}" if origin else ""
        rows.append((model.name, size_text(model.size), about))
    if everything:
        aliases = {target: alias for alias, target in catalogue().aliases.items()}
        for entry in catalogue().entries.values():
            notes = [entry.licence, f"from {', '.join(entry.sources)}"]
            notes += [f"ask {entry.gated} for access first"] if entry.gated else []
            notes += [f"also {aliases[entry.name]}"] if entry.name in aliases else []
            rows.append((entry.name, size_text(entry.size), f"can be fetched: {'; '.join(notes)}"))
    if not rows:
        print(f"no models in {models_folder()}: `cierzo ls --all` shows what can be fetched", file=sys.stderr)
    width = max((len(name) for name, _, _ in rows), default=0)
    for name, size, about in rows:
        print(f"{name:<{width}}  {size:>8}  {about}".rstrip())


def rm(names: Annotated[list[str], typer.Argument(help="Names as `cierzo ls` shows them.")]) -> None:
    """Delete models that were fetched."""
    from cierzo.weights.pull import remove
    from cierzo.weights.store import size_text

    for name in names:
        print(f"deleted {name}: {size_text(remove(name))} freed", file=sys.stderr)
