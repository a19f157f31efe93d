"""`cierzo chat`: a conversation at a terminal, or one answer in a pipe."""

import sys
from typing import Annotated

import typer

from cierzo.cli import options as opt
from cierzo.errors import CierzoError


def chat(
    model: opt.Model = None,
    system: Annotated[str | None, typer.Option(help="System prompt.")] = None,
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
    url: Annotated[
        str | None, typer.Option(help="Talk with a model of the server there (its key in CIERZO_API_KEY).")
    ] = None,
) -> None:
    """Talk with a model. /help there lists the commands.

    When stdin is no terminal, all of it is one message, and the answer goes to stdout as plain text; it is then the
    model's best one, the same each time, unless a temperature is given.
    """
    terminal = sys.stdin.isatty()
    message = "" if terminal else opt.read_stdin("the message to answer")
    if not terminal and temperature is None:
        temperature = 0
    settings = opt.sampling(
        temperature=temperature, top_p=top_p, top_k=top_k, min_p=min_p, seed=seed, max_tokens=max_tokens, stop=stop
    )
    from cierzo.cli.conversation import ChatModel, Conversation

    llm: ChatModel
    if url is not None:
        from cierzo.cli.remote import RemoteLLM

        chosen = (dtype, device, cache_dtype, chat_template, context, beyond_limit, mmap)
        if chosen != ("auto", "auto", "auto", None, None, False, True):
            raise CierzoError("how a model is loaded is the server's to say: leave those options out with --url")
        llm = RemoteLLM(url, model)
    else:
        llm = loaded = opt.load_llm(
            model,
            dtype=dtype,
            device=device,
            cache_dtype=cache_dtype,
            chat_template=chat_template,
            max_seq_len=context,
            allow_beyond_limit=beyond_limit,
            mmap=mmap,
        )
        if loaded.tokenizer.chat_refusal is not None:
            raise CierzoError(f"{loaded.name}: {loaded.tokenizer.chat_refusal}")

    conversation = Conversation(llm, settings, system)
    if terminal:
        from cierzo.cli.interactive import interact

        interact(conversation)
    elif opt.write_plain(conversation.ask(message), sys.stdout) == "length":
        print(f"note: {opt.length_note(settings, llm.max_seq_len)}", file=sys.stderr)
