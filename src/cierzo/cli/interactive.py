"""The chat at a terminal: a prompt with history, answers as they come, Ctrl-C that stops the answer."""

import os
import signal
import sys
import termios
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager
from itertools import chain
from types import FrameType

from prompt_toolkit import PromptSession
from prompt_toolkit.completion import CompleteEvent, Completer, Completion, PathCompleter
from prompt_toolkit.document import Document
from prompt_toolkit.history import FileHistory, History, InMemoryHistory
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
from prompt_toolkit.output import create_output
from prompt_toolkit.shortcuts import CompleteStyle
from rich.console import Console

from cierzo import Delta
from cierzo.cli import commands
from cierzo.cli.conversation import SETTINGS, Conversation
from cierzo.cli.markdown import MarkdownWriter
from cierzo.cli.options import length_note, write_plain
from cierzo.errors import CierzoError
from cierzo.weights.pull import cierzo_home


def interact(conversation: Conversation) -> None:
    """Chat until `/exit` or Ctrl-D. Answers go to stdout; when that is no terminal, all the rest goes to stderr."""
    screen = Console(highlight=False)
    notes = screen if screen.is_terminal else Console(stderr=True, highlight=False)
    session = prompt_session(_history(notes), to_stdout=screen.is_terminal)
    notes.print(str(conversation.llm.card), style="dim", markup=False, highlight=False)
    notes.print(f"{conversation.llm.name}: /help for help, Ctrl-D to leave", style="dim", markup=False)
    with CtrlC.caught() as ctrl_c:
        while True:
            try:
                text = session.prompt("> ", prompt_continuation="  ")
                if text.startswith("/"):
                    notes.print(commands.run(conversation, text), style="dim", markup=False)
                elif text.strip():
                    _answer(conversation, text, screen, ctrl_c)
                    _tell_why_it_ended(conversation, notes)
            except CierzoError as error:
                notes.print(f"error: {error}", style="red", markup=False)
            except (commands.Leave, EOFError):
                return


class CtrlC:
    """What Ctrl-C does while an answer comes: it stops between two tokens; a second one does not wait for that."""

    _NOTHING_TO_STOP = 2

    def __init__(self) -> None:
        self._pressed = self._NOTHING_TO_STOP

    @classmethod
    @contextmanager
    def caught(cls) -> Iterator["CtrlC"]:
        """Handle SIGINT in this way."""
        ctrl_c = cls()
        before = signal.signal(signal.SIGINT, ctrl_c._press)
        try:
            yield ctrl_c
        finally:
            signal.signal(signal.SIGINT, before)

    def _press(self, signum: int, frame: FrameType | None) -> None:
        self._pressed += 1
        if self._pressed == 2:
            raise KeyboardInterrupt

    @contextmanager
    def stops(self) -> Iterator[Callable[[], bool]]:
        """Within this, Ctrl-C makes the given function true, or ends the block."""
        self._pressed = 0
        try:
            yield lambda: self._pressed > 0
        except KeyboardInterrupt:
            pass
        finally:
            self._pressed = self._NOTHING_TO_STOP


def _answer(conversation: Conversation, text: str, screen: Console, ctrl_c: CtrlC) -> None:
    with _silent_keys(), ctrl_c.stops() as stopped, closing(conversation.ask(text)) as deltas:
        kept = _until(stopped, deltas)
        if screen.is_terminal and not screen.is_dumb_terminal:
            with screen.status("", spinner="dots"):
                first = next(kept, Delta(""))
            MarkdownWriter(screen).write(delta.text for delta in chain([first], kept))
            screen.print()
        else:
            write_plain(kept, screen.file)


def _until(stopped: Callable[[], bool], deltas: Iterable[Delta]) -> Iterator[Delta]:
    for delta in deltas:
        yield delta
        if stopped():
            return


def _tell_why_it_ended(conversation: Conversation, notes: Console) -> None:
    reason = conversation.last and conversation.last.finish_reason
    if reason is None:
        notes.print("(stopped)", style="dim")
    elif reason == "length":
        notes.print(f"({length_note(conversation.settings, conversation.llm.max_seq_len)})", style="dim", markup=False)


@contextmanager
def _silent_keys() -> Iterator[None]:
    """Do not echo what is typed into the answer; the next prompt gets it."""
    keyboard = sys.stdin.fileno()
    before = termios.tcgetattr(keyboard)
    silent = before.copy()
    silent[3] &= ~termios.ECHO
    termios.tcsetattr(keyboard, termios.TCSADRAIN, silent)
    try:
        yield
    finally:
        termios.tcsetattr(keyboard, termios.TCSADRAIN, before)


def prompt_session(history: History, *, to_stdout: bool) -> PromptSession[str]:
    """The editor of a message."""
    keys = KeyBindings()

    @keys.add("enter")
    def send(event: KeyPressEvent) -> None:
        buffer = event.current_buffer
        if buffer.document.char_before_cursor == "\\" and not buffer.document.text_after_cursor:
            buffer.delete_before_cursor()
            buffer.newline(copy_margin=False)
        else:
            buffer.validate_and_handle()

    @keys.add("escape", "enter")
    def new_line(event: KeyPressEvent) -> None:
        event.current_buffer.newline(copy_margin=False)

    @keys.add("c-c")
    @keys.add("<sigint>")
    def clear(event: KeyPressEvent) -> None:
        event.current_buffer.reset()

    return PromptSession(
        multiline=True,
        key_bindings=keys,
        history=history,
        completer=CommandCompleter(),
        complete_while_typing=False,
        complete_style=CompleteStyle.READLINE_LIKE,  # a menu would reserve lines below the prompt
        output=None if to_stdout else create_output(sys.stderr),
    )


def _history(notes: Console) -> History:
    path = cierzo_home() / "chat_history"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch(mode=0o600)
        with path.open("a"):
            return FileHistory(os.fspath(path))
    except OSError as error:
        notes.print(f"the history of this chat is not kept: {path}: {error.strerror}", style="dim", markup=False)
        return InMemoryHistory()


class CommandCompleter(Completer):
    """Names of commands, then their files and settings."""

    def __init__(self) -> None:
        self._files = PathCompleter(expanduser=True)

    def get_completions(self, document: Document, complete_event: CompleteEvent) -> Iterable[Completion]:
        text = document.text_before_cursor
        name, space, argument = text.partition(" ")
        if not space and text.startswith("/"):
            words, typed = tuple(commands.COMMANDS), text
        elif name in ("/save", "/load"):
            yield from self._files.get_completions(Document(argument), complete_event)
            return
        elif name == "/set":
            words, typed = SETTINGS, argument
        else:
            return
        for word in words:
            if word.startswith(typed):
                yield Completion(word, start_position=-len(typed))
