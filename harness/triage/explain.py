# SPDX-License-Identifier: GPL-2.0-or-later
"""Everything known about one cell, as data: what a run says of it, its state pack, its stack and its smallest case.

Nothing here starts a QEMU; :mod:`harness.triage.stack` repeats the failure under gdb.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path

from harness.arch import architecture_of
from harness.errors import UsageError
from harness.names import LANES, ORACLES, RECORDED_PHASES, SCHEDULES, USUAL_PHASES
from harness.packs.pack import StatePack
from harness.qemu.threads import THREADS
from harness.results.document import Cell, MachineResult, MatrixDoc
from harness.results.folder import folder_of
from harness.results.key import USUAL_CPUS
from harness.results.known import Issue
from harness.results.sanitizer import Report, parse_reports
from harness.results.signature import Signature, family_of, look_of, name_of, signature_of_cell
from harness.results.verdict import Verdict
from harness.state.transforms import label_of
from harness.triage.allocations import Allocations
from harness.triage.backtrace import Backtrace
from harness.triage.case import Case
from harness.triage.cells import at_start, phase_of

BUNDLES = "bundles"
#: Stands for the address that the user puts in, and is a URL, so that the line can be tried.
LINK_PLACE = "https://gitlab.com/qemu-project/qemu/-/issues/NUMBER"


@dataclass(frozen=True, slots=True, kw_only=True)
class SectionFacts:
    """A section that is blamed, as it was recorded.

    :param vmsd: name of its VMStateDescription; empty for an old-style one
    :param size_bytes: its payload
    :param fields: how many its outermost description has
    :param subsections: names of those that were sent
    :param owner: the device that it belongs to, and ``about`` what that is
    """

    label: str
    vmsd: str = ""
    version: int = 0
    size_bytes: int = 0
    fields: int = 0
    subsections: tuple[str, ...] = ()
    owner: str = ""
    about: str = ""


class Purpose(StrEnum):
    """What a command is for."""

    JUDGE_AGAIN = "judge-again"
    LOOK = "look"
    MINIMISE = "minimise"
    BUNDLE = "bundle"
    SEE_AGAIN = "see-again"
    BISECT = "bisect"
    KNOWN = "known"


class IssueNews(StrEnum):
    """What is new about a known issue that a cell has."""

    GUESTS_TOO = "guests-too"
    FAILS_ALTHOUGH_FIXED = "fails-although-fixed"
    UNLISTED = "unlisted"


@dataclass(frozen=True, slots=True, kw_only=True)
class Unseen:
    """What an ok cell says nothing of.

    :param lanes: that the run did not have for its device, and ``phases``
    :param answers_alone: it is about the answers of QEMU alone
    """

    excluded: tuple[str, ...] = ()
    lanes: tuple[str, ...] = ()
    phases: tuple[str, ...] = ()
    answers_alone: bool = False

    def __bool__(self) -> bool:
        return bool(self.excluded or self.lanes or self.phases or self.answers_alone)


@dataclass(frozen=True, slots=True, kw_only=True)
class NextStep:
    """A command to type, and what for; ``argv`` can be pasted once it is quoted."""

    argv: tuple[str, ...]
    purpose: Purpose


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    """What is known of a cell.

    :param machine: what the run says of its machine type; None when it does not
    :param signature: of its finding, None where it has none
    :param issue: the known issue that it is, None when the file is not given; ``cell.known`` has the link
    :param issue_news: what is new about that issue
    :param pack_note: why nothing is known of the sections
    :param stack: None where none was asked for or there is nothing to have one of
    :param allocations: of a leak, who allocates what stays; None where that was not asked for
    :param case_folder: where the smallest case lies, empty when there is none
    :param bundle: folder of the bundle in its usual place, empty when there is none
    :param same: cells of the run with the same finding
    :param phases: those of the run that have cells of their own
    :param elsewhere: the same cell on other QEMUs of the run
    :param unseen: what an ok cell says nothing of
    :param steps: what to type next, the first first
    """

    cell: Cell
    machine: MachineResult | None = None
    signature: Signature | None = None
    issue: Issue | None = None
    issue_news: IssueNews | None = None
    sections: tuple[SectionFacts, ...] = ()
    pack_note: str = ""
    stack: Backtrace | None = None
    allocations: Allocations | None = None
    reports: tuple[Report, ...] = ()
    case: Case | None = None
    case_folder: str = ""
    bundle: str = ""
    same: tuple[Cell, ...] = ()
    phases: tuple[str, ...] = ()
    elsewhere: tuple[Cell, ...] = ()
    unseen: Unseen | None = None
    steps: tuple[NextStep, ...] = ()

    @property
    def name(self) -> str:
        """The signature as one line; empty where there is none."""
        return self.cell.signature or (self.signature.name if self.signature else "")

    @property
    def told(self) -> bool:
        """False when neither QEMU nor the device was judged, so that nothing can be told of them."""
        return not self.cell.verdict.is_undecided or bool(self.name)

    @property
    def phase(self) -> str:
        """Where it failed, else all phases that it went over."""
        return phase_of(self.cell) if self.cell.verdict.is_finding else ", ".join(self.cell.phases)


@dataclass(frozen=True, slots=True, kw_only=True)
class ExplainMaterial:
    """What is known besides the run's document.

    :param run: the folder, as the user named it
    :param pack: the state pack of the cell, open; None when it is gone, and ``pack_note`` says so
    :param case: the smallest case, with its folder
    """

    run: Path
    pack: StatePack | None = None
    pack_note: str = ""
    stack: Backtrace | None = None
    allocations: Allocations | None = None
    case: Case | None = None
    case_folder: Path | None = None
    issues: tuple[Issue, ...] = ()


def explain(cell: Cell, doc: MatrixDoc, material: ExplainMaterial) -> Explanation:
    """Put together what is known of a cell of a run. Starts nothing."""
    signature = signature_of_cell(cell)
    issue, news = _issue(cell, material.issues)
    if issue and issue.expected_in(cell):
        cell = replace(cell, known=issue.link)
    log = cell.outcome.log
    bundle = folder_of(material.run) / BUNDLES / cell.slug
    return Explanation(
        cell=cell,
        machine=_machine(cell, doc),
        signature=signature,
        issue=issue,
        issue_news=news,
        sections=_sections(cell, material),
        pack_note=material.pack_note,
        stack=material.stack,
        allocations=material.allocations,
        reports=parse_reports(log.partition(THREADS)[0]),
        case=material.case,
        case_folder=str(material.case_folder or ""),
        bundle=str(bundle) if bundle.is_dir() else "",
        same=same_finding(cell, doc),
        phases=tuple(dict.fromkeys(each.phases[0] for each in doc.cells if len(each.phases) == 1)),
        elsewhere=other_qemus(cell, doc),
        unseen=unseen(cell, doc),
        steps=next_steps(cell, doc, material),
    )


# -- the run ---------------------------------------------------------------------------------------------------------


def _machine(cell: Cell, doc: MatrixDoc) -> MachineResult | None:
    mine = [m for m in doc.machines if m.machine == cell.machine and m.qemu.sha256 == cell.load_qemu.sha256]
    recorded = [m for m in mine if (m.record_qemu or m.qemu).sha256 == cell.record_qemu.sha256]
    return next(iter(recorded or mine), None)


def same_finding(cell: Cell, doc: MatrixDoc) -> tuple[Cell, ...]:
    """Other cells of the run with this finding: by its signature, else by how it looks. None for a cell that is ok."""
    if cell.verdict is Verdict.OK:
        return ()
    name = name_of(cell)
    others = (other for other in doc.cells if other.id != cell.id)
    return tuple(o for o in others if (name_of(o) == name if name else look_of(o) == look_of(cell)))


def other_qemus(cell: Cell, doc: MatrixDoc) -> tuple[Cell, ...]:
    """The same place of the same machine family, on the other QEMUs of the run."""
    pair = (cell.record_qemu.sha256, cell.load_qemu.sha256)
    place = (family_of(cell.machine), cell.key.place, cell.guest_mode, cell.is_rest)
    return tuple(
        other
        for other in doc.cells
        if (family_of(other.machine), other.key.place, other.guest_mode, other.is_rest) == place
        and (other.record_qemu.sha256, other.load_qemu.sha256) != pair
    )


def _issue(cell: Cell, issues: Sequence[Issue]) -> tuple[Issue | None, IssueNews | None]:
    """The known issue of a cell's signature, and what is new about it."""
    name, version = name_of(cell), cell.load_qemu.version
    own = [issue for issue in issues if issue.signature == name]
    best = next((issue for issue in own if issue.expected_in(cell)), next(iter(own), None))
    if best is None or best.expected_in(cell):
        return best, None
    if not best.takes(cell):
        return best, IssueNews.GUESTS_TOO
    return best, IssueNews.FAILS_ALTHOUGH_FIXED if best.is_fixed(version) else IssueNews.UNLISTED


