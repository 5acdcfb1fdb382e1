# SPDX-License-Identifier: GPL-2.0-or-later
"""The stack of a cell's failure: out of its log, or of a repetition under gdb, and kept beside the run.

It is kept in ``backtraces/CELL.json`` (schema ``postload.backtrace/2``), for the next who asks.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from harness.engines.buffers import Buffers, Selection
from harness.engines.colo import Pace, Session
from harness.engines.probe import ColoAbility, probe_colo
from harness.engines.schedule import Checkpoint, LoadPlan, Schedule, plan_loads
from harness.errors import MissingError, PostloadError, UsageError
from harness.files import write_atomically
from harness.oracles.isolate import ISOLATE_TIMEOUT_S, MAX_REPEATS
from harness.packs.pack import StatePack
from harness.qemu.binary import QemuBinary, find_binary, probe_binary
from harness.qemu.installed import entries, launched, used_before
from harness.qemu.threads import THREADS
from harness.results.document import Cell
from harness.results.folder import folder_of
from harness.results.frames import Frame, short_form
from harness.results.sanitizer import first_report
from harness.results.signature import name_of, signature_of_cell
from harness.state.transforms import GuestMode, cpu_labels
from harness.triage.backtrace import Backtrace, StackHow, backtrace_of, hang_frames
from harness.triage.cells import phase_of

STACK_SCHEMA = "postload.backtrace/2"
BACKTRACES = "backtraces"
#: The guest runs so long after each load, as it does in a matrix.
_RUN_S = 0.002
#: Verdicts of which there is a stack.
_STACKED = ("crash", "hang")


def has_stack(cell: Cell) -> bool:
    """Whether its failure is of a kind that leaves a stack."""
    found = signature_of_cell(cell)
    return found is not None and found.kind in _STACKED


def stack_file(run: Path, cell: Cell) -> Path:
    """Where the stack of a cell is kept."""
    return folder_of(run) / BACKTRACES / f"{cell.slug}.json"


def kept_stack(run: Path, cell: Cell, sha256: str | None = None) -> Backtrace | None:
    """The stack that somebody has got already.

    :param sha256: only of this QEMU; any when None
    :return: None when there is none, or the file cannot be read
    """
    try:
        told = read_looked(stack_file(run, cell), STACK_SCHEMA, cell, sha256)["backtrace"]
        frames = tuple(Frame(**each) for each in told["frames"])
        return Backtrace(
            frames=frames,
            short=told["short"],
            how=StackHow(told["how"]),
            said=told["said"],
            debug=told["debug"],
            qemu=told["qemu"],
            signal=told["signal"] or "",
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None


def keep_stack(run: Path, cell: Cell, binary: QemuBinary, stack: Backtrace) -> None:
    """Keep it for the next who asks, where the run's folder can be written."""
    write_looked(stack_file(run, cell), STACK_SCHEMA, cell, binary, backtrace=stack.to_json())


def read_looked(file: Path, schema: str, cell: Cell, sha256: str | None) -> dict[str, Any]:
    """A document of :func:`write_looked`.

    :param sha256: only of this QEMU; any when None
    :raises OSError: there is none
    :raises ValueError: it is no such document, or of another finding or QEMU
    :raises KeyError, TypeError: it lacks a part
    """
    document: dict[str, Any] = json.loads(file.read_text())
    if (document["schema"], document["cell"], document["signature"]) != (schema, cell.id, name_of(cell)):
        raise ValueError(f"{file}: it is of another finding")
    if sha256 is not None and document["qemu"]["sha256"] != sha256:
        raise ValueError(f"{file}: it is of another QEMU")
    return document


def write_looked(file: Path, schema: str, cell: Cell, binary: QemuBinary, **seen: Any) -> None:
    """Keep what was seen of a cell under gdb, where the file can be written."""
    document = {"schema": schema, "cell": cell.id, "signature": name_of(cell), "qemu": binary.identity(), **seen}
    try:
        write_atomically(file, (json.dumps(document, indent=1) + "\n").encode())
    except PostloadError:
        return


def told_stack(cell: Cell) -> Backtrace | None:
    """The stack that is in the cell's log already: a sanitizer's, or the threads of a QEMU that hung."""
    log = cell.outcome.log
    report = first_report(log.partition(THREADS)[0])
    if report and report.frames:
        short = short_form(report.frames, report.function)
        return Backtrace(frames=report.frames, short=short, how=StackHow.PRINTED, said=report.tool)
    frames = hang_frames(log)
    if frames:
        return Backtrace(frames=frames, short=short_form(frames), how=StackHow.THREADS)
    return None


