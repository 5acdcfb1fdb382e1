# SPDX-License-Identifier: GPL-2.0-or-later
"""Everything known about one cell in words: the page of a terminal, and ``postload.explain/1``."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rich.console import Console
from rich.text import Text

from harness.qemu.threads import THREADS
from harness.report.allocations import allocations_how, allocations_text, site_title
from harness.report.progress import VERDICT_STYLE
from harness.report.sentences import (
    DERIVED_FROM,
    class_meaning,
    complaint_text,
    controls_text,
    figure_text,
    isolation_text,
    text_of,
    tried_again_text,
    verdict_meaning,
    warning_text,
)
from harness.report.stacks import stack_how, stack_text, symbols_text
from harness.report.terminal import MAX_LOG_LINES
from harness.report.text import duration, number, plural, wrapped
from harness.report.view import PHASE_MEANING, SCHEDULE_MEANING, cells_text, pair_text
from harness.results.cause import Derived, Drifted, KernelComplaint
from harness.results.document import Cell
from harness.results.frames import Frame, to_dispatcher
from harness.results.signature import name_of
from harness.results.verdict import Verdict
from harness.text import one_line, printable
from harness.triage.case import NeededField
from harness.triage.explain import Explanation, IssueNews, NextStep, Purpose, SectionFacts

SCHEMA = "postload.explain/1"
MAX_FRAMES, MAX_FIGURES, MAX_FIELDS, MAX_SECTIONS, MAX_REPORTS, MAX_CELLS = 12, 12, 4, 4, 3, 8
_LABEL_WIDTH = 11
#: A line of QEMU's log begins with the name of the program.
_PROGRAM = re.compile(r"^\S*qemu\S*: ")

PURPOSES = {
    Purpose.JUDGE_AGAIN: "judge it again",
    Purpose.LOOK: "look at what was not looked at",
    Purpose.MINIMISE: "make the smallest case",
    Purpose.BUNDLE: "make a folder for a bug report",
    Purpose.SEE_AGAIN: "see it again",
    Purpose.BISECT: "find the version that changed it",
    Purpose.KNOWN: "once it is reported",
}


def explain_json(told: Explanation) -> dict[str, Any]:
    """``postload.explain/1``."""
    cell, case = told.cell, told.case
    return {
        "schema": SCHEMA,
        "cell": cell.to_json(),
        "verdict": {"name": str(cell.verdict), "meaning": verdict_meaning(cell.verdict)},
        "class": _class_json(cell),
        "controls": controls_text(cell.outcome) or None,
        "signature": _signature_json(told),
        "known": _known_json(told),
        "machine": None if told.machine is None else told.machine.to_json(),
        "sections": [asdict(section) for section in told.sections],
        "section_note": section_note(told),
        "phase": {"name": told.phase, "meaning": PHASE_MEANING.get(told.phase, "")},
        "schedule": {"name": cell.lane, "meaning": SCHEDULE_MEANING.get(cell.lane, "")},
        "stack": None if told.stack is None else {**told.stack.to_json(), "text": stack_text(told.stack)},
        "allocations": _allocations_json(told),
        "reports": [report.to_json() for report in told.reports],
        "figures": list(figures_of(cell)),
        "case": None if case is None else {"folder": told.case_folder, **case.to_json()},
        "bundle": told.bundle or None,
        "same": [other.id for other in told.same],
        "elsewhere": elsewhere_lines(told),
        "unseen": unseen_lines(told),
        "next": [{"argv": list(step.argv), "purpose": PURPOSES[step.purpose]} for step in told.steps],
    }


def _allocations_json(told: Explanation) -> dict[str, Any] | None:
    found = told.allocations
    return None if found is None else {**found.to_json(), "text": allocations_text(found, whole=True)}


def _class_json(cell: Cell) -> dict[str, str] | None:
    found = cell.failure_class
    return None if found is None else {"name": str(found), "meaning": class_meaning(found)}


def _signature_json(told: Explanation) -> dict[str, Any] | None:
    parts = told.signature.to_json() if told.signature else {}
    return {"name": told.name, **parts} if told.name else None


def _known_json(told: Explanation) -> dict[str, Any] | None:
    if not told.cell.known and told.issue is None:
        return None
    issue = told.issue.model_dump(mode="json") if told.issue else {}
    return {"link": told.cell.known, **issue, "news": issue_note(told) or None}


def issue_note(told: Explanation) -> str:
    """What is new about the known issue; empty where nothing is."""
    cell, issue = told.cell, told.issue
    if issue is None or told.issue_news is None:
        return ""
    version = cell.load_qemu.version
    return {
        IssueNews.GUESTS_TOO: f"news: guests of {cell.record_qemu.version} have it too",
        IssueNews.FAILS_ALTHOUGH_FIXED: f"news: {version} fails, although it is said to be fixed in {issue.fixed_in}",
        IssueNews.UNLISTED: f"news: {version} is not among the versions that are said to have it",
    }[told.issue_news]


def section_note(told: Explanation) -> str:
    """Why there is nothing to tell of a section; empty where there is."""
    cell = told.cell
    if cell.blamed:
        return told.pack_note
    count = len(cell.sections)
    loaded = f"{plural(count, 'section')} of {cell.device}"
    return f"no section is blamed; loaded were {loaded}" if cell.verdict.is_finding else loaded


def same_lines(told: Explanation) -> list[str]:
    """The cells by QEMU, machine and device."""
    groups: dict[str, list[Cell]] = {}
    for other in told.same:
        where = "" if other.load_qemu.sha256 == told.cell.load_qemu.sha256 else f" on QEMU {other.load_qemu.version}"
        groups.setdefault(where, []).append(other)
    phases = frozenset(told.phases)
    return [f"{line}{where}" for where, found in groups.items() for line in cells_text(found, phases)]


def elsewhere_lines(told: Explanation) -> list[str]:
    """What the same cell came to on other QEMUs."""
    return [_one_elsewhere(told.cell, other) for other in told.elsewhere]


def _one_elsewhere(cell: Cell, other: Cell) -> str:
    told = f"{pair_text(other)}: {other.verdict}"
    if not name_of(other) or not name_of(cell):
        return told
    return f"{told}, {'the same' if name_of(other) == name_of(cell) else f'another: {name_of(other)}'}"


def unseen_lines(told: Explanation) -> list[str]:
    """What an ok cell says nothing of."""
    unseen, device = told.unseen, told.cell.device
    if unseen is None:
        return []
    notes = [f"sections that were left out: {', '.join(unseen.excluded)}"] if unseen.excluded else []
    notes += [f"not in this run for {device}: {', '.join(unseen.lanes)}"] if unseen.lanes else []
    notes += [f"phases not in this run: {', '.join(unseen.phases)}"] if unseen.phases else []
    if unseen.answers_alone:
        notes.append("this cell is about the answers of QEMU alone: not state, memory, or the guest's own view")
    return notes


# -- what the oracles measured ---------------------------------------------------------------------------------------


def figures_of(cell: Cell) -> tuple[str, ...]:
    """The figures of an oracle's cell in words; nothing for a cell of loads."""
    if cell.lane == "drift":
        causes = cell.outcome.causes
        saved = [line for cause in causes if isinstance(cause, Drifted) for line in _drift(cause)]
        return (*saved, *(line for cause in causes if isinstance(cause, Derived) for line in _derived(cause)))
    tellers = {"leak": _leak, "guest": _guest, "io-error": _io_error}
    tell = tellers.get(cell.lane)
    if tell is None:
        return ()
    named = cell.blamed if cell.verdict.is_finding else ()
    entries_ = [(key, value) for key, value in cell.details.items() if isinstance(value, dict) and key != "run"]
    wanted = [(key, value) for key, value in entries_ if key in named] or entries_
    return tuple(line for key, value in wanted for line in tell(key, value))


