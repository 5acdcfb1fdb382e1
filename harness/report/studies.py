# SPDX-License-Identifier: GPL-2.0-or-later
"""The answers of ``postload claims`` for people: terminal, markdown, and a fragment of HTML."""

from __future__ import annotations

import re
from collections.abc import Sequence
from html import escape
from pathlib import Path

from rich import box
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from harness.files import write_atomically
from harness.report.claims import ToldQuestion, Values, told
from harness.report.console import print_wrapped
from harness.report.markdown import plain_text
from harness.report.text import duration, number
from harness.results.document import json_text
from harness.studies.model import ClaimsDoc
from harness.text import one_line

JSON_NAME = "claims.json"
MARKDOWN_NAME = "claims.md"
_NUMBER = re.compile(r"-|\d+/\d+|[\d.,]+(%| ms)?")
#: Width that a table of the terminal may take at most; beyond, rich wraps its texts.
_MAX_WIDTH = 100


def print_claims(doc: ClaimsDoc, console: Console) -> None:
    """Each question, its answer and its table; fits 80 columns by wrapping texts."""
    width = min(console.width, _MAX_WIDTH)
    for entry in told(doc):
        console.print(Text(f"{entry.number}. {entry.question}", style="bold"), width=width)
        if entry.answer:
            console.print(Padding(Text(one_line(entry.answer), style="cyan"), (0, 0, 0, 2)), width=width)
        if entry.failed:
            failed = Text(f"not answered: {one_line(entry.failed)}", style="bold red")
            console.print(Padding(failed, (0, 0, 0, 2)), width=width)
        if entry.rows:
            console.print(Padding(_table(entry), (1, 0, 0, 1)), width=width)
        console.print()
    print_wrapped(console, _footer(doc), style="dim")


def _table(entry: ToldQuestion) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0), show_edge=False, header_style="dim")
    for index, title in enumerate(entry.columns):
        right = _is_number_column(entry, index)
        table.add_column(title, justify="right" if right else "left", overflow="fold", no_wrap=right)
    for row in entry.rows:
        table.add_row(*(Text(value) for value in _values(row)))
    return table


def _values(row: Values) -> list[str]:
    return [number(value) if isinstance(value, int) else one_line(value) for value in row]


def _is_number_column(entry: ToldQuestion, index: int) -> bool:
    return all(_NUMBER.fullmatch(str(row[index])) for row in entry.rows)


def _footer(doc: ClaimsDoc) -> str:
    return f"QEMU {doc.qemu.version} ({doc.qemu.path}), {duration(doc.seconds)} in all"


def claims_markdown(doc: ClaimsDoc) -> str:
    """The document as markdown."""
    parts = ["# postload claims", plain_text(_footer(doc))]
    for entry in told(doc):
        parts.append(f"## {entry.number}. {plain_text(entry.question)}")
        parts += [plain_text(entry.answer)] if entry.answer else []
        parts += [f"**Not answered:** {plain_text(entry.failed)}"] if entry.failed else []
        parts += [_markdown_table(entry)] if entry.rows else []
    return "\n\n".join(parts) + "\n"


def _markdown_table(entry: ToldQuestion) -> str:
    titles = [plain_text(title) for title in entry.columns]
    rules = ["---:" if _is_number_column(entry, index) else "---" for index in range(len(titles))]
    rows = [[plain_text(value) for value in _values(row)] for row in entry.rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in [titles, rules, *rows])


def claims_html(doc: ClaimsDoc) -> str:
    """One ``<section class="claims">`` without script, style sheet or link, to be put into a page."""
    parts = ['<section class="claims">', "<h2>Questions of the mailing list</h2>", f"<p>{_html(_footer(doc))}</p>"]
    for entry in told(doc):
        parts.append(f"<h3>{_html(str(entry.number))}. {_html(entry.question)}</h3>")
        parts += [f"<p><strong>{_html(entry.answer)}</strong></p>"] if entry.answer else []
        parts += [f"<p>Not answered: {_html(entry.failed)}</p>"] if entry.failed else []
        parts += _html_table(entry) if entry.rows else []
    return "\n".join([*parts, "</section>"]) + "\n"


def _html_table(entry: ToldQuestion) -> list[str]:
    head = "".join(f'<th scope="col">{_html(title)}</th>' for title in entry.columns)
    rows = ["".join(f"<td>{_html(value)}</td>" for value in _values(row)) for row in entry.rows]
    body = "\n".join(f"<tr>{row}</tr>" for row in rows)
    return ['<table class="claims">', f"<thead><tr>{head}</tr></thead>", f"<tbody>\n{body}\n</tbody>", "</table>"]


def _html(text: str) -> str:
    return escape(one_line(text))


def claims_json(doc: ClaimsDoc) -> str:
    """The document as text."""
    return json_text(doc.to_json())


def write_claims(doc: ClaimsDoc, out: Path) -> Sequence[Path]:
    """``claims.json`` and ``claims.md``.

    :raises HostError: the folder cannot be written
    """
    files = {JSON_NAME: claims_json(doc), MARKDOWN_NAME: claims_markdown(doc)}
    for name, content in files.items():
        write_atomically(out / name, content.encode("utf-8", "replace"))
    return [out / name for name in files]
