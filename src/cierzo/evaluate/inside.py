"""The first process inside a sandbox: makes its world, starts the program with its limits, and ends with it.

Run as a script by `sandbox.py`, with nothing but the standard library. When this process ends, the kernel ends
everything that was started in its process name space.
"""

import ctypes
import errno
import json
import os
import resource
import signal
import struct
import sys
import time
from typing import Any

_BIND, _REMOUNT, _READ_ONLY, _NO_SUID, _NO_DEV = 4096, 32, 1, 2, 4
_DETACH = 2
_NO_NEW_PRIVILEGES, _DROP_BOUNDING, _DEATH_SIGNAL = 38, 24, 1
_SECCOMP, _FILTER = 22, 2

WORD = 3
"""Where the program's last line finds the word that it prints."""

# Calls that are refused, as (x86_64, aarch64). Memory that no limit counts: System V's, files without a place. Rights
# that come back: another name space, a mount. Other processes' memory and files. Large parts of the kernel that no
# program of a benchmark needs.
_REFUSED = {
    "shmget": (29, 194), "msgget": (68, 186), "semget": (64, 190), "memfd_create": (319, 279),
    "memfd_secret": (447, 447), "unshare": (272, 97), "setns": (308, 268), "mount": (165, 40), "umount2": (166, 39),
    "ptrace": (101, 117), "process_vm_readv": (310, 270), "process_vm_writev": (311, 271), "pidfd_getfd": (438, 438),
    "add_key": (248, 217), "request_key": (249, 218), "keyctl": (250, 219), "bpf": (321, 280),
    "userfaultfd": (323, 282), "io_uring_setup": (425, 425), "perf_event_open": (298, 241),
}  # fmt: skip
_CLONE, _CLONE3 = (56, 220), (435, 435)
_NEW_SPACES = 0x7E020000  # all flags of clone that make a name space
_MACHINES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
_OTHER_NUMBERS = 0x40000000  # from here on the same calls under x32's numbers

_libc = ctypes.CDLL(None, use_errno=True)


def _done(status: int, what: str) -> None:
    if status != 0:
        raise OSError(ctypes.get_errno(), f"{what}: {os.strerror(ctypes.get_errno())}")


def _mount(source: str, target: str, kind: str | None, flags: int, options: str = "") -> None:
    status = _libc.mount(source.encode(), target.encode(), kind and kind.encode(), flags, options.encode())
    _done(status, f"mount {target}")


def _show(root: str, path: str, target: str) -> None:
    """Show a file or folder of the system, read-only."""
    place = root + target
    os.makedirs(os.path.dirname(place), exist_ok=True)
    if os.path.islink(path):
        os.symlink(os.readlink(path), place)
        return
    if os.path.isdir(path):
        os.makedirs(place, exist_ok=True)
    else:
        os.close(os.open(place, os.O_CREAT | os.O_WRONLY))
    _mount(path, place, None, _BIND)
    if not path.startswith("/dev/"):
        kept = os.statvfs(place).f_flag & 0xF  # flags that an unprivileged user may not take away
        _mount("none", place, None, _BIND | _REMOUNT | _READ_ONLY | _NO_SUID | _NO_DEV | kept)


def make_world(told: dict[str, Any]) -> None:
    """What bubblewrap does: a root in memory with the system's libraries, and one small folder to write in."""
    root = f"{told['folder']}/root"
    _mount("none", root, "tmpfs", _NO_SUID | _NO_DEV, "size=1m,nr_inodes=512,mode=755")
    for path in told["seen"]:
        _show(root, path, path)
    for name in ("null", "zero", "urandom"):
        _show(root, f"/dev/{name}", f"/dev/{name}")
    with open(f"{told['folder']}/program.py", "rb") as source, open(f"{root}/program.py", "wb") as target:
        while piece := source.read(1 << 16):
            target.write(piece)
    os.mkdir(f"{root}/work")
    _mount(
        "none", f"{root}/work", "tmpfs", _NO_SUID | _NO_DEV,
        f"size={told['written']},nr_inodes={told['files']},mode=777",
    )  # fmt: skip
    _mount("none", root, None, _REMOUNT | _READ_ONLY | _NO_SUID | _NO_DEV)
    os.chdir(root)
    _done(_libc.pivot_root(b".", b"."), "pivot_root")
    _done(_libc.umount2(b".", _DETACH), "umount")
    os.chdir("/")


