# SPDX-License-Identifier: GPL-2.0-or-later
"""The answer for people: terminal, markdown, and a fragment of HTML."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from harness.facts.compare import FactChange, FactKind, Weight
from harness.files import folder_without, write_atomically
from harness.names import USES
from harness.qualify.explained import Explained, FieldEvidence, HostsDiffer
from harness.qualify.model import Answer, Confirmation, Confirms, PairAnswer, QualifyDoc, Reason, Stray
from harness.report.console import print_wrapped
from harness.report.facts import fact_change_text, kvm_text
from harness.report.markdown import markdown_table, plain_text
from harness.report.reasons import (
    COLO_BETWEEN_VERSIONS,
    ending_text,
    reason_cause_text,
    reason_remedy_text,
    reason_text,
    static_text,
    stray_remedy,
    stray_text,
)
from harness.report.sentences import outcome_text
from harness.report.text import duration, number, plural
from harness.results.document import json_text
from harness.results.verdict import Verdict
from harness.text import one_line

JSON_NAME = "qualify.json"
MARKDOWN_NAME = "qualify.md"
#: Up to so many pairs the terminal shows every device; beyond, a line for each pair.
MAX_DETAILED = 4
ANSWER_STYLES = {
    Answer.GO: "green",
    Answer.NO_GO: "bold red",
    Answer.UNKNOWN: "bold yellow",
    Answer.NONE: "dim",
}


#: What a change can do that explains nothing that broke here.
_EFFECTS = {Weight.EXPLAINS: "can break a load: ", Weight.MAY_MATTER: "may matter: "}


def qualify_plain(doc: QualifyDoc) -> dict[str, Any]:
    """The document as it is read back: plain JSON types alone, and bytes that were no UTF-8 as question marks."""
    plain: dict[str, Any] = json.loads(qualify_json(doc))
    return plain


def qualify_json(doc: QualifyDoc) -> str:
    """The document as text."""
    return json_text(doc.to_json())


def write_qualify(doc: QualifyDoc, out: Path, formats: Sequence[str] = ("json", "md")) -> list[Path]:
    """Write ``qualify.json`` and ``qualify.md``, or one of them.

    :raises HostError: the folder cannot be written
    """
    makers = {"json": (JSON_NAME, qualify_json), "md": (MARKDOWN_NAME, markdown)}
    wanted = [makers[name] for name in makers if name in formats]
    for name, make in wanted:
        write_atomically(out / name, make(doc).encode("utf-8", "replace"))
    return [out / name for name, _ in wanted]


def forget_qualify(out: Path) -> None:
    """Have the folder, without the answer of an earlier run: it would stand beside the cells of this one.

    :raises HostError: it cannot be written
    """
    folder_without(out, (JSON_NAME, MARKDOWN_NAME))


def print_qualify(doc: QualifyDoc, console: Console) -> None:
    """The tables, the reasons, what changed between the hosts, and last the answer."""
    if len(doc.abroad) <= MAX_DETAILED:
        for pair in doc.abroad:
            console.print(Text(_title(pair), style="bold"))
            console.print(Padding(_device_table(pair), (0, 0, 1, 1), expand=False))
    else:
        console.print(Padding(_pair_table(doc.pairs), (0, 0, 1, 0), expand=False))
    for lines in _reasons(doc.abroad):
        print_reason(lines, console, ANSWER_STYLES[Answer.NO_GO])
    for line in _notes(doc):
        print_wrapped(console, line, style="dim", indent=2)
    print_wrapped(console, summary(doc), style=ANSWER_STYLES[doc.answer])


def summary(doc: QualifyDoc) -> str:
    """The answer in one sentence."""
    counts = Counter(pair.answer for pair in doc.abroad)
    answers = ", ".join(f"{counts[answer]} {answer}" for answer in Answer if counts[answer])
    state = "" if doc.complete else "stopped early; "
    uses = " and ".join(doc.deciding)
    loads = f"{plural(doc.loads, 'load')} acknowledged, {duration(doc.seconds)}"
    return f"{doc.answer} for {uses}: {state}{answers or 'nothing was judged'}; {loads}"


def markdown(doc: QualifyDoc) -> str:
    """The answer as GitHub's markdown."""
    parts = ["# postload qualify", f"**{doc.answer}**: {plain_text(summary(doc))}"]
    for pair in doc.pairs:
        head = ["device", *USES, "loads", "answer"]
        rows = [[plain_text(d.device), *(d.uses[use] for use in USES), number(d.loads), d.answer] for d in pair.devices]
        parts += [f"## {plain_text(_title(pair))}", markdown_table(head, rows)]
    reasons = ["- " + "\n  ".join(map(plain_text, lines)) for lines in _reasons(doc.abroad)]
    if reasons:
        parts += ["## Because", "\n".join(reasons)]
    notes = [f"- {plain_text(line)}" for line in _notes(doc)]
    if notes:
        parts += ["## Beside it", "\n".join(notes)]
    return "\n\n".join(parts) + "\n"


