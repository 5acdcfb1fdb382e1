# SPDX-License-Identifier: GPL-2.0-or-later
"""A history as pages for any web server, or none: they work from a folder, and read without script.

::

    index.html             what is new, what came back, what is gone, what did not run; devices by QEMU, night by night
    signatures.html runs.html speeds.html
    devices/NAME.html      a device: each of its cells night by night, its findings, its speeds
    signatures/NAME.html   a finding: since when, where, how often, what is known of it, its smallest case
    runs/NAME.html         a run: what was not ok, and what was not judged
    bundles/NAME.tar.gz    bundles of findings
    style.css pages.js

Names come from runs of anybody: :func:`slug` makes names of files of them, and the templates escape every value.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib import resources
from typing import Any

from jinja2 import Environment

import harness
from harness.report import strips
from harness.report.history import NOT_RUN_WORDS, RUN_STATE_WORDS, excuse_text
from harness.report.html import environment
from harness.report.sentences import controls_text
from harness.report.text import first_of, plural
from harness.report.view import Finding, finding_of
from harness.results.document import Cell
from harness.results.key import CellKey, route_of
from harness.results.verdict import Verdict
from harness.store.document import ChangedCell, CompareDoc
from harness.store.nights import CellName, LineNights, Mark, Missing, Nights, Remark, mark_rank, newest, worst_of
from harness.store.read import Reproduction, RunRow, SignatureRow
from harness.store.signatures import SignatureOn
from harness.store.speeds import ONE_IN, Curve
from harness.store.states import Excuse, Look, excuse_of
from harness.triage.kept import KeptCase

#: Cells that a list names; the others are counted.
MOST_CELLS = 60
#: Findings of a question that are told at once; the others on demand.
MOST_AT_ONCE = 8
_LONGEST_SLUG = 80
_PLAIN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]*")
_FILES = ("style.css", "pages.css")


@dataclass(frozen=True, kw_only=True)
class Site:
    """All that the pages show.

    :param compared: the newest run against an earlier one; None where there is no earlier one
    :param signatures: those that are findings, seen last first
    :param on: what each signature is on each QEMU
    :param logs: of a signature the newest cell that is kept whole
    :param cases: the smallest case of a signature
    :param archives: signatures whose bundle can be downloaded
    :param excuses: what of the findings of a run does not count, by its number
    """

    nights: Nights
    compared: CompareDoc | None
    curves: Sequence[Curve]
    signatures: Sequence[SignatureRow]
    on: Sequence[SignatureOn]
    logs: Mapping[str, Cell]
    reproductions: Sequence[Reproduction]
    cases: Mapping[str, KeptCase]
    archives: frozenset[str]
    excuses: Mapping[int, Sequence[Excuse]]

    @cached_property
    def newest(self) -> RunRow:
        return self.nights.runs[0]

    @cached_property
    def night_names(self) -> tuple[str, ...]:
        return tuple(run.name for run in self.nights.shown)

    @cached_property
    def by_device(self) -> Mapping[str, Sequence[LineNights]]:
        """Lines of each device, by their names."""
        found: dict[str, list[LineNights]] = {}
        for line in self.nights.lines.values():
            found.setdefault(line.cell.device, []).append(line)
        return {device: sorted(lines, key=lambda each: each.cell.line) for device, lines in sorted(found.items())}

    @cached_property
    def devices(self) -> Mapping[str, DeviceRow]:
        return {row.name: row for row in device_rows(self)}

    @cached_property
    def routes(self) -> Sequence[str]:
        """QEMUs of the shown runs, by version."""
        return sorted({line.cell.route for line in self.nights.lines.values()}, key=natural)

    @cached_property
    def named(self) -> frozenset[str]:
        """Signatures that have a page."""
        return frozenset(each.name for each in self.signatures)

    @cached_property
    def device_signatures(self) -> Mapping[str, Sequence[SignatureRow]]:
        found: dict[str, list[SignatureRow]] = {}
        for each in self.signatures:
            for device in each.devices:
                found.setdefault(device, []).append(each)
        return found

    @cached_property
    def on_qemus(self) -> Mapping[str, Sequence[SignatureOn]]:
        found: dict[str, list[SignatureOn]] = {}
        for each in self.on:
            found.setdefault(each.signature, []).append(each)
        return {name: sorted(each, key=lambda one: natural(one.qemu)) for name, each in found.items()}

    @cached_property
    def machine_speeds(self) -> Sequence[Curve]:
        """Those that are of no device."""
        return sorted((curve for curve in self.curves if not curve.device), key=lambda curve: natural(curve.subject))

    @cached_property
    def device_speeds(self) -> Mapping[str, Sequence[Curve]]:
        found: dict[str, list[Curve]] = {}
        for curve in sorted(self.curves, key=lambda curve: natural(curve.subject)):
            if curve.device:
                found.setdefault(curve.device, []).append(curve)
        return dict(sorted(found.items()))

    @cached_property
    def changed(self) -> Sequence[Curve]:
        """Speeds that changed among the shown nights, those that changed last first."""
        found = [curve for curve in self.curves if curve.changes]
        return sorted(found, key=lambda curve: (-curve.changes[-1].night, natural(curve.subject)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Strip:
    """A row of nights, the oldest first."""

    marks: Sequence[Mark]

    @property
    def newest(self) -> Mark:
        return newest(self.marks)


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceRow:
    """A device through the nights; ``strips`` has one for each QEMU, None where it was never planned."""

    name: str
    strips: Sequence[Strip | None]

    @property
    def worst(self) -> Mark:
        return min((strip.newest for strip in self.strips if strip), key=mark_rank, default=Missing.ABSENT)


@dataclass(frozen=True, slots=True, kw_only=True)
class ChangeGroup:
    """Changes of one signature, or of cells that say nothing for one reason."""

    title: str
    changes: Sequence[ChangedCell]

    @property
    def known(self) -> str:
        return next((change.known for change in self.changes if change.known), "")

    @property
    def excuses(self) -> Sequence[Excuse]:
        """Why they do not count, or until when they are known."""
        return _each_once(change.excuse for change in self.changes)

    @property
    def verdict(self) -> Verdict | None:
        return next((v for change in self.changes for v in (change.now, change.was) if v is not None), None)

    @property
    def where(self) -> str:
        """On which QEMUs, and for which devices."""
        qemus = sorted({route_of(change.line) for change in self.changes}, key=natural)
        devices = sorted({CellKey.parse(change.line).device for change in self.changes})
        return f"{plural(len(self.changes), 'cell')} of {first_of(devices, 4)} on {', '.join(qemus)}"


@dataclass(frozen=True, slots=True, kw_only=True)
class MorningQuestion:
    """One of the questions of a morning, and its answer.

    :param count: cells, or findings in cells
    """

    anchor: str
    title: str
    nothing: str
    groups: Sequence[ChangeGroup]
    is_bad: bool

    @property
    def count(self) -> int:
        return sum(len(group.changes) for group in self.groups)


@dataclass(frozen=True, slots=True, kw_only=True)
class RemarkGroup:
    """What is not ok in a run, by signature; cells without one by what they came to."""

    signature: str
    mark: Mark
    remarks: Sequence[Remark]
    excuses: Sequence[Excuse]

    @property
    def known(self) -> str:
        return next((remark.known for remark in self.remarks if remark.known), "")

    @property
    def classes(self) -> Sequence[str]:
        return sorted({str(remark.failure_class) for remark in self.remarks if remark.failure_class})


def pages(site: Site) -> Iterator[tuple[str, str]]:
    """Every page: its place under the folder, and its text."""
    made = _environment(site)
    yield "style.css", "".join(_file(name) for name in _FILES)
    yield "pages.js", _file("pages.js")
    yield (
        "index.html",
        made.render(
            "start",
            title="Nights",
            questions=questions(site),
            excused=_by_signature(site.compared.excused) if site.compared else [],
            rows=list(site.devices.values()),
        ),
    )
    yield "signatures.html", made.render("signatures", title="Signatures")
    yield "runs.html", made.render("runs", title="Runs")
    yield "speeds.html", made.render("speeds", title="Speeds")
    for device, lines in site.by_device.items():
        yield device_page(device), made.render("device", title=device, **_device(site, device, lines))
    seen = _seen(site.nights)
    for each in site.signatures:
        yield signature_page(each.name), made.render("signature", title=each.name, **_signature(site, each, seen))
    for place, run in enumerate(site.nights.runs):
        yield run_page(run.name), made.render("run", title=run.name, **_run(site, run, place))


def device_page(name: str) -> str:
    return f"devices/{slug(name)}.html"


def signature_page(name: str) -> str:
    return f"signatures/{slug(name)}.html"


def run_page(name: str) -> str:
    return f"runs/{slug(name)}.html"


def archive_name(signature: str) -> str:
    """Where the bundle of a signature lies."""
    return f"bundles/{slug(signature)}.tar.gz"


def slug(name: str) -> str:
    """A name as that of a file: itself where it is plain and short, else what is plain of it and a hash of it all."""
    if _PLAIN.fullmatch(name) and len(name) <= _LONGEST_SLUG:
        return name
    plain = "-".join(_PLAIN.findall(name))[: _LONGEST_SLUG - 13].strip("-.")
    return f"{plain or 'name'}-{hashlib.sha256(name.encode('utf-8', 'replace')).hexdigest()[:12]}"


def natural(text: str) -> list[tuple[int, str]]:
    """A key that sorts 7.2 before 10.0."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", text) if part]


