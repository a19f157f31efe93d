"""Programs that a model wrote, run where they can do no harm.

A program sees a small, empty world: no network, processes of its own only, the system's libraries and Python read-only,
and nothing of the user's files, environment or open files. Bubblewrap makes that world where it is installed, else
`unshare` and `inside.py`, which in both cases sets the limits: memory, time, processes, files, what is written. The
world ends with its first process, whatever was started in it. Linux only.
"""

import json
import os
import secrets
import select
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from cierzo.errors import CierzoError
from cierzo.evaluate.inside import WORD

_SYSTEM = ("/usr", "/bin", "/lib", "/lib32", "/lib64", "/etc/ld.so.cache", "/etc/alternatives")
_INSIDE = Path(__file__).with_name("inside.py")
_GRACE = 5
"""Seconds beyond a program's own, after which the whole sandbox is ended from outside."""
_USERS = 1 << 24
"""From here on, as many numbers of users that nobody has: each sandbox of root's takes one, so that its processes are
counted alone."""
# The word is in no file, and read once. Written to a file descriptor: the program may have put another function in the
# place of print.
_LAST = f"\nimport os as _os\n_os.write(1, b'\\n' + _os.read({WORD}, 64) + b'\\n')\n"


@dataclass(frozen=True)
class Limits:
    """Of one program. Memory is of each process: all together use at most `processes` times as much.

    Attributes:
        seconds: of time on the wall, and of computing.
        memory, written, output: bytes: of a process, of all files together, and of what is printed.
        processes: at the same time, threads counted.
        files: in all.
    """

    seconds: int = 10
    memory: int = 512 << 20
    processes: int = 8
    written: int = 16 << 20
    files: int = 256
    output: int = 1 << 20


@dataclass(frozen=True)
class Outcome:
    """How a program ended: `passed` when it came to its end, else `reason`; and the beginning of what it printed."""

    passed: bool
    reason: str
    output: str


class Sandbox:
    """Runs programs one after the other.

    Raises:
        CierzoError: there is no such place on this machine.
    """

    def __init__(self, limits: Limits | None = None, *, tool: str | None = None) -> None:
        self.limits = limits or Limits()
        tools = [tool] if tool else ["bwrap", "unshare"]
        self.tool = next((name for name in tools if sys.platform == "linux" and shutil.which(name)), None)
        self._path = shutil.which(self.tool or "")
        if self.tool is None or self._path is None:
            raise CierzoError("running generated programs needs Linux with bubblewrap (bwrap) or unshare: install it")
        tried = self.run("x = sum(range(10))\nassert x == 45\n")
        if not tried.passed:
            raise CierzoError(f"{self.tool} cannot make a sandbox here ({tried.reason}): {tried.output[-300:]}")

    def run(self, program: str) -> Outcome:
        """Run a Python program; it has passed when its last line was reached and it ended without an error."""
        token = secrets.token_hex(16)
        with tempfile.TemporaryDirectory(prefix="cierzo-sandbox-") as folder:
            file = Path(folder, "program.py")
            file.write_text(f"{program}\n{_LAST}", encoding="utf-8", errors="replace")
            Path(folder, "root").mkdir()
            word, end = os.pipe()
            try:
                os.write(end, token.encode())
                os.close(end)
                status, printed = self._watched(self._command(Path(folder), word), word)
            finally:
                os.close(word)
        mark = f"\n{token}\n".encode()  # what the program prints may come later, from a buffer
        text = printed.replace(mark, b"").decode(errors="replace")
        if status == 0 and mark in printed:
            return Outcome(True, "", text)
        reasons = {None: "too much output", 0: "ended before its last line", 124: "time is over"}
        return Outcome(False, reasons.get(status, f"status {status}"), text)

    def _command(self, folder: Path, word: int) -> list[str]:
        python, root = os.path.realpath(sys.executable), os.geteuid() == 0
        libraries = sysconfig.get_paths()["stdlib"]
        prefix = str(Path(libraries).parent.parent)
        seen = [path for path in _SYSTEM if os.path.lexists(path)]
        seen += [path for path in {prefix, str(Path(python).parent)} if not path.startswith("/usr")]
        told = asdict(self.limits) | {"python": python, "folder": str(folder), "seen": seen, "tool": self.tool}
        told |= {"word": word, "user": _USERS + secrets.randbelow(_USERS)}
        inside = [python, "-I", "-S", "-B"]
        if self.tool == "unshare":
            user = [] if root else ["--user", "--map-root-user"]
            spaces = [
                "--mount",
                "--pid",
                "--net",
                "--ipc",
                "--uts",
                "--fork",
                "--kill-child",
                "--propagation",
                "private",
            ]
            return [str(self._path), *user, *spaces, "--", *inside, str(_INSIDE), json.dumps(told)]
        binds = [part for path in seen for part in _shown(path)]
        more = (
            ["--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID", "--cap-add", "CAP_SETPCAP"]
            if root
            else ["--unshare-user"]
        )
        return [
            str(self._path),
            *more,
            "--unshare-pid",
            "--unshare-net",
            "--unshare-ipc",
            "--unshare-uts",
            "--die-with-parent",
            "--clearenv",
            *binds,
            "--dev",
            "/dev",
            "--ro-bind",
            str(_INSIDE),
            "/inside.py",
            "--ro-bind",
            str(folder / "program.py"),
            "/program.py",
            "--remount-ro",
            "/dev",
            "--remount-ro",
            "/",
            "--chdir",
            "/",
            "--",
            *inside,
            "/inside.py",
            json.dumps(told),
        ]

    def _watched(self, command: list[str], word: int) -> tuple[int | None, bytes]:
        """The exit status and what was printed; None when that was more than allowed."""
        child = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={},
            start_new_session=True,
            cwd="/",
            pass_fds=[word],
        )
        assert child.stdout is not None
        printed = b""
        try:
            # Inside, time is watched by the first process; but a program of the same user may stop that one.
            end = time.monotonic() + self.limits.seconds + _GRACE
            ready = select.poll()
            ready.register(child.stdout, select.POLLIN)
            while len(printed) <= self.limits.output:
                if not ready.poll(1000 * max(0.0, end - time.monotonic())):
                    return 124, printed
                if not (piece := os.read(child.stdout.fileno(), 1 << 16)):
                    return child.wait(max(1.0, end - time.monotonic())), printed
                printed += piece
            return None, printed[: self.limits.output]
        except subprocess.TimeoutExpired:
            return 124, printed
        finally:
            child.stdout.close()
            if child.poll() is None:
                os.killpg(child.pid, signal.SIGKILL)
                child.wait()


def _shown(path: str) -> list[str]:
    """Bubblewrap's words for a path of the system that is to be seen."""
    if os.path.islink(path):
        return ["--symlink", os.readlink(path), path]
    above = [str(folder) for folder in reversed(Path(path).parents) if folder != Path("/")]
    # It would make these folders for their owner alone.
    return [*(word for folder in above for word in ("--perms", "0755", "--dir", folder)), "--ro-bind", path, path]
