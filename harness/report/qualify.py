# SPDX-License-Identifier: GPL-2.0-or-later
"""The answer for people: terminal, markdown, and a fragment of HTML. All work on the JSON document alone."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from html import escape
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter
from rich import box
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from harness.errors import HostError
from harness.facts.compare import HOST_FACTS, Weight
from harness.files import write_atomically
from harness.qualify.model import USES, Answer, QualifyDoc
from harness.report.sentences import outcome_text
from harness.report.text import duration, number, one_line
from harness.results.outcome import Outcome
from harness.results.verdict import Verdict

Doc = dict[str, Any]

JSON_NAME = "qualify.json"
MARKDOWN_NAME = "qualify.md"
#: Up to so many pairs the terminal shows every device; beyond, a line for each pair.
MAX_DETAILED = 4
_STYLE = {
    Answer.GO: "green",
    Answer.NO_GO: "bold red",
    Answer.UNKNOWN: "bold yellow",
    Answer.NONE: "dim",
}


_HEX = re.compile(r" \(0x[0-9a-f]+\)")
#: What a change can do that explains nothing that broke here.
_EFFECTS = {Weight.EXPLAINS.value: "can break a load: ", Weight.MAY_MATTER.value: "may matter: "}


def qualify_plain(doc: QualifyDoc) -> Doc:
    """The document as it is read back: plain JSON types alone, and bytes that were no UTF-8 as question marks."""
    text = json.dumps(doc.to_json(), ensure_ascii=False, allow_nan=False, default=str)
    plain: Doc = json.loads(text.encode("utf-8", "replace"))
    return plain


def qualify_json(doc: Doc) -> str:
    """The document as text."""
    return json.dumps(doc, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def write_qualify(doc: Doc, out: Path, formats: Sequence[str] = ("json", "md")) -> list[Path]:
    """Write ``qualify.json`` and ``qualify.md``, or one of them.

    :raises HostError: the folder cannot be written
    """
    makers = {"json": (JSON_NAME, qualify_json), "md": (MARKDOWN_NAME, markdown)}
    wanted = [makers[name] for name in makers if name in formats]
    for name, make in wanted:
        write_atomically(out / name, make(doc).encode())
    return [out / name for name, _ in wanted]


def forget_qualify(out: Path) -> None:
    """Have the folder, without the answer of an earlier run: it would stand beside the cells of this one.

    :raises HostError: it cannot be written
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        for name in (JSON_NAME, MARKDOWN_NAME):
            (out / name).unlink(missing_ok=True)
    except OSError as error:
        raise HostError(f"cannot write in {out}: {error.strerror}") from error


def print_qualify(doc: Doc, console: Console) -> None:
    """The tables, the reasons, what changed between the hosts, and last the answer."""
    abroad = [pair for pair in doc["pairs"] if not pair["home"]]
    if len(abroad) <= MAX_DETAILED:
        for pair in abroad:
            console.print(Text(_title(pair), style="bold"))
            console.print(Padding(_device_table(pair), (0, 0, 1, 1), expand=False))
    else:
        console.print(Padding(_pair_table(doc["pairs"]), (0, 0, 1, 0), expand=False))
    for lines in _reasons(abroad):
        _print_reason(lines, console)
    for line in _notes(doc, abroad):
        _print_hanging(line, console, "dim")
    style = _STYLE[Answer(doc["answer"])]
    console.print(Text(summary(doc), style=style))


def summary(doc: Doc) -> str:
    """The answer in one sentence."""
    abroad = [pair for pair in doc["pairs"] if not pair["home"]]
    counts = {answer: sum(pair["answer"] == answer for pair in abroad) for answer in Answer}
    told = ", ".join(f"{count} {answer}" for answer, count in counts.items() if count)
    state = "" if doc["complete"] else "stopped early; "
    uses = " and ".join(doc["deciding"])
    loads = f"{number(doc['loads'])} loads acknowledged, {duration(doc['seconds'])}"
    return f"{doc['answer']} for {uses}: {state}{told or 'nothing was judged'}; {loads}"


