"""Attacks on the sandbox: all held, and the next program runs."""

import os
import platform
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

import cierzo
from cierzo.errors import CierzoError
from cierzo.evaluate.inside import filter_of
from cierzo.evaluate.sandbox import Limits, Sandbox
from cierzo.evaluate.tasks import humaneval_passes, mbpp_passes
from support.namespaces import default_sandbox, refusal

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the sandbox is Linux's")

GOOD = "x = sum(range(10))\nassert x == 45\nprint('good')"


@pytest.fixture(scope="module", params=["bwrap", "unshare"])
def sandbox(request: pytest.FixtureRequest) -> Sandbox:
    if reason := refusal(request.param):
        pytest.skip(reason)
    return Sandbox(Limits(seconds=2), tool=request.param)


def ours() -> set[str]:
    """Processes of programs in sandboxes, as this machine sees them."""
    found = set()
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if b"/program.py" in (folder / "cmdline").read_bytes():
                found.add(folder.name)
        except OSError:
            continue
    return found


def none_left(seconds: float = 5) -> bool:
    """Whether they end in time; who was killed is still there for a moment."""
    deadline = time.monotonic() + seconds
    while ours() and time.monotonic() < deadline:
        time.sleep(0.05)
    return not ours()


@pytest.mark.parametrize(
    ("program", "reason"),
    [
        pytest.param(
            "import os\nwhile True:\n  try: os.fork()\n  except OSError: pass", "time is over", id="fork bomb"
        ),
        pytest.param("while True: print('x' * 10000)", "too much output", id="endless output"),
        pytest.param("x = bytearray(1 << 30)", "status 1", id="memory hog"),
        pytest.param("while True: pass", "", id="loop"),
        pytest.param("import os\nos.kill(os.getppid(), 9)\nos.kill(0, 9)", "", id="killing the parent"),
        pytest.param("import sys\nsys.exit(0)", "ended before its last line", id="early exit"),
        pytest.param("import os\nos._exit(0)", "ended before its last line", id="hard exit"),
        pytest.param("assert 1 == 2", "status 1", id="wrong"),
        pytest.param("def", "status 1", id="no program"),
        pytest.param("\ud800 = 1", "status 1", id="half a character"),
    ],
)
def test_it_holds(sandbox: Sandbox, program: str, reason: str) -> None:
    began = time.monotonic()
    outcome = sandbox.run(program)
    assert not outcome.passed
    assert reason in outcome.reason
    assert len(outcome.output) <= sandbox.limits.output
    assert time.monotonic() - began < 10
    assert sandbox.run(GOOD).output.strip() == "good"


def test_at_most_so_many_processes_at_once(sandbox: Sandbox) -> None:
    program = """
import os, time
n = 0
try:
    while n < 100:
        if os.fork() == 0:
            time.sleep(60)
        n += 1
except OSError:
    pass
print(n)
"""
    outcome = sandbox.run(program)
    assert 0 < int(outcome.output.split()[0]) < sandbox.limits.processes
    assert none_left()  # what was started ends with the program


def test_there_is_no_network(sandbox: Sandbox) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        met = []
        listener = threading.Thread(target=lambda: met.append(server.accept()), daemon=True)
        listener.start()
        outcome = sandbox.run(f"import socket\nsocket.create_connection(('127.0.0.1', {port}), 1)")
        assert not outcome.passed
        assert "Error" in outcome.output
        assert not met
        socket.create_connection(("127.0.0.1", port)).close()
        listener.join(5)
    assert len(met) == 1  # it would have been seen


def test_the_user_s_files_are_not_there(sandbox: Sandbox, tmp_path: Path) -> None:
    secret = tmp_path / "secret.txt"
    secret.write_text("hush")
    program = f"""
import os
for path in ({str(secret)!r}, '/etc/passwd', '/proc/1/environ', '/proc/self/root{secret}'):
    for way in (path, 'link'):
        try:
            if way == 'link':
                os.symlink(path, 'link')
            print(open(way).read())
        except OSError:
            pass
        finally:
            if os.path.lexists('link'): os.unlink('link')
print(sorted(os.environ), os.listdir('/'))
"""
    outcome = sandbox.run(program)
    assert outcome.passed, outcome
    assert "hush" not in outcome.output
    assert "root:" not in outcome.output
    seen = outcome.output.strip().splitlines()[-1]
    assert seen.startswith("['HOME', 'LC_CTYPE', 'PATH']")
    assert "'tmp'" not in seen


