"""The other side of `landscape.evaluation.sandbox`: limits itself, then runs one program.

Started as a script in an isolated interpreter without site-packages, so it imports nothing but the standard library.
Reads a job (JSON) from standard input; writes two lines of JSON to standard output: the guards that hold, before the
program begins, and how it ended.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import platform
import resource
import struct
import sys
from collections.abc import Callable
from typing import Any

_CLONE_NEWNS, _CLONE_NEWIPC, _CLONE_NEWUSER, _CLONE_NEWNET = 0x20000, 0x8000000, 0x10000000, 0x40000000
_MS_NOSUID, _MS_NODEV, _MS_REC, _MS_PRIVATE = 2, 4, 0x4000, 0x40000
_SYS_MOUNT_SETATTR, _AT_FDCWD, _AT_RECURSIVE, _MOUNT_ATTR_RDONLY = 442, -100, 0x8000, 1  # one number on both machines
_PR_SET_SECCOMP, _PR_SET_NO_NEW_PRIVS, _SECCOMP_MODE_FILTER = 22, 38, 2
_CAPABILITY_VERSION_3 = 0x20080522

_MACHINES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}
"""Column of the numbers below, and the audit name of the architecture."""

_REFUSED: dict[str, tuple[int, int]] = {
    # networks
    "socket": (41, 198), "socketpair": (53, 199), "connect": (42, 203), "bind": (49, 200), "listen": (50, 201),
    "accept": (43, 202), "accept4": (288, 242),
    # processes and threads
    "fork": (57, 220), "vfork": (58, 220), "clone": (56, 220), "clone3": (435, 435), "execve": (59, 221),
    "execveat": (322, 281), "setsid": (112, 157), "setpgid": (109, 154), "setpriority": (141, 140),
    # what one process can do to another
    "kill": (62, 129), "tkill": (200, 130), "tgkill": (234, 131), "rt_sigqueueinfo": (129, 138),
    "rt_tgsigqueueinfo": (297, 240), "pidfd_open": (434, 434), "pidfd_getfd": (438, 438),
    "pidfd_send_signal": (424, 424), "ptrace": (101, 117), "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271), "process_madvise": (440, 440), "kcmp": (312, 272), "prlimit64": (302, 261),
    # mounts and namespaces
    "mount": (165, 40), "umount2": (166, 39), "pivot_root": (155, 41), "chroot": (161, 51),
    "mount_setattr": (442, 442), "move_mount": (429, 429), "open_tree": (428, 428), "fsopen": (430, 430),
    "fsconfig": (431, 431), "fsmount": (432, 432), "fspick": (433, 433), "unshare": (272, 97), "setns": (308, 268),
    # interfaces that could do one of these for the caller, or that are nobody's business here
    "io_uring_setup": (425, 425), "io_uring_enter": (426, 426), "io_uring_register": (427, 427), "bpf": (321, 280),
    "perf_event_open": (298, 241), "userfaultfd": (323, 282), "add_key": (248, 217), "request_key": (249, 218),
    "keyctl": (250, 219), "init_module": (175, 105), "finit_module": (313, 273), "delete_module": (176, 106),
    "kexec_load": (246, 104), "reboot": (169, 142), "name_to_handle_at": (303, 264), "open_by_handle_at": (304, 265),
}  # fmt: skip
"""System calls by their numbers on x86-64 and ARM64, where clone does what fork and vfork do elsewhere."""
_CAPSET = (126, 91)

_NO_MODULES = ("_socket", "_ssl", "_posixsubprocess", "_multiprocessing", "_posixshmem", "_ctypes")
_NO_FUNCTIONS = (
    *("fork", "forkpty", "posix_spawn", "posix_spawnp", "system", "popen", "kill", "killpg", "setsid", "setpgid"),
    *(f"{kind}{how}" for kind in ("exec", "spawn") for how in ("l", "le", "lp", "lpe", "v", "ve", "vp", "vpe")),
)


def main() -> None:
    """Guard, run, report, and leave without giving the program another turn."""
    job = json.load(sys.stdin)
    report = os.fdopen(os.dup(1), "w")
    nothing = os.open(os.devnull, os.O_RDWR)
    guards = ["limits"]
    _limit(job)
    with contextlib.suppress(OSError, AttributeError):
        _namespaces(job)
        guards.append("namespaces")
    # Earlier it would keep the namespaces from being made; later no limit can be set.
    _set_limit(resource.RLIMIT_NPROC, 0)
    with contextlib.suppress(OSError, KeyError):
        _system_calls()
        guards.append("system calls")
    _interpreter()
    guards.append("interpreter")
    print(json.dumps({"guards": guards}), file=report, flush=True)
    for descriptor in (0, 1, 2):
        os.dup2(nothing, descriptor)
    outcome, error = _run(job["source"])
    print(json.dumps({"token": job["token"], "outcome": outcome, "error": error}), file=report, flush=True)
    os._exit(0)


def _run(source: str) -> tuple[str, str | None]:
    try:
        exec(compile(source, "<program>", "exec"), {"__name__": "__main__"})
    except MemoryError:
        return "memory", None
    except AssertionError as error:
        return "failed", _described(error)
    except SystemExit as error:
        return "exited", _described(error)
    except BaseException as error:
        return "error", _described(error)
    return "passed", None


def _described(error: BaseException) -> str:
    with contextlib.suppress(BaseException):
        return " ".join(f"{type(error).__name__}: {error}".split())[:500]
    return type(error).__name__


def _limit(job: dict[str, Any]) -> None:
    """`OSError` where one that exists here cannot be set."""
    _set_limit(resource.RLIMIT_CORE, 0)
    _set_limit(resource.RLIMIT_CPU, int(job["seconds"]) + 1)
    _set_limit(resource.RLIMIT_FSIZE, job["file_bytes"])
    _set_limit(resource.RLIMIT_NOFILE, job["open_files"])
    # macOS knows the limit, refuses some values, and enforces none.
    with contextlib.suppress(OSError, ValueError) if sys.platform == "darwin" else contextlib.nullcontext():
        _set_limit(resource.RLIMIT_AS, job["memory"])


def _set_limit(kind: int, value: int) -> None:
    _, hard = resource.getrlimit(kind)
    value = value if hard == resource.RLIM_INFINITY else min(value, hard)
    resource.setrlimit(kind, (value, value))


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _call(function: Callable[..., int], *arguments: Any) -> None:
    if function(*arguments) != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def _namespaces(job: dict[str, Any]) -> None:
    """A network without devices, and everything read-only but a folder in memory."""
    libc, user, group = _libc(), os.getuid(), os.getgid()
    _call(libc.unshare, _CLONE_NEWUSER | _CLONE_NEWNS | _CLONE_NEWNET | _CLONE_NEWIPC)
    for name, content in (("setgroups", "deny"), ("uid_map", f"{user} {user} 1"), ("gid_map", f"{group} {group} 1")):
        with open(f"/proc/self/{name}", "w") as file:
            file.write(content)
    _call(libc.mount, None, b"/", None, ctypes.c_ulong(_MS_REC | _MS_PRIVATE), None)
    attributes = ctypes.create_string_buffer(struct.pack("QQQQ", _MOUNT_ATTR_RDONLY, 0, 0, 0))
    libc.syscall.restype = ctypes.c_long
    size = ctypes.c_size_t(32)
    place = (ctypes.c_long(_AT_FDCWD), b"/", ctypes.c_long(_AT_RECURSIVE))
    _call(libc.syscall, ctypes.c_long(_SYS_MOUNT_SETATTR), *place, attributes, size)
    folder = os.fsencode(job["folder"])
    options = f"size={job['file_bytes']},nr_inodes=1024".encode()
    _call(libc.mount, b"none", folder, b"tmpfs", ctypes.c_ulong(_MS_NOSUID | _MS_NODEV), options)
    os.chdir(job["folder"])


def _system_calls() -> None:
    """Give up every capability, then have the kernel refuse the calls of `_REFUSED` with EPERM."""
    if sys.platform != "linux":
        raise OSError("no seccomp")
    column, architecture = _MACHINES[platform.machine()]
    libc = _libc()
    libc.syscall.restype = ctypes.c_long
    header, nothing = struct.pack("II", _CAPABILITY_VERSION_3, 0), bytes(24)
    _call(libc.syscall, ctypes.c_long(_CAPSET[column]), header, nothing)
    program = _filter(architecture, sorted({numbers[column] for numbers in _REFUSED.values()}))
    instructions = ctypes.create_string_buffer(program, len(program))
    # struct sock_fprog; native alignment puts the pointer at its place.
    described = ctypes.create_string_buffer(struct.pack("HP", len(program) // 8, ctypes.addressof(instructions)))
    zero = ctypes.c_ulong(0)
    _call(libc.prctl, _PR_SET_NO_NEW_PRIVS, ctypes.c_ulong(1), zero, zero, zero)
    _call(libc.prctl, _PR_SET_SECCOMP, ctypes.c_ulong(_SECCOMP_MODE_FILTER), described, zero, zero)


def _filter(architecture: int, refused: list[int]) -> bytes:
    """Berkeley packet filter code: another architecture's calls and the refused ones get EPERM, the rest go through."""
    load, equal, at_least, leave = 0x20, 0x15, 0x35, 0x06
    allow, refuse = 0x7FFF0000, 0x00050001
    count = len(refused)
    code = [
        (load, 0, 0, 4),  # seccomp_data.arch
        (equal, 0, count + 3, architecture),
        (load, 0, 0, 0),  # seccomp_data.nr
        (at_least, count + 1, 0, 0x40000000),  # x32's numbers
        *((equal, count - index, 0, number) for index, number in enumerate(refused)),
        (leave, 0, 0, allow),
        (leave, 0, 0, refuse),
    ]
    return b"".join(struct.pack("HBBI", *instruction) for instruction in code)


def _interpreter() -> None:
    """What the kernel refuses or not, Python does not offer."""

    def refuse(*_: Any, **__: Any) -> None:
        raise PermissionError("not allowed in the sandbox")

    for name in _NO_MODULES:
        sys.modules[name] = None  # type: ignore[assignment]
    for module in (os, sys.modules["posix"]):
        for name in _NO_FUNCTIONS:
            if hasattr(module, name):
                setattr(module, name, refuse)
    for name in ("ctypes", "resource"):
        sys.modules.pop(name, None)
    sys.modules["resource"] = None  # type: ignore[assignment]


if __name__ == "__main__":
    main()
