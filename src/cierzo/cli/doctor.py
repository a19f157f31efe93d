"""`cierzo doctor`: what this machine and this installation compute with, and why."""

import os
import platform

from cierzo.version import __version__


def doctor() -> None:
    """Show what computes here: kernels, instruction set, threads, memory."""
    import torch

    from cierzo import machine

    found = machine()
    native = "built in" if found.kernels else "missing"
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    rows = {
        "cierzo": __version__,
        "python": f"{platform.python_version()} on {platform.system()} {platform.machine()}",
        "processor": _processor(),
        "native kernels": native,
        "instruction set": f"{found.isa} ({found.reason})",
        "not here": "; ".join(f"{name}: {why}" for name, why in found.refused.items()) or "-",
        "threads": f"{found.threads} of {os.cpu_count()} (CIERZO_THREADS changes it)",
        "memory": f"{pages / 2**30:.1f} GiB",
        "pytorch": f"{torch.__version__}, CUDA {'available' if torch.cuda.is_available() else 'not available'}",
    }
    for name, value in rows.items():
        print(f"{name:<16} {value}")


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as info:
            return next(line.partition(":")[2].strip() for line in info if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or "unknown"
