# SPDX-License-Identifier: GPL-2.0-or-later
"""Disks whose requests a program beside QEMU carries out, ``qemu-storage-daemon``, over vhost-user.

Each QEMU gets a program of its own for each such disk, with an image that is empty at first. QEMU hands it the guest's
memory, which therefore has to be shared, and the state of the rings at each start of the guest; none of that is in the
program when a state is loaded.
"""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Final

from harness.qemu.beside import Beside
from harness.qemu.cmdline import Option
from harness.qemu.process import socket_path

VHOST_DISK: Final = "vhost-user-disk"


def vhost_disk_option(name: str, size_bytes: int) -> Option:
    """The ``-chardev`` to one; its line is added when a QEMU is started."""
    return Option(name="chardev", first="socket", props={"id": name, "fd": VHOST_DISK, "size": size_bytes})


def is_vhost_disk(option: Option) -> bool:
    """Whether an option is one that has no line yet."""
    return option.name == "chardev" and option.props.get("fd") == VHOST_DISK


class StorageDaemon(Beside):
    """The program behind one ``-chardev``, as :func:`vhost_disk_option` makes it."""

    program, package = "qemu-storage-daemon", "qemu-utils (Debian 12: qemu-system-common)"
    part = "disk"

    def _ends(self, folder: Path) -> tuple[socket.socket, socket.socket]:
        line, server = socket.socket(socket.AF_UNIX), socket.socket(socket.AF_UNIX)
        try:
            # whoever listens is there before anybody starts: nobody has to be waited for
            with socket_path(folder / "disk.sock") as address:
                server.bind(str(address))
                server.listen(1)
                line.connect(str(address))
        except BaseException:
            line.close()
            server.close()
            raise
        return line, server

    def _words(self, said: Option, folder: Path, handle: int) -> list[str]:
        with (folder / "disk.img").open("wb") as image:
            image.truncate(int(said.props["size"]))
        words = ["--blockdev", f"driver=file,node-name=file,filename={folder / 'disk.img'}"]
        words += ["--blockdev", "driver=raw,node-name=disk,file=file"]
        address = f"addr.type=fd,addr.str={handle}"
        return [*words, "--export", f"type=vhost-user-blk,id=disk,node-name=disk,writable=on,{address}"]
