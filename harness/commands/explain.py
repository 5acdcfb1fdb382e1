# SPDX-License-Identifier: GPL-2.0-or-later
"""``postload explain``: everything known about one cell, on one page of a terminal."""

from __future__ import annotations

import contextlib
import re
import shlex
import textwrap
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import click
from rich.console import Console
from rich.text import Text

from harness.commands.options import err, json_option, print_json, run_option
from harness.errors import MissingError, PostloadError
from harness.packs.pack import StatePack
from harness.qemu.binary import QemuBinary
from harness.qemu.threads import THREADS
from harness.report.progress import VERDICT_STYLE
from harness.report.sentences import controls_text, isolation_text, text_of, warning_text
from harness.report.terminal import MAX_LOG_LINES
from harness.report.text import duration, number, one_line, printable
from harness.report.view import PHASE_MEANING, SCHEDULE_MEANING, pair_text
from harness.results.document import Cell, find_cell, read_matrix
from harness.results.known import load_known
from harness.results.verdict import Verdict
from harness.triage.backtrace import Backtrace
from harness.triage.case import Case, NeededField
from harness.triage.explain import Explanation, Material, SectionFacts, Step, explain
from harness.triage.interrupt import one_interrupt
from harness.triage.stack import binary_of, given_binary, has_stack, kept_stack, repeat_under_gdb, told_stack

MAX_FRAMES, MAX_FIGURES, MAX_FIELDS, MAX_SECTIONS, MAX_REPORTS, MAX_CELLS = 12, 12, 4, 4, 3, 8
_LABEL_WIDTH = 11
#: A line of QEMU's log begins with the name of the program.
_PROGRAM = re.compile(r"^\S*qemu\S*: ")


@click.command(name="explain")
@click.argument("cell")
@run_option
@click.option("--backtrace/--no-backtrace", default=True, help="Repeat a crash or a hang under gdb; yes.")
@click.option("--qemu", metavar="QEMU", help="Path or installed name of the QEMU to repeat it with; the cell's.")
@click.option("--known", type=click.Path(path_type=Path), metavar="FILE", help="Known issues to look it up in.")
@json_option
def explain_command(cell: str, run: Path, backtrace: bool, qemu: str | None, known: Path | None, as_json: bool) -> int:
    """Tell all that is known of CELL: verdict, section, stack, log, smallest case, and what to type next.

    CELL is the id of a cell in DIR/matrix.json, or a part of it. The stack is kept in DIR/backtraces.
    Exit code 3 when nothing was judged, so that nothing can be told.
    """
    doc = read_matrix(run)
    found = find_cell(doc, cell)
    binary = given_binary(qemu) if qemu else None
    issues = load_known(known) if known else ()
    case, folder = _case(run, found)
    with one_interrupt(), contextlib.ExitStack() as stack:
        pack, note = _pack(found, stack)
        material = Material(run=run, pack=pack, pack_note=note, case=case, case_folder=folder, issues=issues)
        material = replace(material, stack=_stack(found, material, binary, backtrace))
        told = explain(found, doc, material)
    if as_json:
        print_json(told.to_json())
    else:
        print_page(told, Console(highlight=False))
    return 0 if told.told else 3


def _pack(cell: Cell, stack: contextlib.ExitStack) -> tuple[StatePack | None, str]:
    if not cell.pack:
        return None, "the run does not say which state pack was loaded"
    try:
        return stack.enter_context(StatePack(Path(cell.pack))), ""
    except PostloadError as error:
        return None, str(error)


def _case(run: Path, cell: Cell) -> tuple[Case | None, Path | None]:
    """The smallest case; one that is damaged is as good as none, and said."""
    from harness.triage.bundle import kept_case

    folder = kept_case(run, cell)
    if folder is None:
        return None, None
    try:
        return Case.load(folder), folder
    except PostloadError as error:
        err.print(f"its case is left out: {error}", markup=False, soft_wrap=True)
        return None, None


def _stack(cell: Cell, material: Material, given: QemuBinary | None, wanted: bool) -> Backtrace | None:
    """The stack: kept, or in the log, or of a repetition under gdb."""
    if not has_stack(cell):
        return None
    kept = kept_stack(material.run, cell, given.sha256 if given else None)
    logged = None if given else told_stack(cell)
    if kept or (logged and (logged.how.startswith("as ") or not wanted)):
        return kept or logged
    if not wanted:
        return None
    if material.pack is None:
        return logged or Backtrace(how=f"no backtrace: {material.pack_note}")
    try:
        binary = given or binary_of(cell)
    except MissingError as error:
        return logged or Backtrace(how=f"no backtrace: {error}")
    with err.status("repeating the failing load under gdb"):
        found = repeat_under_gdb(cell, material.run, material.pack, binary)
    return found if found.frames or not logged else logged


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
    for text, style in ((cell.verdict.meaning, "dim"), (text_of(cell) if cell.outcome.causes else "", "")):
        for line in _wrap(text, console.width - 1, "  ", "  "):
            _put(console, Text(line, style=style))
    _put(console, Text())


