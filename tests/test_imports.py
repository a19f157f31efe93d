"""Who may import whom, and what must not be imported early."""

import subprocess
import sys
from pathlib import Path

import pytest
from importlinter.cli import lint_imports

PYPROJECT = Path(__file__).parents[1] / "pyproject.toml"


def test_rooms_import_only_what_they_may(capsys: pytest.CaptureFixture[str]) -> None:
    status = lint_imports(config_filename=str(PYPROJECT), no_cache=True)
    assert status == 0, capsys.readouterr().out


@pytest.mark.parametrize("code", ["import cierzo", "import cierzo.cli", "from cierzo import __version__"])
def test_nothing_heavy_is_imported_early(code: str) -> None:
    heavy = {"torch", "numpy", "transformers", "tokenizers", "gguf", "prompt_toolkit"}
    script = f"import sys; {code}; print(*sorted({heavy} & set(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert result.stdout.split() == []


def test_the_public_face() -> None:
    import cierzo

    assert all(getattr(cierzo, name) is not None for name in cierzo.__all__)
    assert dir(cierzo) == sorted(cierzo.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        cierzo.nonsense  # noqa: B018
