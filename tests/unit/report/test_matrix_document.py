# SPDX-License-Identifier: GPL-2.0-or-later
"""The document: its schema, reading it back, and files that appear whole or not at all."""

from __future__ import annotations

import errno
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import jsonschema
import pytest

from harness.colo.messages import Step
from harness.colo.symptom import Sign, Symptom
from harness.devices.phases import Missed, Unreached
from harness.errors import HostError, UsageError
from harness.guests.lack import Lack, Lacks
from harness.qemu.disturbance import Disturbance, Hindered
from harness.report.schemas import shipped
from harness.report.writer import render_json, write_reports
from harness.results.cause import (
    Broke,
    Cause,
    Check,
    Derived,
    Drifted,
    DriftedField,
    Ended,
    FailedCheck,
    GuestFaulted,
    KvmRefused,
    Leaked,
    Refused,
    Resource,
    SanitizerReport,
    Side,
    Undecided,
    Unsupported,
    Why,
)
from harness.results.document import Cell, MatrixDoc, matrix_schema
from harness.results.outcome import Isolation, IsolationWay, Repeats
from harness.results.verdict import FailureClass, Verdict

NAMES = {"matrix.json", "matrix.html", "junit.xml", "matrix.md", "matrix.tap", "summary.md"}


def check(document: object) -> None:
    validator = jsonschema.Draft202012Validator(shipped("matrix-2.schema.json"))
    validator.check_schema(shipped("matrix-2.schema.json"))
    validator.validate(document)


def test_document_fits_its_schema(doc: MatrixDoc) -> None:
    check(json.loads(render_json(doc)))


@pytest.mark.parametrize(
    "damage",
    [
        lambda d: d.update(schema="postload.matrix/1"),
        lambda d: d.pop("complete"),
        lambda d: d["cells"][0].pop("id"),
        lambda d: d["cells"][0]["outcome"].update(verdict="fine"),
        lambda d: d["cells"][0]["outcome"].update({"class": "sometimes"}),
        lambda d: d["cells"][0]["key"].pop("machine"),
        lambda d: d["cells"][0]["outcome"].update(causes=[{"kind": "odd"}]),
        lambda d: d["cells"][0]["outcome"].update(causes=[{"kind": "broke", "how": "late"}]),
        lambda d: d["machines"][0].update(colo="yes"),
    ],
)
def test_schema_refuses(doc: MatrixDoc, damage: Callable[[Any], object]) -> None:
    document = json.loads(render_json(doc))
    damage(document)
    with pytest.raises(jsonschema.ValidationError):
        check(document)


def test_the_shipped_schema_is_the_one_that_the_models_give() -> None:
    """``python -m harness.report.schemas`` writes it anew."""
    assert shipped("matrix-2.schema.json") == matrix_schema()


def test_schema_knows_exactly_the_verdicts() -> None:
    assert shipped("matrix-2.schema.json")["$defs"]["Verdict"]["enum"] == [verdict.value for verdict in Verdict]


def test_reading_back_gives_the_same_document(doc: MatrixDoc) -> None:
    assert MatrixDoc.from_json(json.loads(render_json(doc))) == doc


def test_a_cell_is_a_line(doc: MatrixDoc) -> None:
    lines = render_json(doc).splitlines()
    found = [line for line in lines if f'"id":"{doc.cells[7].id}"' in line]
    assert [json.loads(line.rstrip(",")) for line in found] == [doc.cells[7].to_json()]
    assert json.loads(render_json(replace(doc, cells=()))) == replace(doc, cells=()).to_json()


