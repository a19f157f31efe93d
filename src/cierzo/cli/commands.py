"""The slash commands of the interactive chat. Each takes the conversation and its argument, and says what to show."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from cierzo.cli.conversation import SETTINGS, Conversation
from cierzo.errors import CierzoError


class Leave(Exception):  # noqa: N818
    """The user wants to leave the chat."""


class Command(NamedTuple):
    usage: str
    help: str
    run: Callable[[Conversation, str], str]


def run(conversation: Conversation, line: str) -> str:
    """Run a line that begins with a slash; returns what to show.

    Raises:
        CierzoError: no such command, or what its argument does not allow.
        Leave: `/exit`.
    """
    name, _, argument = line.partition(" ")
    if name not in COMMANDS:
        raise CierzoError(
            f"there is no command {name}: /help lists them (a space in front makes the line a message)"
        )  # fmt: skip
    return COMMANDS[name].run(conversation, argument.strip())


def _help(conversation: Conversation, argument: str) -> str:
    width = max(len(command.usage) for command in COMMANDS.values())
    lines = [f"{command.usage:{width}}  {command.help}" for command in COMMANDS.values()]
    lines += [
        "",
        "Enter sends; Alt-Enter, or a backslash before Enter, begins a new line. Tab completes commands.",
        "Ctrl-C stops an answer; twice, at once. At the prompt it clears the line. Ctrl-D leaves.",
    ]
    return "\n".join(lines)


def _system(conversation: Conversation, argument: str) -> str:
    if argument:
        conversation.system = None if argument == "none" else argument
    return "no system prompt" if conversation.system is None else f"system prompt: {conversation.system}"


def _reset(conversation: Conversation, argument: str) -> str:
    conversation.reset()
    return "the messages are forgotten"


def _save(conversation: Conversation, argument: str) -> str:
    path = _path("/save", argument)
    conversation.save(path)
    return f"saved {len(conversation.turns)} messages to {path}"


def _load(conversation: Conversation, argument: str) -> str:
    path = _path("/load", argument)
    model = conversation.load(path)
    held = "" if model == conversation.llm.name else f"; it was held with {model}, and goes on with this model"
    return f"loaded {len(conversation.turns)} messages from {path}{held}"


def _path(name: str, argument: str) -> Path:
    if not argument:
        raise CierzoError(f"{name} needs the name of a file")
    return Path(argument).expanduser()


def _set(conversation: Conversation, argument: str) -> str:
    key, _, value = argument.partition(" ")
    if key and not value:
        raise CierzoError(f"/set {key} needs a value")
    if key:
        conversation.set(key, value.strip())
    shown = [key] if key else SETTINGS
    return "\n".join(f"{name} = {getattr(conversation.settings, name)!r}" for name in shown)


def _stats(conversation: Conversation, argument: str) -> str:
    answer, limit = conversation.last, conversation.llm.max_seq_len
    speed = "no answer yet"
    if answer is not None:
        speed = (
            f"last answer: {answer.tokens} tokens, first after {answer.first:.2f} s, then {answer.rate:.1f} tokens/s"
        )
    return f"{speed}\ncontext: {conversation.context_used()} of {'unlimited' if limit is None else limit} tokens"


def _exit(conversation: Conversation, argument: str) -> str:
    raise Leave


COMMANDS = {
    command.usage.partition(" ")[0]: command
    for command in (
        Command("/help", "show this", _help),
        Command("/system [TEXT]", "show or set the system prompt; `none` takes it away", _system),
        Command("/reset", "forget the messages", _reset),
        Command("/save FILE", "write the chat to a file", _save),
        Command("/load FILE", "go on with a saved chat", _load),
        Command("/set [KEY VALUE]", "show the settings, or change one", _set),
        Command("/stats", "speed of the last answer, and how full the context is", _stats),
        Command("/exit", "leave", _exit),
    )
}