def filter_of(machine: str) -> list[tuple[int, int, int, int]]:
    """What the kernel runs before each call of the program: (code, jump if true, jump if false, value) each."""
    place = list(_MACHINES).index(machine)
    load, equal, at_least, any_of, end = 0x20, 0x15, 0x35, 0x45, 0x06  # classic BPF
    kill, allow, error = 0x80000000, 0x7FFF0000, 0x50000
    code = [
        (load, 0, 0, 4), (equal, 1, 0, _MACHINES[machine]), (end, 0, 0, kill),
        (load, 0, 0, 0), (at_least, 0, 1, _OTHER_NUMBERS), (end, 0, 0, kill),
        # Its flags lie in memory, where a filter cannot look: as if there were none, and libraries take the old one.
        (equal, 0, 1, _CLONE3[place]), (end, 0, 0, error | errno.ENOSYS),
    ]  # fmt: skip
    for numbers in _REFUSED.values():
        code += [(equal, 0, 1, numbers[place]), (end, 0, 0, error | errno.EPERM)]
    code += [
        (equal, 0, 3, _CLONE[place]), (load, 0, 0, 16), (any_of, 0, 1, _NEW_SPACES), (end, 0, 0, error | errno.EPERM),
    ]  # fmt: skip
    return [*code, (end, 0, 0, allow)]


def _filter_calls() -> None:
    """From here on, for this process and all that it starts; nothing on machines whose numbers are not known."""
    if os.uname().machine not in _MACHINES:
        return
    code = b"".join(struct.pack("HBBI", *line) for line in filter_of(os.uname().machine))
    kept = ctypes.create_string_buffer(code, len(code))
    program = struct.pack("HxxxxxxP", len(code) // 8, ctypes.addressof(kept))
    _done(_libc.prctl(_SECCOMP, _FILTER, program, 0, 0), "seccomp")


def start(told: dict[str, Any]) -> None:
    """Become the program, without rights and within limits. Does not return."""
    os.setsid()
    os.dup2(os.open("/dev/null", os.O_RDONLY), 0)
    os.dup2(told["word"], WORD)
    for kind, most in (
        (resource.RLIMIT_AS, told["memory"]),
        (resource.RLIMIT_CPU, told["seconds"]),
        (resource.RLIMIT_FSIZE, told["written"]),
        (resource.RLIMIT_NOFILE, 64),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_MSGQUEUE, 0),
        (resource.RLIMIT_NPROC, told["processes"]),
    ):
        resource.setrlimit(kind, (most, most))
    for capability in range(64):
        _libc.prctl(_DROP_BOUNDING, capability, 0, 0, 0)  # fails after the last that there is
    if told["user"]:
        os.setgroups([])
        os.setresgid(told["user"], told["user"], told["user"])
        os.setresuid(told["user"], told["user"], told["user"])
    _done(_libc.prctl(_NO_NEW_PRIVILEGES, 1, 0, 0, 0), "no_new_privs")
    _filter_calls()
    os.chdir("/work" if os.path.isdir("/work") else "/")
    os.execve(told["python"], [told["python"], "-I", "-B", "/program.py"], {"PATH": "/usr/bin:/bin", "HOME": "/work"})


def main() -> int:
    told = json.loads(sys.argv[1])
    _libc.prctl(_DEATH_SIGNAL, signal.SIGKILL, 0, 0, 0)
    # The real root is counted for nothing; a root that only this name space knows is the user who asked.
    with_rights = os.geteuid() == 0 and _is_system_root()
    told["user"] = told["user"] if with_rights else 0
    if told["tool"] == "unshare":
        make_world(told)
    end = time.monotonic() + told["seconds"]
    child = os.fork()
    if not child:
        try:
            start(told)
        except OSError as error:
            os.write(2, str(error).encode())
        os._exit(125)
    while time.monotonic() < end:
        done, status = os.waitpid(-1, os.WNOHANG)  # also of orphans, which fall to the first process
        if done == child:
            return os.waitstatus_to_exitcode(status) & 0xFF
        if not done:
            time.sleep(0.005)
    return 124


def _is_system_root() -> bool:
    """Whether user 0 is the system's own, not one that a user name space calls so."""
    try:
        with open("/proc/self/uid_map") as file:
            return file.read().split() == ["0", "0", "4294967295"]
    except OSError:
        return True  # no /proc: bubblewrap by root makes no user name space


if __name__ == "__main__":
    sys.exit(main())
