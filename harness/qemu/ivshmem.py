# SPDX-License-Identifier: GPL-2.0-or-later
"""Memory that a machine shares with others through an ivshmem server, of which it is the first client and the only one.

What the server says to a new client (QEMU's ``docs/specs/ivshmem-spec``) lies in the line before QEMU is started:
nothing has to run, and nobody has to be waited for. Each QEMU gets memory of its own, which is saved with its RAM.
"""

from __future__ import annotations

import array
import os
import socket
import struct
from typing import Final

from harness.errors import HostError
from harness.qemu.beside import LineEnd
from harness.qemu.cmdline import Option

IVSHMEM: Final = "ivshmem"
#: As many as the device asks for by itself.
_VECTORS = 1
_PROTOCOL, _FIRST_CLIENT, _MEMORY = 0, 0, -1


def ivshmem_option(name: str, size_bytes: int) -> Option:
    """The ``-chardev`` to one; its line is added when a QEMU is started."""
    return Option(name="chardev", first="socket", props={"id": name, "fd": IVSHMEM, "size": size_bytes})


def is_ivshmem(option: Option) -> bool:
    """Whether an option is one that has no line yet."""
    return option.name == "chardev" and option.props.get("fd") == IVSHMEM


class IvshmemServer(LineEnd):
    """The server behind one ``-chardev``, as :func:`ivshmem_option` makes it. QEMU closes its files when it ends.

    :raises HostError: no memory to be had
    """

    def __init__(self, said: Option) -> None:
        self._own, self.line = socket.socketpair()
        self.option = Option(name="chardev", first="socket", props={"id": said.props["id"], "fd": self.line.fileno()})
        files: list[int] = []
        try:
            files.append(os.memfd_create(IVSHMEM))
            os.ftruncate(files[0], int(said.props["size"]))
            files += [os.eventfd(0) for _ in range(_VECTORS)]
            self._say(_PROTOCOL)
            self._say(_FIRST_CLIENT)
            self._say(_MEMORY, files[0])
            for interrupt in files[1:]:
                self._say(_FIRST_CLIENT, interrupt)
        except OSError as error:
            self.close()
            raise HostError(f"cannot make memory for {said.props['id']}: {error.strerror}") from error
        finally:
            for file in files:
                os.close(file)

    def _say(self, number: int, *files: int) -> None:
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", files))] if files else []
        self._own.sendmsg([struct.pack("<q", number)], rights)

    def close(self) -> None:
        """Hang up."""
        self.line.close()
        self._own.close()
