# SPDX-License-Identifier: GPL-2.0-or-later
"""Writes pieces of a stream that are not read from one; :meth:`Stream.encode` writes a whole one."""

from __future__ import annotations

from harness.stream import wire
from harness.stream.model import Command


def encode_command(command: int, data: bytes = b"") -> bytes:
    """A command, such as ENABLE_COLO (``qemu_savevm_command_send``)."""
    return Command(offset=0, command=command, data=data).encode()


def encode_vmdesc(text: bytes) -> bytes:
    """A vmdesc section around JSON."""
    return wire.VMDESC.pack(wire.SectionType.VMDESCRIPTION, len(text)) + text