def repeat_under_gdb(cell: Cell, run: Path, pack: StatePack, binary: QemuBinary) -> Backtrace:
    """Repeat the failing load of a cell under gdb; a stack that came of it is kept.

    :return: without frames, and with why in ``how``, where it could not be had
    """
    if binary.machine(cell.machine) is None:
        return Backtrace(how=StackHow.NO_MACHINE, qemu=f"{binary.version} ({binary.path})", said=cell.machine)
    try:
        stack = backtrace_of(failing_session(cell, binary, probe_colo(binary), pack))
    except PostloadError as error:
        return Backtrace(how=StackHow.FAILED, said=str(error))
    if binary.sha256 != cell.load_qemu.sha256:
        stack = replace(stack, qemu=f"{binary.version} at {binary.path}")
    if stack.frames:
        keep_stack(run, cell, binary, stack)
    return stack


def binary_of(cell: Cell) -> QemuBinary:
    """The QEMU that the cell was loaded with: at its path, else installed under some name.

    :raises MissingError: it is not on this host any more
    """
    wanted = cell.load_qemu
    paths = [Path(wanted.path), *(each.launcher for each in entries() if each.whole)]
    for path in paths:
        try:
            if path.is_file() and used_before(path) and launched(path).sha256 == wanted.sha256:
                return probe_binary(path)
        except (PostloadError, OSError):
            continue
    what = "is another build now" if Path(wanted.path).is_file() else "is not there any more"
    build = f" ({wanted.build})" if wanted.build else ""
    raise MissingError(
        f"QEMU {wanted.version}{build} is not on this host: {wanted.path} {what}; give it by --qemu PATH, or a build "
        "of your own with debug symbols"
    )


def given_binary(name: str) -> QemuBinary:
    """A QEMU by path or installed name.

    :raises UsageError: there is none
    """
    return probe_binary(find_binary(name))


def failing_session(cell: Cell, binary: QemuBinary, ability: ColoAbility, pack: StatePack) -> Session:
    """The session that shows the failure of a cell: its section alone in a parked guest, where that was found to do
    it, else the whole cell.

    :raises UsageError: the failure is not one of loads by COLO
    """
    if not cell.by_load or cell.engine != "colo":
        raise UsageError(f"a failure of {cell.lane} is not repeated here, for it is more than a load")
    return _alone(cell, binary, ability, pack) if cell.is_isolated else _whole(cell, binary, ability, pack)


def _alone(cell: Cell, binary: QemuBinary, ability: ColoAbility, pack: StatePack) -> Session:
    """As :mod:`harness.oracles.isolate` loads it."""
    load = cell.outcome.load or 1
    phase = phase_of(cell)
    repeats = 1 if load <= 1 else min(2 * load, MAX_REPEATS)
    resets = bool(ability.resets_before_load)
    return Session(
        binary=binary,
        dialect=ability.dialect,
        buffers=Buffers(pack),
        plan=LoadPlan(incoming=phase_before(cell, load), checkpoints=(Checkpoint(phase=phase),) * repeats),
        selection=Selection(
            own=frozenset(cell.blamed) | (cpu_labels(pack.recordings[phase]) if resets else frozenset()),
            whole=False,
            again=cell.outcome.isolation is not None and cell.outcome.isolation.together,
        ),
        mode=GuestMode.PARKED,
        timeout_s=ISOLATE_TIMEOUT_S,
    )


def _whole(cell: Cell, binary: QemuBinary, ability: ColoAbility, pack: StatePack) -> Session:
    """As :mod:`harness.lanes.judge` loads it."""
    mode = GuestMode(cell.guest_mode)
    whole = bool(ability.resets_before_load) or mode is not GuestMode.PARKED
    return Session(
        binary=binary,
        dialect=ability.dialect,
        buffers=Buffers(pack),
        plan=_plan(cell),
        selection=Selection(own=frozenset(cell.sections), excluded=frozenset(cell.left_out), whole=whole),
        mode=mode,
        pace=Pace(run_s=_RUN_S),
    )


def _plan(cell: Cell) -> LoadPlan:
    return plan_loads(Schedule(cell.schedule), cell.phases, max(1, cell.loads_asked))


def phase_before(cell: Cell, load: int) -> str:
    """In which state the secondary was when a load broke it."""
    return _plan(cell).phase_before(load)
