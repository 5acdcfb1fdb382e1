# SPDX-License-Identifier: GPL-2.0-or-later
"""Tap devices with nobody on them, for states of network cards that had a tap: only behind one has a card the headers
that checksums and segmentation are offloaded by (``hw/net/virtio-net.c``: ``peer_has_vnet_hdr``), and several queues.

Each QEMU gets one of its own for each such ``-netdev``, in a network of its own (:mod:`harness.qemu.tapmaker`): no
device of the host is touched, and no packet goes anywhere.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Final

from harness.errors import MissingError
from harness.qemu.cmdline import Option, Scalar

_MAKER = Path(__file__).with_name("tapmaker.py")
_TIMEOUT_S = 20.0
_LONE: Final = "lone"


def lone_tap_option(name: str, queues: int) -> Option:
    """The ``-netdev`` of one; its files are added when a QEMU is started."""
    return Option(name="netdev", first="tap", props={"id": name, "fd": _LONE, "queues": queues})


def is_lone_tap(option: Option) -> bool:
    """Whether an option is one that has no files yet."""
    return option.name == "netdev" and option.props.get("fd") == _LONE


@cache
def has_lone_taps() -> bool:
    """Whether this host gives one."""
    try:
        HeldTap(lone_tap_option("none", 1)).close()
    except MissingError:
        return False
    return True


class HeldTap:
    """The tap behind one ``-netdev``.

    :param said: as :func:`lone_tap_option` makes it
    :raises MissingError: this host does not give one; says why
    """

    def __init__(self, said: Option) -> None:
        queues = int(said.props["queues"])
        own, child = socket.socketpair()
        with own, child:
            try:
                done = subprocess.run(
                    [sys.executable, "-I", "-S", str(_MAKER), str(child.fileno()), str(queues)],
                    stdin=subprocess.DEVNULL,
                    capture_output=True,
                    timeout=_TIMEOUT_S,
                    check=False,
                    pass_fds=[child.fileno()],
                )
            except (OSError, subprocess.TimeoutExpired) as error:
                raise MissingError(f"a tap device of its own: {error}") from error
            if done.returncode:
                raise MissingError(done.stderr.decode(errors="replace").strip() or "no tap device of its own")
            _, handles, _, _ = socket.recv_fds(own, 1, queues)
        #: QEMU's, which it inherits; whoever starts it closes them then.
        self.files = [os.fdopen(handle, "r+b", buffering=0) for handle in handles]
        numbers = ":".join(str(file.fileno()) for file in self.files)
        key = "fd" if queues == 1 else "fds"
        props: dict[str, Scalar] = {"id": said.props["id"], key: numbers, "vhost": False}
        self.option = Option(name="netdev", first="tap", props=props)

    def close(self) -> None:
        """Close this process's files of it."""
        for file in self.files:
            file.close()
