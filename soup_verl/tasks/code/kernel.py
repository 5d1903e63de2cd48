"""The kernel's means to shut a process in: namespaces, a root of its own, no privileges, a filter of system calls.

Standard library only: it is run by a bare interpreter that knows no package of ours. Linux on x86-64 and ARM.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct

LIBC = ctypes.CDLL(None, use_errno=True)

NEWNS, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET = 0x00020000, 0x04000000, 0x08000000, 0x10000000, 0x20000000, 0x40000000
NEW_NAMESPACES = NEWNS | NEWUTS | NEWIPC | NEWUSER | NEWPID | NEWNET | 0x02000000  # of cgroups
RDONLY, NOSUID, NODEV, NOEXEC, REMOUNT, BIND, REC, PRIVATE = 1, 2, 4, 8, 32, 4096, 16384, 1 << 18
MNT_DETACH = 2
PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_SECCOMP, PR_SET_CHILD_SUBREAPER, PR_SET_NO_NEW_PRIVS = 1, 4, 22, 36, 38


def checked(name: str, *arguments: object) -> None:
    """Call a function of libc. Raises OSError that names it."""
    if getattr(LIBC, name)(*arguments) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")


def prctl(option: int, value: int) -> None:
    checked("prctl", option, ctypes.c_ulong(value), 0, 0, 0)


def enter_namespaces() -> None:
    """Mounts, processes, network, names and IPC of one's own from the next fork on; without root, through a namespace
    of users in which this user is the only one. Raises OSError where the machine does not allow it."""
    kinds = NEWNS | NEWPID | NEWNET | NEWIPC | NEWUTS
    if os.geteuid() == 0:
        checked("unshare", kinds)
        return
    uid, gid = os.getuid(), os.getgid()
    checked("unshare", kinds | NEWUSER)
    for name, text in (("setgroups", "deny"), ("uid_map", f"{uid} {uid} 1"), ("gid_map", f"{gid} {gid} 1")):
        with open(f"/proc/self/{name}", "w") as file:
            file.write(text)


def _mount(source: str, target: str, kind: str | None, flags: int, data: str | None = None) -> None:
    texts = [None if text is None else text.encode() for text in (source, target, kind)]
    checked("mount", *texts, ctypes.c_ulong(flags), None if data is None else data.encode())


def enter_root(visible: list[tuple[str, str]], *, at: str, size: int) -> None:
    """Leave the machine's files for a file system in memory.

    Args:
        visible: (path, where it is seen), read-only.
        at: an empty folder to build it on; no trace stays there.
        size: bytes that all files together may have.
    """
    _mount("none", "/", None, REC | PRIVATE)
    _mount("tmpfs", at, "tmpfs", NOSUID | NODEV, f"size={size},nr_inodes=4096,mode=755")
    for path, seen_at in visible:
        target = at + seen_at
        if os.path.isdir(path):
            os.makedirs(target, exist_ok=True)
        else:
            os.makedirs(os.path.dirname(target), exist_ok=True)
            open(target, "x").close()
        _mount(path, target, None, BIND | REC)
        kept = os.statvfs(target).f_flag & (NOSUID | NOEXEC | (0 if path.startswith("/dev/") else NODEV))
        _mount("none", target, None, REMOUNT | BIND | RDONLY | NOSUID | kept)
    for folder in ("/work", "/tmp", "/dev/shm"):
        os.makedirs(at + folder, exist_ok=True)
        os.chmod(at + folder, 0o777)
    os.chdir(at)
    checked("pivot_root", b".", b".")
    checked("umount2", b".", MNT_DETACH)
    os.chdir("/work")


def drop_privileges(uid: int | None) -> None:
    """No capabilities from now on, and none to be gained; as another user where `uid` is given (by root)."""
    if uid is not None:
        os.setgroups([])
        os.setresgid(uid, uid, uid)
        os.setresuid(uid, uid, uid)
    header, none = struct.pack("Ii", 0x20080522, 0), bytes(24)
    checked("capset", header, none)
    prctl(PR_SET_NO_NEW_PRIVS, 1)
    prctl(PR_SET_DUMPABLE, 0)  # nobody of the same user reads this memory, or traces it


# System calls that a program to be judged has no use for: they reach another process, the network, another namespace,
# or memory that no limit counts. Numbers of x86-64 and of ARM.
DENIED = {
    "socket": (41, 198), "connect": (42, 203), "bind": (49, 200), "listen": (50, 201),
    "kill": (62, 129), "tkill": (200, 130), "tgkill": (234, 131), "rt_sigqueueinfo": (129, 138),
    "rt_tgsigqueueinfo": (297, 240), "pidfd_send_signal": (424, 424), "ptrace": (101, 117),
    "process_vm_readv": (310, 270), "process_vm_writev": (311, 271), "pidfd_getfd": (438, 438),
    "prlimit64": (302, 261), "setpriority": (141, 140),
    "unshare": (272, 97), "setns": (308, 268), "mount": (165, 40), "umount2": (166, 39), "pivot_root": (155, 41),
    "chroot": (161, 51), "open_tree": (428, 428), "move_mount": (429, 429), "fsopen": (430, 430),
    "open_by_handle_at": (304, 265), "shmget": (29, 194), "msgget": (68, 186), "semget": (64, 190),
    "mq_open": (240, 180), "memfd_create": (319, 279), "memfd_secret": (447, 447), "add_key": (248, 217),
    "request_key": (249, 218), "keyctl": (250, 219), "bpf": (321, 280), "perf_event_open": (298, 241),
    "userfaultfd": (323, 282), "io_uring_setup": (425, 425), "init_module": (175, 105), "finit_module": (313, 273),
    "reboot": (169, 142), "personality": (135, 92),
}  # fmt: skip
_ARCHITECTURES = {"x86_64": (0, 0xC000003E, 56), "aarch64": (1, 0xC00000B7, 220)}  # column, audit name, clone
_CLONE3 = 435
_ALLOW, _ERRNO = 0x7FFF0000, 0x00050000
_LOAD, _JUMP_EQUAL, _JUMP_AT_LEAST, _JUMP_ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_NUMBER_AT, _ARCHITECTURE_AT, _FIRST_ARGUMENT_AT = 0, 4, 16


def filter_system_calls() -> None:
    """Answer those of `DENIED`, and new namespaces, with an error. It is inherited and cannot be taken off."""
    column, audit_name, clone = _ARCHITECTURES[os.uname().machine]
    refuse = (_RETURN, 0, 0, _ERRNO | errno.EPERM)
    steps = [(_LOAD, 0, 0, _ARCHITECTURE_AT), (_JUMP_EQUAL, 1, 0, audit_name), refuse, (_LOAD, 0, 0, _NUMBER_AT)]
    steps += [(_JUMP_AT_LEAST, 0, 1, 0x40000000), refuse]  # x86-64's second table
    for numbers in DENIED.values():
        steps += [(_JUMP_EQUAL, 0, 1, numbers[column]), refuse]
    steps += [(_JUMP_EQUAL, 0, 1, _CLONE3), (_RETURN, 0, 0, _ERRNO | errno.ENOSYS)]  # libc then takes clone
    steps += [(_JUMP_EQUAL, 0, 3, clone), (_LOAD, 0, 0, _FIRST_ARGUMENT_AT), (_JUMP_ANY_BIT, 0, 1, NEW_NAMESPACES)]
    steps += [refuse, (_RETURN, 0, 0, _ALLOW)]
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *step) for step in steps))
    program = ctypes.create_string_buffer(struct.pack("H6xP", len(steps), ctypes.addressof(code)))
    checked("prctl", PR_SET_SECCOMP, ctypes.c_ulong(2), program, 0, 0)
