# SPDX-License-Identifier: GPL-2.0-or-later
"""Make the smallest case of a failing cell: every try in a new secondary, and only the same failure counts.

First a guess: what triage blamed, alone, loaded once into a parked guest without memory. Where that fails too,
every later try takes a fifth of a second. Then pass by pass, each going on from what the one before left: schedule,
sections, incoming state, RAM, options of the machine, and the fields of the sections that are left, against a state
of the same section with which nothing fails.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from enum import Enum, auto

from harness.engines.schedule import Checkpoint, LoadPlan, Schedule, plan_loads
from harness.errors import HarnessError, QemuError, StreamError, UsageError
from harness.results.verdict import Verdict
from harness.state.transforms import GuestMode, label_of
from harness.stream.vmdesc import decode
from harness.triage.fields import Atom, differences, split_bits, split_bytes, whole_numbers
from harness.triage.guess import Guess, Loads, Trying
from harness.triage.healthy import Donor, never_run, recorded_donors
from harness.triage.minimise import NotReproduced, Search, Shows, fewest, needed
from harness.triage.reduced import Candidate, Labels, Pages, Reduced, all_pages, connected, halves
from harness.triage.tries import Target, check_target, heap_growth

__all__ = ["Reduction", "Result", "Target", "check_target"]

#: Loads tried when one alone does not do it.
MAX_REPEATS = 200
#: Options that boot a guest; a parked one needs none of them.
_BOOT = frozenset({"kernel", "initrd", "append"})
_DEBUG_PORT = "isa-debugcon"
#: More ranges of pages than this are not cut any smaller.
_MAX_RAM_RANGES = 64


class NoField(Enum):
    """Why nothing can be said of fields."""

    FAILS_TOO = auto()
    NOT_TAKEN = auto()
    NO_STATE = auto()


@dataclass(frozen=True, slots=True, kw_only=True)
class FieldNote:
    """Why no field is named.

    :param phase: whose state was compared, empty for that of a machine that never ran
    :param said: the words of an error
    """

    why: NoField
    phase: str = ""
    said: str = ""


@dataclass(slots=True, kw_only=True)
class Result:
    """What a reduction came to.

    :param needed: pieces of sections that are needed, in the order of the payload: with any of them healthy all loads
        are acknowledged, and it does not fail
    :param untested: pieces that may be needed: with one of them healthy it ends in another way, such as a refusal
    :param field_note: why no field is named, None where one is
    """

    candidate: Candidate
    needed: tuple[Atom, ...]
    field_note: FieldNote | None
    failed: int
    tried: int
    untested: tuple[Atom, ...] = ()


class Reduction:
    """The passes over one target."""

    def __init__(self, target: Target, search: Search[Candidate]) -> None:
        self._target = target
        self._search = search
        self._needed: tuple[Atom, ...] = ()
        self._untested: tuple[Atom, ...] = ()
        self._note: FieldNote | None = None

    def run(self) -> Result:
        """All passes.

        :raises NotReproduced: the cell does not fail any more
        :raises HostError: no space
        :raises Stopped: told to stop; what was tried is in the journal
        """
        search = self._search
        self._confirm()
        passes: tuple[tuple[str, Callable[[], None]], ...] = (
            ("guess", self._guess),
            ("schedule", self._schedule),
            ("sections", self._sections),
            ("incoming", self._incoming),
            ("memory", self._memory),
            ("options", self._options),
            ("fields", self._fields),
        )
        for name, run in passes:
            search.stage = name
            run()
            search.check()
        failed, tried = search.measure()
        return Result(
            candidate=search.best,
            needed=self._needed,
            untested=self._untested,
            field_note=self._note,
            failed=failed,
            tried=tried,
        )

    # --- where it starts ---------------------------------------------------------------------------------------

    def _confirm(self) -> None:
        """Make sure that the cell fails. What the cell left out was left out of the checkpoints, and where this QEMU
        refuses it, as it may in the state of another one, of the incoming stream as well."""
        target, start = self._target, self.start()
        cell = target.cell
        if target.kind == "leak" or not cell.excluded:
            self._search.confirm(start)
            return
        less = replace(start, start=target.labels)
        if target.at_start:
            self._search.confirm(less)
            return
        foreign = cell.record_qemu.sha256 != cell.load_qemu.sha256
        first, second = (less, start) if foreign else (start, less)
        try:
            self._search.confirm(first)
        except NotReproduced:
            self._search.confirm(second)

    def start(self) -> Candidate:
        """The cell as the matrix had it."""
        target, cell = self._target, self._target.cell
        if target.kind == "leak":
            return self._leak_start()
        own = frozenset(cell.sections) & target.labels or target.hint
        plan = LoadPlan(incoming=target.phase, checkpoints=(Checkpoint(phase=target.phase),))
        if not target.at_start:
            plan = plan_loads(Schedule(cell.schedule), cell.phases, cell.loads_asked)
        mode = GuestMode(cell.guest_mode)
        whole = target.resets or mode is GuestMode.RUNNING
        return Candidate(
            mode=mode,
            incoming=plan.incoming,
            steps=plan.checkpoints,
            sections=target.labels if whole else own,
            own=own,
        )

    def _leak_start(self) -> Candidate:
        target = self._target
        if not target.hint:
            raise UsageError(f"{target.cell.id}: the sections that leak are not in its recording")
        # one section at a time: the one that loses most
        label = max(sorted(target.hint), key=lambda name: heap_growth(target.cell, name))
        return Candidate(
            mode=GuestMode.PARKED,
            incoming=target.phase,
            steps=(Checkpoint(phase=target.phase),),
            sections=frozenset({label}),
            own=frozenset({label}),
        )

    # --- passes ------------------------------------------------------------------------------------------------

    def _guess(self) -> None:
        """Bold jumps, the smallest first; the first that fails saves most of the other passes."""
        for candidate, what in self._guesses():
            if self._search.improve(candidate, what):
                return

    def _guesses(self) -> Iterator[tuple[Candidate, Guess]]:
        target, best = self._target, self._search.best
        if best.mode is GuestMode.PARKED and target.kind == "leak":
            bare = replace(best, start=self._least_start(best.own), dropped=self._boot_options())
            yield replace(bare, ram=()), Guess(what=Trying.ONE_BARE)
            yield bare, Guess(what=Trying.ONE)
            return
        if not target.hint or target.cell.verdict is Verdict.GUEST_FAULT:
            return
        small = replace(best, mode=GuestMode.PARKED, own=target.hint, sections=target.hint | self._base())
        small = replace(small, incoming=target.phase)
        bare = replace(small, start=self._least_start(target.hint), ram=(), dropped=self._boot_options())
        for what, candidate in ((Trying.BLAMED_BARE, bare), (Trying.BLAMED, small)):
            for steps, loads, count in self._step_guesses():
                yield replace(candidate, steps=steps), Guess(what=what, loads=loads, count=count)

    def _step_guesses(self) -> Iterator[tuple[tuple[Checkpoint, ...], Loads, int]]:
        """Checkpoints, how they load, and how often."""
        target = self._target
        together = max(step.repeat for step in self._search.best.steps) > 1
        if target.at_start:
            yield (Checkpoint(phase=target.phase),), Loads.INCOMING, 0
            return
        phase, load = target.phase, self._failing_load()
        if not (target.resets and together):
            yield (Checkpoint(phase=phase),), Loads.ONCE, 0
        if together:
            yield (Checkpoint(phase=phase, repeat=2),), Loads.TOGETHER, 0
        if load > 1:
            many = min(2 * load, MAX_REPEATS)
            yield (
                (Checkpoint(phase=phase, repeat=many if together else 1),) * (1 if together else many),
                Loads.TIMES,
                many,
            )

    def _failing_load(self) -> int:
        load = self._target.cell.outcome.load or 1
        return max(1, min(load, self._search.best.loads))

    def _schedule(self) -> None:
        """Fewest loads and phases; parked if it does."""
        search = self._search
        if self._target.kind == "leak":
            return
        if self._target.at_start:
            # what comes behind the incoming stream is never loaded
            search.improve(replace(search.best, steps=search.best.steps[:1]), Guess(what=Trying.INCOMING))
        else:
            self._shorten()
        if search.best.mode is GuestMode.RUNNING and self._target.cell.verdict is not Verdict.GUEST_FAULT:
            search.improve(replace(search.best, mode=GuestMode.PARKED), Guess(what=Trying.PARKED))
        best = search.best
        if best.incoming != best.steps[0].phase:
            search.improve(replace(best, incoming=best.steps[0].phase), Guess(what=Trying.SAME_PHASE))

    def _shorten(self) -> None:
        search = self._search
        steps = self._up_to_failure(search.best.steps)
        search.improve(replace(search.best, steps=steps), Guess(what=Trying.CHECKPOINTS, count=len(steps)))
        steps = search.best.steps
        if len({step.phase for step in steps}) == 1 and len(steps) > 1:
            fewest(len(steps), lambda n: self._with_steps(steps[:n], steps[0].phase))
        elif len(steps) > 1:
            self._last_steps(steps)
        for number, step in enumerate(search.best.steps):
            if step.repeat > 1:
                fewest(step.repeat, lambda n, at=number: self._repeated(at, n))  # type: ignore[misc]

    def _last_steps(self, steps: tuple[Checkpoint, ...]) -> None:
        """The shortest end of a mixed schedule that does it, then whatever can go out of that."""
        count = fewest(
            len(steps), lambda n: self._with_steps(steps[-n:], steps[-n - 1].phase if n < len(steps) else None)
        )
        left = steps[-count:]
        if len(left) > 1:
            needed(left, lambda kept: bool(kept) and self._with_steps(kept, None))

    def _up_to_failure(self, steps: tuple[Checkpoint, ...]) -> tuple[Checkpoint, ...]:
        loads, load = 0, self._failing_load()
        for number, step in enumerate(steps, start=1):
            loads += step.repeat
            if loads >= load:
                return steps[:number]
        return steps

    def _with_steps(self, steps: tuple[Checkpoint, ...], incoming: str | None) -> bool:
        best = self._search.best
        candidate = replace(best, steps=steps, incoming=incoming or best.incoming)
        return self._search.improve(candidate, Guess(what=Trying.CHECKPOINTS, count=len(steps)))

    def _repeated(self, at: int, count: int) -> bool:
        steps = list(self._search.best.steps)
        steps[at] = replace(steps[at], repeat=count)
        tried = Guess(what=Trying.IN_ONE_BUFFER, count=count)
        return self._search.improve(replace(self._search.best, steps=tuple(steps)), tried)

    def _sections(self) -> None:
        """Which sections have to be in a checkpoint."""
        if self._target.cell.verdict is Verdict.GUEST_FAULT or self._target.kind == "leak" or self._target.at_start:
            return
        best, base = self._search.best, self._base()
        items = sorted(best.sections - base)
        if len(items) > 1 or base < best.sections:
            needed(items, self._with_sections)

    def _with_sections(self, kept: tuple[str, ...]) -> bool:
        labels, best = frozenset(kept), self._search.best
        own = best.own & labels or labels
        candidate = replace(best, sections=labels | self._base(), own=own)
        return self._search.improve(candidate, Guess(what=Trying.SECTIONS, count=len(kept)))

    def _incoming(self) -> None:
        """Which sections have to be in the incoming stream; a guest that runs needs them all."""
        best = self._search.best
        if best.mode is GuestMode.RUNNING:
            return
        if self._target.at_start:
            self._reduce_start(self._target.labels if best.start is None else best.start)
            kept = (self._search.best.start or self._target.labels) - self._target.cpu
            self._search.improve(replace(self._search.best, sections=kept, own=kept), Guess(what=Trying.NO_OTHER))
            return
        least = self._least_start(best.sections)
        bare = replace(best, start=least - best.sections | self._fixed_start())
        self._search.improve(bare, Guess(what=Trying.CPU_ALONE))
        if self._search.best.start is not None and self._search.best.start <= self._fixed_start():
            return
        loaded = Guess(what=Trying.LOADED)
        if self._search.best.start is None and not self._search.improve(replace(best, start=least), loaded):
            self._reduce_start(self._target.labels)

    def _reduce_start(self, labels: Labels) -> None:
        fixed = self._fixed_start()

        def test(kept: tuple[str, ...]) -> bool:
            candidate = replace(self._search.best, start=frozenset(kept) | fixed)
            return self._search.improve(candidate, Guess(what=Trying.BEFORE, count=len(kept)))

        needed(sorted(labels - fixed), test)

    def _memory(self) -> None:
        """No RAM at all, else the blocks, then ever smaller ranges."""
        search, best = self._search, self._search.best
        if self._target.cell.verdict is Verdict.GUEST_FAULT:
            return  # a guest without its memory faults anyway
        without = Guess(what=Trying.NO_MEMORY)
        if best.ram == () or search.improve(replace(best, ram=()), without) or best.mode is GuestMode.RUNNING:
            return
        ranges = all_pages(self._target.buffers.pack)
        while True:
            kept = needed(ranges, self._with_pages)
            ranges = halves(kept)
            if ranges == kept or len(ranges) > _MAX_RAM_RANGES:
                return

    def _with_pages(self, kept: tuple[Pages, ...]) -> bool:
        count = sum(part.stop - part.first for part in kept)
        tried = Guess(what=Trying.PAGES, count=count)
        return self._search.improve(replace(self._search.best, ram=tuple(kept)), tried)

    def _options(self) -> None:
        """Options of the machine that are not needed: those that boot a guest first, then each other one."""
        search, best = self._search, self._search.best
        if best.mode is GuestMode.RUNNING:
            return
        search.improve(replace(best, dropped=best.dropped | self._boot_options()), Guess(what=Trying.NO_KERNEL))
        options = self._target.buffers.machine.options
        # what defines the machine stays, though its default would do
        left = {n for n, o in enumerate(options) if n not in search.best.dropped and o.name not in ("m", "smp")}
        groups = [group & left for group in connected(options) if group & left]
        kept = self._without(groups, Trying.DEVICES)
        self._without([frozenset({n}) for n in sorted(frozenset().union(*kept))], Trying.OPTIONS)

    def _without(self, groups: list[frozenset[int]], what: Trying) -> tuple[frozenset[int], ...]:
        search = self._search
        fixed, everything = search.best.dropped, frozenset().union(*groups)

        def test(kept: tuple[frozenset[int], ...]) -> bool:
            dropped = fixed | (everything - frozenset().union(*kept))
            return search.improve(replace(search.best, dropped=dropped), Guess(what=what, count=len(kept)))

        return needed(groups, test)

    def _fields(self) -> None:
        """Which fields of the sections matter, against a state with which nothing fails."""
        best = self._search.best
        labels = sorted(best.sections - self._base())
        if self._target.cell.verdict is Verdict.GUEST_FAULT or not labels:
            return
        phase = best.steps[-1].phase
        for donor in self._donors(phase, labels):
            atoms = self._atoms(phase, labels, donor)
            if not atoms:
                continue
            search, healthy = self._search, self._search.best.healthy | frozenset(atoms)
            tried = Guess(what=Trying.DONOR, name=donor.phase)
            shown = search.shows(replace(search.best, healthy=healthy), tried)
            if shown is Shows.NO:
                self._note = None
                self._narrow(phase, atoms)
                return
            why = NoField.FAILS_TOO if shown is Shows.YES else NoField.NOT_TAKEN
            self._note = FieldNote(why=why, phase=donor.phase)

    def _donors(self, phase: str, labels: list[str]) -> Iterator[Donor]:
        recorded = recorded_donors(self._target.buffers.pack, phase, labels)
        # the nearest first: what differs without need only costs tries
        yield from sorted(recorded, key=lambda donor: len(self._atoms(phase, labels, donor)))
        machine = Reduced(self._target.buffers, self._search.best).machine
        try:
            yield never_run(self._target.binary, machine)
        except (QemuError, HarnessError, StreamError) as error:
            self._note = FieldNote(why=NoField.NO_STATE, said=str(error))

    def _atoms(self, phase: str, labels: list[str], donor: Donor) -> list[Atom]:
        recording = self._target.buffers.pack.recordings[phase]
        found: list[Atom] = []
        names = Counter(map(label_of, recording.sections))
        for section in recording.sections:
            label, desc = label_of(section), section.desc
            other = donor.state.get(label)
            # pieces are of a name: two sections that share one cannot be told apart
            if label not in labels or names[label] > 1 or desc is None or other is None:
                continue
            found += differences(label, section.payload, decode(section.payload, desc), other.payload, other.fields)
        return found

    def _narrow(self, phase: str, atoms: list[Atom]) -> None:
        """Fields, then bytes of buffers, then bits."""
        reduced = Reduced(self._target.buffers, self._search.best)

        def payload(atom: Atom) -> bytes:
            return reduced.payload(phase, atom.section)

        kept = self._healthier(tuple(atoms), Trying.FIELDS)
        kept = self._healthier(tuple(p for atom in kept for p in split_bytes(atom, payload(atom))), Trying.BYTES)
        kept = self._healthier(tuple(p for atom in kept for p in split_bits(atom, payload(atom))), Trying.BITS)
        self._prove(whole_numbers(kept, atoms))

    def _prove(self, kept: tuple[Atom, ...]) -> None:
        """A piece is needed when without it all loads pass; where that ends in another way, nobody knows."""
        search = self._search
        for atom in kept:
            less = replace(search.best, healthy=search.best.healthy | {atom})
            if search.shows(less, Guess(what=Trying.HEALTHY, name=atom.path)) is Shows.NO:
                self._needed += (atom,)
            else:
                self._untested += (atom,)

    def _healthier(self, atoms: tuple[Atom, ...], what: Trying) -> tuple[Atom, ...]:
        fixed = self._search.best.healthy

        def test(kept: tuple[Atom, ...]) -> bool:
            # kept pieces stay as they were; nothing kept is known not to fail
            if not kept:
                return False
            left = frozenset(kept)
            healthy = fixed | frozenset(atom for atom in atoms if atom not in left)
            return self._search.improve(replace(self._search.best, healthy=healthy), Guess(what=what, count=len(kept)))

        return needed(atoms, test)

    # --- what is always there ----------------------------------------------------------------------------------

    def _base(self) -> Labels:
        """Sections that stand in every checkpoint: a build that resets would start the CPU anew."""
        return self._target.cpu if self._target.resets else frozenset()

    def _fixed_start(self) -> Labels:
        """Sections that stand in every incoming stream: the parked CPU, and what a leak is measured against."""
        target = self._target
        if target.kind == "leak":
            return target.cpu | ({target.control} & target.labels) | self._search.best.own
        return target.cpu

    def _least_start(self, labels: Labels) -> Labels:
        return labels | self._target.cpu | self._fixed_start()

    def _boot_options(self) -> frozenset[int]:
        options = self._target.buffers.machine.options
        return frozenset(n for n, o in enumerate(options) if o.name in _BOOT or o.first == _DEBUG_PORT)
