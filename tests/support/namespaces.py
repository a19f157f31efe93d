"""Whether programs can be put into namespaces of their own here: containers and hardened systems often forbid it."""

import os
import shutil
import subprocess
from functools import cache

import pytest

from cierzo.evaluate.sandbox import Sandbox

_ROOT = os.geteuid() == 0
_TRIALS = {
    "bwrap": ["--ro-bind", "/", "/", "--unshare-pid", "--unshare-net", *([] if _ROOT else ["--unshare-user"])],
    "unshare": ["--mount", "--pid", "--net", "--fork", *([] if _ROOT else ["--user", "--map-root-user"])],
}


@cache
def refusal(tool: str) -> str | None:
    """Why a tool makes no namespaces on this machine, which is no fault of the sandbox's; None where it does."""
    if shutil.which(tool) is None:
        return f"{tool} is not installed"
    tried = subprocess.run([tool, *_TRIALS[tool], "true"], capture_output=True, text=True)
    return None if tried.returncode == 0 else f"no namespaces by {tool} on this machine: {tried.stderr.strip()}"


def default_sandbox() -> Sandbox:
    """The sandbox that evaluation takes; skips where the machine allows none."""
    if reason := refusal("bwrap" if shutil.which("bwrap") else "unshare"):
        pytest.skip(reason)
    return Sandbox()
