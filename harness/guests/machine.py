# SPDX-License-Identifier: GPL-2.0-or-later
"""The guest machine: one command line that both the recording and every replay are built from."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from harness.arch import Architecture
from harness.errors import HostError, UsageError
from harness.qemu.cmdline import CommandLine, Option, Scalar


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """A guest machine without a binary.

    :param name: versioned machine type, e.g. ``pc-q35-7.2``
    :param family: its alias, e.g. ``q35``
    :param options: everything but machine, accelerator and the folders; may hold ``{workdir}``, and no other mark
    :param files: scratch images, name to bytes, to be made in ``{workdir}``
    """

    name: str
    family: str
    accel: str
    options: tuple[Option, ...]
    files: tuple[tuple[str, int], ...]

    def command(self, binary: str, workdir: Path, *extra: Option) -> CommandLine:
        """The command line of one process, its machine stopped (``-S``) until told."""
        options = (
            *(Option(name=name) for name in ("nodefaults", "no-user-config", "no-reboot", "S")),
            Option(name="display", first="none"),
            Option(name="machine", first=self.name),
            Option(name="accel", first=self.accel),
            *(filled(option, "{workdir}", workdir) for option in self.options),
        )
        return CommandLine(binary=binary, options=options + extra)

    def make_files(self, workdir: Path) -> None:
        """Make the scratch images, empty and sparse.

        :raises HostError: no space
        :raises UsageError: a name that leads out of the folder
        """
        for name, _ in self.files:
            if Path(name).name != name:
                raise UsageError(f"scratch file {name!r}: expected a plain file name")
        try:
            for name, size in self.files:
                with (workdir / name).open("wb") as file:
                    file.truncate(size)
        except OSError as error:
            raise HostError(f"cannot make {workdir / name}: {error.strerror}") from error


def guest_options(
    architecture: Architecture, accel: str, *, kernel: Path, initramfs: Path, cmdline: str, memory_mib: int, cpus: int
) -> tuple[Option, ...]:
    """The options of the guest itself, without any device under test."""
    firmware = architecture.firmware
    return (
        *architecture.cpu_options(accel),
        Option(name="m", first=str(memory_mib)),
        Option(name="smp", first=str(cpus)),
        Option(name="kernel", first=str(kernel)),
        Option(name="initrd", first=str(initramfs)),
        Option(name="append", first=cmdline),
        # the recorder reads how far it is, a secondary throws it away
        *((firmware.device,) if firmware else ()),
    )


def firmware_sink() -> Option:
    """The far end of the firmware's debug port where nobody listens."""
    return Option(name="chardev", first="null", props={"id": "firmware"})


def merge_options(groups: Iterable[Sequence[Option]]) -> tuple[Option, ...]:
    """Option lists in order, as one."""
    return tuple(option for group in groups for option in group)


def filled(option: Option, mark: str, folder: Path) -> Option:
    """An option with a folder in place of its mark."""

    def fill(value: Scalar) -> Scalar:
        return value.replace(mark, str(folder)) if isinstance(value, str) else value

    first = None if option.first is None else option.first.replace(mark, str(folder))
    return Option(name=option.name, first=first, props={key: fill(value) for key, value in option.props.items()})