def qualify_html(doc: QualifyDoc) -> str:
    """A section for the matrix's page."""
    head = "".join(f"<th>{name}</th>" for name in ("recorded", "loaded", "machine", "device", *USES, "answer"))
    rows = "".join(_html_rows(pair) for pair in doc.pairs)
    reasons = "".join(
        "<li>" + "<br>".join(escape(one_line(line)) for line in lines) + "</li>" for lines in _reasons(doc.abroad)
    )
    notes = "".join(f"<li>{escape(one_line(line))}</li>" for line in _notes(doc))
    return (
        f'<section id="qualify"><h2>Upgrade</h2><p><strong>{escape(summary(doc))}</strong></p>'
        f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"
        f"<ul>{reasons}</ul><ul>{notes}</ul></section>"
    )


def _html_rows(pair: PairAnswer) -> str:
    names = [pair.recorder.version, pair.loader.version, pair.machine]
    rows = []
    for device in pair.devices:
        words = [device.device, *(device.uses[use] for use in USES), device.answer]
        rows.append("".join(f"<td>{escape(str(word))}</td>" for word in (*names, *words)))
    return "".join(f"<tr>{row}</tr>" for row in rows)


def _title(pair: PairAnswer) -> str:
    endings = "; ".join(map(ending_text, pair.endings))
    return f"{_way(pair, comma=',')} ({endings})" if endings else _way(pair, comma=",")


def _way(pair: PairAnswer, comma: str = "") -> str:
    return f"{pair.machine}{comma} {pair.recorder.version} -> {pair.loader.version}"


def answer_table() -> Table:
    """A table of answers, without columns yet."""
    return Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 2, 0, 0), show_edge=False, header_style="dim")


def _device_table(pair: PairAnswer) -> Table:
    table = answer_table()
    for name in ("device", *USES, "loads", "answer"):
        table.add_column(name, justify="right" if name == "loads" else "left")
    for device in pair.devices:
        uses = [_word(device.uses[use]) for use in USES]
        table.add_row(device.device, *uses, number(device.loads), _word(device.answer))
    return table


def _pair_table(pairs: Sequence[PairAnswer]) -> Table:
    table = answer_table()
    for name in ("recorded", "loaded", "machine", *USES, "loads", "answer"):
        table.add_column(name, justify="right" if name == "loads" else "left", no_wrap=True)
    for pair in pairs:
        loaded = "itself" if pair.home else pair.loader.version
        uses = [_word(pair.uses[use]) for use in USES]
        ends = (number(pair.loads), _word(pair.answer))
        table.add_row(pair.recorder.version, loaded, pair.machine, *uses, *ends)
    return table


def _word(answer: Answer) -> Text:
    return Text(answer, style=ANSWER_STYLES[answer])


@dataclass(slots=True)
class _Shared:
    """A reason, and who has it: devices, uses and ways.

    :param decides: it counts for the answer of one of these
    """

    reason: Reason
    decides: bool = False
    devices: list[str] = field(default_factory=list)
    uses: list[str] = field(default_factory=list)
    ways: list[str] = field(default_factory=list)


def _reasons(pairs: Sequence[PairAnswer]) -> Iterator[list[str]]:
    """Each reason as lines, the pairs and uses that share it in one."""
    found: dict[object, _Shared] = {}
    for pair in pairs:
        for device in pair.devices:
            for reason in device.because:
                shared = found.setdefault(_same(device.device, reason), _Shared(reason))
                known = {True: " (as at home)", False: " (new)", None: ""}[reason.at_home]
                shared.devices.append(device.device)
                shared.uses.append(reason.use)
                shared.ways.append(_way(pair) + known)
                shared.decides |= reason.use in pair.deciding
    for shared in sorted(found.values(), key=lambda shared: not shared.decides):
        yield [line for line in _lines(shared) if line]
    yield from _stray_reasons(pairs)


def _stray_reasons(pairs: Sequence[PairAnswer]) -> Iterator[list[str]]:
    """What keeps a pair from an answer though no device that is judged has it."""
    ways: dict[Stray, list[str]] = {}
    for pair in pairs:
        for stray in pair.strays:
            if set(stray.uses) & set(pair.deciding):
                ways.setdefault(stray, []).append(_way(pair))
    for stray, found in ways.items():
        head = f"{Answer.UNKNOWN} in {' and '.join(stray.uses)}: {stray.section}"
        yield [head, stray_text(stray), f"remedy: {stray_remedy()}", f"in {', '.join(found)}"]


