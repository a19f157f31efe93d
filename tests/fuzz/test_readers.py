"""Every reader, given files that lie, loads or raises a `CierzoError`, soon and without much memory."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from fuzz.readers import READERS

CASES = 100
"""Of each reader, the same in every run."""


def fuzzed(*options: str, limit: float) -> dict[str, Any]:
    """What the readers' own process says of each reader."""
    tests = Path(__file__).parents[1]
    ran = subprocess.run(
        [sys.executable, "-m", "fuzz.readers", *options],
        env=os.environ | {"PYTHONPATH": str(tests), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=limit,
    )
    assert ran.returncode == 0, ran.stderr[-3000:]
    results: dict[str, Any] = json.loads(ran.stdout)
    return results


def test_files_that_lie_are_read_or_refused() -> None:
    for name, result in fuzzed("--cases", str(CASES), "--seconds", "200", limit=250).items():
        assert not result["found"], name
        assert result["cases"] == CASES, name
        assert result["loaded"] < CASES, f"{name}: no lie was noticed"
        assert len(result["errors"]) > 3, name


@pytest.mark.heavy
@pytest.mark.timeout(1000)
def test_more_files_that_lie() -> None:
    """Others in every run, for a minute or CIERZO_FUZZ_SECONDS; the seed is in the message when one is found."""
    seconds = float(os.environ.get("CIERZO_FUZZ_SECONDS", "60"))
    seed = int.from_bytes(os.urandom(4))
    results = fuzzed("--seconds", str(seconds), "--seed", str(seed), limit=seconds + 300)
    assert set(results) == set(READERS)
    assert not {name: result["found"] for name, result in results.items() if result["found"]}, f"seed {seed}"
