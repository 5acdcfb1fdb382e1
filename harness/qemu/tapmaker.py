# SPDX-License-Identifier: GPL-2.0-or-later
"""Makes a tap device in a network of its own and hands its file to whoever started this; a script of the standard
library alone, run as ``python3 -I -S tapmaker.py SOCKET QUEUES``.

The network has nothing in it and is entered by nobody: it lives as long as the file does. No capability is needed where
the kernel gives user namespaces away.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import socket
import struct
import sys

CLONE_NEWUSER, CLONE_NEWNET = 0x10000000, 0x40000000
TUNSETIFF = 0x400454CA
IFF_TAP, IFF_MULTI_QUEUE, IFF_NO_PI, IFF_VNET_HDR = 0x0002, 0x0100, 0x1000, 0x4000
NAME = b"lone0"


def main(words: list[str]) -> None:
    """Make it and send its files, one for each queue."""
    line, queues = socket.socket(fileno=int(words[0])), int(words[1])
    try:
        leave_network()
        socket.send_fds(line, [b"."], [queue(queues > 1) for _ in range(queues)])
    except OSError as error:
        raise SystemExit(f"no tap device in a network of its own: {error}") from error


def leave_network() -> None:
    """A network with nothing in it: at once for root, else in a user namespace."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(CLONE_NEWNET) and libc.unshare(CLONE_NEWUSER | CLONE_NEWNET):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def queue(several: bool) -> int:
    """One queue of the device, which the first one makes."""
    handle = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC)
    flags = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR | (IFF_MULTI_QUEUE if several else 0)
    fcntl.ioctl(handle, TUNSETIFF, struct.pack("=16sH22x", NAME, flags))
    return handle


if __name__ == "__main__":
    main(sys.argv[1:])