def _derived(derived: Derived) -> Iterable[str]:
    asked = DERIVED_FROM[derived.about]
    yield from (f"{asked}: only the recorded machine: {line}" for line in derived.gone)
    yield from (f"{asked}: only the loaded machine: {line}" for line in derived.new)
    more = derived.count - len(derived.gone) - len(derived.new)
    if more > 0:
        yield f"{asked}: {plural(more, 'more line')}"


def _drift(drifted: Drifted) -> Iterable[str]:
    for each in drifted.fields:
        values = " -> ".join("absent" if value is None else str(value) for value in each.values)
        notes = [f"{each.per_load:+.4g} each load"] if each.per_load else []
        notes += ["always in one direction"] if each.creeps else []
        notes += ["moves without loads as well"] if each.without_loads else []
        yield f"{drifted.section} {each.field}: {values}" + (f" ({', '.join(notes)})" if notes else "")
    more = drifted.count - len(drifted.fields)
    if more > 0:
        yield f"{drifted.section}: {plural(more, 'more field')} {'drifts' if more == 1 else 'drift'}"


_MEASURED = {"bytes": "by the byte", "pages": "by the page"}


def _leak(label: str, told: Mapping[str, Any]) -> Iterable[str]:
    memory = told.get("memory_bytes_per_load")
    if not isinstance(memory, dict):
        return
    looked = "confirmed in a second process" if told.get("confirmed") else "seen in one process"
    floor = told.get("floor_bytes_per_load")
    yield (
        f"{label}: {_interval(memory)} bytes of memory each load; less than {floor} would be noise; "
        f"{told.get('loads')} loads, {_MEASURED.get(str(told.get('measured')), '')}, {looked}"
    )
    chunks = [f"{chunk['per_load']:.2f} of {plural(chunk['bytes'], 'byte')}" for chunk in told.get("chunks") or []]
    if chunks:
        yield f"{label}: heap chunks each load: {', '.join(chunks)}"
    for key, what in (("descriptors_per_load", "descriptors"), ("threads_per_load", "threads")):
        slope = told.get(key) or {}
        if slope.get("low", 0) > 0:
            yield f"{label}: {_interval(slope)} {what} each load"


