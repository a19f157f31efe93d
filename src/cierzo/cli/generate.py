"""`cierzo generate`: one text continued, or one message answered."""

import sys
from typing import Annotated

import typer

from cierzo.cli import options as opt
from cierzo.errors import CierzoError


def generate(
    model: opt.Model = None,
    prompt: Annotated[str | None, typer.Option(help="The text; stdin when left out.")] = None,
    as_chat: Annotated[bool, typer.Option("--chat", help="The text is a message to answer.")] = False,
    temperature: opt.Temperature = None,
    top_p: opt.TopP = None,
    top_k: opt.TopK = None,
    min_p: opt.MinP = None,
    seed: opt.Seed = None,
    max_tokens: opt.MaxTokens = None,
    stop: opt.Stop = None,
    dtype: opt.Dtype = "auto",
    device: opt.Device = "auto",
    cache_dtype: opt.CacheDtype = "auto",
    chat_template: opt.ChatTemplate = None,
    context: opt.Context = None,
    beyond_limit: opt.BeyondLimit = False,
    mmap: opt.Mmap = True,
) -> None:
    """Continue a text; what is written is the continuation alone.

    The newline that ends the last line of stdin is not part of the text.
    """
    if prompt is None and sys.stdin.isatty():
        raise typer.BadParameter("give --prompt, or the text on stdin", param_hint="--prompt")
    text = opt.read_stdin("the text to continue") if prompt is None else prompt
    if not text:
        raise CierzoError("the prompt is empty: give --prompt a text")
    params = opt.sampling(
        temperature=temperature, top_p=top_p, top_k=top_k, min_p=min_p, seed=seed, max_tokens=max_tokens, stop=stop
    )
    llm = opt.load_llm(
        model,
        dtype=dtype,
        device=device,
        cache_dtype=cache_dtype,
        chat_template=chat_template,
        max_seq_len=context,
        allow_beyond_limit=beyond_limit,
        mmap=mmap,
    )

    deltas = llm.stream_chat([{"role": "user", "content": text}], params) if as_chat else llm.stream(text, params)
    if opt.write_plain(deltas, sys.stdout) == "length":
        print(f"note: {opt.length_note(params, llm.max_seq_len)}", file=sys.stderr)
