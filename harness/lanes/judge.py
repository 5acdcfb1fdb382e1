# SPDX-License-Identifier: GPL-2.0-or-later
"""Judge one cell: load, look, and when it broke find out whose fault it is, so that no row hides another's."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from threading import Lock

from harness.arch import architecture_of
from harness.ddmin import the_one
from harness.devices.device import Device
from harness.engines.buffers import Buffers, Selection
from harness.engines.colo import Pace, Session, in_turn
from harness.engines.evidence import Evidence
from harness.engines.probe import ColoAbility
from harness.engines.schedule import LoadPlan, Schedule, plan_loads
from harness.errors import HarnessError, HostError, QemuError, Stopped
from harness.names import PLATFORM
from harness.oracles.isolate import Blame, Isolator, Suspect
from harness.oracles.load import Judgement, judge, warnings_of
from harness.qemu.binary import QemuBinary
from harness.qemu.scope import ProcessScope
from harness.results.cause import Undecided, Why
from harness.results.document import Cell, Qemu, Warned
from harness.results.key import CellKey, Route
from harness.results.outcome import ControlResult, Isolation, IsolationWay, Moment, Outcome, Repeats
from harness.results.plan import CellPlan
from harness.results.verdict import FailureClass, Verdict
from harness.state.transforms import GuestMode, label_of

#: A row with more broken sections than this is given up on; what was found is in its cells.
MAX_BLAMED = 8
#: How often a finding that no section could be blamed for is tried again.
REPEATS = 2

OnLoads = Callable[[str, int], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Classed:
    """What the controls of a finding came to."""

    failure_class: FailureClass | None
    controls: tuple[ControlResult, ...]
    moment: Moment | None


#: Phase, blamed sections and left out ones, the finding and its evidence; gives the class and what the controls gave.
RunControls = Callable[[str, tuple[str, ...], frozenset[str], Judgement, Evidence], Classed]


@dataclass(slots=True, kw_only=True)
class WholeSession:
    """A session that loaded the whole state: it tells something of every device that it carried.

    :param cell: the first that tells of it, empty when none does yet
    :param parts: of one that broke: who did it, and the judgement when it was tried again; None until asked for
    :param passed: of one that nobody could be blamed for: the first of its repeats that loaded everything
    :param behind: of a row that passed alone: its session that broke in a secondary which other rows had before it
    """

    evidence: Evidence
    judgement: Judgement
    cell: str = ""
    passed: WholeSession | None = None
    behind: WholeSession | None = None
    parts: tuple[Blame | None, Judgement, Repeats | None] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Turn:
    """A row's session in a secondary that other rows had before it.

    :param decides: the row need not be tried alone
    """

    session: WholeSession
    decides: bool


#: What happened to a QEMU, however seldom it comes back.
_HAPPENED = (Verdict.CRASH, Verdict.REJECT)


class ExclusionReason(StrEnum):
    """Why a section is left out."""

    BROKE = "broke"
    REFUSED = "refused"


@dataclass(frozen=True, slots=True, kw_only=True)
class Exclusion:
    """A section that is known to break a secondary, or to be refused in an ordinary migration.

    :param phase: in which it broke; one that is refused is so in all, and has none here
    :param twice: it broke where it stood twice in one buffer, and not where it stood there once
    """

    section: str
    reason: ExclusionReason
    phase: str = ""
    twice: bool = False


@dataclass(kw_only=True)
class Bench:
    """One pack under one QEMU, with what was learnt about it so far; shared by the cells of a machine.

    :param devices: those that the guest has, as their recipes tell
    :param came: the guest came from elsewhere: another QEMU, or another host
    :param blamed: sections that broke a secondary, by phase and by whether they had to stand twice in a buffer
    :param rows: devices of the request in hand
    :param hints: sections that broke something in whatever phase, and how: they are the first to be suspected, and no
        more
    :param named: how cells name the QEMUs; by their versions when None
    :param sessions: those of the whole state that were made for the request in hand, by what they left out
        of their loads, and of their incoming stream
    :param turns: sessions of single rows that were made in one secondary, by what they left out
    :param refused: sections that this QEMU does not take already in an ordinary migration, or in the incoming stream of
        a session: only their own rows load them
    """

    binary: QemuBinary
    ability: ColoAbility
    buffers: Buffers
    pace: Pace
    scope: ProcessScope
    devices: tuple[Device, ...] = ()
    rows: frozenset[str] = frozenset({PLATFORM})
    came: bool = False
    blamed: dict[tuple[str, bool], set[str]] = field(default_factory=dict)
    refused: frozenset[str] = frozenset()
    sessions: dict[tuple[CellKey, frozenset[str], frozenset[str]], WholeSession] = field(default_factory=dict)
    turns: dict[tuple[CellKey, frozenset[str]], _Turn] = field(default_factory=dict)
    hints: list[Suspect] = field(default_factory=list)
    named: Route | None = None
    lock: Lock = field(default_factory=Lock)

    def tell(self, known: Iterable[Exclusion]) -> None:
        """Let it know what others found out."""
        for one in known:
            if one.reason is ExclusionReason.REFUSED:
                self.refused |= {one.section}
            else:
                self.blamed.setdefault((one.phase, one.twice), set()).add(one.section)

    @property
    def exclusions(self) -> frozenset[Exclusion]:
        """All that it knows, to be told to another bench."""
        with self.lock:
            broke = {
                Exclusion(section=label, reason=ExclusionReason.BROKE, phase=phase, twice=twice)
                for (phase, twice), labels in self.blamed.items()
                for label in labels
            }
        return frozenset(broke | {Exclusion(section=label, reason=ExclusionReason.REFUSED) for label in self.refused})

    @property
    def recorder(self) -> Qemu:
        """The QEMU that recorded."""
        return Qemu(**self.buffers.pack.manifest.qemu, label=self.route.recorder)

    @property
    def loader(self) -> Qemu:
        """The QEMU that loads."""
        return Qemu(**self.binary.identity(), label=self.route.loader)

    @property
    def route(self) -> Route:
        """How cells name the QEMU, or the pair of them."""
        recorder = self.buffers.pack.manifest.qemu["version"]
        return self.named or Route(recorder=recorder, loader=self.binary.version)

    @property
    def machine_key(self) -> CellKey:
        """What the keys of all cells have in common."""
        manifest = self.buffers.pack.manifest
        return CellKey(
            route=self.route,
            machine=manifest.machine,
            device="",
            phases=(),
            lane="",
            arch=architecture_of(manifest.machine).name,
            accel=manifest.accel,
            cpus=manifest.plan.cpus,
        )

    def isolator(self, again: bool) -> Isolator:
        """A search over this pack that tries the known culprits first.

        :param again: the sections stood more than once in a buffer when it broke
        """
        with self.lock:
            known = list(self.hints)
        return Isolator(
            binary=self.binary,
            dialect=self.ability.dialect,
            buffers=self.buffers,
            resets=bool(self.ability.resets_before_load),
            again=self._twice(again),
            repeated=again,
            suspects=known,
            scope=self.scope,
        )

    def blame(
        self,
        phase: str,
        sections: Sequence[str],
        judgement: Judgement,
        *,
        together: bool = False,
        incoming: bool = False,
    ) -> None:
        """Remember what broke in a phase.

        :param judgement: what it came to
        :param together: where they stood twice in one buffer
        :param incoming: it was the incoming stream, which comes before everything: it is left out of that too
        """
        with self.lock:
            # of several tasks at a time: a list may grow while it is read
            self.hints += [Suspect(section=label, broke=judgement) for label in sections]
            if incoming:
                self.refused |= set(sections)
                return
            self.blamed.setdefault((phase, together), set()).update(sections)

    def known(self, phases: tuple[str, ...], *, twice: bool = False) -> frozenset[str]:
        """Sections that are known to break in these phases.

        :param twice: also where they stand twice in one buffer
        """
        with self.lock:
            broken = [
                labels for (phase, both), labels in self.blamed.items() if phase in phases and (twice or not both)
            ]
            return self.refused.union(*broken)

    @property
    def sections_by_device(self) -> dict[str, frozenset[str]]:
        """Of all devices of the guest but the platform."""
        devices = self.buffers.pack.manifest.devices
        return {device.name: frozenset(device.sections) for device in devices if not device.recipe.rest}

    def by_device(self, labels: frozenset[str]) -> dict[str, frozenset[str]]:
        """Some sections by the device that owns them, but for the platform's."""
        found = {name: own & labels for name, own in self.sections_by_device.items()}
        return {name: own for name, own in found.items() if own}

    def whole_devices(self, labels: frozenset[str]) -> frozenset[str]:
        """These sections, and all others of their devices: half of a device may break where the whole of it is well."""
        devices = self.sections_by_device
        return labels.union(*(devices[name] for name in self.by_device(labels)))

    def _twice(self, again: bool) -> bool:
        return again and bool(self.ability.resets_before_load)


