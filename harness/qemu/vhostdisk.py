# SPDX-License-Identifier: GPL-2.0-or-later
"""Disks whose requests a program beside QEMU carries out, ``qemu-storage-daemon``, over vhost-user.

Each QEMU gets a program of its own for each such disk, with an image that is empty at first. QEMU hands it the guest's
memory, which therefore has to be shared, and the state of the rings at each start of the guest; none of that is in the
program when a state is loaded.
"""

from __future__ import annotations

import shutil
import socket
from typing import Final

from harness.errors import HostError, MissingError
from harness.qemu.cmdline import Option
from harness.qemu.process import Process, new_workdir, socket_path
from harness.qemu.scope import ProcessScope
from harness.qemu.walls import Confinement

PROGRAM, PACKAGE = "qemu-storage-daemon", "qemu-utils (Debian 12: qemu-system-common)"

VHOST_DISK: Final = "vhost-user-disk"


def vhost_disk_option(name: str, size_bytes: int) -> Option:
    """The ``-chardev`` to one; its line is added when a QEMU is started."""
    return Option(name="chardev", first="socket", props={"id": name, "fd": VHOST_DISK, "size": size_bytes})


def is_vhost_disk(option: Option) -> bool:
    """Whether an option is one that has no line yet."""
    return option.name == "chardev" and option.props.get("fd") == VHOST_DISK


def program() -> str | None:
    """The program's path, None where this host has none."""
    return shutil.which(PROGRAM)


class StorageDaemon:
    """The program behind one ``-chardev``; :meth:`close` ends it.

    :param said: as :func:`vhost_disk_option` makes it
    :param confinement: the walls that its QEMU is started behind: it stands behind the same, in a folder of its own
    :param scope: the run that it belongs to
    :raises MissingError: it is not installed
    :raises QemuError: it cannot be started
    :raises HostError: no space for its image
    :raises Stopped: the run is over
    """

    def __init__(self, said: Option, *, scope: ProcessScope | None, confinement: Confinement | None) -> None:
        path = program()
        if path is None:
            raise MissingError(f"{PROGRAM} is missing: it is in Debian's package {PACKAGE}")
        folder = new_workdir()
        self.line = socket.socket(socket.AF_UNIX)
        try:
            with socket.socket(socket.AF_UNIX) as server:
                # whoever listens is there before anybody starts: nobody has to be waited for
                with socket_path(folder / "disk.sock") as address:
                    server.bind(str(address))
                    server.listen(1)
                    self.line.connect(str(address))
                with (folder / "disk.img").open("wb") as image:
                    image.truncate(int(said.props["size"]))
                words = ["--blockdev", f"driver=file,node-name=file,filename={folder / 'disk.img'}"]
                words += ["--blockdev", "driver=raw,node-name=disk,file=file"]
                address_words = f"addr.type=fd,addr.str={server.fileno()}"
                words += ["--export", f"type=vhost-user-blk,id=disk,node-name=disk,writable=on,{address_words}"]
                self._process = Process(
                    [path, *words],
                    scope=scope,
                    passed=[server],
                    workdir=folder,
                    confinement=None if confinement is None else confinement.beside(path),
                )
        except BaseException as error:
            self.line.close()
            shutil.rmtree(folder, ignore_errors=True)
            if isinstance(error, OSError):
                raise HostError(f"cannot make a disk in {folder}: {error.strerror}") from error
            raise
        #: The line to it, as QEMU inherits it.
        self.option = Option(name="chardev", first="socket", props={"id": said.props["id"], "fd": self.line.fileno()})

    def close(self) -> None:
        """End it and remove its image."""
        self.line.close()
        self._process.close()
