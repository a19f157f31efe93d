"""What of the machine computes: the instruction set and the threads."""

import os
import warnings
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType

from cierzo.errors import CierzoError


@dataclass(frozen=True)
class Machine:
    """`kernels` is the native module, or None where the PyTorch reference computes everything."""

    kernels: ModuleType | None
    isa: str
    threads: int
    reason: str
    """Why this instruction set."""
    refused: dict[str, str]
    """Instruction sets that are built in and cannot run here, with why."""


@cache
def machine() -> Machine:
    """What was chosen when a kernel was first needed.

    `CIERZO_ISA` names an instruction set ("reference" for PyTorch alone), `CIERZO_THREADS` the number of threads.
    Raises `CierzoError` for a value that is not to be had.
    """
    wanted, threads = os.environ.get("CIERZO_ISA", ""), _threads()
    if wanted == "reference":
        return Machine(None, "reference", threads, "CIERZO_ISA names it", {})
    try:
        from cierzo.ops import _native
    except ImportError as error:
        if wanted:
            raise CierzoError(
                f"CIERZO_ISA={wanted}: there are no native kernels: install Cierzo with a C++ compiler and Python's "
                "headers"
            ) from error
        warnings.warn(
            f"no native kernels ({error}): PyTorch computes everything, slowly; install Cierzo with a C++ compiler and "
            "Python's headers",
            stacklevel=2,
        )
        return Machine(None, "reference", threads, f"no native kernels: {error}", {})
    refused = {name: why for name, why in _native.candidates() if why}
    names = [name for name, why in _native.candidates() if not why]
    if wanted in refused:
        raise CierzoError(f"CIERZO_ISA={wanted} cannot run here: {refused[wanted]}; {', '.join(names)}, reference can")
    if wanted and wanted not in names:
        raise CierzoError(
            f"CIERZO_ISA={wanted} is not available: this machine and build run {', '.join(names)}, reference"
        )
    _native.use(wanted or names[0])
    _native.set_threads(threads)
    try:
        _native.threads()
    except RuntimeError as error:
        raise CierzoError(f"{error}: set CIERZO_THREADS to fewer") from error
    reason = "CIERZO_ISA names it" if wanted else f"the best of {', '.join(names)} that this machine has"
    return Machine(_native, _native.isa(), threads, reason, refused)


def _threads() -> int:
    """Physical cores that this process may use, within its cgroup's share of time."""
    given = os.environ.get("CIERZO_THREADS", "")
    if given:
        if not given.isdecimal() or len(given) > 4 or not 1 <= int(given) <= 1024:
            raise CierzoError(f"CIERZO_THREADS must be a whole number from 1 to 1024, not {given!r}")
        return int(given)
    allowed = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))
    cores = {
        read_text(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list") or str(cpu) for cpu in allowed
    }
    return max(1, min(len(cores), int(_cgroup_cpus())))


def _cgroup_cpus() -> float:
    """CPUs' worth of time that control groups (version 2, then 1) leave to this process: the least of its groups'."""
    limits = [read_text(f"{folder}/cpu.max").split() for folder in cgroup_folders()]
    v1 = "/sys/fs/cgroup/cpu/cpu.cfs_"
    limits.append([read_text(f"{v1}quota_us"), read_text(f"{v1}period_us")])
    # "max", -1 or nothing means no limit.
    return min((int(a) / int(b) for a, b in filter(_two_numbers, limits)), default=1024)


def cgroup_folders() -> list[Path]:
    """Of this process's control group (version 2) and those around it."""
    own = next((line[3:] for line in read_text("/proc/self/cgroup").splitlines() if line.startswith("0::")), "/")
    return [Path("/sys/fs/cgroup", *folder.parts[1:]) for folder in [Path(own), *Path(own).parents]]


def _two_numbers(words: list[str]) -> bool:
    return len(words) == 2 and all(word.isdecimal() and int(word) > 0 for word in words)


def read_text(path: str) -> str:
    """What a file of the kernel says; nothing if there is none."""
    try:
        return Path(path).read_text(encoding="utf-8").strip()
    except OSError:
        return ""