def judge_cell(plan: CellPlan, bench: Bench, on_loads: OnLoads, control: RunControls | None = None) -> Iterator[Cell]:
    """Judge a planned cell; more than one comes back when a section of the row is to blame.

    The first holds the finding; the last, a ``rest`` by its key, judges the row without what was blamed.
    Sections of other rows that break the secondary are left out and named in ``excluded``.

    :param control: runs the controls of a finding; without it a finding has no class
    :raises HostError: no space; nothing more can be judged
    :raises Stopped: the run was told to stop
    """
    row = _Row(plan, bench, on_loads, control)
    try:
        yield from row.cells()
    except (HostError, Stopped):
        raise
    except (QemuError, HarnessError) as error:
        yield row.undecided(Undecided(why=Why.ERROR, said=str(error)))


def take_turns(plans: Sequence[CellPlan], bench: Bench, on_loads: OnLoads) -> None:
    """Let cells of one phase that load their devices' own sections share a secondary, as long as it is well.

    Each is judged by :func:`judge_cell` afterwards, and alone where its turn does not decide.

    :raises HostError: no space; nothing more can be judged
    :raises Stopped: the run was told to stop
    """
    rows = [row for row in (_Row(plan, bench, on_loads, None) for plan in plans) if row.takes_turns]
    while rows[1:]:
        try:
            rows = rows[rows[0].in_turn(rows[1:]) :]
        except (HostError, Stopped):
            raise
        except (QemuError, HarnessError):
            return  # whose fault it is comes out when each is judged


