# SPDX-License-Identifier: GPL-2.0-or-later
"""The document of ``postload claims`` for terminals, markdown and HTML."""

from __future__ import annotations

import io
import json
from dataclasses import asdict
from html.parser import HTMLParser
from pathlib import Path
from threading import Event
from typing import Any

import pytest
from rich.console import Console

from harness.errors import HarnessError
from harness.report.studies import claims_html, claims_json, claims_markdown, print_claims, write_claims
from harness.studies.model import Question, StudyAnswer, StudyColumn, StudyResult

HOSTILE = "<script>alert(1)</script> [link](x) |pipe| [bold]"


def _doc(**more: Any) -> dict[str, Any]:
    answer = StudyAnswer(
        number=1,
        question="May it?",
        answer=f"It may, 7 of 8. {HOSTILE}",
        columns=(StudyColumn(key="what", title="what"), StudyColumn(key="count", title="n")),
        rows=[{"what": "a section with a long name " * 4, "count": 12345}, {"what": HOSTILE, "count": 2}],
    )
    qemu = {"version": "7.2.0", "path": "/usr/bin/q"}
    return {
        "schema": "postload.claims/1",
        "qemu": qemu,
        "seconds": 2.0,
        "complete": True,
        "questions": [asdict(answer) | more],
    }


@pytest.mark.parametrize("width", [80, 100, 200])
def test_the_terminal_fits(width: int) -> None:
    out = io.StringIO()
    print_claims(_doc(failed="nothing " * 40), Console(file=out, width=width))
    lines = out.getvalue().splitlines()
    assert max(len(line.rstrip()) for line in lines) <= min(width, 100)
    assert "12,345" in out.getvalue()
    assert "<script>" in out.getvalue()
    assert "not answered" in out.getvalue()


class _Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_html_is_balanced_and_holds_no_foreign_tag() -> None:
    parser = _Tags()
    parser.feed(claims_html(_doc()))
    parser.close()
    assert parser.open == []
    assert set(parser.tags) == {"section", "h2", "h3", "p", "strong", "table", "thead", "tbody", "tr", "th", "td"}


def test_markdown_keeps_its_table() -> None:
    text = claims_markdown(_doc())
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert len(rows) == 4
    assert all(row.replace("\\|", "").count("|") == 3 for row in rows)
    assert "<script>" not in text.replace("\\<", "")


def test_files(tmp_path: Path) -> None:
    paths = write_claims(_doc(), tmp_path / "out")
    assert [path.name for path in paths] == ["claims.json", "claims.md"]
    assert json.loads(paths[0].read_text()) == json.loads(claims_json(_doc()))
    assert len(list((tmp_path / "out").iterdir())) == 2


class _FakeLab:
    def __init__(self, family: str) -> None:
        self.family = family
        self.scope = Event()


def test_a_machine_that_cannot_say_does_not_silence_the_other() -> None:
    def ask(lab: Any) -> StudyResult:
        if lab.family == "q35":
            raise HarnessError("no pair")
        return StudyResult(text="fine.", figures={"n": 1}, rows=[{"what": "x"}])

    question = Question(number=2, text="?", columns=(StudyColumn(key="what", title="what"),), ask=ask)
    labs: Any = [_FakeLab("pc"), _FakeLab("q35")]
    entry = asdict(question.answer(labs))
    assert entry["answer"] == "pc: fine."
    assert entry["failed"] == "q35: no pair"
    assert entry["rows"] == [{"machine": "pc", "what": "x"}]
    assert entry["columns"][0]["key"] == "machine"
