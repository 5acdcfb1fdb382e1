# SPDX-License-Identifier: GPL-2.0-or-later
"""Programs beside a QEMU that have a part of its machine, at the other end of a ``-chardev``.

Each QEMU gets one of its own for each such part, with a folder of its own, behind the walls that QEMU has. Both ends of
the line are there before either is started, so that nobody has to be waited for.
"""

from __future__ import annotations

import shutil
import socket
from abc import ABC, abstractmethod
from contextlib import ExitStack
from pathlib import Path
from typing import ClassVar

from harness.errors import HostError, MissingError
from harness.qemu.cmdline import Option
from harness.qemu.process import Process, new_workdir
from harness.qemu.scope import ProcessScope
from harness.qemu.walls import Confinement


class LineEnd(ABC):
    """Who is at the other end of a ``-chardev``.

    ``line`` is QEMU's end, which it inherits; whoever starts it closes it then. ``option`` names that.
    """

    line: socket.socket
    option: Option

    @abstractmethod
    def close(self) -> None:
        """End it and remove what it kept."""


class Beside(LineEnd):
    """One of them, while it runs; :meth:`close` ends it.

    :param said: the option that stands for it, which has no line yet
    :param confinement: the walls that its QEMU is started behind: it stands behind the same, in a folder of its own
    :param scope: the run that it belongs to
    :raises MissingError: it is not installed
    :raises QemuError: it cannot be started
    :raises HostError: no space for what it keeps
    :raises Stopped: the run is over
    """

    #: Its name, and Debian's package that brings it.
    program: ClassVar[str]
    package: ClassVar[str]
    #: What it is for the machine.
    part: ClassVar[str]

    def __init__(self, said: Option, *, scope: ProcessScope | None, confinement: Confinement | None) -> None:
        path = self.path()
        if path is None:
            raise MissingError(f"{self.program} is missing: it is in Debian's package {self.package}")
        folder = new_workdir()
        try:
            with ExitStack() as undone:
                undone.callback(shutil.rmtree, folder, ignore_errors=True)
                self.line, own = self._ends(folder)
                undone.callback(self.line.close)
                with own:
                    self._process = Process(
                        [path, *self._words(said, folder, own.fileno())],
                        scope=scope,
                        passed=[own],
                        workdir=folder,
                        confinement=None if confinement is None else confinement.beside(path),
                    )
                undone.pop_all()
        except OSError as error:
            raise HostError(f"cannot make a {self.part} in {folder}: {error.strerror}") from error
        # the option names its chardev, or is one
        name = said.props.get("chardev", said.props["id"])
        self.option = Option(name="chardev", first="socket", props={"id": name, "fd": self.line.fileno()})

    @classmethod
    def path(cls) -> str | None:
        """The program's path, None where this host has none."""
        return shutil.which(cls.program)

    @abstractmethod
    def _ends(self, folder: Path) -> tuple[socket.socket, socket.socket]:
        """Both ends of the line: QEMU's, and the program's."""

    @abstractmethod
    def _words(self, said: Option, folder: Path, handle: int) -> list[str]:
        """Its arguments, when what they name has been made in its folder."""

    def close(self) -> None:
        """End it and remove what it kept."""
        self.line.close()
        self._process.close()
