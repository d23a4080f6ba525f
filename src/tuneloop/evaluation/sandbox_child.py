"""The inside of the sandbox: a script that locks its own process up, then runs one program; standard library only.

The request comes as JSON on stdin; reports are JSON lines on the file descriptor that it names. The locks overlap on
purpose: a kernel or a container that refuses one (user namespaces, most often) still has the others.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import platform
import signal
import struct
import sys
from collections.abc import Callable
from typing import Any

CLONE_NEWNS, CLONE_NEWUTS, CLONE_NEWIPC, CLONE_NEWUSER, CLONE_NEWNET = (
    0x20000, 0x4000000, 0x8000000, 0x10000000, 0x40000000,
)  # fmt: skip
CLONE_THREAD = 0x10000
MS_NOSUID, MS_NODEV, MS_REC, MS_PRIVATE = 2, 4, 0x4000, 0x40000
MOUNT_ATTR_RDONLY, MOUNT_ATTR_NOSUID, MOUNT_ATTR_NODEV = 1, 2, 4
AT_FDCWD, AT_RECURSIVE = -100, 0x8000
SYS_MOUNT_SETATTR, SYS_LANDLOCK = 442, 444  # the same number on every architecture
PR_SET_PDEATHSIG, PR_SET_SECCOMP, PR_CAPBSET_DROP, PR_SET_NO_NEW_PRIVS = 1, 22, 24, 38
EPERM, ENOSYS = 1, 38

# Refused outright: new sockets, processes and programs; signals to others; whatever changes mounts, modes, clocks,
# limits, priorities or the kernel; memory that no limit counts. Numbers: x86-64, then arm64 (-1: it has none).
REFUSED = {
    "socket": (41, 198), "socketpair": (53, 199), "fork": (57, -1), "vfork": (58, -1), "execve": (59, 221),
    "execveat": (322, 281), "tkill": (200, 130), "rt_sigqueueinfo": (129, 138), "rt_tgsigqueueinfo": (297, 240),
    "pidfd_send_signal": (424, 424), "pidfd_open": (434, 434), "ptrace": (101, 117),
    "process_vm_readv": (310, 270), "process_vm_writev": (311, 271), "mount": (165, 40), "umount2": (166, 39),
    "pivot_root": (155, 41), "chroot": (161, 51), "unshare": (272, 97), "setns": (308, 268),
    "open_tree": (428, 428), "move_mount": (429, 429), "fsopen": (430, 430), "fsconfig": (431, 431),
    "fsmount": (432, 432), "mount_setattr": (442, 442), "bpf": (321, 280), "perf_event_open": (298, 241),
    "keyctl": (250, 219), "add_key": (248, 217), "request_key": (249, 218), "io_uring_setup": (425, 425),
    "userfaultfd": (323, 282), "init_module": (175, 105), "finit_module": (313, 273), "delete_module": (176, 106),
    "kexec_load": (246, 104), "kexec_file_load": (320, 294), "reboot": (169, 142), "swapon": (167, 224),
    "swapoff": (168, 225), "settimeofday": (164, 170), "clock_settime": (227, 112), "adjtimex": (159, 171),
    "clock_adjtime": (305, 266), "sethostname": (170, 161), "setdomainname": (171, 162), "acct": (163, 89),
    "personality": (135, 92), "chmod": (90, -1), "fchmod": (91, 52), "fchmodat": (268, 53), "fchmodat2": (452, 452),
    "chown": (92, -1), "fchown": (93, 55), "lchown": (94, -1), "fchownat": (260, 54), "setxattr": (188, 5),
    "lsetxattr": (189, 6), "fsetxattr": (190, 7), "utime": (132, -1), "utimes": (235, -1), "futimesat": (261, -1),
    "utimensat": (280, 88), "mknod": (133, -1), "mknodat": (259, 33), "memfd_create": (319, 279),
    "shmget": (29, 194), "msgget": (68, 186), "semget": (64, 190), "prlimit64": (302, 261),
    "setpriority": (141, 140), "sched_setscheduler": (144, 119), "sched_setparam": (142, 118),
    "sched_setattr": (314, 274), "sched_setaffinity": (203, 122), "ioprio_set": (251, 30), "setpgid": (109, 154),
    "setsid": (112, 157),
}  # fmt: skip
TO_ITSELF_ONLY = {"kill": (62, 129), "tgkill": (234, 131)}
CLONE, CLONE3 = (56, 220), 435
MACHINES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}  # column above, AUDIT_ARCH_*

libc = ctypes.CDLL(None, use_errno=True)


def call(function: str, *arguments: Any) -> int:
    """A C library call, or OSError."""
    result = int(getattr(libc, function)(*arguments))
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), function)
    return result


def limit_resources(request: dict[str, Any]) -> None:
    """CPU seconds, address space, size of a file, open files, processes; no core dumps."""
    import resource

    def limit(kind: str, value: int) -> None:
        number = getattr(resource, kind)
        hard = resource.getrlimit(number)[1]
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(number, (value, value))

    limits = {"RLIMIT_CPU": int(request["seconds"]) + 1, "RLIMIT_AS": request["memory"]}
    limits |= {"RLIMIT_FSIZE": request["disk"], "RLIMIT_NOFILE": 64, "RLIMIT_CORE": 0}
    # Counts all processes of the user outside a user namespace, where so few would already be too many.
    if os.geteuid() != 0 and request.get("user_namespace"):
        limits["RLIMIT_NPROC"] = request["processes"]
    for kind, value in limits.items():
        with contextlib.suppress(ValueError, OSError, AttributeError):  # macOS knows no RLIMIT_AS
            limit(kind, value)


def new_namespaces(request: dict[str, Any]) -> list[str]:
    """No network interface but a dead loopback; a file system that is read-only but for a scratch folder in memory."""
    uid, gid = os.geteuid(), os.getegid()
    spaces = CLONE_NEWNS | CLONE_NEWNET | CLONE_NEWIPC | CLONE_NEWUTS
    try:
        if uid != 0:
            raise PermissionError
        call("unshare", spaces)
    except OSError:
        call("unshare", spaces | CLONE_NEWUSER)
        request["user_namespace"] = True
        for name, text in (("setgroups", "deny"), ("uid_map", f"{uid} {uid} 1"), ("gid_map", f"{gid} {gid} 1")):
            with open(f"/proc/self/{name}", "w") as file:
                file.write(text)
    call("mount", b"none", b"/", None, MS_REC | MS_PRIVATE, None)
    flags = MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOSUID
    if landlock_version() < 1 or "landlock" in request["skip"]:
        flags |= MOUNT_ATTR_NODEV  # devices of root stay writable on a read-only mount
    attributes = struct.pack("QQQQ", flags, 0, 0, 0)
    call("syscall", SYS_MOUNT_SETATTR, AT_FDCWD, b"/", AT_RECURSIVE, attributes, len(attributes))
    options = f"size={request['disk']},nr_inodes=4096,mode=700".encode()
    call("mount", b"tmpfs", os.fsencode(request["scratch"]), b"tmpfs", MS_NOSUID | MS_NODEV, options)
    os.chdir(request["scratch"])
    return [
        "no network (own network namespace)",
        "read-only file system but a scratch folder of limited size (own mount namespace)",
    ]


def landlock_version() -> int:
    """The version of the kernel's Landlock, 0 where there is none."""
    return max(0, int(libc.syscall(SYS_LANDLOCK, None, 0, 1)))


