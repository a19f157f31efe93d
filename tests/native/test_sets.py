"""The kernels without Python: sets of this machine, and ARM's in an emulator, against plain C++, bit for bit."""

import shutil
import subprocess
from pathlib import Path

import pytest

HERE = Path(__file__).parent
pytestmark = [
    pytest.mark.heavy,
    pytest.mark.timeout(1200),
    pytest.mark.skipif(shutil.which("cmake") is None, reason="no cmake on this machine"),
]


def build(folder: Path, *options: str) -> str:
    subprocess.run(["cmake", "-S", str(HERE), "-B", str(folder), *options], check=True)
    subprocess.run(["cmake", "--build", str(folder), "--target", "sets", "-j2"], check=True)
    return str(folder / "sets")


def compare(*command: str) -> list[str]:
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.stdout.endswith("same bits\n"), result.stdout + result.stderr
    assert result.returncode == 0
    return result.stdout.splitlines()


def test_every_instruction_set_gives_the_bits_of_plain_code(tmp_path: Path) -> None:
    compare(build(tmp_path), "300")


def test_tiles_give_the_bits_of_plain_code(tmp_path: Path) -> None:
    """AMX's kernels, their tile registers in memory, so that a processor without AMX runs them too."""
    compared = compare(build(tmp_path, "-DCIERZO_EMULATED_TILES=ON"), "100")
    if "avx512: compared" not in compared:
        pytest.skip("no AVX-512, which AMX's kernels need as well")
    assert "amx: compared" in compared


def test_neon_gives_the_bits_of_plain_code(tmp_path: Path) -> None:
    emulator = shutil.which("qemu-aarch64-static")
    if not emulator or not shutil.which("aarch64-linux-gnu-g++"):
        pytest.skip("no compiler or emulator for ARM: apt-get install g++-aarch64-linux-gnu qemu-user-static")
    sets = build(tmp_path, f"-DCMAKE_TOOLCHAIN_FILE={HERE / 'aarch64.cmake'}")
    assert compare(emulator, "-cpu", "max", sets, "30")[0] == "neon: compared"
    assert "no dot products" in compare(emulator, "-cpu", "cortex-a53", sets, "1")[0]
