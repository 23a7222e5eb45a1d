"""Programs that mean harm, and what is left of it."""

from __future__ import annotations

import os
import socket
import sys
import time
from pathlib import Path

import pytest

from landscape.evaluation import sandbox
from landscape.evaluation.sandbox import Limits, Outcome, SandboxError, run_program

QUICK = Limits(seconds=20.0)
SHORT = Limits(seconds=1.5)
_BACK = "import sys\nfor name in ('_ctypes', '_socket', '_posixsubprocess', 'resource'): sys.modules.pop(name, None)\n"
"""Undoes the interpreter's part, so that what is refused is refused by the kernel."""

PROGRAMS = {
    "right": ("assert 1 + 1 == 2", "passed", None),
    "wrong": ("assert 1 + 1 == 3, 'no'", "failed", "AssertionError: no"),
    "raises": ("raise ValueError('no')", "error", "ValueError: no"),
    "broken": ("def f(:", "error", "SyntaxError"),
    "exits": ("import sys\nsys.exit(0)", "exited", "SystemExit: 0"),
    "leaves": ("import os\nos._exit(0)", "exited", "exit status 0"),
    "recursion": ("def f(): f()\nf()", "error", "RecursionError"),
    "a huge object": ("x = bytearray(1 << 42)", "memory", None),
    "many files": ("x = [open('/dev/null') for _ in range(100)]", "error", "Too many open files"),
    "a large file": (
        "with open('a', 'wb') as file:\n    for _ in range(64): file.write(bytes(1 << 20)); file.flush()",
        "error",
        "File too large",
    ),
    "its own folder": ("open('a', 'w').write('x')\nassert open('a').read() == 'x'", "passed", None),
    "the standard library": (
        "import collections, heapq, itertools, math, random, re, statistics, string, typing, fractions, decimal",
        "passed",
        None,
    ),
    "site-packages": ("import numpy", "error", "No module named 'numpy'"),
    "its environment": (
        "import os\nassert set(os.environ) <= {'PATH', 'LC_ALL', 'LC_CTYPE', 'HOME', 'TMPDIR'}, dict(os.environ)",
        "passed",
        None,
    ),
    "fork": ("import os\nwhile True: os.fork()", "error", "not allowed in the sandbox"),
    "a shell": ("import os\nos.system('true')", "error", "not allowed in the sandbox"),
    "subprocess": ("import subprocess\nsubprocess.run(['true'])", "error", "_posixsubprocess"),
    "a socket": ("import socket", "error", "_socket"),
    "floods its output": ("for _ in range(1000): print('x' * 10000)", "passed", None),
    "reads its input": ("import sys\nassert sys.stdin.read() == ''", "passed", None),
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_how_programs_end(name: str) -> None:
    source, outcome, error = PROGRAMS[name]
    found = run_program(source, QUICK)
    assert found.outcome == outcome, found
    assert (found.error is None) if error is None else (error in str(found.error))
    assert {"limits", "interpreter"} <= set(found.guards)


@pytest.mark.parametrize(
    "source",
    ["while True: pass", "import time\ntime.sleep(100)", "try:\n    while True: pass\nfinally:\n    while True: pass"],
)
def test_programs_that_do_not_end(source: str) -> None:
    began = time.monotonic()
    assert run_program(source, SHORT).outcome == "timeout"
    assert time.monotonic() - began < 10


@pytest.mark.skipif(
    sys.platform == "darwin", reason="macOS does not enforce RLIMIT_AS: eating memory ends in a timeout"
)
def test_eating_memory_bit_by_bit() -> None:
    limits = Limits(seconds=20.0, memory=256 << 20)
    assert run_program("x = [0]\nwhile True: x += x", limits).outcome == "memory"


KERNEL = {
    "fork": ("import ctypes\nassert ctypes.CDLL(None).fork() == -1", "passed"),
    "threads": ("import threading\nthreading.Thread(target=print).start()", "error"),
    "running a file": (
        "import _posixsubprocess, ctypes\nassert ctypes.CDLL(None).execl(b'/bin/true', b'true', None) == -1",
        "passed",
    ),
    "killing its parent": ("import ctypes, os\nassert ctypes.CDLL(None).kill(os.getppid(), 9) == -1", "passed"),
    "a socket": ("import socket\nsocket.socket()", "error"),
    "more memory": ("import resource\nresource.setrlimit(resource.RLIMIT_AS, (-1, -1))", "error"),
    "mounting": ("import ctypes\nassert ctypes.CDLL(None).umount2(b'/', 2) == -1", "passed"),
}


@pytest.mark.skipif(
    sys.platform != "linux" or os.uname().machine not in ("x86_64", "aarch64"),
    reason="the kernel refuses system calls on Linux, x86-64 and ARM64, only",
)
@pytest.mark.parametrize("name", KERNEL)
def test_what_the_kernel_refuses_when_python_does_not(name: str) -> None:
    source, outcome = KERNEL[name]
    found = run_program(_BACK + source, QUICK)
    assert "system calls" in found.guards
    assert found.outcome == outcome, found


def test_files_outside_its_folder(tmp_path: Path) -> None:
    """Where namespaces are allowed nothing can be written or deleted; elsewhere the user's rights are what counts."""
    kept = tmp_path / "kept"
    kept.write_text("mine")
    found = run_program(f"import os\nos.remove({str(kept)!r})", QUICK)
    written = run_program(f"open({str(tmp_path / 'new')!r}, 'w').write('x')", QUICK)
    guarded = "namespaces" in found.guards
    assert (kept.exists(), (tmp_path / "new").exists()) == ((True, False) if guarded else (False, True))
    assert found.outcome == written.outcome == ("error" if guarded else "passed")


def test_nobody_is_reached() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.2)
        port = server.getsockname()[1]
        found = run_program(f"{_BACK}import socket\nsocket.create_connection(('127.0.0.1', {port}), 1)", QUICK)
        assert found.outcome == ("error" if {"namespaces", "system calls"} & set(found.guards) else "passed")
        if found.outcome == "error":
            with pytest.raises(TimeoutError):
                server.accept()


