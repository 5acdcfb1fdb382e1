# SPDX-License-Identifier: GPL-2.0-or-later
"""Puts up walls around this process, then becomes another program; a script of the standard library alone.

Run as ``python3 -I -S wallrun.py PLAN PROGRAM ARGUMENT...``; nothing imports it but a test. PLAN is JSON::

    parent      pid; the program dies with it
    files       whether Landlock shall hide all files but those below (Documentation/userspace-api/landlock.rst)
    read        paths that may be read, and run
    write       folders that are the program's own
    devices     device files that may be used
    network     whether it gets a network namespace of its own, with nothing in it
    uid         of the user that it becomes, null to stay
    powerless   whether it loses all capabilities; where files are hidden it keeps CAP_SYS_PTRACE, which a postcopy
                destination needs for userfaultfd, and which reaches no process outside of its Landlock domain

A wall that was asked for and does not stand ends it with status 126, before the program runs.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import stat
import struct
import sys

PR_SET_PDEATHSIG, PR_SET_KEEPCAPS, PR_CAPBSET_DROP, PR_SET_NO_NEW_PRIVS = 1, 8, 24, 38
PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE = 47, 2
CAP_SYS_PTRACE = 19
CLONE_NEWUSER, CLONE_NEWNET = 0x10000000, 0x40000000
#: The numbers are the same on all architectures.
LANDLOCK_CREATE_RULESET, LANDLOCK_ADD_RULE, LANDLOCK_RESTRICT_SELF = 444, 445, 446
LANDLOCK_CREATE_RULESET_VERSION = 1
LANDLOCK_RULE_PATH_BENEATH = 1
#: Bits of ``access_fs``.
EXECUTE, WRITE_FILE, READ_FILE, READ_DIR = 1 << 0, 1 << 1, 1 << 2, 1 << 3
TRUNCATE, IOCTL_DEV = 1 << 14, 1 << 15
#: How many of these bits each version of Landlock knows; later ones know as many as the last.
FS_BITS = (0, 13, 14, 15, 15, 16)
FILE_BITS = EXECUTE | WRITE_FILE | READ_FILE | TRUNCATE | IOCTL_DEV
#: TCP: bind, connect; and since version 6 abstract unix sockets and signals to others.
NET_BITS, SCOPES = 3, 3
CAPABILITY_VERSION_3 = 0x20080522

_libc = ctypes.CDLL(None, use_errno=True)


def main(words: list[str]) -> None:
    """Put up what the plan says and run the program."""
    plan = json.loads(words[0])
    try:
        if plan["network"]:
            leave_network()
        if plan["uid"] is not None:
            os.setgroups([])
            os.setresgid(plan["uid"], plan["uid"], plan["uid"])
        kept = CAP_SYS_PTRACE if plan["files"] else None
        if plan["powerless"]:
            drop_bounding_set(kept)
            check(_libc.prctl(PR_SET_KEEPCAPS, 1, 0, 0, 0))
        if plan["uid"] is not None:
            os.setresuid(plan["uid"], plan["uid"], plan["uid"])
        if plan["powerless"]:
            drop_capabilities(kept)
        check(_libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
        if plan["files"]:
            hide_files(plan)
    except OSError as error:
        print(f"a wall does not stand: {error}", file=sys.stderr)
        raise SystemExit(126) from error
    # last: the kernel forgets it when a process changes its user
    check(_libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0))
    if os.getppid() != plan["parent"]:
        raise SystemExit(125)
    os.execv(words[1], words[1:])


def check(answer: int) -> int:
    """The answer of a system call.

    :raises OSError: it failed
    """
    if answer < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return answer


def leave_network() -> None:
    """A network namespace with nothing in it: at once for root, else in a user namespace in which nobody gains."""
    if _libc.unshare(CLONE_NEWNET) == 0:
        return
    uid, gid = os.getuid(), os.getgid()
    check(_libc.unshare(CLONE_NEWUSER | CLONE_NEWNET))
    for name, text in (("setgroups", "deny"), ("uid_map", f"{uid} {uid} 1"), ("gid_map", f"{gid} {gid} 1")):
        handle = os.open(f"/proc/self/{name}", os.O_WRONLY)
        os.write(handle, text.encode())
        os.close(handle)


def drop_bounding_set(kept: int | None) -> None:
    """What a program of root's would get back when it is run."""
    for number in range(64):
        if number != kept and _libc.prctl(PR_CAPBSET_DROP, number, 0, 0, 0) < 0:
            return


def drop_capabilities(kept: int | None) -> None:
    """All that this process has, but one."""
    header = struct.pack("=Ii", CAPABILITY_VERSION_3, 0)
    bit = 0 if kept is None else 1 << kept
    check(_libc.capset(header, struct.pack("=6I", bit, bit, bit, 0, 0, 0)))
    if kept is not None:
        check(_libc.prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, kept, 0, 0))


def landlock_version() -> int:
    """0 where the kernel has it not, or not switched on."""
    version: int = _libc.syscall(LANDLOCK_CREATE_RULESET, None, 0, LANDLOCK_CREATE_RULESET_VERSION)
    return max(0, version)


def hide_files(plan: dict[str, list[str]]) -> None:
    """Nothing but what the plan names can be opened from here on."""
    version = landlock_version()
    bits = (1 << FS_BITS[min(version, len(FS_BITS) - 1)]) - 1
    fields = [bits] + [NET_BITS] * (version >= 4) + [SCOPES] * (version >= 6)
    attributes = struct.pack(f"={len(fields)}Q", *fields)
    ruleset = check(_libc.syscall(LANDLOCK_CREATE_RULESET, attributes, len(attributes), 0))
    for paths, wanted in (
        (plan["read"], EXECUTE | READ_FILE | READ_DIR),
        (plan["write"], bits & ~EXECUTE),
        (plan["devices"], READ_FILE | WRITE_FILE | IOCTL_DEV),
    ):
        for path in paths:
            allow(ruleset, path, wanted & bits)
    check(_libc.syscall(LANDLOCK_RESTRICT_SELF, ruleset, 0))
    os.close(ruleset)


def allow(ruleset: int, path: str, bits: int) -> None:
    """One rule; a path that is not there needs none."""
    try:
        handle = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return
    if not stat.S_ISDIR(os.fstat(handle).st_mode):
        bits &= FILE_BITS
    rule = struct.pack("=Qi", bits, handle)
    check(_libc.syscall(LANDLOCK_ADD_RULE, ruleset, LANDLOCK_RULE_PATH_BENEATH, rule, 0))
    os.close(handle)


if __name__ == "__main__":
    main(sys.argv[1:])
