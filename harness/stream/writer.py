# SPDX-License-Identifier: GPL-2.0-or-later
"""Writes pieces of a stream that are not read from one; :meth:`Stream.encode` writes a whole one."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from harness.stream import wire
from harness.stream.model import Command, Section, Stream


def encode_command(command: int, data: bytes = b"") -> bytes:
    """A command, such as ENABLE_COLO (``qemu_savevm_command_send``)."""
    return Command(offset=0, command=command, data=data).encode()


def encode_head(machine: str) -> bytes:
    """Magic, version and a configuration section without subsections (``qemu_savevm_state_header``)."""
    name = machine.encode()
    head = wire.FILE_HEADER.pack(wire.MAGIC, wire.VERSION)
    return head + wire.U8.pack(wire.SectionType.CONFIGURATION) + wire.U32.pack(len(name)) + name


def encode_devices(sections: Iterable[Section]) -> bytes:
    """A COLO device buffer: sections, repeated ones too, and EOF (``qemu_save_device_state``)."""
    return b"".join(section.encode() for section in sections) + wire.U8.pack(wire.SectionType.EOF)


def encode_vmdesc(text: bytes) -> bytes:
    """A vmdesc section around JSON."""
    return wire.VMDESC.pack(wire.SectionType.VMDESCRIPTION, len(text)) + text


def write_stream(stream: Stream, path: Path) -> None:
    """Write a stream to a new file; the caller renames it into place.

    :raises OSError: as the file system has it
    """
    with path.open("xb") as file:
        for buffer in stream.encode():
            file.write(buffer)
