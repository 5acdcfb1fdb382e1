# SPDX-License-Identifier: GPL-2.0-or-later
"""A pack brings a QEMU command line: one that came as a file may not reach for the host it is replayed on."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import PurePosixPath

from harness.errors import PackError
from harness.packs.manifest import PACK_MARK, OptionModel

#: Options that a profile or the guest itself can bring.
_OPTIONS = frozenset(
    {"m", "smp", "kernel", "initrd", "append", "device", "blockdev", "drive", "netdev", "chardev", "object", "global"}
    | {"machine", "cpu"}
)
#: Backends that do nothing beyond this process and files in its folder.
_BACKENDS = {
    "netdev": frozenset({"user", "hubport"}),
    "chardev": frozenset({"null", "file", "ringbuf", "memory"}),
    "object": frozenset(
        {"rng-random", "rng-builtin", "iothread", "throttle-group", "memory-backend-ram", "memory-backend-memfd"}
    ),
    "blockdev": frozenset(
        {"file", "raw", "qcow2", "null-co", "null-aio", "blkdebug", "throttle", "quorum", "copy-on-read"}
    ),
}
#: User networking: each of these leads out of the guest.
_NETWORK = frozenset({"guestfwd", "hostfwd", "smb", "tftp", "bootfile"})
#: Keys whose value is a file though it may be written without a slash.
_FILES = frozenset({"path", "filename", "mem-path", "romfile", "script", "downscript", "helper", "logfile", "config"})
_FREE = frozenset({"/dev/urandom", "/dev/random"})
_FOLDERS = ("{workdir}", PACK_MARK)


def refuse_host_access(options: Iterable[OptionModel]) -> None:
    """Check the command line of a pack of unknown origin.

    :raises PackError: an option that could run a program of this host, or read or write a file outside of the pack and
        the folder of the process
    """
    for option in options:
        if option.name not in _OPTIONS:
            raise PackError(f"option -{option.name} has no place in a pack that travels")
        allowed = _BACKENDS.get(option.name)
        if allowed is not None and option.first not in allowed:
            raise PackError(f"option -{option.name} {option.first}: expected one of {', '.join(sorted(allowed))}")
        for key, value in _values(option):
            last = key.rpartition(".")[2]
            if option.name == "netdev" and key in _NETWORK:
                raise PackError(f"option -{option.name}: {key} leads out of the guest")
            if option.name in ("blockdev", "drive") and last == "driver" and value not in _BACKENDS["blockdev"]:
                raise PackError(f"option -{option.name}: {key}={value!r} leads out of the guest")
            if (last in _FILES or (option.name, last) == ("drive", "file") or "/" in value) and not _inside(value):
                raise PackError(f"option -{option.name}: {key}={value!r} is a file of the host, not of the pack")


def _values(option: OptionModel) -> Iterator[tuple[str, str]]:
    if option.first is not None and option.name != "append":
        yield "path" if option.name in ("kernel", "initrd") else option.name, option.first
    for key, value in option.props.items():
        if isinstance(value, str):
            yield key, value


def _inside(value: str) -> bool:
    parts = PurePosixPath(value).parts
    return value in _FREE or (bool(parts) and parts[0] in _FOLDERS and ".." not in parts)