def is_link(text: str) -> bool:
    """Whether a link may be followed from a page: ``javascript:`` and the like may not."""
    return text.startswith(("https://", "http://"))


def device_rows(site: Site) -> list[DeviceRow]:
    """Devices by QEMU, what is worst now first."""
    rows = []
    for device, lines in site.by_device.items():
        by_route: dict[str, list[Sequence[Mark]]] = {}
        for line in lines:
            by_route.setdefault(line.cell.route, []).append(line.marks)
        strips_of = [Strip(marks=worst_of(by_route[route])) if route in by_route else None for route in site.routes]
        rows.append(DeviceRow(name=device, strips=strips_of))
    return sorted(rows, key=lambda row: (mark_rank(row.worst), row.name))


def questions(site: Site) -> list[MorningQuestion]:
    """The four of a morning, in their order."""
    doc = site.compared
    if doc is None:
        return []
    return [
        MorningQuestion(
            anchor="new",
            title="What is new?",
            nothing="Nothing is new.",
            groups=_by_signature(doc.new),
            is_bad=True,
        ),
        MorningQuestion(
            anchor="back",
            title="What came back?",
            nothing="Nothing came back.",
            groups=_by_signature(doc.back),
            is_bad=True,
        ),
        MorningQuestion(
            anchor="gone",
            title="What is gone?",
            nothing="Nothing is gone.",
            groups=[*_by_signature(doc.fixed), *_by_signature(doc.unseen)],
            is_bad=False,
        ),
        MorningQuestion(
            anchor="not-run",
            title="What did not run?",
            nothing="All cells that were planned, or were judged the last time, were judged.",
            groups=_by_reason(doc.not_run),
            is_bad=any(change.look is not Look.ABSENT for change in doc.not_run),
        ),
    ]