def unseen(cell: Cell, doc: MatrixDoc) -> Unseen | None:
    """What an ok cell says nothing of: sections left out, and what the run did not look at for this device."""
    if cell.verdict is not Verdict.OK:
        return None
    mine = [o for o in doc.cells if (o.machine, o.device, o.load_qemu) == (cell.machine, cell.device, cell.load_qemu)]
    lanes, phases = {o.lane for o in mine}, {phase for o in mine for phase in o.phases}
    return Unseen(
        excluded=cell.excluded,
        lanes=tuple(lane for lane in LANES if lane not in lanes),
        phases=tuple(
            phase for phase in RECORDED_PHASES if phase not in phases and architecture_of(cell.machine).has_phase(phase)
        ),
        answers_alone=cell.by_load,
    )


# -- the state pack --------------------------------------------------------------------------------------------------


def _sections(cell: Cell, material: ExplainMaterial) -> tuple[SectionFacts, ...]:
    if material.pack is None:
        return tuple(SectionFacts(label=label) for label in cell.blamed)
    phase = phase_of(cell)
    return tuple(section_facts(material.pack, phase, label) for label in cell.blamed)


def section_facts(pack: StatePack, phase: str, label: str) -> SectionFacts:
    """What a recording says of a section; the label alone where it is not there."""
    recording = pack.recordings.get(phase) or pack.recordings[pack.phases[-1]]
    section = next((each for each in recording.sections if label_of(each) == label), None)
    owner = pack.manifest.owner(label)
    if section is None:
        return SectionFacts(label=label, owner=owner.name if owner else "")
    desc = section.desc
    return SectionFacts(
        label=label,
        vmsd=desc.vmsd_name if desc else "",
        version=section.version_id,
        size_bytes=len(section.payload),
        fields=len({each.name for each in desc.fields}) if desc else 0,
        subsections=tuple(each.vmsd_name for each in desc.subsections) if desc else (),
        owner=owner.name if owner else "",
        about=owner.recipe.about if owner else "",
    )


