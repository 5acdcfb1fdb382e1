# SPDX-License-Identifier: GPL-2.0-or-later
"""From what a reduction found to a case: its bytes, and how the failure is recognised."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from harness.engines.buffers import Selection
from harness.engines.evidence import Evidence
from harness.oracles.words import last_complaint
from harness.packs.pack import incoming_body
from harness.qemu.cmdline import Option
from harness.results.cause import Refused
from harness.results.document import Cell
from harness.results.signature import Signature, signature_of_cell
from harness.state.transforms import GuestMode, cpu_labels, encode, label_of, only, sections_for
from harness.stream.model import Section
from harness.triage.case import CASE_PLACE, Case, CaseCheckpoint, Expect, LeakFigures, NeededField, Rate, Spent
from harness.triage.fields import Atom, needed
from harness.triage.minimise import Search
from harness.triage.reduced import Candidate, Reduced
from harness.triage.reduction import Result
from harness.triage.registers import Named, register_of, registers_of
from harness.triage.tries import Target

#: Options whose value is a file that the case has to hold.
_FILES = frozenset({"kernel", "initrd"})


@dataclass(frozen=True, slots=True, kw_only=True)
class SmallestFound:
    """All that a case is made of.

    :param evidence: of a session that failed; None when every try came out of a journal
    :param leak: figures of the last try of a leak, empty for a load
    """

    target: Target
    result: Result
    search: Search[Candidate]
    evidence: Evidence | None
    leak: dict[str, Any]


def case_of(found: SmallestFound) -> Case:
    """The case of a finished reduction."""
    target, candidate = found.target, found.result.candidate
    reduced = Reduced(target.buffers, candidate)
    cell, manifest = target.cell, target.buffers.pack.manifest
    options, files = options_of_case(reduced.machine.options)
    signature = signature_of_cell(cell)
    leak = LeakFigures(**found.leak) if found.leak else None
    at_start = target.at_start and not leak
    checkpoints = _leak_checkpoints(found, reduced) if leak else _checkpoints(candidate, reduced)
    sections = tuple(sorted(label for label in candidate.sections if not _is_cpu(reduced, candidate, label)))
    return Case(
        cell=cell.id,
        verdict=str(cell.verdict),
        failure_class=str(cell.failure_class) if cell.failure_class else None,
        kind="leak" if leak else "load",
        signature=None if signature is None else signature.to_json(),
        expect=_expect(found, signature),
        qemu=target.binary.identity(),
        machine=reduced.machine.name,
        family=manifest.family,
        accel=reduced.machine.accel,
        options=options,
        scratch=dict(reduced.machine.files),
        guest_mode=str(candidate.mode),
        run_s=target.pace.run_s if candidate.mode is GuestMode.RUNNING else 0.0,
        dialect_resets=target.resets,
        head=target.buffers.pack.recordings[candidate.incoming].head,
        body=_body(candidate, reduced),
        checkpoints=() if at_start else checkpoints,
        loads=leak.loads if leak else 0 if at_start else candidate.loads,
        back_to_back=bool(leak) or any(step.repeat > 1 for step in candidate.steps),
        sections=sections,
        fields=_fields(found, reduced),
        ram_pages=reduced.page_count(),
        rate=Rate(failed=found.result.failed, tried=found.result.tried),
        spent=Spent(sessions=found.search.sessions, loads=found.search.loads, seconds=round(found.search.seconds, 3)),
        leak=leak,
        control=_control(found, reduced) if leak else None,
        recorded=recorded_by(cell),
        files=files,
    )


def _is_cpu(reduced: Reduced, candidate: Candidate, label: str) -> bool:
    return label in cpu_labels(reduced.pack.recordings[candidate.incoming])


def _body(candidate: Candidate, reduced: Reduced) -> bytes:
    recording = reduced.pack.recordings[candidate.incoming]
    devices = reduced.whole_state(candidate.incoming, candidate.mode)
    return b"".join(incoming_body(recording, reduced.ram_whole(candidate.incoming), devices))


def _checkpoints(candidate: Candidate, reduced: Reduced) -> tuple[CaseCheckpoint, ...]:
    """The checkpoints, equal ones in a row as one."""
    found: list[CaseCheckpoint] = []
    before, selection = candidate.incoming, Selection(own=candidate.own)
    for step in candidate.steps:
        ram = b"".join(reduced.ram_difference(step.phase, before)) or None
        devices = reduced.devices(step.phase, candidate.mode, selection, step.repeat)
        if found and ram is None and found[-1].devices == devices:
            found[-1] = replace(found[-1], times=found[-1].times + 1)
        else:
            found.append(CaseCheckpoint(devices=devices, ram=ram))
        before = step.phase
    return tuple(found)


def _leak_checkpoints(found: SmallestFound, reduced: Reduced) -> tuple[CaseCheckpoint, ...]:
    candidate, figures = found.result.candidate, found.leak
    per, loads = int(figures["loads_per_checkpoint"]), int(figures["loads"])
    sections = sections_for(reduced.pack.recordings[candidate.incoming], GuestMode.PARKED)
    devices = _beside(found.target, sections) + encode(only(sections, candidate.own)) * per
    return (CaseCheckpoint(devices=devices, times=max(1, loads // max(1, per))),)


def _beside(target: Target, sections: Sequence[Section]) -> bytes:
    """What stands in front of the section, for a build that resets the machine; see :mod:`harness.experiments.leak`."""
    if target.once:
        # a build that does not reset takes the parked CPU as well: one case for all
        cpu = target.cpu
        return encode([section for section in sections if label_of(section) in cpu])
    return encode(sections) if target.resets else b""


def options_of_case(options: Sequence[Option]) -> tuple[tuple[Option, ...], dict[str, Path]]:
    """The options with the files that they name moved into the case."""
    moved, files = [], {}
    for option in options:
        if option.name in _FILES and option.first:
            files[option.name] = Path(option.first)
            option = replace(option, first=f"{CASE_PLACE}/{option.name}")
        moved.append(option)
    return tuple(moved), files


def _expect(found: SmallestFound, signature: Signature | None) -> Expect:
    cell, evidence = found.target.cell, found.evidence
    ended = str(evidence.exit) if evidence and evidence.exit else cell.outcome.exit
    return Expect(
        verdict=signature.kind if signature else str(cell.verdict),
        exit=ended if ended and ended.startswith("SIG") else None,
        function=signature.function or None if signature else None,
        assertion=signature.assertion or None if signature else None,
        reason=reason_of(cell),
        line=line_of(cell),
    )


def reason_of(cell: Cell) -> str | None:
    """Of a refused load what QEMU said is wrong."""
    return (last_complaint(cell.outcome.log) or None) if _refusals(cell) else None


def line_of(cell: Cell) -> str | None:
    """Of a refused load the line that says best what QEMU gave up on."""
    return next((cause.line for cause in _refusals(cell) if cause.line), None)


def _refusals(cell: Cell) -> list[Refused]:
    return [cause for cause in cell.outcome.causes if isinstance(cause, Refused)]


def _fields(found: SmallestFound, reduced: Reduced) -> tuple[NeededField, ...]:
    return tuple(
        needed(atom, payload, named.title if named else None)
        for atom in found.result.needed
        for payload in [payload_of(found, reduced, atom)]
        for named in [named_of(found, atom, payload)]
    )


def named_of(found: SmallestFound, atom: Atom, payload: bytes) -> Named | None:
    """The register that a piece lies in, as its device or any PCI device names it."""
    return register_of(atom, payload, registers_of(found.target.buffers.pack.manifest, atom.section))


def payload_of(found: SmallestFound, reduced: Reduced, atom: Atom) -> bytes:
    """The payload of the section that a piece is of, as it fails."""
    return reduced.payload(found.result.candidate.steps[-1].phase, atom.section)


def recorded_by(cell: Cell) -> dict[str, str] | None:
    """Identity of the QEMU that recorded, where another one loads."""
    return None if cell.record_qemu.sha256 == cell.load_qemu.sha256 else cell.record_qemu.to_json()


def _control(found: SmallestFound, reduced: Reduced) -> bytes:
    """What is loaded without the section under test."""
    recording = reduced.pack.recordings[found.result.candidate.incoming]
    return _beside(found.target, sections_for(recording, GuestMode.PARKED))