def test_cell_keys_are_those_of_the_format(one_cell: Callable[..., Cell]) -> None:
    cause = Broke(step=Step.LOAD, load=3, phase="bound", how="late", symptom=Symptom(sign=Sign.NO_ANSWER, seconds=20))
    cell = one_cell(
        verdict=Verdict.HANG,
        failure_class=FailureClass.FAILS,
        causes=(cause,),
        blamed=("s",),
        log="l",
        isolation=Isolation(way=IsolationWay.ALONE, loads=6, of=1),
        repeats=Repeats(seen=1, of=3, verdict=Verdict.HANG, others=(Verdict.OK,)),
    )
    document = cell.to_json()
    assert document["id"] == "7.2.22/pc-q35-7.2/ahci/bound/same/parked"
    assert document["key"] == {
        "route": {"recorder": "7.2.22", "loader": "7.2.22"},
        "machine": "pc-q35-7.2",
        "device": "ahci",
        "phases": ["bound"],
        "lane": "same",
        "guest_mode": "parked",
        "rest": 0,
        "arch": "x86_64",
        "cpus": 1,
        "accel": "tcg",
    }
    assert document["outcome"] == {
        "verdict": "hang",
        "class": "fails",
        "causes": [
            {
                "step": "load",
                "load": 3,
                "phase": "bound",
                "during": None,
                "how": "late",
                "symptom": {
                    "sign": "no-answer",
                    "doing": None,
                    "command": "",
                    "seconds": 20,
                    "said": "",
                    "wanted": "",
                    "status": "",
                    "source": "",
                    "exit": None,
                    "got": None,
                    "of": None,
                },
                "kind": "broke",
            }
        ],
        "sections": ["s"],
        "repeats": {"seen": 1, "of": 3, "verdict": "hang", "others": ["ok"]},
        "log": "l",
        "loads_asked": 100,
        "loads_acked": 100,
        "checkpoints_acked": 100,
        "controls": [],
        "moment": None,
        "isolation": {"way": "alone", "loads": 6, "together": False, "of": 1},
        "hindered": [],
    }
    assert Cell.from_json(document) == cell


ONE_OF_EACH: list[Cause] = [
    Broke(step=Step.MAIN_LOOP, how="late"),
    Ended(step=Step.LOAD, load=1, signal="SIGSEGV", sanitizer=SanitizerReport(tool="t", complaint="c")),
    Refused(step=Step.INCOMING, load=0, section="s", field="f", reason="r", errno="EINVAL"),
    Drifted(section="s", fields=(DriftedField(field="f", type="uint8", values=(1, None, "ab")),), count=1, loads=50),
    Derived(about="memory", gone=("memory: 0-f: a",), count=1, load=1, phase="bound"),
    Leaked(
        section="s",
        resource=Resource.MEMORY,
        per_load=1.5,
        low=1.0,
        high=2.0,
        unit="bytes",
        loads=9,
        chunks=((32, 0.5),),
    ),
    GuestFaulted(step=Step.AFTER, checks=(FailedCheck(check=Check.HEARTBEAT, figures={"beats": 0}),)),
    KvmRefused(step=Step.LOAD, load=1, group="MSR 0x48", ioctl="KVM_SET_MSRS", msr=0x48, value=4),
    Hindered(how=Disturbance.ENDED, signal="SIGKILL"),
    Unsupported(side=Side.RECORDER, lack=Lack(what=Lacks.MACHINE, machine="m", qemu="9")),
    Unreached(phase="bound", how=Missed.NOTHING_TO_DO, step="bind", said="no driver"),
    Undecided(why=Why.LOADS, acked=1, asked=2),
]


def test_every_cause_is_read_back_as_what_it_was(one_cell: Callable[..., Cell]) -> None:
    assert {type(cause) for cause in ONE_OF_EACH} == set(get_args(get_args(Cause)[0]))
    for cause in ONE_OF_EACH:
        cell = one_cell(verdict=Verdict.CRASH, causes=(cause,))
        assert Cell.from_json(json.loads(json.dumps(cell.to_json()))) == cell


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema": "postload.inspect/1"}, "postload.inspect/1"),
        ({"schema": None}, "postload.matrix/2"),
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
    document["cells"][2]["outcome"]["class"] = "sometimes"
    with pytest.raises(UsageError, match=r"cells\.2\.outcome\.class"):
        MatrixDoc.from_json(document)


def test_infinite_rates_and_odd_bytes_can_be_written(doc: MatrixDoc, one_cell: Callable[..., Cell]) -> None:
    odd = one_cell(loads_per_second=float("inf"), log=b"\xff\x1b[1m".decode("utf-8", "surrogateescape"))
    document = json.loads(render_json(replace(doc, cells=(odd,))))
    assert document["cells"][0]["loads_per_second"] == 0
    assert document["cells"][0]["outcome"]["log"] == "?\x1b[1m"


def test_reports_are_written_again_and_again(doc: MatrixDoc, tmp_path: Path) -> None:
    out = tmp_path / "a" / "b"
    write_reports(replace(doc, cells=doc.cells[:1], complete=False), out, ["json"])
    assert [path.name for path in out.iterdir()] == ["matrix.json"]
    for _ in range(2):
        assert {path.name for path in write_reports(doc, out)} == NAMES
    assert {path.name for path in out.iterdir()} == NAMES
    assert len(json.loads((out / "matrix.json").read_text())["cells"]) == len(doc.cells)


@pytest.mark.parametrize("failing", sorted(NAMES))
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