def _same(device: str, reason: Reason) -> object:
    """What two reasons share that are told as one."""
    # what the new side lacks may keep every device from coming: that is one reason
    whose = "" if reason.verdict == Verdict.UNSUPPORTED else device
    why: object = tuple(map(_bare, reason.explained))
    if not (reason.section or reason.explained):
        # some hold what cannot be hashed
        why = (reason.use, *map(repr, reason.causes))
    return whose, reason.verdict, reason.section, why


def _bare(explained: Explained) -> object:
    """Without what one use's log tells and another's does not: a value is the same as number and as QEMU's word."""
    if isinstance(explained, FieldEvidence):
        return explained.section, explained.field, str(explained.recorded), str(explained.loading)
    if isinstance(explained, HostsDiffer):
        # what a fact was, and is, may be a list
        return tuple(map(fact_change_text, explained.changes))
    return explained


def _lines(shared: _Shared) -> Iterator[str]:
    reason = shared.reason
    where = f": {reason.section}" if reason.section else ""
    use = f" in {' and '.join(dict.fromkeys(shared.uses))}" if reason.verdict != Verdict.UNSUPPORTED else ""
    head = f"{reason.verdict}{use}: {', '.join(dict.fromkeys(shared.devices))}"
    beside = "" if shared.decides else " (decides nothing here)"
    yield head + where + (f", field {reason.field}" if reason.field else "") + beside
    yield reason_text(reason)
    cause, remedy = reason_cause_text(reason), reason_remedy_text(reason)
    yield f"cause: {cause}" if cause else ""
    yield f"remedy: {remedy}" if remedy else ""
    yield _confirmed(reason.confirmed) if reason.confirmed else ""
    yield f"known: {reason.known}" if reason.known else ""
    yield f"in {', '.join(dict.fromkeys(shared.ways))}"


def _confirmed(confirmed: Confirmation) -> str:
    """What a migration between two real QEMUs gave."""
    outcome = confirmed.outcome
    if outcome is None:
        return f"not confirmed: QEMU {confirmed.recorder} that recorded is not among the QEMUs of this run"
    way = f"QEMU {confirmed.recorder} migrating to QEMU {confirmed.loader} without this program between them"
    where = f" of {', '.join(outcome.sections)}" if outcome.sections else ""
    result = f"{outcome.verdict}{where}: {outcome_text(outcome)}"
    return {
        Confirms.SAME: f"confirmed: {way}, {confirmed.phase}: {result}",
        Confirms.OTHER: f"not confirmed: {way}, {confirmed.phase}, ends earlier, with another failure: {result}",
        Confirms.PASSED: f"not confirmed: {way}, {confirmed.phase}: passed",
        Confirms.NOTHING: f"not confirmed: {way}, {confirmed.phase}: {result}",
    }[confirmed.shows]


def _notes(doc: QualifyDoc) -> list[str]:
    notes = [kvm_text(doc.kvm)] if doc.kvm else []
    notes += [COLO_BETWEEN_VERSIONS] if any(pair.recorder.version != pair.loader.version for pair in doc.pairs) else []
    for pair in doc.abroad:
        notes += [f"{_way(pair)}: {note}" for note in _pair_notes(pair)]
    return list(dict.fromkeys(notes))


def _pair_notes(pair: PairAnswer) -> Iterator[str]:
    yield from (_change(change, pair) for change in pair.changes if _is_weighty(change))
    beside = (stray for stray in pair.strays if not set(stray.uses) & set(pair.deciding))
    yield from map(stray_text, beside)
    refused = ", ".join(f"{group} in {plural(count, 'cell')}" for group, count in pair.kvm_refused.items())
    if refused:
        yield f"this host's KVM refused {refused}"
    if pair.no_static:
        yield f"-dump-vmstate of both builds could not be compared: {pair.no_static}"
    for device in pair.devices:
        yield from map(static_text, device.static)


def _is_weighty(change: FactChange) -> bool:
    return change.weight is not Weight.NOTE or change.kind is FactKind.HOST_FACTS


def _change(change: FactChange, pair: PairAnswer) -> str:
    """What differs between the hosts, and which failure it explains."""
    hurt = [d.device for d in pair.devices if any(change in reason.changes for reason in d.because)]
    effect = f"explains what breaks {', '.join(hurt)}: " if hurt else _EFFECTS.get(change.weight, "")
    return f"{effect}{fact_change_text(change)}"


def print_reason(lines: Sequence[str], console: Console, style: str) -> None:
    """A reason: its first line, and the others below it."""
    print_wrapped(console, lines[0], style=style)
    for line in lines[1:]:
        print_wrapped(console, line, indent=2)
    console.print()
