# SPDX-License-Identifier: GPL-2.0-or-later
"""Less than a recording: the loads, sections, fields, pages and options that are left, and the bytes they come to."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

from harness.arch import Architecture
from harness.engines.buffers import Buffers, Selection
from harness.engines.schedule import Checkpoint
from harness.guests.machine import Machine
from harness.packs.pack import Recording, StatePack, last_ram
from harness.qemu.cmdline import Option
from harness.state.transforms import GuestMode, awake, encode, label_of, only, sections_for, without
from harness.stream.model import RamBlock, Section
from harness.stream.ram import encode_mem_size, encode_ram_section
from harness.stream.wire import PAGE_SIZE, SectionType
from harness.triage.fields import Atom, apply

Labels = frozenset[str]
RamBuffers = list[bytes | memoryview]


@dataclass(frozen=True, slots=True, order=True)
class Pages:
    """Some pages of one RAM block: ``first`` up to, and without, ``stop``."""

    block: int
    first: int
    stop: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """What is left.

    :param incoming: phase of the incoming stream
    :param steps: checkpoints; ``repeat`` says how often ``own`` stand in one
    :param sections: those sent in every checkpoint
    :param own: those of them that are repeated
    :param start: sections of the incoming stream, None for all
    :param ram: pages that are sent, None for all
    :param dropped: options that are left out, by their number
    :param healthy: pieces of sections that were made healthy
    """

    mode: GuestMode
    incoming: str
    steps: tuple[Checkpoint, ...]
    sections: Labels
    own: Labels
    start: Labels | None = None
    ram: tuple[Pages, ...] | None = None
    dropped: frozenset[int] = frozenset()
    healthy: frozenset[Atom] = frozenset()

    @property
    def loads(self) -> int:
        """Loads asked for."""
        return sum(step.repeat for step in self.steps)

    @property
    def key(self) -> str:
        """Equal for equal candidates, in every run of the program."""
        content = [
            str(self.mode),
            self.incoming,
            [[step.phase, step.repeat] for step in self.steps],
            sorted(self.sections),
            sorted(self.own),
            None if self.start is None else sorted(self.start),
            None if self.ram is None else [[p.block, p.first, p.stop] for p in self.ram],
            sorted(self.dropped),
            sorted(atom.key for atom in self.healthy),
        ]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:24]


@dataclass(slots=True, kw_only=True)
class _View:
    """What sessions look at of a pack."""

    manifest: Any
    recordings: Mapping[str, Recording]
    architecture: Architecture


class Reduced(Buffers):
    """The buffers of a candidate; where it leaves something whole they are those of the whole pack.

    :param whole: of the pack, shared by all candidates
    """

    def __init__(self, whole: Buffers, candidate: Candidate) -> None:
        self._whole = whole
        self._candidate = candidate
        phases = {candidate.incoming, *(step.phase for step in candidate.steps)}
        recordings = {phase: self._recording(whole.pack.recordings[phase]) for phase in sorted(phases)}
        pack = whole.pack
        view = _View(manifest=pack.manifest, recordings=recordings, architecture=pack.architecture)
        super().__init__(cast(StatePack, view), without_options(whole.machine, candidate.dropped))

    def ram_whole(self, phase: str) -> RamBuffers:
        """The pages that are left, of a whole state; no RAM section at all when there are none."""
        if self._candidate.ram is None:
            return self._whole.ram_whole(phase)
        recording = self._whole.pack.recordings[phase]
        sent = self._pages(recording, None)
        if not sent:
            return []
        setup = self._setup(recording, {name for name, _, _ in sent})
        return [setup, *last_ram(recording, sent)]

    def _setup(self, recording: Recording, names: set[str]) -> bytes:
        """A START section that announces the blocks of which something is sent: a machine with fewer has these."""
        blocks = [
            RamBlock(name=block.name, size_bytes=block.size_bytes)
            for number, block in enumerate(self._whole.pack.manifest.blocks)
            if block.name in names or any(number == part.block for part in self._later())
        ]
        records = encode_mem_size(blocks)
        return encode_ram_section(SectionType.START, recording.ram_section_id, records, footer=recording.footers)

    def _later(self) -> tuple[Pages, ...]:
        """What a checkpoint may send, which has no START of its own."""
        one_phase = all(step.phase == self._candidate.incoming for step in self._candidate.steps)
        return () if one_phase else self._candidate.ram or ()

    def ram_difference(self, phase: str, base: str) -> RamBuffers:
        """The pages that are left of what differs between two phases."""
        if self._candidate.ram is None:
            return self._whole.ram_difference(phase, base)
        sent = self._pages(self._whole.pack.recordings[phase], self._whole.pack.recordings[base])
        recording = self._whole.pack.recordings[phase]
        return last_ram(recording, sent) if sent else []

    def devices(self, phase: str, mode: GuestMode, selection: Selection, repeat: int) -> bytes:
        """Each section that is left once, and those that are repeated behind them; the selection is not looked at."""
        sections = self._sections(self._whole.pack.recordings[phase], mode)
        once = encode(only(sections, self._candidate.sections))
        return once + encode(only(sections, self._candidate.own)) * (repeat - 1)

    def whole_state(self, phase: str, mode: GuestMode, absent: Labels = frozenset()) -> bytes:
        """The sections of the incoming stream."""
        sections = self._sections(self._whole.pack.recordings[phase], mode)
        return encode(awake(without(self._started(sections), absent)))

    def page_count(self) -> int:
        """Pages with content that the candidate sends."""
        candidate, recordings = self._candidate, self._whole.pack.recordings
        count, before = len(self._pages(recordings[candidate.incoming], None)), candidate.incoming
        for step in candidate.steps:
            count += len(self._pages(recordings[step.phase], recordings[before]))
            before = step.phase
        return count

    def payload(self, phase: str, label: str) -> bytes:
        """A section's payload as it was recorded."""
        return next(s.payload for s in self._whole.pack.recordings[phase].sections if label_of(s) == label)

    def _sections(self, recording: Recording, mode: GuestMode) -> list[Section]:
        return [patched(section, self._candidate.healthy) for section in sections_for(recording, mode)]

    def _started(self, sections: list[Section]) -> list[Section]:
        return sections if self._candidate.start is None else only(sections, self._candidate.start)

    def _recording(self, recording: Recording) -> Recording:
        kept = self._started([patched(s, self._candidate.healthy) for s in recording.sections])
        if self._candidate.start is None:
            return replace(recording, sections=tuple(kept))
        return replace(recording, sections=tuple(kept), vmdesc=recording.vmdesc.only({s.key for s in kept}))

    def _pages(self, recording: Recording, base: Recording | None) -> list[tuple[str, int, memoryview | None]]:
        """Pages to be sent; guest memory is zero at the start."""
        pack, found = self._whole.pack, []
        starts = block_starts(pack)
        wanted = all_pages(pack) if self._candidate.ram is None else self._candidate.ram
        for part in wanted:
            start, name = starts[part.block], pack.manifest.blocks[part.block].name
            for number in range(part.first, part.stop):
                entry = recording.index[start + number]
                if entry != (0 if base is None else base.index[start + number]):
                    found.append((name, number * PAGE_SIZE, pack.page(entry)))
        return found


