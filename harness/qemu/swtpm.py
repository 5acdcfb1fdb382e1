# SPDX-License-Identifier: GPL-2.0-or-later
"""TPMs: QEMU has the registers of one, and what it computes and keeps is in a program beside it, ``swtpm``.

Each QEMU gets an emulator of its own for each ``-tpmdev`` on its command line, empty at first: what the TPM holds is a
section of the saved state (``tpm-emulator``), which a load puts into the emulator of the QEMU that loads. The two talk
over a socket pair, so that nothing has to listen and nobody else can connect.
"""

from __future__ import annotations

import socket
from pathlib import Path

from harness.qemu.beside import Beside
from harness.qemu.cmdline import Option


def tpm_option(name: str) -> Option:
    """The ``-tpmdev`` of a TPM; its line to the emulator is added when a QEMU is started."""
    return Option(name="tpmdev", first="emulator", props={"id": name, "chardev": f"{name}-line"})


class TpmEmulator(Beside):
    """The emulator behind one ``-tpmdev``, as :func:`tpm_option` makes it."""

    program = package = "swtpm"
    part = "TPM"

    def _ends(self, folder: Path) -> tuple[socket.socket, socket.socket]:
        return socket.socketpair()

    def _words(self, said: Option, folder: Path, handle: int) -> list[str]:
        words = ["socket", "--tpm2", "--terminate", "--tpmstate", f"dir={folder}"]
        return [*words, "--ctrl", f"type=unixio,clientfd={handle}"]
