# SPDX-License-Identifier: GPL-2.0-or-later
"""What a task from elsewhere may ask of this host: no file, no option, no program but those that it has itself.

A task that comes from a store names QEMU and recording by their hashes, and this host looks them up among its own. The
recording that the store carries is a pack from elsewhere, with all its walls (:mod:`harness.guests.foreign`). What else
a task says is held against what this program and that recording have, before anything is started.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Sequence

from harness.errors import PackError, UsageError
from harness.guests.foreign import check_override
from harness.lanes.registry import LANES
from harness.names import PHASES
from harness.packs.pack import StatePack
from harness.qemu.cmdline import Option
from harness.qemu.listed import listing
from harness.work.task import Task

_HASH = re.compile(r"[0-9a-f]{64}")
_MOST_LOADS = 10_000_000
_MOST_RUN_S = 60.0
_PROPERTY = re.compile(r"([A-Za-z0-9._-]+)\.([A-Za-z0-9_-]+)")


def check_task(task: Task) -> None:
    """Check what can be checked without the recording.

    :raises UsageError: says which part, what was met and what was expected
    """
    if task.loader.path or task.recording.path:
        raise UsageError("not a task for this host: it names a file; expected hashes alone")
    for what, digest in (("loader", task.loader.sha256), ("recording", task.recording.content)):
        _need(bool(_HASH.fullmatch(digest)), f"{what}: {digest!r}", "a SHA-256 in hex")
    request = task.request
    _need_known("lane", [request.lane], LANES)
    _need_known("phase", request.phases, PHASES)
    _need(0 <= request.loads <= _MOST_LOADS, f"loads: {request.loads}", f"at most {_MOST_LOADS}")
    _need(0 <= task.run_s <= _MOST_RUN_S, f"run_s: {task.run_s}", f"at most {_MOST_RUN_S:g}")
    finite = task.budget_s is None or (task.budget_s > 0 and math.isfinite(task.budget_s))
    _need(finite, f"budget_s: {task.budget_s}", "a time in seconds")
    _need_known("cell", [key.device for key in task.answers], request.devices)
    _need(bool(task.answers), "answers: none", "a cell at least")
    machines = sorted({key.machine for key in task.answers} - {request.machine})
    _need(not machines, f"cell: of machine {machines[:1]}", request.machine)
    for option in task.overrides:
        _driver(option)


def check_against(task: Task, pack: StatePack, binary: str) -> None:
    """Hold a task against its recording, and its options against the QEMU that loads.

    :param binary: path of that QEMU
    :raises UsageError: says which part, what was met and what was expected
    """
    manifest = pack.manifest
    _need_known("machine", [task.request.machine], [manifest.machine])
    _need_known("phase", task.request.phases, pack.phases)
    recorded = [device.name for device in manifest.devices]
    _need_known("device", task.request.devices, recorded)
    _need_known("device of the guest", [device.name for device in task.guest], recorded)
    if task.overrides:
        drivers = {_driver(option)[0] for option in task.overrides}
        listed = listing(binary, manifest.machine, drivers)
        for option in task.overrides:
            driver, key, value = _driver(option)
            try:
                check_override(driver, key, value, listed, binary)
            except PackError as error:
                raise UsageError(f"not a task for this host: {error}") from error


def _driver(option: Option) -> tuple[str, str, str]:
    """Driver, property and value of a ``-global``, the only option that a task may have."""
    key, value = next(iter(option.props.items()), ("", ""))
    match = _PROPERTY.fullmatch(key)
    alone = option.name == "global" and option.first is None and len(option.props) == 1
    if not alone or match is None or not isinstance(value, str):
        raise UsageError(f"not a task for this host: option {' '.join(option.argv())!r}: expected -global alone")
    return match[1], match[2], value


def _need_known(what: str, names: Sequence[str], known: Collection[str]) -> None:
    for name in names:
        _need(name in known, f"{what} {name!r}", f"one of {', '.join(known)}")


def _need(holds: bool, met: str, expected: str) -> None:
    if not holds:
        raise UsageError(f"not a task for this host: {met}: expected {expected}")