# -- what to type next -----------------------------------------------------------------------------------------------


def next_steps(cell: Cell, doc: MatrixDoc, material: ExplainMaterial) -> tuple[NextStep, ...]:
    """The commands that make sense now, in their order."""
    if cell.verdict is Verdict.UNSUPPORTED:
        return ()
    if cell.verdict.is_undecided:
        return (NextStep(argv=_again(cell, material, whole=True), purpose=Purpose.JUDGE_AGAIN),)
    if not cell.verdict.is_finding:
        argv = _look(cell, doc, material)
        return (NextStep(argv=argv, purpose=Purpose.LOOK),) if argv else ()
    run = str(material.run)
    shown = ("postload", "{}", cell.id, "--run", run)
    steps = []
    if material.case is None and _can_shrink(cell, material):
        steps.append(NextStep(argv=_named(shown, "minimise"), purpose=Purpose.MINIMISE))
    bundle = folder_of(material.run) / BUNDLES / cell.slug
    if (material.case or steps or _can_bundle(cell, material)) and not bundle.exists():
        argv = (*_named(shown, "bundle"), "--out", str(bundle))
        steps.append(NextStep(argv=argv, purpose=Purpose.BUNDLE))
    if not steps and not bundle.exists():
        steps.append(NextStep(argv=_again(cell, material, whole=False), purpose=Purpose.SEE_AGAIN))
    steps += _bisect(cell, doc, shown) if material.case or material.pack else []
    if not cell.known:
        argv = ("postload", "known", "add", cell.id, "--run", run, "--link", LINK_PLACE)
        steps.append(NextStep(argv=argv, purpose=Purpose.KNOWN))
    return tuple(steps)