def markdown(doc: Doc) -> str:
    """The answer as GitHub's markdown."""
    parts = ["# postload qualify", f"**{doc['answer']}**: {_md(summary(doc))}"]
    for pair in doc["pairs"]:
        head = ["device", *USES, "loads", "answer"]
        rows = [
            [_md(d["device"]), *(d["uses"][use] for use in USES), number(d["loads"]), d["answer"]]
            for d in pair["devices"]
        ]
        parts += [f"## {_md(_title(pair))}", _md_table(head, rows)]
    abroad = [pair for pair in doc["pairs"] if not pair["home"]]
    reasons = ["- " + "\n  ".join(map(_md, lines)) for lines in _reasons(abroad)]
    if reasons:
        parts += ["## Because", "\n".join(reasons)]
    notes = [f"- {_md(line)}" for line in _notes(doc, abroad)]
    if notes:
        parts += ["## Beside it", "\n".join(notes)]
    return "\n\n".join(parts) + "\n"


def qualify_html(doc: Doc) -> str:
    """A section for the matrix's page."""
    head = "".join(f"<th>{name}</th>" for name in ("recorded", "loaded", "machine", "device", *USES, "answer"))
    rows = "".join(_html_rows(pair) for pair in doc["pairs"])
    abroad = [pair for pair in doc["pairs"] if not pair["home"]]
    reasons = "".join(
        "<li>" + "<br>".join(escape(one_line(line)) for line in lines) + "</li>" for lines in _reasons(abroad)
    )
    notes = "".join(f"<li>{escape(one_line(line))}</li>" for line in _notes(doc, abroad))
    return (
        f'<section id="qualify"><h2>Upgrade</h2><p><strong>{escape(summary(doc))}</strong></p>'
        f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"
        f"<ul>{reasons}</ul><ul>{notes}</ul></section>"
    )


def _html_rows(pair: Doc) -> str:
    names = [pair["recorder"]["version"], pair["loader"]["version"], pair["machine"]]
    rows = []
    for device in pair["devices"]:
        words = [device["device"], *(device["uses"][use] for use in USES), device["answer"]]
        rows.append("".join(f"<td>{escape(str(word))}</td>" for word in (*names, *words)))
    return "".join(f"<tr>{row}</tr>" for row in rows)


def _title(pair: Doc) -> str:
    way = f"{pair['machine']}, {pair['recorder']['version']} -> {pair['loader']['version']}"
    return f"{way} ({'; '.join(pair['endings'])})" if pair["endings"] else way


def _table() -> Table:
    return Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 2, 0, 0), show_edge=False, header_style="dim")


def _device_table(pair: Doc) -> Table:
    table = _table()
    for name in ("device", *USES, "loads", "answer"):
        table.add_column(name, justify="right" if name == "loads" else "left")
    for device in pair["devices"]:
        uses = [_word(device["uses"][use]) for use in USES]
        table.add_row(device["device"], *uses, number(device["loads"]), _word(device["answer"]))
    return table


def _pair_table(pairs: Sequence[Doc]) -> Table:
    table = _table()
    for name in ("recorded", "loaded", "machine", *USES, "loads", "answer"):
        table.add_column(name, justify="right" if name == "loads" else "left", no_wrap=True)
    for pair in pairs:
        loaded = "itself" if pair["home"] else pair["loader"]["version"]
        uses = [_word(pair["uses"][use]) for use in USES]
        ends = (number(pair["loads"]), _word(pair["answer"]))
        table.add_row(pair["recorder"]["version"], loaded, pair["machine"], *uses, *ends)
    return table


def _word(answer: str) -> Text:
    return Text(answer, style=_STYLE[Answer(answer)])


def _reasons(pairs: Sequence[Doc]) -> Iterator[list[str]]:
    """Each reason as lines, the pairs and uses that share it in one."""
    ways: dict[tuple[str, ...], list[str]] = {}
    uses: dict[tuple[str, ...], list[str]] = {}
    firsts: dict[tuple[str, ...], Doc] = {}
    devices: dict[tuple[str, ...], list[str]] = {}
    for pair in pairs:
        for device in pair["devices"]:
            for reason in device["because"]:
                # with the description of the stream at hand, the values stand in hexadecimal as well
                bare = "" if reason["section"] else reason["use"] + _text(reason)
                told = _HEX.sub("", reason["cause"]) or bare
                # what the new side lacks may keep every device from coming: that is one reason
                whose = "" if reason["verdict"] == Verdict.UNSUPPORTED else device["device"]
                key: tuple[str, ...] = (whose, reason["verdict"], str(reason["section"]), told)
                way = f"{pair['machine']} {pair['recorder']['version']} -> {pair['loader']['version']}"
                known = {True: " (as at home)", False: " (new)", None: ""}[reason["at_home"]]
                ways.setdefault(key, []).append(way + known)
                uses.setdefault(key, []).append(reason["use"])
                devices.setdefault(key, []).append(device["device"])
                firsts.setdefault(key, reason)
    for found, first in firsts.items():
        where = f" in {' and '.join(dict.fromkeys(uses[found]))}" if first["verdict"] != Verdict.UNSUPPORTED else ""
        head = f"{first['verdict']}{where}: {', '.join(dict.fromkeys(devices[found]))}"
        yield [line for line in _lines(head, first, ways[found]) if line]


