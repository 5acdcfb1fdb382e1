# SPDX-License-Identifier: GPL-2.0-or-later
"""Everything known about one cell, as data: what a run says of it, its state pack, its stack and its smallest case.

Nothing here starts a QEMU; :mod:`harness.triage.stack` repeats the failure under gdb.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from harness.devices.recipe import load_recipes
from harness.errors import UsageError
from harness.packs.pack import StatePack
from harness.qemu.threads import THREADS
from harness.report.sentences import controls_text
from harness.report.view import PHASE_MEANING, SCHEDULE_MEANING, cells_text, look_of, pair_text, phases_of
from harness.results.cause import Drifted
from harness.results.document import LANES, Cell, MachineResult, MatrixDoc
from harness.results.known import Issue
from harness.results.sanitizer import Report, parse_reports
from harness.results.signature import Signature, family_of, name_of, signature_of_cell
from harness.results.verdict import Verdict
from harness.state.transforms import label_of
from harness.triage.backtrace import Backtrace
from harness.triage.case import Case
from harness.triage.cells import at_start, phase_of
from harness.triage.stack import folder_of

SCHEMA = "postload.explain/1"
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """A command to type, and what for; ``argv`` can be pasted once it is quoted."""

    argv: tuple[str, ...]
    purpose: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    """What is known of a cell.

    :param machine: what the run says of its machine type; None when it does not
    :param signature: of its finding, None where it has none
    :param issue: the known issue that it is, None when the file is not given; ``cell.known`` has the link
    :param issue_note: what is new about that issue
    :param section_note: why ``sections`` has nothing to tell
    :param stack: None where none was asked for or there is nothing to have one of
    :param figures: what the oracle of the cell measured, a line each
    :param case_folder: where the smallest case lies, empty when there is none
    :param bundle: folder of the bundle in its usual place, empty when there is none
    :param same: cells of the run with the same finding, in words; ``same_ids`` their ids
    :param elsewhere: what the same cell came to on other QEMUs of the run
    :param unseen: what was not looked at
    :param steps: what to type next, the first first
    """

    cell: Cell
    machine: MachineResult | None = None
    signature: Signature | None = None
    issue: Issue | None = None
    issue_note: str = ""
    sections: tuple[SectionFacts, ...] = ()
    section_note: str = ""
    stack: Backtrace | None = None
    reports: tuple[Report, ...] = ()
    figures: tuple[str, ...] = ()
    case: Case | None = None
    case_folder: str = ""
    bundle: str = ""
    same: tuple[str, ...] = ()
    same_ids: tuple[str, ...] = ()
    elsewhere: tuple[str, ...] = ()
    unseen: tuple[str, ...] = ()
    steps: tuple[Step, ...] = ()

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

    def to_json(self) -> dict[str, Any]:
        """``postload.explain/1``."""
        cell, case = self.cell, self.case
        return {
            "schema": SCHEMA,
            "cell": cell.to_json(),
            "verdict": {"name": str(cell.verdict), "meaning": cell.verdict.meaning},
            "class": _class_json(cell),
            "controls": controls_text(cell.outcome) or None,
            "signature": _signature_json(self),
            "known": _known_json(self),
            "machine": None if self.machine is None else self.machine.to_json(),
            "sections": [asdict(section) for section in self.sections],
            "section_note": self.section_note,
            "phase": {"name": self.phase, "meaning": PHASE_MEANING.get(self.phase, "")},
            "schedule": {"name": cell.lane, "meaning": SCHEDULE_MEANING.get(cell.lane, "")},
            "stack": None if self.stack is None else self.stack.to_json(),
            "reports": [report.to_json() for report in self.reports],
            "figures": list(self.figures),
            "case": None if case is None else {"folder": self.case_folder, **case.to_json()},
            "bundle": self.bundle or None,
            "same": list(self.same_ids),
            "elsewhere": list(self.elsewhere),
            "unseen": list(self.unseen),
            "next": [{"argv": list(step.argv), "purpose": step.purpose} for step in self.steps],
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Material:
    """What is known besides the run's document.

    :param run: the folder, as the user named it
    :param pack: the state pack of the cell, open; None when it is gone, and ``pack_note`` says so
    :param case: the smallest case, with its folder
    """

    run: Path
    pack: StatePack | None = None
    pack_note: str = ""
    stack: Backtrace | None = None
    case: Case | None = None
    case_folder: Path | None = None
    issues: tuple[Issue, ...] = ()


def explain(cell: Cell, doc: MatrixDoc, material: Material) -> Explanation:
    """Put together what is known of a cell of a run. Starts nothing."""
    signature = signature_of_cell(cell)
    alike = same_finding(cell, doc)
    issue, news = _issue(cell, material.issues)
    if issue and issue.expected_in(cell):
        cell = replace(cell, known=issue.link)
    sections, section_note = _sections(cell, material)
    log = cell.outcome.log
    bundle = folder_of(material.run) / BUNDLES / cell.slug
    return Explanation(
        cell=cell,
        machine=_machine(cell, doc),
        signature=signature,
        issue=issue,
        issue_note=news,
        sections=sections,
        section_note=section_note,
        stack=material.stack,
        reports=parse_reports(log.partition(THREADS)[0]),
        figures=figures_of(cell),
        case=material.case,
        case_folder=str(material.case_folder or ""),
        bundle=str(bundle) if bundle.is_dir() else "",
        same=_words(cell, alike, doc),
        same_ids=tuple(other.id for other in alike),
        elsewhere=tuple(_elsewhere(cell, other) for other in other_qemus(cell, doc)),
        unseen=unseen(cell, doc),
        steps=next_steps(cell, doc, material),
    )


def _class_json(cell: Cell) -> dict[str, str] | None:
    found = cell.failure_class
    return None if found is None else {"name": str(found), "meaning": found.meaning}


def _signature_json(told: Explanation) -> dict[str, Any] | None:
    parts = told.signature.to_json() if told.signature else {}
    return {"name": told.name, **parts} if told.name else None


def _known_json(told: Explanation) -> dict[str, Any] | None:
    if not told.cell.known and told.issue is None:
        return None
    issue = told.issue.model_dump(mode="json") if told.issue else {}
    return {"link": told.cell.known, **issue, "news": told.issue_note or None}


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


def _words(cell: Cell, alike: Sequence[Cell], doc: MatrixDoc) -> tuple[str, ...]:
    """The cells by QEMU, machine and device."""
    groups: dict[str, list[Cell]] = {}
    for other in alike:
        where = "" if other.load_qemu.sha256 == cell.load_qemu.sha256 else f" on QEMU {other.load_qemu.version}"
        groups.setdefault(where, []).append(other)
    phases = phases_of(doc.cells)
    return tuple(f"{line}{where}" for where, found in groups.items() for line in cells_text(found, phases))


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


def _elsewhere(cell: Cell, other: Cell) -> str:
    told = f"{pair_text(other)}: {other.verdict}"
    if not name_of(other) or not name_of(cell):
        return told
    return f"{told}, {'the same' if name_of(other) == name_of(cell) else f'another: {name_of(other)}'}"


def _issue(cell: Cell, issues: Sequence[Issue]) -> tuple[Issue | None, str]:
    """The known issue of a cell's signature, and what is new about it."""
    name, version = name_of(cell), cell.load_qemu.version
    own = [issue for issue in issues if issue.signature == name]
    best = next((issue for issue in own if issue.expected_in(cell)), next(iter(own), None))
    if best is None or best.expected_in(cell):
        return best, ""
    if not best.takes(cell):
        return best, f"news: guests of {cell.record_qemu.version} have it too"
    if best.is_fixed(version):
        return best, f"news: {version} fails, although it is said to be fixed in {best.fixed_in}"
    return best, f"news: {version} is not among the versions that are said to have it"