def _look(cell: Cell, doc: MatrixDoc, material: ExplainMaterial) -> tuple[str, ...]:
    """The matrix that has what the run did not look at; nothing where no matrix could look."""
    left = unseen(cell, doc)
    devices = material.pack.manifest.devices if material.pack is not None else ()
    fails = any(each.name == cell.device and each.recipe.faults for each in devices)
    there = [phase for phase in USUAL_PHASES if architecture_of(cell.machine).has_phase(phase)]
    there += ["io-error"] if fails else []
    phases = [phase for phase in there if left is not None and phase in left.phases]
    lanes = [lane for lane in (*SCHEDULES, *ORACLES) if left is not None and lane in left.lanes]
    if not phases and set(lanes) <= {"io-error"}:
        return ()
    at = ("--qemu", cell.load_qemu.path, "--machine", cell.machine, "--device", cell.device)
    cpus = ("--cpus", str(cell.key.cpus)) if cell.key.cpus != USUAL_CPUS else ()
    wanted = ("--phase", ",".join(there)) if "io-error" in phases else ()
    return ("postload", "matrix", *at, *cpus, *wanted, "--out", f"postload-{_folder_name(cell.device)}")


def _named(shown: Sequence[str], command: str) -> tuple[str, ...]:
    return tuple(command if word == "{}" else word for word in shown)


def _can_shrink(cell: Cell, material: ExplainMaterial) -> bool:
    # late: it needs everything that loads state
    from harness.triage.reduction import check_target

    try:
        check_target(cell)
    except UsageError:
        return False
    return material.pack is not None


def _can_bundle(cell: Cell, material: ExplainMaterial) -> bool:
    """Whether a cell that was never minimised has a case of its own."""
    loads = (cell.by_load or cell.lane == "drift" or at_start(cell)) and cell.verdict is not Verdict.GUEST_FAULT
    return loads and material.pack is not None


def _bisect(cell: Cell, doc: MatrixDoc, shown: Sequence[str]) -> list[NextStep]:
    """Another QEMU of the run without the failure makes it worth while."""
    good = next((other for other in other_qemus(cell, doc) if other.verdict is Verdict.OK), None)
    if good is None or good.load_qemu.sha256 == cell.load_qemu.sha256:
        return []
    ends = ("--good", good.load_qemu.path, "--bad", cell.load_qemu.path)
    return [NextStep(argv=(*_named(shown, "bisect"), *ends), purpose=Purpose.BISECT)]


def _again(cell: Cell, material: ExplainMaterial, *, whole: bool) -> tuple[str, ...]:
    """The command that judges the cell again.

    :param whole: with every schedule and oracle of the phase
    """
    at = ("--qemu", cell.load_qemu.path)
    if material.pack is not None:
        command: tuple[str, ...] = ("postload", "replay", cell.pack, *at)
    else:
        command = ("postload", "matrix", *at, "--machine", cell.machine)
    command += ("--device", cell.device, "--phase", ",".join(cell.phases))
    if not whole and cell.by_load:
        command += ("--schedule", cell.schedule)
    name = _folder_name(f"{cell.device}-{cell.phases[0] if len(cell.phases) == 1 else 'all'}")
    return (*command, "--out", f"postload-{name}")


def _folder_name(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9.]+", "-", text)
