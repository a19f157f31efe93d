"""llama.cpp in its own environment (benchmarks/rivals/install.sh), where it is installed."""

import json
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

_PYTHON = Path.home() / ".cache" / "cierzo-rivals" / "llama.cpp" / "bin" / "python"
_SCRIPT = Path(__file__).parents[2] / "benchmarks" / "rivals" / "llama_cpp_scores.py"


def llama_cpp_scores(model: Path, texts: Sequence[Sequence[int]], threads: int = 2) -> dict[str, Any]:
    """See llama_cpp_scores.py. Skips the test where llama.cpp is not installed."""
    if not _PYTHON.exists():
        pytest.skip("llama.cpp is not installed: benchmarks/rivals/install.sh")
    job = {"model": str(model), "texts": [list(text) for text in texts], "threads": threads}
    result = subprocess.run(
        [str(_PYTHON), str(_SCRIPT)], input=json.dumps(job), capture_output=True, text=True, timeout=250
    )
    assert result.returncode == 0, result.stderr
    found: dict[str, Any] = json.loads(result.stdout)
    return found