def unseen(cell: Cell, doc: MatrixDoc) -> tuple[str, ...]:
    """What an ok cell says nothing of: sections left out, and what the run did not look at for this device."""
    if cell.verdict is not Verdict.OK:
        return ()
    notes = [f"sections that were left out: {', '.join(cell.excluded)}"] if cell.excluded else []
    mine = [o for o in doc.cells if (o.machine, o.device, o.load_qemu) == (cell.machine, cell.device, cell.load_qemu)]
    lanes = [lane for lane in LANES if lane not in {o.lane for o in mine}]
    notes += [f"not in this run for {cell.device}: {', '.join(lanes)}"] if lanes else []
    phases = [phase for phase in PHASE_MEANING if phase not in {p for o in mine for p in o.phases}]
    notes += [f"phases not in this run: {', '.join(phases)}"] if phases else []
    if cell.by_load:
        notes.append("this cell is about the answers of QEMU alone: not state, memory, or the guest's own view")
    return tuple(notes)


# -- the state pack --------------------------------------------------------------------------------------------------


def _sections(cell: Cell, material: Material) -> tuple[tuple[SectionFacts, ...], str]:
    labels = cell.blamed
    if not labels:
        count = len(cell.sections)
        loaded = f"{count} section{'s' if count != 1 else ''} of {cell.device}"
        note = f"no section is blamed; loaded were {loaded}" if cell.verdict.is_finding else loaded
        return (), note
    if material.pack is None:
        return tuple(SectionFacts(label=label) for label in labels), material.pack_note
    phase = phase_of(cell)
    return tuple(section_facts(material.pack, phase, label) for label in labels), ""


