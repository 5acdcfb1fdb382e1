# SPDX-License-Identifier: GPL-2.0-or-later
"""``-dump-vmstate``: what a build says of its own vmstates; see :mod:`harness.qualify.static` for its layout."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from typing import Any

from harness.cache import cache_root
from harness.errors import HostError, QemuError
from harness.files import write_atomically
from harness.qemu.binary import QemuBinary
from harness.qemu.cmdline import CommandLine, Option
from harness.qemu.process import Process, scratch_folder

DUMP_TIMEOUT_S = 60.0
#: The entry that is no device type.
HEAD = "vmschkmachine"
Dump = Mapping[str, Any]


def dump_vmstate(binary: QemuBinary, machine: str) -> dict[str, Any]:
    """The dump of a build and a machine type; kept by the build's hash.

    :raises QemuError: QEMU does not have the machine type, or writes no dump
    """
    kept = cache_root() / "vmstate" / f"{binary.sha256}-{machine}.json"
    with contextlib.suppress(OSError, ValueError):
        return _checked(json.loads(kept.read_text()), binary)
    dump = _checked(_make_dump(binary, machine), binary)
    with contextlib.suppress(HostError):  # a cache that cannot be written only costs time
        write_atomically(kept, json.dumps(dump, separators=(",", ":")).encode())
    return dump


def _make_dump(binary: QemuBinary, machine: str) -> Any:
    with scratch_folder() as folder:
        file = folder / "dump.json"
        options = (
            *(Option(name=name) for name in ("nodefaults", "no-user-config")),
            Option(name="display", first="none"),
            Option(name="machine", first=machine),
            Option(name="dump-vmstate", first=str(file)),
        )
        with Process(CommandLine(binary=binary.path, options=options).argv()) as process:
            ended = process.wait(DUMP_TIMEOUT_S)
            said = process.stderr().strip()[-400:]
        if ended is None or ended.status or not file.exists():
            raise QemuError(f"{binary.path} -M {machine} -dump-vmstate: {ended or 'did not end'}: {said or 'no dump'}")
        try:
            return json.loads(file.read_text())
        except ValueError as error:
            raise QemuError(f"{binary.path} -M {machine} -dump-vmstate: no JSON: {error}") from error


def _checked(dump: Any, binary: QemuBinary) -> dict[str, Any]:
    if not isinstance(dump, dict) or HEAD not in dump:
        raise QemuError(f"{binary.path} -dump-vmstate: not a dump of vmstates")
    return dump