def _interval(slope: Mapping[str, Any]) -> str:
    return figure_text(*(float(slope.get(key, 0)) for key in ("estimate", "low", "high")))


def _guest(label: str, told: Mapping[str, Any]) -> Iterable[str]:
    check = told.get("check")
    if isinstance(check, dict):
        said = " ".join(str(check.get("said", "")).split())
        yield f"{label}: its check in the guest ended with {check.get('status')}{f': {said}' if said else ''}"
    clock = told.get("clock")
    if isinstance(clock, dict):
        yield f"clock: {clock.get('host_s')} s passed on the host, {clock.get('up_s')} s in the guest"
    for noted in told.get("kernel_log") or []:
        meaning = [complaint_text(known) for known in KernelComplaint if known == noted.get("complaint")]
        yield f"kernel: {noted.get('line')}{''.join(f' ({text})' for text in meaning)}"


def _io_error(label: str, told: Mapping[str, Any]) -> Iterable[str]:
    acked, asked = (told.get("loads") or [0, 0])[:2]
    states = ", ".join(dict.fromkeys(map(_interval_text, told.get("intervals") or []))) or "none"
    after = _interval_text(told["after"]) if told.get("after") else "gone"
    yield f"{label}: {number(acked)} of {plural(asked, 'load')}; guest between them: {states}; after them: {after}"


def _interval_text(told: Mapping[str, Any]) -> str:
    held = ", ".join(f"{disk} held {count} back" for disk, count in (told.get("held") or {}).items())
    return f"{told.get('status')}{f' ({held})' if held else ''}"