def section_facts(pack: StatePack, phase: str, label: str) -> SectionFacts:
    """What a recording says of a section; the label alone where it is not there."""
    recording = pack.recordings.get(phase) or pack.recordings[pack.phases[-1]]
    section = next((each for each in recording.sections if label_of(each) == label), None)
    owner = next((device.name for device in pack.manifest.devices if label in device.sections), "")
    if section is None:
        return SectionFacts(label=label, owner=owner)
    desc = recording.vmdesc.device(section.idstr, section.instance_id)
    device = load_recipes().devices.get(owner)
    return SectionFacts(
        label=label,
        vmsd=desc.vmsd_name if desc else "",
        version=section.version_id,
        size_bytes=len(section.payload),
        fields=len({each.name for each in desc.fields}) if desc else 0,
        subsections=tuple(each.vmsd_name for each in desc.subsections) if desc else (),
        owner=owner,
        about=device.about if device else "",
    )


# -- what the oracles measured ---------------------------------------------------------------------------------------


def figures_of(cell: Cell) -> tuple[str, ...]:
    """The figures of an oracle's cell in words; nothing for a cell of loads."""
    if cell.lane == "drift":
        return tuple(line for cause in cell.outcome.causes if isinstance(cause, Drifted) for line in _drift(cause))
    tellers = {"leak": _leak, "guest": _guest, "io-error": _io_error}
    tell = tellers.get(cell.lane)
    if tell is None:
        return ()
    named = cell.blamed if cell.verdict.is_finding else ()
    entries_ = [(key, value) for key, value in cell.details.items() if isinstance(value, dict) and key != "run"]
    wanted = [(key, value) for key, value in entries_ if key in named] or entries_
    return tuple(line for key, value in wanted for line in tell(key, value))


def _drift(drifted: Drifted) -> Iterable[str]:
    for each in drifted.fields:
        values = " -> ".join("absent" if value is None else str(value) for value in each.values)
        notes = [f"{each.per_load:+.4g} each load"] if each.per_load else []
        notes += ["always in one direction"] if each.creeps else []
        notes += ["moves without loads as well"] if each.without_loads else []
        yield f"{drifted.section} {each.field}: {values}" + (f" ({', '.join(notes)})" if notes else "")
    more = drifted.count - len(drifted.fields)
    if more > 0:
        yield f"{drifted.section}: {more} more fields drift"


def _leak(label: str, told: Mapping[str, Any]) -> Iterable[str]:
    memory = told.get("memory_bytes_per_load")
    if not isinstance(memory, dict):
        return
    looked = "confirmed in a second process" if told.get("confirmed") else "seen in one process"
    floor = told.get("floor_bytes_per_load")
    yield (
        f"{label}: {_interval(memory)} bytes of memory each load; less than {floor} would be noise; "
        f"{told.get('loads')} loads, {told.get('measured', '')}, {looked}"
    )
    chunks = [f"{chunk['per_load']:.2f} of {chunk['bytes']} bytes" for chunk in told.get("chunks") or []]
    if chunks:
        yield f"{label}: heap chunks each load: {', '.join(chunks)}"
    for key, what in (("descriptors_per_load", "descriptors"), ("threads_per_load", "threads")):
        slope = told.get(key) or {}
        if slope.get("low", 0) > 0:
            yield f"{label}: {_interval(slope)} {what} each load"