def _by_signature(changes: Iterable[ChangedCell]) -> list[ChangeGroup]:
    found: dict[str, list[ChangedCell]] = {}
    for change in changes:
        found.setdefault(change.signature, []).append(change)
    return [ChangeGroup(title=name, changes=each) for name, each in found.items()]


def _by_reason(changes: Sequence[ChangedCell]) -> list[ChangeGroup]:
    found = {look: [change for change in changes if change.look is look] for look in NOT_RUN_WORDS}
    return [ChangeGroup(title=NOT_RUN_WORDS[look], changes=each) for look, each in found.items() if each]


class _Pages:
    """The templates with what each page has."""

    def __init__(self, made: Environment, site: Site) -> None:
        self._made, self._site = made, site

    def render(self, name: str, **more: Any) -> str:
        root = "../" if name in ("device", "signature", "run") else ""
        template = self._made.get_template(f"{name}.html.j2")
        text: str = template.render(site=self._site, nights=self._site.nights, root=root, here=name, **more)
        return text


def _environment(site: Site) -> _Pages:
    made = environment()
    made.filters.update(natural=lambda texts: sorted(texts, key=natural))
    made.globals.update(
        program=harness.__version__,
        device_page=device_page,
        signature_page=signature_page,
        run_page=run_page,
        archive_name=archive_name,
        is_link=is_link,
        mark_class=strips.mark_class,
        mark_text=strips.mark_text,
        mark_rank=mark_rank,
        strip_svg=strips.strip_svg,
        curve_svg=strips.curve_svg,
        spark_svg=strips.spark_svg,
        change_text=strips.change_text,
        value_text=strips.value_text,
        ratio_text=strips.ratio_text,
        is_worse=strips.is_worse,
        excuse_text=excuse_text,
        state_word=RUN_STATE_WORDS.get,
        one_in=ONE_IN,
        most_cells=MOST_CELLS,
        most_at_once=MOST_AT_ONCE,
        Strip=Strip,
    )
    return _Pages(made, site)


