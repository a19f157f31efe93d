"""One question in a pipe, with the real model."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
QUESTION = "What is the capital of France?\n"


def test_the_default_model_knows_paris(default_gguf: Path) -> None:
    result = subprocess.run(
        [sys.executable, "-m", "cierzo", "chat", str(default_gguf)], input=QUESTION, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    assert "Paris" in result.stdout
    assert result.stdout.endswith("\n")
    assert result.stderr == ""


def test_generate_is_the_same_in_pieces_and_at_once(default_gguf: Path) -> None:
    from cierzo import LLM, SamplingParams

    result = subprocess.run(
        [sys.executable, "-m", "cierzo", "generate", str(default_gguf), "--max-tokens", "12", "--temperature", "0"],
        input="Once upon a time",
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    params = SamplingParams(temperature=0, max_tokens=12)
    assert result.stdout == LLM(default_gguf).generate("Once upon a time", params)[0].text + "\n"


@pytest.mark.heavy
@pytest.mark.timeout(1200)
def test_make_chat_in_a_fresh_copy(tmp_path: Path) -> None:
    """No environment, no cache, no git, a folder with a space: only the answer is on stdout, twice."""
    copy = tmp_path / "fresh copy"
    shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(".*", "__pycache__"))
    # A make within make would announce its folder, and pass its options on.
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS", "ARGS"))}
    environment = inherited | {"CIERZO_HOME": str(tmp_path / "home"), "PYTHON": sys.executable}
    for _ in range(2):
        result = subprocess.run(
            ["make", "chat"], cwd=copy, env=environment, input=QUESTION, capture_output=True, text=True
        )
        assert result.returncode == 0, result.stderr
        assert "Paris" in result.stdout
        assert result.stdout.count("\n") == 1, result.stdout
    assert result.stderr == ""