def _interval(slope: Mapping[str, Any]) -> str:
    return f"{slope.get('estimate', 0):.3g} [{slope.get('low', 0):.3g}, {slope.get('high', 0):.3g}]"


def _guest(label: str, told: Mapping[str, Any]) -> Iterable[str]:
    check = told.get("check")
    if isinstance(check, dict):
        said = " ".join(str(check.get("said", "")).split())
        yield f"{label}: its check in the guest ended with {check.get('status')}{f': {said}' if said else ''}"
    clock = told.get("clock")
    if isinstance(clock, dict):
        yield f"clock: {clock.get('host_s')} s passed on the host, {clock.get('up_s')} s in the guest"
    for line in told.get("kernel_log") or []:
        words = line.values() if isinstance(line, dict) else [line]
        yield f"kernel: {' '.join(str(word) for word in words)}"


def _io_error(label: str, told: Mapping[str, Any]) -> Iterable[str]:
    acked, asked = (told.get("loads") or [0, 0])[:2]
    states = ", ".join(dict.fromkeys(map(str, told.get("intervals") or []))) or "none"
    after = told.get("after") or "gone"
    yield f"{label}: {acked} of {asked} loads; guest between them: {states}; after them: {after}"


# -- what to type next -----------------------------------------------------------------------------------------------


def next_steps(cell: Cell, doc: MatrixDoc, material: Material) -> tuple[Step, ...]:
    """The commands that make sense now, in their order."""
    if cell.verdict is Verdict.UNSUPPORTED:
        return ()
    if not cell.verdict.is_finding:
        wanted = bool(cell.verdict.is_undecided or unseen(cell, doc))
        purpose = "judge it again" if cell.verdict.is_undecided else "look at what was not looked at"
        return (Step(argv=_again(cell, material, whole=True), purpose=purpose),) if wanted else ()
    run = str(material.run)
    shown = ("postload", "{}", cell.id, "--run", run)
    steps = []
    if material.case is None and _can_shrink(cell, material):
        steps.append(Step(argv=_named(shown, "minimise"), purpose="make the smallest case"))
    bundle = folder_of(material.run) / BUNDLES / cell.slug
    if (material.case or steps or _can_bundle(cell, material)) and not bundle.exists():
        argv = (*_named(shown, "bundle"), "--out", str(bundle))
        steps.append(Step(argv=argv, purpose="make a folder for a bug report"))
    if not steps and not bundle.exists():
        steps.append(Step(argv=_again(cell, material, whole=False), purpose="see it again"))
    steps += _bisect(cell, doc, shown) if material.case or material.pack else []
    if not cell.known:
        argv = ("postload", "known", "add", cell.id, "--run", run, "--link", LINK_PLACE)
        steps.append(Step(argv=argv, purpose="once it is reported"))
    return tuple(steps)


def _named(shown: Sequence[str], command: str) -> tuple[str, ...]:
    return tuple(command if word == "{}" else word for word in shown)


def _can_shrink(cell: Cell, material: Material) -> bool:
    # late: it needs everything that loads state
    from harness.triage.reduction import check_target

    try:
        check_target(cell)
    except UsageError:
        return False
    return material.pack is not None


def _can_bundle(cell: Cell, material: Material) -> bool:
    """Whether a cell that was never minimised has a case of its own."""
    loads = (cell.by_load or cell.lane == "drift" or at_start(cell)) and cell.verdict is not Verdict.GUEST_FAULT
    return loads and material.pack is not None


def _bisect(cell: Cell, doc: MatrixDoc, shown: Sequence[str]) -> list[Step]:
    """Another QEMU of the run without the failure makes it worth while."""
    good = next((other for other in other_qemus(cell, doc) if other.verdict is Verdict.OK), None)
    if good is None or good.load_qemu.sha256 == cell.load_qemu.sha256:
        return []
    ends = ("--good", good.load_qemu.path, "--bad", cell.load_qemu.path)
    return [Step(argv=(*_named(shown, "bisect"), *ends), purpose="find the version that changed it")]


def _again(cell: Cell, material: Material, *, whole: bool) -> tuple[str, ...]:
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
    name = re.sub(r"[^A-Za-z0-9.]+", "-", f"{cell.device}-{cell.phases[0] if len(cell.phases) == 1 else 'all'}")
    return (*command, "--out", f"postload-{name}")