def patched(section: Section, healthy: Iterable[Atom]) -> Section:
    """The section with its share of the pieces made healthy."""
    label = label_of(section)
    mine = [atom for atom in healthy if atom.section == label]
    return replace(section, payload=apply(section.payload, mine)) if mine else section


def without_options(machine: Machine, dropped: Iterable[int]) -> Machine:
    """The machine without some of its options, and without the images that no other option names."""
    return replace(machine, dropped=machine.dropped | frozenset(dropped))


def connected(options: Sequence[Option]) -> list[frozenset[int]]:
    """Options that belong together: one names what the other makes (a device its drive, a drive its file)."""
    groups: list[set[int]] = []
    for number, option in enumerate(options):
        mine = [
            group for group in groups if any(_refers(option, options[n]) or _refers(options[n], option) for n in group)
        ]
        groups = [group for group in groups if group not in mine]
        groups.append({number}.union(*mine))
    return [frozenset(group) for group in sorted(groups, key=min)]


def _refers(user: Option, made: Option) -> bool:
    """Whether ``user`` names the id or node of ``made``; a bus is its device's id with something behind."""
    name = made.props.get("id") or made.props.get("node-name")
    values = [str(value) for key, value in user.props.items() if key not in ("id", "node-name")]
    return bool(name) and any(value == name or value.startswith(f"{name}.") for value in values)


def block_starts(pack: StatePack) -> list[int]:
    """Where each RAM block starts in the index of a recording."""
    starts, at = [], 0
    for block in pack.manifest.blocks:
        starts.append(at)
        at += block.size_bytes // PAGE_SIZE
    return starts


def all_pages(pack: StatePack) -> tuple[Pages, ...]:
    """Every RAM block as a whole."""
    return tuple(Pages(number, 0, block.size_bytes // PAGE_SIZE) for number, block in enumerate(pack.manifest.blocks))


def halves(pages: Sequence[Pages]) -> tuple[Pages, ...]:
    """Each range cut in two; a single page stays."""
    found: list[Pages] = []
    for part in pages:
        middle = (part.first + part.stop) // 2
        if part.stop - part.first > 1:
            found += [Pages(part.block, part.first, middle), Pages(part.block, middle, part.stop)]
        else:
            found.append(part)
    return tuple(found)