def test_nothing_outside_can_be_written(sandbox: Sandbox, tmp_path: Path) -> None:
    program = f"""
import os
for place in ({str(tmp_path)!r}, '/usr/lib', '/', '/dev', '/etc', os.path.dirname(os.__file__)):
    try:
        open(place + '/mine', 'w').write('x')
        print('wrote', place)
    except OSError:
        pass
"""
    outcome = sandbox.run(program)
    assert outcome.passed, outcome
    assert "wrote" not in outcome.output
    assert list(tmp_path.iterdir()) == []


def test_files_are_few_and_small(sandbox: Sandbox) -> None:
    for program in (
        "n = 0\nwhile True:\n  open(f'f{n}', 'w').close()\n  n += 1",
        "with open('big', 'wb') as f:\n  while True: f.write(bytes(1 << 20))",
    ):
        outcome = sandbox.run(program)
        assert not outcome.passed
        assert "OSError" in outcome.output or "FileNotFoundError" in outcome.output or "status" in outcome.reason


def test_its_rights_are_gone(sandbox: Sandbox) -> None:
    outcome = sandbox.run(
        "import ctypes\nlibc = ctypes.CDLL(None)\n"
        "print(libc.mount(b'none', b'/usr', b'tmpfs', 0, None), libc.chroot(b'/usr'), libc.setuid(0))"
    )
    assert outcome.output.split() == ["-1", "-1", "-1"]


MEMORY = """
import ctypes
libc = ctypes.CDLL(None)
libc.shmat.restype = ctypes.c_void_p
taken = 0
while taken < 64:
    kept = libc.shmget(0, 1 << 26, 0o1600)
    if kept < 0:
        break
    ctypes.memset(libc.shmat(kept, None, 0), 1, 1 << 26)
    taken += 1
print(taken)
"""


def test_no_memory_that_no_limit_counts(sandbox: Sandbox) -> None:
    assert sandbox.run(MEMORY).output.split() == ["0"]
    for words in ("os.memfd_create('m')", "ctypes.CDLL(None).msgget(0, 0o1600)"):
        outcome = sandbox.run(f"import ctypes, os\nassert {words} < 0")
        assert outcome.passed or "Operation not permitted" in outcome.output


def test_rights_do_not_come_back(sandbox: Sandbox) -> None:
    """In a name space of its own a program would have all of them again."""
    number, user = 56 if platform.machine() == "x86_64" else 220, 0x10000000
    program = (
        "import ctypes\nlibc = ctypes.CDLL(None)\n"
        f"print(libc.unshare({user}), libc.syscall({number}, {user} | 17, 0, 0, 0, 0), libc.ptrace(0, 0, 0, 0))"
    )
    assert sandbox.run(program).output.split() == ["-1", "-1", "-1"]


@pytest.mark.skipif(platform.machine() != "x86_64", reason="x32 is of x86_64")
def test_calls_under_other_numbers_end_the_program(sandbox: Sandbox) -> None:
    outcome = sandbox.run("import ctypes\nprint(ctypes.CDLL(None).syscall(0x40000000 + 29, 0, 4096, 0o1600))")
    assert outcome.reason == f"status {-signal.SIGSYS & 0xFF}"


def test_threads_and_processes_of_its_own_work(sandbox: Sandbox) -> None:
    program = """
import subprocess, sys, threading
thread = threading.Thread(target=print, args=("thread",), kwargs={"flush": True})
thread.start()
thread.join()
print(subprocess.run([sys.executable, "-c", "print('process')"], capture_output=True, text=True, check=True).stdout)
"""
    outcome = sandbox.run(program)
    assert outcome.passed, outcome
    assert outcome.output.split() == ["thread", "process"]


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_the_filter_by_its_own_instructions(machine: str) -> None:
    here, there = (0xC000003E, 0xC00000B7) if machine == "x86_64" else (0xC00000B7, 0xC000003E)
    clone, read, unshare, arch = (56, 0, 272, here) if machine == "x86_64" else (220, 63, 97, here)
    allow, kill, refused = 0x7FFF0000, 0x80000000, 0x50000 + 1

    def verdict(call: int, first: int = 0, arch: int = arch) -> int:
        """What the kernel would make of it."""
        data, value, place = {0: call, 4: arch, 16: first}, 0, 0
        while True:
            code, yes, no, k = filter_of(machine)[place]
            place += 1
            if code == 0x20:
                value = data[k]
            elif code == 0x06:
                return k
            else:
                place += yes if {0x15: value == k, 0x35: value >= k, 0x45: bool(value & k)}[code] else no

    assert verdict(read) == allow
    assert verdict(clone, 0x11) == verdict(clone, 0x3D0F00) == allow  # as fork and threads call it
    assert verdict(clone, 0x10000011) == verdict(unshare) == verdict(425) == refused
    assert verdict(435) == 0x50000 + 38
    assert verdict(read, arch=there) == verdict(read + 0x40000000) == kill


