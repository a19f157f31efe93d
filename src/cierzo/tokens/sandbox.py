"""Runs a model's Jinja template where it can do no harm: in a process of its own with limits on time and memory.

A template comes with the weights, from strangers. Jinja's sandbox keeps it from the program, but not from looping for
ever or from filling the memory, so it runs in a child process (this file as a script) that is ended when it takes too
long. The child stays for the next chat; its requests and answers are lines of JSON.
"""

import json
import subprocess
import sys
import threading
import weakref
from typing import Any

SECONDS = 5.0
MEGABYTES = 512
CHARACTERS = 2**24


class TemplateSandbox:
    """One template and, from its first use on, the process that renders it. Any thread may use it."""

    def __init__(self, source: str) -> None:
        self._source = source
        self._lock = threading.Lock()
        self._process: subprocess.Popen[str] | None = None

    def render(self, variables: dict[str, Any]) -> str:
        """The template's text.

        Raises:
            TemplateRefusalError: the template's own refusal.
            ChatError: its mistake, or a limit that it passed.
        """
        from cierzo.tokens.interface import ChatError, TemplateRefusalError

        with self._lock:
            answer = self._ask(json.dumps(variables))
        if "text" in answer:
            return str(answer["text"])
        if "refusal" in answer:
            raise TemplateRefusalError(f"the model's chat template refuses: {answer['refusal']}")
        raise ChatError(f"the model's chat template cannot be used: {answer['error']}")

    def _ask(self, request: str) -> dict[str, Any]:
        process, source = self._started()
        assert process.stdin is not None
        assert process.stdout is not None
        out_of_time = threading.Timer(SECONDS, process.kill)
        out_of_time.start()
        try:
            process.stdin.write(source + request + "\n")
            process.stdin.flush()
            line = process.stdout.readline()
        except BrokenPipeError:
            line = ""
        finally:
            out_of_time.cancel()
        if line.endswith("\n"):  # or it was ended while it wrote
            answer: dict[str, Any] = json.loads(line)
            return answer
        _end(process)
        self._process = None
        return {"error": f"it took more than {SECONDS:.0f} s or {MEGABYTES} MB; use another with --chat-template"}

    def _started(self) -> tuple[subprocess.Popen[str], str]:
        """The process, and the line that it waits for before it takes requests."""
        first = ""
        if self._process is None or self._process.poll() is not None:
            # -I: neither the working folder nor the user's environment can put another jinja2 in the way.
            self._process = subprocess.Popen(
                [sys.executable, "-I", __file__],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
                encoding="utf-8",
                start_new_session=True,  # Ctrl-C at the terminal is for the chat, not for this
            )
            weakref.finalize(self, _end, self._process)
            first = json.dumps(self._source) + "\n"
        return self._process, first


def _end(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.communicate()


def _child() -> None:
    """Read a template, then variables line by line; answer each with a text, a refusal or an error."""
    import resource
    from datetime import datetime

    from jinja2.ext import Extension, loopcontrols
    from jinja2.nodes import Node
    from jinja2.parser import Parser
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    limit = MEGABYTES * 2**20
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))

    class RefusalError(Exception):
        pass

    class GenerationTag(Extension):
        """`{% generation %}` marks the answer for training; here it changes nothing."""

        tags = {"generation"}  # noqa: RUF012 (as jinja2 declares it)

        def parse(self, parser: Parser) -> list[Node]:
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    def refuse(message: str) -> None:
        raise RefusalError(message)

    def to_json(value: Any, indent: int | None = None, ensure_ascii: bool = False, **options: Any) -> str:
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, **options)

    # The environment that transformers gives to templates, so that they mean the same here.
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[GenerationTag, loopcontrols]
    )
    environment.filters["tojson"] = to_json
    environment.globals["raise_exception"] = refuse
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    source = json.loads(sys.stdin.readline())
    for line in sys.stdin:
        try:
            text = environment.from_string(source).render(json.loads(line))
            answer = {"text": text} if len(text) <= CHARACTERS else {"error": f"it wrote {len(text)} characters"}
        except RefusalError as error:
            answer = {"refusal": str(error)}
        except MemoryError:
            answer = {"error": f"it needs more than {MEGABYTES} MB"}
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {error}"}
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    sys.stdin.reconfigure(encoding="utf-8")  # type: ignore[union-attr]
    sys.stdout.reconfigure(encoding="utf-8")  # type: ignore[union-attr]
    _child()