def _file(name: str) -> str:
    return resources.files("harness.report").joinpath("templates", name).read_text(encoding="utf-8")


def _device(site: Site, device: str, lines: Sequence[LineNights]) -> dict[str, Any]:
    return {
        "row": site.devices[device],
        "lines": sorted(lines, key=lambda line: (mark_rank(line.newest), natural(line.cell.line))),
        "signatures": site.device_signatures.get(device, ()),
        "curves": site.device_speeds.get(device, ()),
        "machines": sorted({line.cell.machine for line in lines}, key=natural),
        "lanes": sorted({line.cell.lane for line in lines}),
    }


def _signature(site: Site, row: SignatureRow, seen: Mapping[str, list[tuple[RunRow, CellName]]]) -> dict[str, Any]:
    cell = site.logs.get(row.name)
    finding: Finding | None = finding_of(cell) if cell else None
    lines = {name.line for _, name in seen.get(row.name, ())} & site.nights.lines.keys()
    return {
        "row": row,
        "on": site.on_qemus.get(row.name, ()),
        "cell": cell,
        "finding": finding,
        "controls": controls_text(cell.outcome) if cell else "",
        "lines": sorted((site.nights.lines[name] for name in lines), key=lambda line: natural(line.cell.line)),
        "sightings": list(dict.fromkeys(run.name for run, _ in seen.get(row.name, ()))),
        "reproductions": [each for each in site.reproductions if each.signature == row.name],
        "case": site.cases.get(row.name),
        "has_bundle": row.name in site.archives,
    }


def _run(site: Site, run: RunRow, place: int) -> dict[str, Any]:
    runs = site.nights.runs
    remarks = site.nights.remarks.get(run.number, ())
    tallies = site.nights.tallies.get(run.number, ())
    devices: dict[str, Counter[Mark]] = {}
    for tally in tallies:
        devices.setdefault(tally.device, Counter())[tally.mark] += tally.cells
    marks = sorted({mark for counts in devices.values() for mark in counts}, key=mark_rank)
    return {
        "run": run,
        "later": runs[place - 1] if place else None,
        "earlier": runs[place + 1] if place + 1 < len(runs) else None,
        "groups": remark_groups(remarks, site.excuses.get(run.number, ())),
        "devices": sorted(devices.items(), key=lambda each: (min(map(mark_rank, each[1])), each[0])),
        "marks": marks,
        "answers": sorted(
            site.nights.answers.get(run.number, ()), key=lambda each: natural(f"{each.machine}/{each.qemu}")
        ),
    }


def remark_groups(remarks: Iterable[Remark], excuses: Sequence[Excuse]) -> list[RemarkGroup]:
    """What is not ok, by signature, the worst first.

    :param excuses: of the run
    """
    found: dict[tuple[str, Mark], list[Remark]] = {}
    for remark in remarks:
        found.setdefault((remark.signature, remark.mark), []).append(remark)
    groups = [
        RemarkGroup(
            signature=name,
            mark=mark,
            remarks=each,
            excuses=_each_once(excuse_of(excuses, one.cell.line, name, one.known) for one in each),
        )
        for (name, mark), each in found.items()
    ]
    return sorted(groups, key=lambda group: (mark_rank(group.mark), group.signature))


def _each_once(excuses: Iterable[Excuse | None]) -> list[Excuse]:
    """Excuses of several cells; of those for one reason the first."""
    found: dict[tuple[Any, ...], Excuse] = {}
    for each in excuses:
        if each is not None:
            found.setdefault((each.kind, each.link, each.until), each)
    return list(found.values())


def _seen(nights: Nights) -> dict[str, list[tuple[RunRow, CellName]]]:
    """Of each signature the runs and cells that had it, the newest run first."""
    found: dict[str, list[tuple[RunRow, CellName]]] = {}
    for run in nights.runs:
        for remark in nights.remarks.get(run.number, ()):
            if remark.signature:
                found.setdefault(remark.signature, []).append((run, remark.cell))
    return found
