"""Attacks on the sandbox: all held, and the next program runs."""

import shutil
import socket
import sys
import threading
import time
from pathlib import Path

import pytest

from cierzo.errors import CierzoError
from cierzo.evaluate.sandbox import Limits, Sandbox
from cierzo.evaluate.tasks import humaneval_passes, mbpp_passes

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the sandbox is Linux's")

GOOD = "x = sum(range(10))\nassert x == 45\nprint('good')"


@pytest.fixture(scope="module", params=["bwrap", "unshare"])
def sandbox(request: pytest.FixtureRequest) -> Sandbox:
    if shutil.which(request.param) is None:
        pytest.skip(f"{request.param} is not installed")
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
    deadline = time.monotonic() + 5
    while ours() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not ours()  # what was started ends with the program


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


def test_answers_to_the_code_benchmarks() -> None:
    sandbox = Sandbox()
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
