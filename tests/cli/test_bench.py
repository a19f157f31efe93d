"""`cierzo bench serve` on a server of this process."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from cierzo.cli.load import Sample, figures
from support.models import tiny_config, tiny_engine
from support.server import served


def test_a_server_is_measured_and_drawn(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is not installed: pip install 'cierzo[bench]'")
    with served(tiny_engine(tiny_config()), max_waiting=0, max_running=64) as server:
        command = [sys.executable, "-m", "cierzo", "bench", "serve"]
        settings = ["--clients", "1,3", "--requests", "2", "--prompt-tokens", "400", "--answer-tokens", "9"]
        files = ["--json", str(tmp_path / "load.json"), "--png", str(tmp_path / "load.png")]
        result = subprocess.run([*command, server.url, *settings, *files], capture_output=True, text=True, timeout=120)
        assert result.returncode == 0, result.stderr
        assert result.stderr == ""
        refused = subprocess.run(
            [*command, server.url, "--body", '{"foo": 1}'], capture_output=True, text=True, timeout=60
        )
        assert refused.returncode == 1
        assert "foo is not supported" in refused.stderr
    written = json.loads((tmp_path / "load.json").read_text())
    assert [(run["clients"], run["requests"], run["failed"]) for run in written["runs"]] == [(1, 2, 0), (3, 6, 0)]
    for run in written["runs"]:
        assert run["answer_tokens"] == 9
        assert 380 <= run["prompt_tokens"] <= 420
        assert 0 < run["first_p50"] <= run["whole_p50"] <= run["seconds"]
    assert (tmp_path / "load.png").read_bytes().startswith(b"\x89PNG")
    assert result.stdout.splitlines()[0].startswith("clients")
    assert {path.name for path in tmp_path.iterdir()} == {"load.json", "load.png"}


def test_figures_are_of_the_requests_that_were_answered() -> None:
    samples = [Sample(n, 2 * n, [0.1, 0.3], 10, 3) for n in (1.0, 2.0, 3.0)] + [Sample(error="broken")]
    found = figures(2, samples, 60)
    assert (found.requests, found.failed, found.errors) == (3, 1, ("broken",))
    assert (found.requests_per_minute, found.tokens_per_second) == (3, 9 / 60)
    assert (found.first_p50, found.first_p99, found.whole_p50) == (2, 3, 4)
    assert (found.between_p50, found.between_p99) == (0.3, 0.3)
    assert figures(1, [Sample(error="x")], 1).first_p50 == 0