def landlock(request: dict[str, Any]) -> list[str]:
    """Files: the scratch folder, and to read Python and the system's libraries; no TCP."""
    version = landlock_version()
    if version < 1:
        return []
    file_bits = 0b111 | (1 << 14 if version >= 3 else 0) | (1 << 15 if version >= 5 else 0)
    every = (1 << 13) - 1 | (1 << 13 if version >= 2 else 0) | file_bits
    rules = struct.pack("QQQ", every, 0b11 if version >= 4 else 0, 0b11 if version >= 6 else 0)
    size = 24 if version >= 6 else 16 if version >= 4 else 8
    ruleset = call("syscall", SYS_LANDLOCK, rules, size, 0)
    read, everything = 0b1101, every
    system = ["/usr", "/lib", "/lib64", "/bin", "/etc/ld.so.cache", "/etc/localtime", "/dev/urandom", "/dev/zero"]
    python = {sys.prefix, sys.base_prefix, os.path.dirname(os.path.realpath(sys.executable))}
    allowed = [(path, read) for path in [*system, *sorted(python)]]
    for path, bits in [*allowed, ("/dev/null", 0b110 | file_bits), (request["scratch"], everything)]:
        try:
            folder = os.open(path, os.O_PATH | os.O_CLOEXEC)
        except OSError:
            continue
        bits = bits & every if os.path.isdir(path) else bits & file_bits
        rule = struct.pack("=Qi", bits, folder)
        call("syscall", SYS_LANDLOCK + 1, ruleset, 1, rule, 0)
        os.close(folder)
    call("prctl", PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    call("syscall", SYS_LANDLOCK + 2, ruleset, 0)
    os.close(ruleset)
    return ["reads Python and system libraries only, writes scratch only (Landlock)"]


def seccomp() -> list[str]:
    """System calls of the table are refused; only threads may be cloned; signals reach only the process itself."""
    if platform.machine() not in MACHINES or sys.platform != "linux":
        return []
    column, architecture = MACHINES[platform.machine()]
    load, equal, greater, has, give = 0x20, 0x15, 0x35, 0x45, 0x06
    allow, kill, refuse = 0x7FFF0000, 0x80000000, 0x00050000
    code: list[tuple[int, int, int, int]] = [
        (load, 0, 0, 4), (equal, 1, 0, architecture), (give, 0, 0, kill),
        (load, 0, 0, 0), (greater, 0, 1, 0x40000000), (give, 0, 0, kill),  # the x32 doors
    ]  # fmt: skip
    for numbers in REFUSED.values():
        if numbers[column] >= 0:
            code += [(equal, 0, 1, numbers[column]), (give, 0, 0, refuse | EPERM)]
    code += [(equal, 0, 1, CLONE3), (give, 0, 0, refuse | ENOSYS)]  # then the C library takes clone, which can be read
    # Of these calls the first argument decides.
    conditions = [(CLONE[column], (has, 1, 0, CLONE_THREAD))]
    conditions += [(numbers[column], (equal, 1, 0, os.getpid())) for numbers in TO_ITSELF_ONLY.values()]
    for number, condition in conditions:
        code += [(equal, 0, 4, number), (load, 0, 0, 16), condition, (give, 0, 0, refuse | EPERM), (give, 0, 0, allow)]
    code.append((give, 0, 0, allow))
    filters = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *line) for line in code))
    program = struct.pack("HxxxxxxP", len(code), ctypes.addressof(filters))
    call("prctl", PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    call("prctl", PR_SET_SECCOMP, 2, program, 0, 0)
    return ["no sockets, no new processes, no signals to others (seccomp)"]


def drop_privileges() -> list[str]:
    """No capabilities; and where Python is readable for everybody, no longer root."""
    if sys.platform != "linux":
        return []
    locks = []
    was_root = os.geteuid() == 0
    for capability in range(64):
        libc.prctl(PR_CAPBSET_DROP, capability, 0, 0, 0)
    if was_root and readable_for_all(os.__file__) and readable_for_all(os.path.realpath(sys.executable)):
        user = 200_000 + os.getpid() % 1_000_000  # no other process has it, so that limits count this one alone
        with contextlib.suppress(OSError):
            os.chown(".", user, user)
            os.setgroups([])
            os.setresgid(user, user, user)
            os.setresuid(user, user, user)
            locks.append("runs as another user")
    header = struct.pack("Ii", 0x20080522, 0)
    call("capset", header, b"\0" * 24)
    return [*locks, "no capabilities"] if was_root else locks


def readable_for_all(path: str) -> bool:
    """Whether any user can reach and read a file."""
    if not os.stat(path).st_mode & 0o4:
        return False
    while path != os.path.dirname(path):
        path = os.path.dirname(path)
        if not os.stat(path).st_mode & 0o1:
            return False
    return True


PROCESSES = ("subprocess.", "os.fork", "os.exec", "os.posix_spawn", "os.spawn", "os.system", "os.kill", "pty.")
CHANGES = (
    "os.remove", "os.rename", "os.mkdir", "os.rmdir", "os.chmod", "os.chown", "os.link", "os.symlink", "os.truncate",
    "os.utime", "os.setxattr", "shutil.",
)  # fmt: skip


def audit(scratch: str, *, alone: bool) -> list[str]:
    """Python itself refuses sockets, processes and writing elsewhere. Code that means harm can get around this one.
    `scratch`: may be written; `alone`: no lock of the kernel holds, so that C code through ctypes is refused too."""
    home = os.path.realpath(scratch)

    def inside(path: Any) -> bool:
        if isinstance(path, int) or path is None:
            return True
        real_path = os.path.realpath(os.fsdecode(path))
        return real_path == home or real_path.startswith(home + os.sep) or real_path == os.devnull

    def check(event: str, arguments: tuple[Any, ...]) -> None:
        if event.startswith("socket.") or event.startswith(PROCESSES) or (alone and event.startswith("ctypes.")):
            raise PermissionError(EPERM, f"{event} is refused in the sandbox")
        if event == "open":
            path, mode, flags = arguments
            writes = bool(set(mode or "") & set("wax+")) if mode else bool(flags & (os.O_WRONLY | os.O_RDWR))
            if writes and not inside(path):
                raise PermissionError(EPERM, "writing outside the scratch folder is refused in the sandbox", str(path))
        elif event.startswith(CHANGES):
            paths = [item for item in arguments[:2] if isinstance(item, str | bytes)]
            if not all(inside(path) for path in paths):
                raise PermissionError(EPERM, f"{event} outside the scratch folder is refused in the sandbox")

    sys.addaudithook(check)
    return ["Python's audit hook refuses sockets, processes and writing elsewhere"]


def lock_up(request: dict[str, Any]) -> list[str]:
    """Put all locks on; returns the ones that took."""
    locks: list[str] = []

    def attempt(name: str, lock: Callable[[], list[str]]) -> bool:
        if name in request["skip"]:
            return False
        try:
            tokens = lock()
        except (OSError, AttributeError):
            return False
        locks.extend(tokens)
        return bool(tokens)

    kernel = sys.platform == "linux"
    if kernel:
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        attempt("namespaces", lambda: new_namespaces(request))
    if "privileges" not in request["skip"]:
        with contextlib.suppress(OSError):
            locks.extend(drop_privileges())
    limit_resources(request)
    locks.append("limits of CPU time, memory, file size and open files (rlimits)")
    files = kernel and attempt("landlock", lambda: landlock(request))
    calls = kernel and attempt("seccomp", seccomp)
    attempt("audit", lambda: audit(request["scratch"], alone=not (files and calls)))
    return locks


def run(candidates: list[str]) -> dict[str, str]:
    """Run the first candidate that compiles, to its end."""
    first: BaseException | None = None
    code = None
    for candidate in candidates:
        try:
            code = compile(candidate, "<answer>", "exec", dont_inherit=True)
            break
        except (SyntaxError, ValueError, RecursionError, MemoryError, OverflowError) as error:
            first = first or error
    if code is None:
        return {"status": "failed", "reason": describe(first)}
    try:
        exec(code, {"__name__": "answer"})  # noqa: S102 - what the sandbox is for
    except MemoryError:
        return {"status": "memory", "reason": "more memory than allowed"}
    except SystemExit:
        return {"status": "failed", "reason": "it exits before its tests have ended"}
    except BaseException as error:
        return {"status": "failed", "reason": describe(error)}
    return {"status": "passed", "reason": ""}


def describe(error: BaseException | None) -> str:
    """Kind and text of an error, short; an error class of the program may misbehave."""
    try:
        return f"{type(error).__name__}: {error}"[:300]
    except BaseException:
        return "an error that can't be shown"


def main() -> None:
    """Read the request, lock up, run, report."""
    request = json.load(sys.stdin.buffer)
    reports = request["reports"]

    def report(**facts: Any) -> None:
        os.write(reports, (json.dumps(facts) + "\n").encode("utf-8", "backslashreplace"))

    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    report(protections=lock_up(request))
    outcome = run(request["candidates"])
    with contextlib.suppress(BaseException):
        sys.stdout.flush()
    report(key=request["key"], **outcome)
    os._exit(0)


if __name__ == "__main__":
    main()
