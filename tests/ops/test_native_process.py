"""The native kernels in a process: after a fork, by the environment, and where they are missing."""

import os
import subprocess
import sys

import pytest
import torch

from cierzo.ops import Format, native
from support.kernels import needs_kernels, random_matrix

pytestmark = needs_kernels


def test_a_forked_child_computes_too() -> None:
    """The parent's threads are not in the child; a pool of its own must be."""
    w, x = random_matrix(Format.Q4, 64, 64), torch.randn(3, 64)
    expected = native.project_out(x, w, torch.zeros(3, 64))
    child = os.fork()
    if child == 0:
        same = torch.equal(native.project_out(x, w, torch.zeros(3, 64)), expected)
        os._exit(0 if same else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"CIERZO_ISA": "sse9"}, "CIERZO_ISA=sse9 is not available: this machine and build run"),
        ({"CIERZO_THREADS": "many"}, "CIERZO_THREADS must be a whole number"),
        ({"CIERZO_ISA": "reference"}, "instruction set  reference (CIERZO_ISA names it)"),
        ({"CIERZO_ISA": "portable", "CIERZO_THREADS": "3"}, "threads          3 of"),
    ],
)
def test_the_environment_chooses(environment: dict[str, str], message: str) -> None:
    result = subprocess.run(
        [sys.executable, "-m", "cierzo", "doctor"], env=os.environ | environment, capture_output=True, text=True
    )
    assert message in result.stdout + result.stderr
    assert "Traceback" not in result.stderr
    assert (result.returncode != 0) == ("error:" in result.stderr)


def test_without_the_extension_the_reference_computes_and_says_so() -> None:
    """In a process that cannot import it; packed weights are then unpacked, to the same model but for rounding."""
    code = (
        "import sys; sys.modules['cierzo.ops._native'] = None\n"
        "import torch\n"
        "from cierzo.ops import Format, machine, project_out, quantize\n"
        "w = quantize(torch.eye(40), Format.Q8)\n"
        "x = torch.arange(80.0).view(2, 40)\n"
        "assert torch.allclose(project_out(x, w, torch.zeros(2, 40)), x, rtol=1e-3)\n"
        "machine(); print(machine().isa)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stdout == "reference\n", result.stderr
    assert result.stderr.count("no native kernels") == 1
    assert "install Cierzo with a C++ compiler" in result.stderr
    command = "import sys; sys.modules['cierzo.ops._native'] = None; sys.argv = ['cierzo', 'doctor']\n"
    result = subprocess.run(
        [sys.executable, "-c", command + "from cierzo.cli import main; main()"], capture_output=True, text=True
    )
    [line] = result.stderr.splitlines()
    assert line.startswith("warning: no native kernels")