def test_a_program_cannot_read_how_it_would_pass(sandbox: Sandbox) -> None:
    program = (
        "import re, sys\nfor word in re.findall(r'[0-9a-f]{32}', open('/program.py').read()): print(word)\nsys.exit(0)"
    )
    outcome = sandbox.run(program)
    assert not outcome.passed
    assert outcome.output == ""


@pytest.mark.skipif(os.geteuid() != 0, reason="others get a name space of users each")
def test_sandboxes_side_by_side_count_their_own_processes(sandbox: Sandbox) -> None:
    program = """
import os, time
n = 0
try:
    while os.fork(): n += 1
    time.sleep(1)
    os._exit(0)
except OSError:
    time.sleep(0.7)
print(n)
"""
    with ThreadPoolExecutor(2) as both:
        counts = [int(outcome.output.split()[0]) for outcome in both.map(sandbox.run, [program] * 2)]
    assert counts == [sandbox.limits.processes - 1] * 2


STOPPING = """
import sys
from cierzo.evaluate.sandbox import Limits, Sandbox
sandbox = Sandbox(Limits(seconds=1), tool=sys.argv[1])
for before in ("", "os.close(1); os.close(2)"):
    print(sandbox.run("import os, time\\n" + before + "\\nos.kill(os.getppid(), 19)\\ntime.sleep(60)").reason)
print(sandbox.run("print(1)").passed)
"""


def test_a_program_cannot_stop_the_clock(sandbox: Sandbox) -> None:
    """Of a user without rights, program and watcher are the same user: one may stop the other."""
    assert sandbox.tool is not None
    python = sys.executable if os.geteuid() else shutil.which("python3", path="/usr/bin:/bin")
    if python is None:
        pytest.skip("no Python that everybody may run")
    who: dict[str, Any] = {} if os.geteuid() else {"user": 65534, "group": 65534, "extra_groups": []}
    done = subprocess.run(
        [python, "-c", STOPPING, sandbox.tool],
        env={"PYTHONPATH": str(Path(cierzo.__file__).parents[1]), "PATH": os.environ["PATH"]},
        cwd="/", capture_output=True, text=True, timeout=60, **who,
    )  # fmt: skip
    if (
        "cannot make a sandbox here" in done.stderr
        or "Permission denied" in done.stderr
        or "SyntaxError" in done.stderr
        or "No module named 'cierzo'" in done.stderr
    ):
        pytest.skip(f"not for a user without rights: {done.stderr[-200:]}")
    assert done.stdout.split("\n") == ["time is over", "time is over", "True", ""], done.stderr
    assert none_left()


def test_answers_to_the_code_benchmarks() -> None:
    sandbox = default_sandbox()
    doc = {"prompt": "def two():\n", "test": "def check(f):\n    assert f() == 2\n", "entry_point": "two"}
    assert humaneval_passes(doc, ["    return 2\n"], sandbox=sandbox) == {"pass@1": 1}
    assert humaneval_passes(doc, ["    return 3\n"], sandbox=sandbox) == {"pass@1": 0}
    assert humaneval_passes(doc, ["    exit()\n"], sandbox=sandbox) == {"pass@1": 0}
    task = {"test_setup_code": "import math", "test_list": ["assert f(4) == math.sqrt(16)"]}
    assert mbpp_passes(task, ["def f(x):\r\n  return x"], sandbox=sandbox) == {"pass@1": 1}
    assert mbpp_passes(task, ["print(1)"], sandbox=sandbox) == {"pass@1": 0}


def test_without_a_place_it_refuses(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(CierzoError, match="needs Linux with bubblewrap"):
        Sandbox()
    broken = tmp_path / "unshare"
    broken.write_text("#!/bin/sh\necho not permitted >&2\nexit 1\n")
    broken.chmod(0o755)
    with pytest.raises(CierzoError, match="cannot make a sandbox here"):
        Sandbox()
