# SPDX-License-Identifier: GPL-2.0-or-later
"""Puts reports on disk. Every file appears by rename: nobody ever reads half of one."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection
from functools import partial
from pathlib import Path
from typing import Any

from harness import names
from harness.errors import UsageError
from harness.files import write_together
from harness.qualify.model import SCHEMA as QUALIFY_SCHEMA
from harness.qualify.model import QualifyDoc
from harness.report.html import render_html
from harness.report.junit import render_junit
from harness.report.markdown import render_markdown
from harness.report.qualify import JSON_NAME as QUALIFY_NAME
from harness.report.qualify import qualify_html
from harness.report.studies import JSON_NAME as CLAIMS_NAME
from harness.report.studies import claims_html
from harness.report.summary import render_summary
from harness.report.tap import render_tap
from harness.results.document import MatrixDoc
from harness.results.folder import JSON_NAME
from harness.studies.model import SCHEMA as CLAIMS_SCHEMA
from harness.studies.model import ClaimsDoc

HTML_NAME = "matrix.html"
JUNIT_NAME = "junit.xml"
MARKDOWN_NAME = "matrix.md"
TAP_NAME = "matrix.tap"
SUMMARY_NAME = "summary.md"
#: The file of each report, by the names that ``--format`` takes.
_FILES = {
    "json": JSON_NAME,
    "html": HTML_NAME,
    "junit": JUNIT_NAME,
    "md": MARKDOWN_NAME,
    "tap": TAP_NAME,
    "summary": SUMMARY_NAME,
}
FORMATS = names.in_order("reports", names.FORMATS, _FILES)


_dumps = partial(json.dumps, ensure_ascii=False, allow_nan=False, default=str)


def render_json(doc: MatrixDoc) -> str:
    """The document as text, a cell a line. Bytes of a log that were no UTF-8 become question marks."""
    document = doc.to_json()
    cells = [_dumps(cell, separators=(",", ":")) for cell in document.pop("cells")]
    head = _dumps(document, indent=1).removesuffix("\n}")
    text = head + ',\n "cells": [\n' + ",\n".join(cells) + "\n ]\n}\n"
    return text.encode("utf-8", "replace").decode("utf-8")


def write_reports(doc: MatrixDoc, out_dir: Path, formats: Collection[str] = tuple(FORMATS)) -> list[Path]:
    """Write all reports, or some of them; may be called again and again while the run goes on.

    :param formats: keys of :data:`FORMATS`
    :raises HostError: the folder cannot be written; earlier files are still whole, and of one run
    """
    # what postload claims and qualify left in the same folder
    claims = _section(out_dir / CLAIMS_NAME, CLAIMS_SCHEMA, lambda doc: claims_html(ClaimsDoc.from_json(doc)))
    qualified = _section(out_dir / QUALIFY_NAME, QUALIFY_SCHEMA, lambda doc: qualify_html(QualifyDoc.from_json(doc)))
    makers = {
        JSON_NAME: partial(render_json, doc),
        HTML_NAME: partial(render_html, doc, claims, qualified),
        JUNIT_NAME: partial(render_junit, doc),
        MARKDOWN_NAME: partial(render_markdown, doc),
        TAP_NAME: partial(render_tap, doc),
        SUMMARY_NAME: partial(render_summary, doc),
    }
    files = {name: makers[name]() for key, name in FORMATS.items() if key in formats}
    write_together(out_dir, {name: text.encode("utf-8", "replace") for name, text in files.items()})
    return [out_dir / name for name in files]


def _section(path: Path, schema: str, render: Callable[[dict[str, Any]], str]) -> str:
    """A part of the page from another document; nothing when it cannot be read."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        return render(document) if document["schema"] == schema else ""
    except (OSError, ValueError, KeyError, TypeError, UsageError):
        return ""