class _Row:
    """The state of one cell being judged."""

    def __init__(self, plan: CellPlan, bench: Bench, on_loads: OnLoads, control: RunControls | None) -> None:
        self._plan = plan
        self._control = control
        self._bench = bench
        self._id = str(plan.key)
        self._on_loads = on_loads
        self._all = frozenset(bench.buffers.pack.sections_of(plan.device)) & self._labels()
        self._blamed: list[str] = []
        self._started = time.monotonic()
        self._told = 0

    def cells(self) -> Iterator[Cell]:
        if not self._all:
            yield self.undecided(Undecided(why=Why.NO_SECTION))
            return
        tried: set[tuple[frozenset[str], frozenset[str]]] = set()
        while True:
            excluded = self._told_before()
            excluded = self.excluded() if excluded is None else excluded
            left_out = excluded, self._absent(excluded)
            if left_out in tried:
                # what others did to it is known, and still does it where it is left out
                yield self.undecided(Undecided(why=Why.LEFT_OUT, sections=tuple(sorted(excluded))), excluded=excluded)
                return
            tried.add(left_out)
            session = self._made(excluded)
            evidence, judgement = session.evidence, session.judgement
            if judgement.verdict is Verdict.OK or not judgement.verdict.is_finding:
                yield self._cell(session, judgement, excluded)
                if session.behind is not None:
                    yield self._of_no_row(session.behind, excluded)
                return
            blame, judgement, repeats = self._taken_apart(session, excluded)
            culprits = self._culprits(blame, judgement)
            if not culprits and self._is_any_devices(judgement):
                yield from self._nobodys(session, judgement, excluded, repeats)
                return
            foreign = bool(culprits) and not culprits & self._own
            if not foreign or self._tells_of_platform(culprits):
                cell = self._cell(session, judgement, excluded, blame, repeats)
                yield self._platforms(cell) if foreign else self._controlled(cell, evidence, judgement)
            if not culprits or len(self._blamed) >= MAX_BLAMED:
                return
            together = blame is not None and blame.how.together
            phase = self._failing_phase(evidence, blame)
            # what does it though no load has it was in the incoming stream
            incoming = _is_incoming(evidence) or culprits <= excluded
            self._bench.blame(phase, sorted(culprits), judgement, together=together, incoming=incoming)
            if not foreign:
                self._blamed += sorted(culprits)
                self._started = time.monotonic()
                if not self._own:
                    return

    def _told_before(self) -> frozenset[str] | None:
        """What was left out of a session of the whole state that broke by a section of this row, while another row was
        judged: it is this row's finding, and no session more is made for it."""
        if not self._whole:
            return None
        for (key, excluded, absent), session in self._bench.sessions.items():
            if key != self._shared_key or absent != self._absent(excluded):
                continue
            if session.parts and not excluded & self._own:
                blame, judgement, _ = session.parts
                if self._culprits(blame, judgement) & self._own:
                    return excluded
        return None

    @property
    def _shared_key(self) -> CellKey:
        """That of sessions of the whole state."""
        return replace(self._plan.key, device="")

    def _made(self, excluded: frozenset[str]) -> WholeSession:
        """A session without what is excluded; one of the whole state is made once for all devices."""
        key = (self._shared_key, excluded, self._absent(excluded))
        shared = self._bench.sessions.get(key) if self._whole else None
        if shared is not None:
            self._on_loads(self._id, shared.evidence.loads_acked)
            return shared
        turn = self._bench.turns.pop((self._plan.key, excluded), None)
        if turn is not None:
            self._started -= turn.session.evidence.seconds
        if turn is not None and turn.decides:
            return turn.session
        made = _judged(self._session(excluded).run(self._tell))
        if self._whole:
            self._bench.sessions[key] = made
        elif turn is not None and made.judgement.verdict is Verdict.OK and turn.session.judgement.verdict in _HAPPENED:
            made.behind = turn.session
        return made

    @property
    def takes_turns(self) -> bool:
        """Whether it loads sections of its own alone, in one phase, and nothing that its QEMU refuses."""
        return (
            bool(self._all) and not self._whole and len(self._plan.phases) == 1 and not self._bench.refused & self._own
        )

    def excluded(self) -> frozenset[str]:
        """The devices of others that have a section which is known to break, and its own sections that did.

        Those of others stand once in a buffer, whatever the schedule is.
        """
        others = self._bench.whole_devices(self._bench.known(self._plan.phases))
        return (others - self._own) | frozenset(self._blamed)

    def in_turn(self, others: Sequence[_Row]) -> int:
        """Load its own sections, and behind that those of other rows, in one secondary; how many had their turn."""
        rows = [self, *others]
        found = in_turn([(row._session(row.excluded()), row._tell) for row in rows])
        for number, (row, evidence) in enumerate(zip(rows, found, strict=False)):
            made = _judged(evidence)
            # what broke behind others may be their doing
            decides = number == 0 or made.judgement.verdict is Verdict.OK
            self._bench.turns[row._plan.key, row.excluded()] = _Turn(session=made, decides=decides)
        return len(found)

    def _taken_apart(
        self, session: WholeSession, excluded: frozenset[str]
    ) -> tuple[Blame | None, Judgement, Repeats | None]:
        """Who broke a session; when nobody did it alone, how often it comes back."""
        if session.parts is None:
            blame = self._blame(session.evidence, session.judgement, excluded)
            judgement, repeats = session.judgement, None
            if not self._culprits(blame, judgement):
                judgement = self._trusted(judgement, excluded)
            if blame is None and judgement.verdict.is_finding:
                again = [_judged(self._session(excluded).run()) for _ in range(REPEATS)]
                session.passed = next((one for one in again if one.judgement.verdict is Verdict.OK), None)
                verdict, repeats = repeated(judgement.verdict, [one.judgement.verdict for one in again])
                judgement = replace(judgement, verdict=verdict)
                named = self._culprits(None, judgement)
                if self._whole and not named and repeats.seen == repeats.of:
                    blame = self._by_device(judgement, excluded)
            session.parts = blame, judgement, repeats
        return session.parts

    def _by_device(self, whole: Judgement, excluded: frozenset[str]) -> Blame | None:
        """The device without whose sections the same loads pass, where no section breaks a parked guest."""
        own = self._bench.by_device(self._labels() - excluded)

        def breaks_without(names: Sequence[str]) -> bool:
            left = excluded.union(*(own[name] for name in names))
            return judge(self._session(left).run()).is_break_of(whole)

        found = the_one(list(own), breaks_without)
        # it may have passed by luck
        if found is None or any(breaks_without([found]) for _ in range(REPEATS)):
            return None
        how = Isolation(way=IsolationWay.WITHOUT, of=len(self._bench.sections_by_device))
        return Blame(sections=tuple(sorted(own[found])), how=how, judgement=whole)

    def _is_any_devices(self, judgement: Judgement) -> bool:
        """Whether a finding that nobody could be blamed for is that of a whole guest with several devices."""
        return judgement.verdict.is_finding and self._whole and len(self._bench.sections_by_device) > 1

    def _nobodys(
        self, session: WholeSession, judgement: Judgement, excluded: frozenset[str], repeats: Repeats | None
    ) -> Iterator[Cell]:
        """The platform has it, and once: of the devices it says nothing but that not all loads passed. Where it does
        not come back, they are judged by the same loads that passed."""
        first, mine = not session.cell, self._plan.device == PLATFORM
        if mine or (first and PLATFORM not in self._bench.rows):
            cell = self._cell(session, judgement, excluded, repeats=repeats)
            yield self._controlled(cell, session.evidence, judgement) if mine else self._platforms(cell)
        if mine:
            return
        if judgement.verdict is Verdict.FLAKY and session.passed is not None:
            yield self._cell(session.passed, session.passed.judgement, excluded)
        else:
            evidence = session.evidence
            yield self.undecided(
                Undecided(why=Why.OTHERS, acked=evidence.loads_acked, asked=evidence.loads_asked),
                excluded=excluded,
            )

    def _of_no_row(self, session: WholeSession, excluded: frozenset[str]) -> Cell:
        """What broke behind other rows and does not break alone: it happened. The device has it whose section QEMU
        named; else nobody can say which of the rows did it, and the platform has it."""
        judgement = session.judgement
        _, repeats = repeated(judgement.verdict, [Verdict.OK])
        cell = self._cell(session, judgement, excluded, repeats=repeats)
        owner = self._bench.buffers.pack.owner_of(judgement.named or "")
        return self._of(owner if owner in self._bench.rows else PLATFORM, cell)

    def _controlled(self, cell: Cell, evidence: Evidence, judgement: Judgement) -> Cell:
        """The cell with its class, when there are controls and the load is what they can speak of."""
        broken = evidence.broken
        if self._control is None or broken is None or broken.load == 0 or not judgement.verdict.is_finding:
            return cell
        sections = cell.blamed if cell.is_isolated else ()
        found = self._control(broken.phase, sections, frozenset(cell.left_out), judgement, evidence)
        outcome = replace(
            cell.outcome,
            failure_class=found.failure_class,
            controls=found.controls,
            moment=found.moment,
        )
        return replace(cell, outcome=outcome)

    def _trusted(self, judgement: Judgement, excluded: frozenset[str]) -> Judgement:
        """What a break says that no section makes alone. Where a build resets before each load, a section that is left
        out is in reset state, beside others that are not and under a running guest: then it says nothing of what was
        loaded. The bus counts interrupts that a device which is left out does not know of, for one."""
        if not excluded or not self._bench.ability.resets_before_load:
            return judgement
        cause = Undecided(why=Why.LEFT_OUT, sections=tuple(sorted(excluded)))
        return replace(judgement, verdict=Verdict.HARNESS_ERROR, cause=cause)

    @property
    def _own(self) -> frozenset[str]:
        return self._all - frozenset(self._blamed)

    @property
    def _whole(self) -> bool:
        """The bytes of a session do not depend on the device: everything is sent, and each section once."""
        return self._plan.guest_mode is GuestMode.RUNNING and not self._again

    @property
    def _key(self) -> CellKey:
        return replace(self._plan.key, rest=len(self._blamed))

    @property
    def _again(self) -> bool:
        return self._plan.schedule is Schedule.BACK_TO_BACK

    def _labels(self) -> frozenset[str]:
        recordings = self._bench.buffers.pack.recordings
        present = [{label_of(s) for s in recordings[phase].sections} for phase in self._plan.phases]
        return frozenset(set.intersection(*present))

    def _session(self, excluded: frozenset[str]) -> Session:
        resets = bool(self._bench.ability.resets_before_load)
        parked = self._plan.guest_mode is GuestMode.PARKED
        self._told = 0
        own = self._labels() - excluded if self._whole else self._own
        return Session(
            binary=self._bench.binary,
            dialect=self._bench.ability.dialect,
            buffers=self._bench.buffers,
            plan=self._load_plan(),
            selection=Selection(own=own, excluded=excluded, whole=resets or not parked),
            mode=self._plan.guest_mode,
            absent=self._absent(excluded),
            pace=self._bench.pace,
            scope=self._bench.scope,
        )

    def _absent(self, excluded: frozenset[str]) -> frozenset[str]:
        """What is left out of the incoming stream as well."""
        return self._bench.whole_devices(self._bench.refused) & excluded

    def _load_plan(self) -> LoadPlan:
        return plan_loads(Schedule(self._plan.schedule), self._plan.phases, self._plan.loads)

    def _tell(self, more: int) -> None:
        self._told += more
        self._on_loads(self._id, self._told)

    def _failing_phase(self, evidence: Evidence, blame: Blame | None) -> str:
        """In which the culprits are left out from now on."""
        if blame is not None and blame.phase:
            return blame.phase
        return evidence.broken.phase if evidence.broken else self._plan.phases[-1]

    def _blame(self, evidence: Evidence, judgement: Judgement, excluded: frozenset[str]) -> Blame | None:
        """Who did it; a guest that broke, or a session that is well, has no section to blame."""
        if judgement.verdict is Verdict.GUEST_FAULT or evidence.broken is None:
            return None
        if _is_incoming(evidence):
            absent = self._absent(excluded)
            return self._bench.isolator(self._again).find_incoming(evidence.broken.phase, absent, judgement)
        plan, broken = self._load_plan(), evidence.broken
        before = plan.phase_before(broken.load)
        # the incoming stream of the session that broke was taken
        taken = self._absent(excluded) if before == plan.incoming else None
        return self._bench.isolator(self._again).find(before, broken.phase, broken.load, excluded, judgement, taken)

    def _tells_of_platform(self, culprits: frozenset[str]) -> bool:
        """Whether a section of the platform did it, and no row of the request is the platform's to say so: it is
        judged in one guest of several, and is in all."""
        pack = self._bench.buffers.pack
        return PLATFORM not in self._bench.rows and PLATFORM in map(pack.owner_of, culprits)

    def _platforms(self, cell: Cell) -> Cell:
        """The same finding as the platform's; its controls are a matter of the guest where it is a row."""
        return self._of(PLATFORM, cell)

    def _of(self, device: str, cell: Cell) -> Cell:
        """The same finding as another row's."""
        own = tuple(sorted(set(self._bench.buffers.pack.sections_of(device)) & self._labels()))
        return replace(cell, key=replace(cell.key, device=device, rest=0), sections=own)

    def _culprits(self, blame: Blame | None, judgement: Judgement) -> frozenset[str]:
        """The sections that did it; where none was found, the one that QEMU itself says it refused, if it stands in the
        state: it need not come back each time, and no other device is to blame for it."""
        if blame is not None:
            return frozenset(blame.sections)
        named = judgement.named
        return frozenset({named} if judgement.verdict is Verdict.REJECT and named in self._labels() else ())

    def _cell(
        self,
        session: WholeSession,
        judgement: Judgement,
        excluded: frozenset[str],
        blame: Blame | None = None,
        repeats: Repeats | None = None,
    ) -> Cell:
        evidence = session.evidence
        session.cell = session.cell or str(self._key)
        rate = evidence.loads_acked / evidence.load_seconds if evidence.load_seconds else 0.0
        outcome = judgement.outcome
        if judgement.verdict is Verdict.OK:
            outcome = replace(outcome, log="", sections=())
        elif blame is not None:
            outcome = replace(outcome, sections=blame.sections, isolation=blame.how)
        return self._frame(
            outcome=replace(
                outcome,
                repeats=repeats,
                loads_acked=evidence.loads_acked,
                checkpoints_acked=evidence.checkpoints_acked,
            ),
            excluded=excluded,
            warnings=warnings_of(evidence),
            loads_per_second=round(rate, 1),
            shared_with="" if session.cell == str(self._key) else session.cell,
        )

    def undecided(self, cause: Undecided, excluded: frozenset[str] = frozenset()) -> Cell:
        """Nothing can be said."""
        return self._frame(outcome=Outcome(verdict=Verdict.HARNESS_ERROR, causes=(cause,)), excluded=excluded)

    def _frame(
        self,
        *,
        outcome: Outcome,
        excluded: frozenset[str] = frozenset(),
        warnings: tuple[Warned, ...] = (),
        loads_per_second: float = 0.0,
        shared_with: str = "",
    ) -> Cell:
        broke = self._bench.known(self._plan.phases) | frozenset(self._blamed)
        return Cell(
            key=self._key,
            record_qemu=self._bench.recorder,
            load_qemu=self._bench.loader,
            outcome=replace(outcome, loads_asked=self._plan.loads),
            sections=tuple(sorted(self._own)),
            excluded=tuple(sorted(excluded & broke)),
            beside=tuple(sorted(excluded - broke)),
            warnings=warnings,
            loads_per_second=loads_per_second,
            shared_with=shared_with,
            pack=str(self._bench.buffers.pack.source),
            seconds=round(time.monotonic() - self._started, 3),
        )


def _judged(evidence: Evidence) -> WholeSession:
    return WholeSession(evidence=evidence, judgement=judge(evidence))


def _is_incoming(evidence: Evidence) -> bool:
    return evidence.broken is not None and evidence.broken.load == 0


def repeated(first: Verdict, again: Sequence[Verdict]) -> tuple[Verdict, Repeats]:
    """What a finding is that was tried again.

    A crash or a refusal happened, however seldom it comes back: it keeps its verdict. What else does not come back
    each time is flaky.
    """
    verdicts = [first] + [verdict for verdict in again if not verdict.is_undecided]
    seen = verdicts.count(first)
    others = tuple(sorted({verdict for verdict in verdicts if verdict is not first}))
    steady = seen == len(verdicts) or first in _HAPPENED
    repeats = Repeats(seen=seen, of=len(verdicts), verdict=first, others=others)
    return (first if steady else Verdict.FLAKY), repeats
