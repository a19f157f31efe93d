"""Options that several verbs share, and what they turn into."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import IO, TYPE_CHECKING, Annotated, Any

import typer

from cierzo.errors import CierzoError

if TYPE_CHECKING:
    from cierzo import LLM, Delta, FinishReason, SamplingParams

Model = Annotated[
    str | None,
    typer.Argument(help="A GGUF file, a checkpoint's folder, or a known name; the default model when left out."),
]
Temperature = Annotated[float | None, typer.Option(help="0 always takes the best token.", show_default=False)]
TopP = Annotated[float | None, typer.Option(help="Choose among the best tokens that reach this probability.")]
TopK = Annotated[int | None, typer.Option(help="Choose among this many best tokens; 0 for all.")]
MinP = Annotated[float | None, typer.Option(help="Leave out tokens below this times the best one's probability.")]
Seed = Annotated[int | None, typer.Option(help="The same seed gives the same answer.")]
MaxTokens = Annotated[int | None, typer.Option(help="Longest answer, in tokens; without it, up to the context.")]
Stop = Annotated[list[str] | None, typer.Option(help="End the answer before this text; may be given several times.")]
Dtype = Annotated[str, typer.Option(help="Type of the weights in memory: auto, float32, bfloat16.")]
CacheDtype = Annotated[
    str, typer.Option(help="Type of the keys and values in the cache: auto, float32, bfloat16, int8 (half the memory).")
]
Mmap = Annotated[
    bool,
    typer.Option(help="A packed model's weights stay in their file; --no-mmap copies them: faster where memory is."),
]
Device = Annotated[str, typer.Option(help="Where to compute: auto, cpu, cuda.")]
ChatTemplate = Annotated[
    str | None, typer.Option(help="Instead of the model's own: none, chatml, llama-2, mistral, or a Jinja file.")
]
Context = Annotated[
    int | None, typer.Option(help="Longest prompt and answer together, in tokens; the model's limit when left out.")
]
BeyondLimit = Annotated[
    bool, typer.Option("--allow-beyond-limit", help="Let a model with windows go on past its limit.")
]


def load_llm(model: str | None, **options: Any) -> LLM:
    """The model of a verb's options, with progress on stderr."""
    from cierzo import LLM

    return LLM(model, progress=True, **options)


def sampling(**options: Any) -> SamplingParams:
    """`SamplingParams` of the options that were given."""
    from cierzo import SamplingParams

    return SamplingParams(**{name: value for name, value in options.items() if value is not None})


def read_stdin(what: str) -> str:
    """All of stdin as text, without the newline that ends its last line.

    Raises:
        CierzoError: nothing but white space, or no UTF-8.
    """
    data = sys.stdin.buffer.read()
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        raise CierzoError(f"stdin is not UTF-8 text: byte {data[error.start]:#04x} at {error.start}") from error
    if not text.strip():
        raise CierzoError(f"stdin is empty: write {what} to it")
    return text.removesuffix("\n").removesuffix("\r")


def write_plain(deltas: Iterable[Delta], out: IO[str]) -> FinishReason | None:
    """Write an answer as it comes, and end its last line; says why it ended."""
    last, reason = "", None
    for delta in deltas:
        out.write(delta.text)
        out.flush()
        last, reason = delta.text[-1:] or last, delta.finish_reason
    if last != "\n":
        out.write("\n")
        out.flush()
    return reason


def length_note(params: SamplingParams, limit: int | None) -> str:
    """What to tell about an answer that ended for its length."""
    if params.max_tokens is not None:
        return f"the answer reached max_tokens = {params.max_tokens}"
    return f"the answer reached the end of the context of {limit} tokens"
