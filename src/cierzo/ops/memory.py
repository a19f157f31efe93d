"""How much memory can really be had."""

import re
from pathlib import Path

import torch

from cierzo.ops.machine import cgroup_folders, read_text


def free_memory(device: torch.device) -> int:
    """Bytes that a process can still take without pushing others out: the machine's, within its control groups' limits.

    Where the system does not say, no limit is known: 2^62.
    """
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    available = re.search(r"^MemAvailable:\s*(\d+) kB", read_text("/proc/meminfo"), re.MULTILINE)
    free = [int(available[1]) * 1024] if available else []
    for folder in cgroup_folders():
        free += _left(folder, "memory.max", "memory.current", "inactive_file")
    free += _left(
        Path("/sys/fs/cgroup/memory"), "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"
    )
    return max(0, min(free, default=2**62))


def _left(folder: Path, limit: str, usage: str, droppable: str) -> list[int]:
    """What a control group leaves; nothing if it has no limit. Cached files that nobody uses are as good as free."""
    most, used = read_text(f"{folder}/{limit}"), read_text(f"{folder}/{usage}")
    if not (most.isdecimal() and used.isdecimal()):
        return []
    cached = re.search(rf"^{droppable} (\d+)", read_text(f"{folder}/memory.stat"), re.MULTILINE)
    return [int(most) - int(used) + (int(cached[1]) if cached else 0)]
