"""The kernels without Python: every instruction set of this machine against plain C++, bit for bit."""

import shutil
import subprocess
from pathlib import Path

import pytest


@pytest.mark.heavy
@pytest.mark.timeout(1200)
@pytest.mark.skipif(shutil.which("cmake") is None, reason="no cmake on this machine")
def test_every_instruction_set_gives_the_bits_of_plain_code(tmp_path: Path) -> None:
    here = Path(__file__).parent
    subprocess.run(["cmake", "-S", str(here), "-B", str(tmp_path)], check=True)
    subprocess.run(["cmake", "--build", str(tmp_path), "--target", "sets", "-j2"], check=True)
    result = subprocess.run([str(tmp_path / "sets"), "300"], capture_output=True, text=True)
    assert result.stdout.endswith("same bits\n"), result.stdout
    assert result.returncode == 0