def _lines(head: str, reason: Doc, ways: Sequence[str]) -> Iterator[str]:
    where = f": {reason['section']}" if reason["section"] else ""
    yield head + where + (f", field {reason['field']}" if reason["field"] else "")
    yield _text(reason)
    yield f"cause: {reason['cause']}" if reason["cause"] else ""
    yield f"remedy: {reason['remedy']}" if reason["remedy"] else ""
    yield f"confirmed: {_confirmed(reason['confirmed'])}" if reason["confirmed"] else ""
    yield f"known: {reason['known']}" if reason["known"] else ""
    yield f"in {', '.join(dict.fromkeys(ways))}"


def _text(reason: Doc) -> str:
    """What happened, in one line."""
    given = {"verdict": reason["verdict"], "causes": reason["causes"], "repeats": reason["repeats"]}
    return outcome_text(_outcome(given)) or Verdict(reason["verdict"]).meaning


def _confirmed(confirmed: Doc) -> str:
    """What a migration between two real QEMUs gave."""
    if confirmed["outcome"] is None:
        return f"not tried: QEMU {confirmed['recorder']} that recorded is not among the QEMUs of this run"
    outcome = _outcome(confirmed["outcome"])
    way = f"QEMU {confirmed['recorder']} migrating to QEMU {confirmed['loader']} without this program between them"
    result = "passed" if outcome.verdict is Verdict.OK else f"{outcome.verdict}: {outcome_text(outcome)}"
    return f"{way}, {confirmed['phase']}: {result}"


def _outcome(document: Doc) -> Outcome:
    found: Outcome = TypeAdapter(Outcome).validate_json(json.dumps(document))
    return found


def _notes(doc: Doc, pairs: Sequence[Doc]) -> list[str]:
    told = list(doc["notes"])
    for pair in pairs:
        way = f"{pair['machine']} {pair['recorder']['version']} -> {pair['loader']['version']}"
        told += [f"{way}: {_change(change, pair)}" for change in pair["changes"] if _is_weighty(change)]
        stray = "breaks under COLO and was left out; no device that is judged owns it"
        told += [f"{way}: {label} {stray}" for label in pair["strays"]]
        refused = ", ".join(f"{group} in {_cells(count)}" for group, count in pair["kvm_refused"].items())
        told += [f"{way}: this host's KVM refused {refused}"] if refused else []
        told += [f"{way}: {note}" for note in pair["notes"]]
        told += [f"{way}: {note}" for device in pair["devices"] for note in device["static"]]
    return list(dict.fromkeys(told))


def _cells(count: int) -> str:
    return f"{count} cell{'' if count == 1 else 's'}"


def _is_weighty(change: Doc) -> bool:
    return bool(change["weight"] != Weight.NOTE or change["what"] == HOST_FACTS)


def _change(change: Doc, pair: Doc) -> str:
    """What differs between the hosts, and which failure it explains."""
    hurt = [d["device"] for d in pair["devices"] if any(change["what"] in reason["changes"] for reason in d["because"])]
    sides = f": {change['old']} -> {change['new']}" if change["old"] or change["new"] else ""
    effect = f"explains what breaks {', '.join(hurt)}: " if hurt else _EFFECTS.get(change["weight"], "")
    return f"{effect}{change['what']}{sides}: {change['why']}"


def _print_reason(lines: Sequence[str], console: Console) -> None:
    console.print(Text(one_line(lines[0]), style="bold red"))
    for line in lines[1:]:
        _print_hanging(line, console, "")
    console.print()


def _print_hanging(line: str, console: Console, style: str) -> None:
    console.print(Padding(Text(one_line(line), style=style), (0, 0, 0, 2), expand=False))


def _md(text: str) -> str:
    return "".join("\\" + c if c in "\\`*_[]<>|#~@" else c for c in one_line(text))


def _md_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