# -- the page --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One line of the page.

    :param whole: never broken, so that it can be copied; the terminal wraps it
    """

    text: str
    style: str = ""
    whole: bool = False


Lines = Iterator[Line]


def print_page(told: Explanation, console: Console) -> None:
    """Print an explanation; plain when piped. Readable from 80 columns on."""
    _print_head(told, console)
    for label, tell in PAGE:
        for count, line in enumerate(tell(told)):
            _print_row("" if count else label, line, console)
    _print_steps(told.steps, console)


def _print_head(told: Explanation, console: Console) -> None:
    cell = told.cell
    head = Text().append(str(cell.verdict), style=VERDICT_STYLE[cell.verdict])
    _put(console, head.append(f"  {one_line(cell.id)}", style="bold"))
    for text, style in ((verdict_meaning(cell.verdict), "dim"), (text_of(cell) if cell.outcome.causes else "", "")):
        for line in wrapped(one_line(text), console.width - 1, "  ", "  "):
            _put(console, Text(line, style=style))
    _put(console, Text())


def _print_row(label: str, line: Line, console: Console) -> None:
    start = f"{label:<{_LABEL_WIDTH}}"
    text = printable(line.text)
    lines = [] if line.whole else wrapped(one_line(text), console.width - 1, start, " " * _LABEL_WIDTH)
    for each in lines or [start + text]:
        _put(console, Text(each[:_LABEL_WIDTH], style="dim").append(each[_LABEL_WIDTH:], style=line.style or "not dim"))


def _print_steps(steps: Sequence[NextStep], console: Console) -> None:
    if not steps:
        return
    _put(console, Text())
    for count, step in enumerate(steps):
        _put(console, Text(f"{'then' if count else 'next'}: {PURPOSES[step.purpose]}", style="dim"))
        for line in command_lines(step.argv, console.width - 5):
            _put(console, Text(f"  {line}", style="" if count else "bold"))


def command_lines(argv: Sequence[str], width: int) -> list[str]:
    """A command for a shell, on several lines where it is long; an option stays with its value, a word is whole."""
    parts: list[str] = []
    for word in map(shlex.quote, argv):
        if parts and parts[-1].startswith("--") and " " not in parts[-1]:
            parts[-1] += f" {word}"
        else:
            parts.append(word)
    lines = parts[:1]
    for part in parts[1:]:
        if len(lines[-1]) + len(part) + 3 > width:
            lines[-1] += " \\"
            lines.append(f"    {part}")
        else:
            lines[-1] += f" {part}"
    return lines


def _put(console: Console, text: Text) -> None:
    console.print(text, markup=False, highlight=False, soft_wrap=True)


def _machine(told: Explanation) -> Lines:
    cell = told.cell
    build = f", {cell.load_qemu.build}" if cell.load_qemu.build else ""
    yield Line(text=f"{cell.machine} ({cell.accel}) on QEMU {pair_text(cell)}{build}")
    yield Line(text=cell.load_qemu.path, style="dim", whole=True)
    if told.machine and told.machine.resets_before_load:
        yield Line(text="this build resets the machine before each load", style="dim")


def _class(told: Explanation) -> Lines:
    found = told.cell.failure_class
    if found is not None:
        yield Line(text=f"{found}: {class_meaning(found)}")


def _controls(told: Explanation) -> Lines:
    cell = told.cell
    if cell.outcome.controls:
        yield Line(text=controls_text(cell.outcome))
    elif cell.by_load and cell.verdict.is_finding:
        yield Line(text="none were run; without --quick the matrix runs them", style="dim")
    elif cell.verdict is Verdict.OK:
        yield Line(text="none: they are run of what fails", style="dim")


def _signature(told: Explanation) -> Lines:
    if told.name:
        yield Line(text=told.name, style="bold", whole=True)


def _known(told: Explanation) -> Lines:
    issue = told.issue
    link = told.cell.known or (issue.link if issue else "")
    if link:
        yield Line(text=link, style="cyan", whole=True)
    if issue:
        fixed = f", fixed in {issue.fixed_in}" if issue.fixed_in else ""
        yield Line(text=f"affected: {', '.join(issue.affected)}{fixed}{f'; {issue.note}' if issue.note else ''}")
    if issue_note(told):
        yield Line(text=issue_note(told), style="yellow")


def _section(told: Explanation) -> Lines:
    for facts in told.sections[:MAX_SECTIONS]:
        yield Line(text=facts.label, style="bold", whole=True)
        about = _about_section(facts)
        if about:
            yield Line(text=about)
    more = len(told.sections) - MAX_SECTIONS
    if more > 0:
        yield Line(text=f"and {more} more")
    note = section_note(told)
    if note:
        yield Line(text=note, style="dim")
    outcome = told.cell.outcome
    if outcome.isolation:
        yield Line(text=isolation_text(outcome.isolation, outcome.sections))
    if outcome.hindered:
        yield Line(text=tried_again_text(outcome), style="dim")
    if told.cell.excluded and told.cell.verdict is not Verdict.OK:
        yield Line(text=f"left out: {', '.join(told.cell.excluded)}", style="dim")


def _about_section(facts: SectionFacts) -> str:
    if not facts.size_bytes:
        return f"of {facts.owner}" if facts.owner else ""
    parts = [f"{facts.vmsd or 'old-style, not described'} v{facts.version}", plural(facts.size_bytes, "byte")]
    parts += [plural(facts.fields, "field")] if facts.fields else []
    parts += [f"with {', '.join(facts.subsections)}"] if facts.subsections else []
    owner = f"; of {facts.owner}: {facts.about}" if facts.about else f"; of {facts.owner}" if facts.owner else ""
    return ", ".join(parts) + owner


def _when(told: Explanation) -> Lines:
    cell = told.cell
    meaning = PHASE_MEANING.get(told.phase, "")
    several = "s" if "," in told.phase else ""
    phase = f"phase{several} {told.phase}{f' ({meaning})' if meaning else ''}"
    load = cell.outcome.load
    at = f", load {number(load)}" if load is not None else ""
    yield Line(text=f"{phase}{at}; {number(cell.loads_acked)} of {plural(cell.loads_asked, 'load')} acknowledged")
    if cell.shared_with:
        yield Line(text=f"the session loaded the whole state, for {cell.shared_with} too", style="dim")
    lane = SCHEDULE_MEANING.get(cell.lane, "")
    yield Line(text=f"{cell.lane}{f': {lane}' if lane else ''}; guest {cell.guest_mode}", style="dim")
    for warning in cell.warnings[:MAX_REPORTS]:
        yield Line(text=f"warning: {warning_text(warning)}", style="dim")


def _stack_rows(told: Explanation) -> Lines:
    stack = told.stack
    if stack is None:
        return
    if stack.short:
        yield Line(text=stack.short, style="bold")
    own = [at for at, frame in enumerate(stack.frames) if frame.in_qemu] or [0, len(stack.frames)]
    shown = stack.frames[own[0] : min(own[0] + MAX_FRAMES, own[-1] + 1)]
    for frame in shown:
        yield Line(text=frame.text)
    left = len(stack.frames) - len(shown)
    note = f"; {plural(left, 'frame')} of libraries and farther out: --json has them" if left else ""
    yield Line(text=stack_how(stack) + note, style="dim")
    yield from _symbols(told, shown)


def _symbols(told: Explanation, shown: Iterable[Frame]) -> Lines:
    """Where the names come from that frames on the page lack."""
    if any(not frame.function for frame in shown):
        yield Line(text=symbols_text(told.cell.machine, told.cell.load_qemu.build), style="dim")


def _allocations(told: Explanation) -> Lines:
    found = told.allocations
    if found is None:
        return
    for site in found.sites[:MAX_REPORTS]:
        yield Line(text=f"{site_title(site)}{f': {site.short}' if site.short else ''}", style="bold")
        for frame in to_dispatcher(site.frames)[:MAX_FRAMES]:
            yield Line(text=frame.text)
    left = len(found.sites) - MAX_REPORTS
    note = f"; {plural(left, 'more call site')}: --json has them" if left > 0 else ""
    yield Line(text=allocations_how(found) + note, style="dim")
    yield from _symbols(told, (frame for site in found.sites for frame in to_dispatcher(site.frames)))


def _reports(told: Explanation) -> Lines:
    for report in told.reports[:MAX_REPORTS]:
        yield Line(text=report.text)
    more = len(told.reports) - MAX_REPORTS
    if more > 0:
        yield Line(text=f"and {more} more", style="dim")


def _log(told: Explanation) -> Lines:
    log = told.cell.outcome.log.partition(THREADS)[0]
    lines = [line.rstrip() for line in printable(log).splitlines() if line.strip()]
    if len(lines) == 1 and _PROGRAM.sub("", one_line(lines[0])) in one_line(text_of(told.cell)):
        return
    if len(lines) > MAX_LOG_LINES:
        yield Line(text=f"... {len(lines) - MAX_LOG_LINES} lines before", style="dim")
    for line in lines[-MAX_LOG_LINES:]:
        yield Line(text=line)


def _figures(told: Explanation) -> Lines:
    figures = figures_of(told.cell)
    for text in figures[:MAX_FIGURES]:
        yield Line(text=text)
    more = len(figures) - MAX_FIGURES
    if more > 0:
        yield Line(text=f"and {more} more lines: --json has them", style="dim")


def _smallest(told: Explanation) -> Lines:
    case = told.case
    if case is None:
        if told.cell.verdict.is_finding:
            can = any("minimise" in step.argv for step in told.steps)
            yield Line(text="none yet" if can else "none, and none can be made of this cell here", style="dim")
        return
    yield Line(text=case.sentence, style="bold")
    healthy = [_healthy(needed) for needed in case.fields[:MAX_FIELDS]]
    more = len(case.fields) - MAX_FIELDS
    if healthy:
        yield Line(text=f"passes with {', '.join(healthy)}{f' and {more} more' if more > 0 else ''}")
    spent = f"found in {plural(case.spent.sessions, 'session')}, {duration(case.spent.seconds)}"
    pages = plural(case.ram_pages, "page") + " of guest memory"
    yield Line(text=f"{case.rate.failed} of {case.rate.tried} tries fail; {pages}; {spent}", style="dim")
    yield Line(text=told.case_folder, style="dim", whole=True)


def _healthy(needed: NeededField) -> str:
    bit = f" bit {needed.bit}" if needed.bit is not None else ""
    register = f" ({needed.register})" if needed.register else ""
    value = "absent" if needed.healthy is None else f"= {needed.healthy}"
    return f"{needed.path}{bit}{register} {value}"


def _bundle(told: Explanation) -> Lines:
    if told.bundle:
        yield Line(text=told.bundle, whole=True)


def _same(told: Explanation) -> Lines:
    lines = same_lines(told)
    for text in lines[:MAX_CELLS]:
        yield Line(text=text)
    if len(lines) > MAX_CELLS:
        yield Line(text=f"and {len(lines) - MAX_CELLS} more lines: --json has them", style="dim")
    if not told.same and told.cell.verdict.is_finding:
        yield Line(text="no other cell of this run", style="dim")


def _elsewhere(told: Explanation) -> Lines:
    for text in elsewhere_lines(told)[:MAX_CELLS]:
        yield Line(text=f"QEMU {text}")
    if len(told.elsewhere) > MAX_CELLS:
        yield Line(text=f"and {len(told.elsewhere) - MAX_CELLS} more", style="dim")


def _unseen(told: Explanation) -> Lines:
    for text in unseen_lines(told):
        yield Line(text=text, style="dim")


#: The page, in its order.
PAGE: tuple[tuple[str, Callable[[Explanation], Lines]], ...] = (
    ("machine", _machine),
    ("class", _class),
    ("controls", _controls),
    ("signature", _signature),
    ("known", _known),
    ("section", _section),
    ("when", _when),
    ("stack", _stack_rows),
    ("allocated", _allocations),
    ("report", _reports),
    ("log", _log),
    ("measured", _figures),
    ("case", _smallest),
    ("bundle", _bundle),
    ("same", _same),
    ("elsewhere", _elsewhere),
    ("not seen", _unseen),
)
