"""Running a program that a model wrote, in a process of its own under limits.

What holds, in the order of what a system offers; `Outcome.guards` says which did:

``limits``
    everywhere: wall clock, processor time, memory, size of files, open files, an empty environment, a temporary
    folder, no site-packages; afterwards the process group is killed.
``namespaces`` (Linux, where unprivileged ones are allowed)
    no network, and no file can be written outside a small folder in memory.
``system calls`` (Linux on x86-64 and ARM64)
    no sockets, processes, threads, signals, mounts or tracing: the kernel refuses them.
``interpreter``
    everywhere: modules and functions for these are taken out of Python; keeps honest code from harm, stops nobody
    who means it.

It is no boundary against an attacker who studied it; code from a model that you trust with nothing belongs in a virtual
machine. Nor does it hide the verdict from a program that looks for it: a model could cheat, none does by accident.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from landscape.errors import LandscapeError

_CHILD = Path(__file__).with_name("sandbox_child.py")
_LONGEST_ERROR = 500


class SandboxError(LandscapeError):
    """No program can be run here."""


@dataclass(frozen=True)
class Limits:
    """Of one program.

    Attributes:
        seconds: on the clock, interpreter included; so a loaded machine fails more.
        memory: bytes of address space (RLIMIT_AS; macOS does not enforce it).
        file_bytes: of one file, and of the folder in memory.
        open_files: at a time.
    """

    seconds: float = 10.0
    memory: int = 1 << 30
    file_bytes: int = 1 << 24
    open_files: int = 32

    def settings(self) -> dict[str, Any]:
        """As plain values."""
        return asdict(self)


@dataclass(frozen=True)
class Outcome:
    """How a program ended.

    Attributes:
        outcome: ``passed`` (it ran to its end), ``failed`` (an assertion), ``error`` (another exception), ``timeout``,
            ``memory``, ``exited`` (it left without reaching its end) or ``killed`` (by a signal).
        error: the exception in a line, or null.
        guards: what held, see above.
    """

    outcome: str
    error: str | None
    guards: tuple[str, ...]


def check_platform() -> None:
    """`SandboxError` where there are no limits for processes (Windows)."""
    if os.name != "posix":
        raise SandboxError(f"generated code is run on Linux and macOS only: {sys.platform} has no process limits")


def run_program(source: str, limits: Limits) -> Outcome:
    """Run a program and say how it ended; nothing of what it prints is kept.

    Raises:
        SandboxError: the process could not be started, or not be limited.
    """
    check_platform()
    token = secrets.token_hex(16)
    with _folder() as folder:
        work = folder / "work"
        work.mkdir()
        job = {"source": source, "token": token, "folder": str(work), **limits.settings()}
        (folder / "job").write_text(json.dumps(job))
        code = _run(folder, work, limits.seconds)
        lines = (folder / "report").read_text(errors="replace").splitlines()
        complaint = (folder / "complaint").read_text(errors="replace").strip()
    guards = _guards(lines)
    if guards is None:
        if code is None:
            return Outcome("timeout", "before the program began", ())
        raise SandboxError(f"the sandbox did not start: {_last_line(complaint) or f'exit status {code}'}")
    if code is None:
        return Outcome("timeout", None, guards)
    said = _verdict(lines[1:], token)
    if said is not None:
        return Outcome(said["outcome"], said["error"], guards)
    if code == -signal.SIGXCPU:
        return Outcome("timeout", None, guards)
    if code < 0:
        return Outcome("killed", f"signal {-code}", guards)
    return Outcome("exited", f"exit status {code}", guards)


@contextlib.contextmanager
def _folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="landscape-", ignore_cleanup_errors=True) as name:
        yield Path(name).resolve()


def _run(folder: Path, work: Path, seconds: float) -> int | None:
    """The exit status; None where the time ran out."""
    environment = {"PATH": os.defpath, "LC_ALL": "C.UTF-8", "HOME": str(work), "TMPDIR": str(work)}
    command = [sys.executable, "-I", "-S", "-B", "-X", "utf8", str(_CHILD)]
    with (
        (folder / "job").open("rb") as job,
        (folder / "report").open("wb") as report,
        (folder / "complaint").open("wb") as complaint,
    ):
        try:
            process = subprocess.Popen(
                command, stdin=job, stdout=report, stderr=complaint, cwd=work, env=environment, start_new_session=True
            )
        except OSError as error:
            raise SandboxError(f"the sandbox did not start: {error.strerror}") from error
        try:
            return process.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            return None
        finally:
            # Also what it left behind; its own process group is its session's.
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _guards(lines: list[str]) -> tuple[str, ...] | None:
    with contextlib.suppress(ValueError, KeyError, TypeError, IndexError):
        return tuple(json.loads(lines[0])["guards"])
    return None


def _verdict(lines: list[str], token: str) -> dict[str, Any] | None:
    for line in lines:
        with contextlib.suppress(ValueError, KeyError, TypeError):
            value = json.loads(line)
            if value["token"] == token:
                return {"outcome": value["outcome"], "error": value["error"] and value["error"][:_LONGEST_ERROR]}
    return None


def _last_line(text: str) -> str:
    return text.splitlines()[-1] if text else ""