def _print_row(label: str, line: Line, console: Console) -> None:
    start = f"{label:<{_LABEL_WIDTH}}"
    text = printable(line.text)
    wrapped = [] if line.whole else _wrap(text, console.width - 1, start, " " * _LABEL_WIDTH)
    for each in wrapped or [start + text]:
        _put(console, Text(each[:_LABEL_WIDTH], style="dim").append(each[_LABEL_WIDTH:], style=line.style or "not dim"))


def _print_steps(steps: Sequence[Step], console: Console) -> None:
    if not steps:
        return
    _put(console, Text())
    for count, step in enumerate(steps):
        _put(console, Text(f"{'then' if count else 'next'}: {step.purpose}", style="dim"))
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


def _wrap(text: str, width: int, first: str, rest: str) -> list[str]:
    return textwrap.wrap(
        one_line(text),
        max(width, 40),
        initial_indent=first,
        subsequent_indent=rest,
        break_on_hyphens=False,
        break_long_words=False,
    )


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
        yield Line(text=f"{found}: {found.meaning}")


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
    if told.issue_note:
        yield Line(text=told.issue_note, style="yellow")


def _section(told: Explanation) -> Lines:
    for facts in told.sections[:MAX_SECTIONS]:
        yield Line(text=facts.label, style="bold", whole=True)
        about = _about_section(facts)
        if about:
            yield Line(text=about)
    more = len(told.sections) - MAX_SECTIONS
    if more > 0:
        yield Line(text=f"and {more} more")
    if told.section_note:
        yield Line(text=told.section_note, style="dim")
    outcome = told.cell.outcome
    if outcome.isolation:
        yield Line(text=isolation_text(outcome.isolation, outcome.sections))
    if told.cell.excluded and told.cell.verdict is not Verdict.OK:
        yield Line(text=f"left out: {', '.join(told.cell.excluded)}", style="dim")


def _about_section(facts: SectionFacts) -> str:
    if not facts.size_bytes:
        return f"of {facts.owner}" if facts.owner else ""
    parts = [f"{facts.vmsd or 'old-style, not described'} v{facts.version}", f"{number(facts.size_bytes)} bytes"]
    parts += [_count(facts.fields, "field")] if facts.fields else []
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
    yield Line(text=f"{phase}{at}; {number(cell.loads_acked)} of {number(cell.loads_asked)} loads acknowledged")
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
    note = f"; {_count(left, 'frame')} of libraries and farther out: --json has them" if left else ""
    yield Line(text=stack.how + note, style="dim")


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
    for text in told.figures[:MAX_FIGURES]:
        yield Line(text=text)
    more = len(told.figures) - MAX_FIGURES
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
    spent = f"found in {_count(case.spent.sessions, 'session')}, {duration(case.spent.seconds)}"
    pages = _count(case.ram_pages, "page") + " of guest memory"
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
    for text in told.same[:MAX_CELLS]:
        yield Line(text=text)
    if len(told.same) > MAX_CELLS:
        yield Line(text=f"and {len(told.same) - MAX_CELLS} more lines: --json has them", style="dim")
    if not told.same and told.cell.verdict.is_finding:
        yield Line(text="no other cell of this run", style="dim")


def _elsewhere(told: Explanation) -> Lines:
    for text in told.elsewhere[:MAX_CELLS]:
        yield Line(text=f"QEMU {text}")
    if len(told.elsewhere) > MAX_CELLS:
        yield Line(text=f"and {len(told.elsewhere) - MAX_CELLS} more", style="dim")


def _unseen(told: Explanation) -> Lines:
    for text in told.unseen:
        yield Line(text=text, style="dim")


def _count(count: int, what: str) -> str:
    return f"{number(count)} {what}{'s' if count != 1 else ''}"


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
    ("report", _reports),
    ("log", _log),
    ("measured", _figures),
    ("case", _smallest),
    ("bundle", _bundle),
    ("same", _same),
    ("elsewhere", _elsewhere),
    ("not seen", _unseen),
)
