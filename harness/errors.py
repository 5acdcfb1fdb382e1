# SPDX-License-Identifier: GPL-2.0-or-later
"""The error tree: errors are named by what the caller can do about them.

::

    PostloadError                 root; ``exit_code`` is what the command ends with
    +-- UsageError         (2)    bad option, profile, pack or stream: the user mends the input
    |   +-- ConfigError    (2)    a YAML file, with file, line and column
    |   +-- StreamError    (2)    a migration stream that is cut or damaged, with its offset
    |   +-- PackError      (2)    a state pack that is cut, changed or of another schema
    +-- HostError          (3)    this host cannot do it: no QEMU, no space, no network
    |   +-- MissingError   (3)    a program or package is missing; says how to get it
    +-- HarnessError       (3)    this program could not decide
    |   +-- DeadlineError  (3)    a wait ended without an answer
    |   +-- HinderedError  (3)    the host kept a QEMU, or this program, from running
    |   +-- GuestError     (3)    the guest did not reach a phase
    |   +-- QemuError      (3)    QEMU refused a command, or died while it was prepared
    |       +-- Unmigratable      a device blocks that the machine is saved
    |       +-- UnsavedError      QEMU died, or gave up, while it saved the machine
    |   +-- BudgetError    (3)    a task took longer than it was given
    |   +-- HostsError     (3)    some of the hosts that were to do a task, each of them, did not
    |   +-- Stopped        (3)    the run was told to stop
    +-- NothingToRun       (4)    the selection is empty

A QEMU under test that dies is a verdict, not an error of this tree.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path


class PostloadError(Exception):
    """Root of all errors that this program raises on purpose."""

    exit_code = 3


class UsageError(PostloadError):
    """The user's input is wrong; the message says what was expected."""

    exit_code = 2


class ConfigError(UsageError):
    """A YAML file is wrong.

    :param path: the file
    :param line: 1-based line, or 0 when the whole file is meant
    :param column: 1-based column, or 0
    """

    def __init__(self, path: Path | str, line: int, column: int, message: str) -> None:
        self.path = str(path)
        self.line = line
        self.column = column
        where = f"{path}:{line}:{column}" if line else str(path)
        super().__init__(f"{where}: {message}")


class StreamError(UsageError):
    """A migration stream is cut or damaged.

    :param offset: byte offset from the start of the stream where reading failed
    """

    def __init__(self, offset: int, message: str) -> None:
        self.offset = offset
        super().__init__(f"at offset {offset} (0x{offset:x}): {message}")


class PackError(UsageError):
    """A state pack is cut, was changed, or is not a state pack."""


class HostError(PostloadError):
    """The host cannot do what was asked."""


class MissingError(HostError):
    """A program or package is missing; the message says how to get it."""


class HarnessError(PostloadError):
    """This program could not decide; never counted for or against a device."""


class DeadlineError(HarnessError):
    """A wait ended without an answer."""


class HinderedError(HarnessError):
    """The host kept a QEMU, or this program, from running: what came of it says nothing, and is tried again."""


class GuestError(HarnessError):
    """The guest did not boot or did not reach a phase; the console is kept."""


class QemuError(HarnessError):
    """QEMU refused a command or died while it was being prepared."""


class Unmigratable(QemuError):
    """QEMU does not migrate the machine, and so does not start COLO with it either: a device blocks that."""


class UnsavedError(QemuError):
    """QEMU died, or gave up, while it saved a machine."""


class BudgetError(HarnessError):
    """A task took longer than it was given; what it had judged until then holds.

    :param seconds: the budget
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        super().__init__(f"it was not judged within the {seconds:g} s of its task")


class HostsError(HarnessError):
    """Some of the hosts that were to do a task, each of them, did not do all of it.

    :param errors: by the name of the host
    """

    def __init__(self, errors: Mapping[str, HarnessError]) -> None:
        self.errors = dict(errors)
        super().__init__("; ".join(f"{host}: {error}" for host, error in self.errors.items()))


class Stopped(HarnessError):
    """The run was told to stop; what was acknowledged until then is lost for this session only."""


class NothingToRun(PostloadError):
    """The selection of machines, devices and phases is empty."""

    exit_code = 4