def child_without(tmp_path: Path, *guards: str) -> Path:
    """The other side of the sandbox, on a system that lacks these."""
    path = tmp_path / "child.py"
    lines = ["import runpy, sys", f"child = runpy.run_path({str(sandbox._CHILD)!r})", "main = child['main']"]
    lines += ["def lacking(*_): raise OSError('not here')"]
    lines += [f"main.__globals__[{name!r}] = lacking" for name in guards if name != "_set_limit"]
    lines += ["main.__globals__['_set_limit'] = lambda *_: None"] if "_set_limit" in guards else []
    path.write_text("\n".join([*lines, "main()"]))
    return path


WEAKER = {
    "fork": ("import os\nos.fork()", "error"),
    "a socket": ("import socket", "error"),
    "a loop": ("while True: pass", "timeout"),
    "memory": ("x = bytearray(1 << 42)", "memory"),
    "right": ("assert True", "passed"),
}


@pytest.mark.parametrize("name", WEAKER)
def test_the_weaker_guard(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "_CHILD", child_without(tmp_path, "_namespaces", "_system_calls"))
    source, outcome = WEAKER[name]
    found = run_program(source, SHORT if outcome == "timeout" else QUICK)
    assert found.guards == ("limits", "interpreter")
    assert found.outcome == outcome, found


def test_what_a_program_leaves_running_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    child = child_without(tmp_path, "_namespaces", "_system_calls", "_set_limit")
    child.write_text(child.read_text().replace("main()", "main.__globals__['_interpreter'] = lambda: None\nmain()"))
    monkeypatch.setattr(sandbox, "_CHILD", child)
    note = tmp_path / "pid"
    source = (
        "import os, time\npid = os.fork()\nif pid == 0: time.sleep(600)\n"
        f"open({str(note)!r}, 'w').write(str(pid))\nos._exit(0)"
    )
    assert run_program(source, QUICK).outcome == "exited"
    assert gone(int(note.read_text()))


def gone(pid: int) -> bool:
    """Dead, or a zombie that only waits to be collected."""
    for _ in range(100):
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        status = Path(f"/proc/{pid}/stat")
        if status.exists() and status.read_text().rpartition(")")[2].split()[0] == "Z":
            return True
        time.sleep(0.02)
    return False


def test_a_sandbox_that_does_not_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "_CHILD", child_without(tmp_path, "_limit"))
    with pytest.raises(SandboxError, match="the sandbox did not start: OSError: not here"):
        run_program("assert True", QUICK)


def test_a_program_cannot_say_passed_without_the_token(tmp_path: Path) -> None:
    line = '{"token": "guess", "outcome": "passed", "error": null}'
    source = (
        "import os\nfor fd in range(3, 30):\n"
        f"    try: os.write(fd, {line.encode()!r} + b'\\n')\n"
        "    except OSError: pass\n"
        "os._exit(0)"
    )
    assert run_program(source, QUICK) == Outcome("exited", "exit status 0", run_program("", QUICK).guards)
