# SPDX-License-Identifier: GPL-2.0-or-later
"""The document: its schema, reading it back, and files that appear whole or not at all."""

from __future__ import annotations

import errno
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from harness.errors import HostError, UsageError
from harness.report.writer import json_schema, render_json, write_reports
from harness.results.document import Cell, Finding, MatrixDoc
from harness.results.verdict import Verdict

NAMES = {"matrix.json", "matrix.html", "junit.xml", "matrix.md"}


def check(document: object) -> None:
    validator = jsonschema.Draft202012Validator(json_schema())
    validator.check_schema(json_schema())
    validator.validate(document)


def test_document_fits_its_schema(doc: MatrixDoc) -> None:
    check(json.loads(render_json(doc)))


@pytest.mark.parametrize(
    "damage",
    [
        lambda d: d.update(schema="postload.matrix/2"),
        lambda d: d.pop("complete"),
        lambda d: d["cells"][0].update(verdict="fine"),
        lambda d: d["cells"][0].update({"class": "sometimes"}),
        lambda d: d["cells"][0].pop("class"),
        lambda d: d["cells"][0].update(finding={"text": "no section, load and log"}),
        lambda d: d["machines"][0].update(colo_safe="yes"),
    ],
)
def test_schema_refuses(doc: MatrixDoc, damage: Callable[[Any], object]) -> None:
    document = json.loads(render_json(doc))
    damage(document)
    with pytest.raises(jsonschema.ValidationError):
        check(document)


def test_schema_knows_exactly_the_verdicts() -> None:
    assert json_schema()["$defs"]["verdict"]["enum"] == [verdict.value for verdict in Verdict]


def test_reading_back_gives_the_same_document(doc: MatrixDoc) -> None:
    assert MatrixDoc.from_json(json.loads(render_json(doc))) == doc


def test_a_cell_is_a_line(doc: MatrixDoc) -> None:
    lines = render_json(doc).splitlines()
    found = [line for line in lines if f'"id":"{doc.cells[7].id}"' in line]
    assert [json.loads(line.rstrip(",")) for line in found] == [doc.cells[7].to_json()]
    assert json.loads(render_json(replace(doc, cells=()))) == replace(doc, cells=()).to_json()


def test_cell_keys_are_those_of_the_format(one_cell: Callable[..., Cell]) -> None:
    finding = Finding(text="t", section="s", phase="bound", load=3, log="l", exit="SIGSEGV", isolated="i")
    document = one_cell(finding=finding, verdict=Verdict.CRASH).to_json()
    assert (document["phases"], document["verdict"], document["class"]) == (["bound"], "crash", None)
    assert document["finding"] == {
        "section": "s",
        "phase": "bound",
        "load": 3,
        "text": "t",
        "log": "l",
        "exit": "SIGSEGV",
        "isolated": "i",
    }


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema": "postload.inspect/1"}, "postload.inspect/1"),
        ({"schema": None}, "postload.matrix/1"),
        ({"seconds": "long"}, "seconds"),
        ({"cells": [{}]}, r"cells\.0"),
        ({"cells": "none"}, "cells"),
    ],
)
def test_wrong_documents_are_named(doc: MatrixDoc, change: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        MatrixDoc.from_json({**doc.to_json(), **change})


@pytest.mark.parametrize("document", [None, [], "text", {}])
def test_something_else_is_no_document(document: object) -> None:
    with pytest.raises(UsageError, match="not a matrix document"):
        MatrixDoc.from_json(document)


def test_a_key_of_a_cell_that_is_wrong_is_named_as_in_the_file(doc: MatrixDoc) -> None:
    document = doc.to_json()
    document["cells"][2]["class"] = "sometimes"
    with pytest.raises(UsageError, match=r"cells\.2\.class"):
        MatrixDoc.from_json(document)


def test_infinite_rates_and_odd_bytes_can_be_written(doc: MatrixDoc, one_cell: Callable[..., Cell]) -> None:
    odd = one_cell(loads_per_second=float("inf"), warnings=(b"\xff\x1b[1m".decode("utf-8", "surrogateescape"),))
    document = json.loads(render_json(replace(doc, cells=(odd,))))
    assert document["cells"][0]["loads_per_second"] == 0
    assert document["cells"][0]["warnings"] == ["?\x1b[1m"]


def test_reports_are_written_again_and_again(doc: MatrixDoc, tmp_path: Path) -> None:
    out = tmp_path / "a" / "b"
    write_reports(replace(doc, cells=doc.cells[:1], complete=False), out, ["json"])
    assert [path.name for path in out.iterdir()] == ["matrix.json"]
    for _ in range(2):
        assert {path.name for path in write_reports(doc, out)} == NAMES
    assert {path.name for path in out.iterdir()} == NAMES
    assert len(json.loads((out / "matrix.json").read_text())["cells"]) == len(doc.cells)


@pytest.mark.parametrize("failing", ["matrix.json", "matrix.html", "junit.xml", "matrix.md"])
def test_full_disk_leaves_the_old_reports(
    doc: MatrixDoc, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    write_reports(doc, tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    real = Path.write_bytes

    def full(path: Path, data: bytes) -> int:
        if failing in path.name:
            real(path, data[: len(data) // 2])
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(path, data)

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(HostError, match="No space") as caught:
        write_reports(replace(doc, cells=()), tmp_path)
    assert str(tmp_path) in str(caught.value)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_folder_that_cannot_be_is_a_host_error(doc: MatrixDoc, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(HostError, match="cannot write the files of"):
        write_reports(doc, tmp_path / "file" / "out")
