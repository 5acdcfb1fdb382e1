# SPDX-License-Identifier: GPL-2.0-or-later
"""TPMs: QEMU has the registers of one, and what it computes and keeps is in a program beside it, ``swtpm``.

Each QEMU gets an emulator of its own for each ``-tpmdev`` on its command line, empty at first: what the TPM holds is a
section of the saved state (``tpm-emulator``), which a load puts into the emulator of the QEMU that loads. The two talk
over a socket pair, so that nothing has to listen and nobody else can connect.
"""

from __future__ import annotations

import shutil
import socket

from harness.errors import MissingError
from harness.qemu.cmdline import Option
from harness.qemu.process import Process, new_workdir
from harness.qemu.scope import ProcessScope
from harness.qemu.walls import Confinement

PROGRAM, PACKAGE = "swtpm", "swtpm"


def tpm_option(name: str) -> Option:
    """The ``-tpmdev`` of a TPM; its line to the emulator is added when a QEMU is started."""
    return Option(name="tpmdev", first="emulator", props={"id": name, "chardev": f"{name}-line"})


def program() -> str | None:
    """The emulator's path, None where this host has none."""
    return shutil.which(PROGRAM)


class TpmEmulator:
    """The emulator behind one ``-tpmdev``; :meth:`close` ends it.

    :param tpm: as :func:`tpm_option` makes it
    :param confinement: the walls that its QEMU is started behind: it stands behind the same, in a folder of its own
    :param scope: the run that it belongs to
    :raises MissingError: it is not installed
    :raises QemuError: it cannot be started
    :raises Stopped: the run is over
    """

    def __init__(self, tpm: Option, *, scope: ProcessScope | None, confinement: Confinement | None) -> None:
        path = program()
        if path is None:
            raise MissingError(f"{PROGRAM} is missing: it is in Debian's package {PACKAGE}")
        self._name = str(tpm.props["chardev"])
        folder = new_workdir()
        #: QEMU's end, which it inherits; whoever starts it closes it then.
        self.line, own = socket.socketpair()
        words = ["socket", "--tpm2", "--terminate", "--tpmstate", f"dir={folder}"]
        words += ["--ctrl", f"type=unixio,clientfd={own.fileno()}"]
        try:
            self._process = Process(
                [path, *words],
                scope=scope,
                passed=[own],
                workdir=folder,
                confinement=None if confinement is None else confinement.beside(path),
            )
        except BaseException:
            self.line.close()
            raise
        finally:
            own.close()

    @property
    def option(self) -> Option:
        """The line to it, as QEMU inherits it."""
        return Option(name="chardev", first="socket", props={"id": self._name, "fd": self.line.fileno()})

    def close(self) -> None:
        """End it and remove what it kept."""
        self.line.close()
        self._process.close()
