"""The command's streams and exit status, with a model whose answers are known."""

import io
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

import cierzo
from cierzo import cli
from cierzo.errors import CierzoError
from support.fake_llm import FakeLLM

QUESTION = b"What is the capital of France?\n"


class Ran(NamedTuple):
    status: object
    out: str
    err: str


Run = Callable[..., Ran]


@pytest.fixture
def llm(monkeypatch: pytest.MonkeyPatch) -> FakeLLM:
    """Stands for the model; `options` is what it was made with."""
    fake = FakeLLM(["The capital", " is Paris."])

    def make(model: str | None, **options: Any) -> FakeLLM:
        monkeypatch.setattr(fake, "options", {"model": model, **options}, raising=False)
        return fake

    monkeypatch.setitem(vars(cierzo), "LLM", make)
    return fake


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Run:
    def run(*arguments: str, stdin: bytes = b"") -> Ran:
        monkeypatch.setattr(sys, "argv", ["cierzo", *arguments])
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        with pytest.raises(SystemExit) as left:
            cli.main()
        return Ran(left.value.code, *capfd.readouterr())

    return run


def test_a_message_in_a_pipe_is_answered_on_stdout(run: Run, llm: FakeLLM) -> None:
    assert run("chat", "--system", "Be brief.", stdin=QUESTION) == (0, "The capital is Paris.\n", "")
    assert llm.asked == [
        [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "What is the capital of France?"},
        ]
    ]


def test_all_of_stdin_is_one_message(run: Run, llm: FakeLLM) -> None:
    run("chat", stdin=b" one\n\ntwo\r\n")
    assert llm.asked[0][0]["content"] == " one\n\ntwo"


def test_options_reach_the_model_and_the_sampler(run: Run, llm: FakeLLM) -> None:
    numbers = {"--temperature": 0, "--top-p": 0.5, "--top-k": 3, "--min-p": 0.1, "--seed": 4, "--max-tokens": 2}
    options = [str(part) for option in numbers.items() for part in option]
    options += ["--stop", "a", "--stop", "b", "--dtype", "float32", "--context", "99", "--no-mmap"]
    assert run("chat", "some.gguf", *options, stdin=QUESTION).status == 0
    assert llm.params == [
        cierzo.SamplingParams(
            temperature=0, top_p=0.5, top_k=3, min_p=0.1, seed=4, max_tokens=2, stop=("a", "b")
        )
    ]  # fmt: skip
    assert llm.options == {  # type: ignore[attr-defined]
        "model": "some.gguf",
        "dtype": "float32",
        "device": "auto",
        "chat_template": None,
        "max_seq_len": 99,
        "cache_dtype": "auto",
        "allow_beyond_limit": False,
        "mmap": False,
        "progress": True,
    }


def test_an_answer_that_was_cut_says_so(run: Run, llm: FakeLLM) -> None:
    assert run("chat", "--max-tokens", "1", stdin=QUESTION) == (
        0,
        "The capital\n",
        "note: the answer reached max_tokens = 1\n",
    )


@pytest.mark.parametrize("stdin", [b"", b"\n", b" \n\t"])
def test_empty_stdin(run: Run, llm: FakeLLM, stdin: bytes) -> None:
    assert run("chat", stdin=stdin) == (1, "", "error: stdin is empty: write the message to answer to it\n")


def test_stdin_that_is_no_text(run: Run, llm: FakeLLM) -> None:
    assert run("chat", stdin=b"ab\xff") == (1, "", "error: stdin is not UTF-8 text: byte 0xff at 2\n")


def test_a_model_without_a_chat_template(run: Run, llm: FakeLLM, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(llm.tokenizer, "chat_refusal", "a base model")
    assert run("chat", stdin=QUESTION) == (1, "", "error: fake: a base model\n")


def test_errors_are_one_line(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*arguments: object, **options: object) -> None:
        raise CierzoError("no such model")

    monkeypatch.setitem(vars(cierzo), "LLM", fails)
    assert run("generate", "--prompt", "x") == (1, "", "error: no such model\n")


def test_a_setting_out_of_range(run: Run, llm: FakeLLM) -> None:
    ran = run("generate", "--prompt", "x", "--top-p", "2")
    assert (ran.status, ran.out) == (1, "")
    assert ran.err.startswith("error: top_p must be")


@pytest.mark.parametrize("arguments", [["chat", "--nonsense"], ["nonsense"], ["generate", "--top-k", "many"]])
def test_wrong_usage(run: Run, arguments: list[str]) -> None:
    ran = run(*arguments)
    assert (ran.status, ran.out) == (2, "")
    assert "Traceback" not in ran.err


@pytest.mark.parametrize(("own", "policy"), [(None, "PASSIVE"), ("ACTIVE", "ACTIVE")])
def test_threads_do_not_spin_unless_the_user_says_so(
    run: Run, monkeypatch: pytest.MonkeyPatch, own: str | None, policy: str
) -> None:
    monkeypatch.setenv("OMP_WAIT_POLICY", own or "")
    if own is None:
        monkeypatch.delenv("OMP_WAIT_POLICY")
    run("--version")
    assert os.environ["OMP_WAIT_POLICY"] == policy


def test_generate_continues_a_text(run: Run, llm: FakeLLM) -> None:
    assert run("generate", "--prompt", "Once ") == (0, "The capital is Paris.\n", "")
    run("generate", stdin=b"Once upon\n")
    run("generate", "--chat", "--prompt", "Hi")
    assert llm.asked == [
        [{"role": "prompt", "content": "Once "}],
        [{"role": "prompt", "content": "Once upon"}],
        [{"role": "user", "content": "Hi"}],
    ]


def test_generate_does_not_double_a_newline(run: Run, llm: FakeLLM) -> None:
    llm.pieces = ["end\n"]
    assert run("generate", "--prompt", "x").out == "end\n"


def test_generate_without_a_text(run: Run, llm: FakeLLM) -> None:
    assert run("generate", stdin=b"") == (1, "", "error: stdin is empty: write the text to continue to it\n")
    assert run("generate", "--prompt", "").err == "error: the prompt is empty: give --prompt a text\n"


@pytest.mark.parametrize(
    "command", [["-m", "cierzo", "--version"], [str(Path(sys.executable).parent / "cierzo"), "--version"]]
)
def test_version(command: list[str]) -> None:
    command = [sys.executable, *command] if command[0] == "-m" else command
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert result.stdout == f"cierzo {cierzo.__version__}\n"


def child(tmp_path: Path, pieces: int, delay: float) -> "subprocess.Popen[bytes]":
    """`cierzo generate` as a process of its own, with a fake model."""
    script = tmp_path / "child.py"
    script.write_text(
        "import sys, cierzo\n"
        "from support.fake_llm import FakeLLM\n"
        f"vars(cierzo)['LLM'] = lambda model, **options: FakeLLM(['word '] * {pieces}, delay={delay})\n"
        "sys.argv = ['cierzo', 'generate', '--prompt', 'x']\n"
        "from cierzo.cli import main\n"
        "main()\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    return subprocess.Popen(
        [sys.executable, str(script)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment,
        # A shell's background job, as the tests may be, ignores Ctrl-C, and so would its children.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def test_a_closed_pipe_ends_quietly(tmp_path: Path) -> None:
    with child(tmp_path, pieces=100_000, delay=0) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.read(5) == b"word "
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(60) == 1


def test_ctrl_c_ends_quietly(tmp_path: Path) -> None:
    with child(tmp_path, pieces=100_000, delay=0.01) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.read(5) == b"word "
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130
        assert process.stderr.read() == b""
