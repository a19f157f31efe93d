"""What the tests of evaluation share."""

from pathlib import Path

import pytest

from cierzo import LLM
from support.benchmarks import write_data


def names(folder: str, prefix: str = "") -> list[str]:
    """Names of the harness's task files in a folder."""
    lm_eval = pytest.importorskip("lm_eval.tasks", reason="lm-eval is not installed: pip install 'cierzo[eval]'")
    files = Path(lm_eval.__file__).parent.joinpath(folder).glob(f"{prefix}[a-z]*.yaml")
    return sorted(file.stem.removeprefix(prefix) for file in files)


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A few items of every benchmark."""
    return write_data(tmp_path_factory.mktemp("data"), names("mmlu/default", "mmlu_"), names("bbh/fewshot"))


@pytest.fixture(scope="session")
def smollm2(default_gguf: Path) -> LLM:
    return LLM(default_gguf, cache_tokens=16_384)
