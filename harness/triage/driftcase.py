# SPDX-License-Identifier: GPL-2.0-or-later
"""A drift as a case: one load, then many in one buffer, and the fields that are not what they were after the first.

Loads stand in one device buffer, so that a build which resets the machine before each buffer is asked the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from harness.errors import UsageError
from harness.experiments.drift import DRIFT_LOADS
from harness.packs.pack import Recording, StatePack
from harness.results.cause import Drifted
from harness.results.document import Cell
from harness.state.transforms import GuestMode, cpu_labels, encode, label_of, only, sections_for, without
from harness.stream.fields import walk
from harness.stream.vmdesc import decode
from harness.triage.case import Case, CaseCheckpoint, NeededField
from harness.triage.cells import phase_of


def drift_cases(cell: Cell, pack: StatePack, frame: Case) -> Iterator[Case]:
    """The drift of a cell: of its sections alone, then with all that was loaded when it was found.

    :param frame: all of the case but what it loads and how it is recognised
    :raises UsageError: none of the fields that drifted can be found in the recording
    """
    recording = pack.recordings[phase_of(cell)]
    drifts = [cause for cause in cell.outcome.causes if isinstance(cause, Drifted)]
    labels = [drifted.section for drifted in drifts]
    fields = tuple(field for drifted in drifts for field in _fields(recording, drifted))
    if not fields:
        raise UsageError(f"{cell.id}: the fields that drift are not in its recording; postload explain shows them")
    parked = sections_for(recording, GuestMode.PARKED)
    cpu = cpu_labels(recording)
    for state in (encode(only(parked, cpu | set(labels))), encode(without(parked, frozenset(cell.left_out)))):
        yield replace(
            frame,
            kind="drift",
            checkpoints=(CaseCheckpoint(devices=state), CaseCheckpoint(devices=state * (DRIFT_LOADS - 1))),
            loads=DRIFT_LOADS,
            back_to_back=True,
            fields=fields,
        )


def _fields(recording: Recording, drifted: Drifted) -> Iterator[NeededField]:
    section = next((each for each in recording.sections if label_of(each) == drifted.section), None)
    if section is None or section.desc is None:
        return
    known = {field.path: field for field in walk(decode(section.payload, section.desc))}
    for each in drifted.fields:
        field = known.get(each.field)
        if field is not None:
            yield NeededField(
                section=drifted.section,
                path=field.path,
                offset=field.offset,
                size=field.size,
                field_offset=field.offset,
                bit=None,
                value=_plain(each.values, -1),
                healthy=_plain(each.values, 0),
            )


def _plain(values: Sequence[int | str | None], at: int) -> int | str:
    value = values[at] if values else ""
    return value if isinstance(value, int | str) else str(value)
