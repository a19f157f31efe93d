"""`cierzo pull`: bring a model here."""

from typing import Annotated, Literal

import typer


def pull(
    model: Annotated[
        str,
        typer.Argument(
            help="A name (`cierzo ls --all`), OWNER/NAME[@REVISION][/FILE.gguf] on the hub, an address of a GGUF file "
            "(#sha256=... checks it), a magnet link, or a .torrent file."
        ),
    ],
    quantize: Annotated[
        Literal["q4t", "q4", "q8"] | None,
        typer.Option(help="Pack each file when it is there and drop it: less disk, ready for the CPU."),
    ] = None,
    source: Annotated[
        Literal["index", "hub", "magnet"] | None, typer.Option(help="Which source, where a name has several.")
    ] = None,
) -> None:
    """Fetch a model, checked; a broken or stopped one goes on where it was. The last line is where it is."""
    from cierzo.weights.pull import pull as pull_model

    print(pull_model(model, source=source, pack=quantize, progress=True))
