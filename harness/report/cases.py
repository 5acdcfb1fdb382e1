# SPDX-License-Identifier: GPL-2.0-or-later
"""The smallest case of a finding in words."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

from harness.report.guesses import donor_text
from harness.report.sentences import figure_text
from harness.report.text import plural
from harness.results.document import Cell
from harness.state.transforms import GuestMode
from harness.stream.fields import field_value
from harness.triage.case import Case
from harness.triage.fields import Atom, bit_of, is_count, is_number
from harness.triage.reduced import Reduced
from harness.triage.reduction import NoField
from harness.triage.registers import Named, number_of_bit
from harness.triage.smallest import SmallestFound, case_of, named_of, payload_of, recorded_by

_NOTES = {
    NoField.FAILS_TOO: "it fails with the state of {} too",
    NoField.NOT_TAKEN: "which fields are needed is not known, for the state of {} cannot be loaded in its place",
    NoField.NO_STATE: "no healthy state to compare with: {}",
}
#: More pieces of state than this are counted, not named.
_MAX_PHRASES = 3


def told_case(found: SmallestFound) -> Case:
    """The case of a finished reduction, with the sentence that says it."""
    case = case_of(found)
    return replace(case, sentence=case_sentence(found, case.sections))


def case_sentence(found: SmallestFound, sections: Sequence[str]) -> str:
    """What is needed, in words: ``one load of section 0000:00:1f.0/ICH9LPC in phase bound; RCBA enabled (rcba bit 0
    = 1) is needed``.

    :param sections: of the case
    """
    parts = [_loads(found, sections)]
    parts += _memory(found)
    atoms = found.result.needed
    reduced = Reduced(found.target.buffers, found.result.candidate)
    if atoms:
        said = [_named_phrase(found, reduced, atom) for atom in atoms]
        parts.append(f"{_few(said)} {_are(said)} needed")
    if found.result.untested:
        texts = [_named_phrase(found, reduced, atom) for atom in found.result.untested]
        parts.append(
            f"whether {_few(texts)} {_are(texts)} needed could not be tested: another value ends in another way"
        )
    if found.result.field_note and not atoms:
        note = found.result.field_note
        parts.append(_NOTES[note.why].format(note.said or donor_text(note.phase)))
    if found.result.failed < found.result.tried:
        parts.append(f"it fails in {found.result.failed} of {found.result.tried} tries")
    return "; ".join(parts)


def _named_phrase(found: SmallestFound, reduced: Reduced, atom: Atom) -> str:
    payload = payload_of(found, reduced, atom)
    return phrase(atom, payload, named_of(found, atom, payload))


def _loads(found: SmallestFound, sections: Sequence[str]) -> str:
    candidate = found.result.candidate
    phases = list(dict.fromkeys(step.phase for step in candidate.steps))
    if candidate.incoming not in phases:
        phases.insert(0, candidate.incoming)
    where = f"in phase {phases[0]}" if len(phases) == 1 else f"in phases {_list(phases)}"
    if len(sections) > 12:
        what = plural(len(sections), "section")
    elif sections:
        what = f"{'section' if len(sections) == 1 else 'sections'} {_list(list(sections))}"
    else:
        what = "no section at all"
    mode = ", with the guest running" if candidate.mode is GuestMode.RUNNING else ""
    if found.leak:
        figure = figure_text(*(found.leak[key] for key in ("bytes_per_load", "low", "high")))
        way = "with one load a checkpoint" if found.target.once else "back to back"
        return f"{way}, each load of {what} {where} leaves {figure} bytes behind"
    if found.target.at_start:
        return f"the incoming stream alone, with {what}, {where}{by_whom(found.target.cell)}{mode}"
    count = "one load" if candidate.loads == 1 else plural(candidate.loads, "load")
    together = " in one device buffer," if candidate.loads > 1 and len(candidate.steps) == 1 else ""
    return f"{count} of {what}{together} {where}{by_whom(found.target.cell)}{mode}"


def by_whom(cell: Cell) -> str:
    """`` of a guest of QEMU 10.0.13`` where another one loads."""
    return f" of a guest of QEMU {cell.record_qemu.version}" if recorded_by(cell) else ""


def _memory(found: SmallestFound) -> list[str]:
    candidate = found.result.candidate
    if candidate.ram == ():
        return []
    count = Reduced(found.target.buffers, candidate).page_count()
    return [f"{plural(count, 'page')} of guest memory {'is' if count == 1 else 'are'} needed"]


def _few(said: Sequence[str]) -> str:
    more = len(said) - _MAX_PHRASES
    return _list(said[:_MAX_PHRASES] if more <= 0 else [*said[:_MAX_PHRASES], f"{more} more"])


def _are(said: Sequence[str]) -> str:
    return "is" if len(said) == 1 else "are"


def _list(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def phrase(atom: Atom, payload: bytes, named: Named | None) -> str:
    """``RCBA enabled (rcba bit 0 = 1)``, or the field's path where no register is known."""
    ours = payload[atom.offset : atom.offset + atom.size]
    bit = bit_of(atom)
    if atom.healthy is None:
        return f"subsection {atom.path}"
    if named is not None:
        what = named.name.lower()
        if named.bit is not None and bit is not None:
            return f"{named.title} ({what} bit {named.bit} = {ours[0] >> bit & 1})"
        return f"{named.name} ({what} {_value(atom, ours)})"
    if bit is not None:
        return f"{_place(atom)} = {ours[0] >> bit & 1}"
    place = atom.path if is_number(atom) or atom.offset == atom.field_offset else _place(atom)
    return f"{place} {_value(atom, ours)}"


def _place(atom: Atom) -> str:
    bit = bit_of(atom)
    width = _width(atom.kind)
    if width and bit is not None:
        return f"{atom.path} bit {number_of_bit(atom, atom.field_offset, width)}"
    at = f"{atom.path} byte 0x{atom.offset - atom.field_offset:x}"
    return at if bit is None else f"{at} bit {bit}"


def _width(kind: str) -> int:
    """Bytes of a number's type; 0 for what is none."""
    match = re.fullmatch(r"(?:u?int|le)(8|16|32|64)(?: .*)?", kind)
    return int(match[1]) // 8 if match else 0


def _value(atom: Atom, ours: bytes) -> str:
    value = field_value(atom.kind, ours) if atom.size > 1 or is_number(atom) else ours[0]
    if isinstance(value, int) and is_count(atom):
        return f"= {value}"
    if isinstance(value, int):
        return f"= {value:#x}" if abs(value) > 9 else f"= {value}"
    return f"= {value[:16]}{'...' if len(value) > 16 else ''} (hex)"
