# SPDX-License-Identifier: GPL-2.0-or-later
"""What ``postload history`` and ``postload import`` show, as their users call them."""

from __future__ import annotations

import json

import jsonschema
import pytest
import sqlalchemy as sa
from click.testing import CliRunner
from made_runs import crashed, judged, write_nights

from harness.cli import cli
from harness.errors import UsageError
from harness.report.schemas import shipped
from harness.store.document import history_schema

CRASH = "crash:-:died:ich9_ahci:q35"
BOUND, BUSY = "pc-q35-7.2/ahci/bound/same", "pc-q35-7.2/ahci/busy/same"


@pytest.fixture(autouse=True)
def _nights(engine: sa.Engine) -> None:
    write_nights(engine, [[judged(BOUND)], [crashed(BOUND), judged(BUSY)], [judged(BOUND), judged(BUSY)]])


def asked(*words: str) -> str:
    done = CliRunner().invoke(cli, ["history", *words], standalone_mode=False, catch_exceptions=False)
    assert done.return_value == 0
    return done.output


def test_runs_are_listed_newest_first(store: str) -> None:
    lines = asked("--store", store).splitlines()
    assert lines[0].split() == ["run", "started", "took", "host", "cells", "findings"]
    assert [line.split()[0] for line in lines[1:]] == ["night-2", "night-1", "night-0"]
    assert lines[2].split()[-3:] == ["alpha", "2", "1"]
    assert len(asked("--store", store, "--last", "1").splitlines()) == 2


@pytest.mark.parametrize("what", [f"7.2.22/{BOUND}", f"7.2/{BOUND}", "ahci/bound/same", "bound"])
def test_a_cell_is_shown_through_the_runs(store: str, what: str) -> None:
    text = asked("--store", store, what)
    verdicts = [line.split()[2] for line in text.splitlines() if line.startswith("  night-")]
    assert verdicts == ["ok", "crash", "ok"]
    assert f"{CRASH}\n  seen first in night-1, last in night-1, in 1 run" in text


@pytest.mark.parametrize("what", [CRASH, "crash:", "died"])
def test_a_signature_is_shown_by_its_name_or_a_part_of_it(store: str, what: str) -> None:
    found = json.loads(asked("--store", store, what, "--json"))
    assert (found["asked"], [row["run"] for row in found["outcomes"]]) == (CRASH, ["night-1"])


def test_a_device_is_shown_as_it_is_in_the_newest_run(store: str) -> None:
    found = json.loads(asked("--store", store, "ahci", "--json"))
    assert [(row["run"], row["phases"]) for row in found["outcomes"]] == [("night-2", "bound"), ("night-2", "busy")]
    assert [each["name"] for each in found["signatures"]] == [CRASH]


@pytest.mark.parametrize(("what", "words"), [("ahci/", "part of 2 cells"), ("none", "no cell, signature or device")])
def test_what_is_none_or_several_is_told(store: str, what: str, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        asked("--store", store, what)


def test_the_document_follows_its_schema(store: str) -> None:
    assert shipped("history-1.schema.json") == json.loads(json.dumps(history_schema()))
    validator = jsonschema.Draft202012Validator(shipped("history-1.schema.json"))
    for words in ((), ("ahci",), (CRASH,), ("bound",)):
        validator.validate(json.loads(asked("--store", store, *words, "--json")))


def test_the_store_may_stand_in_the_environment(store: str) -> None:
    done = CliRunner().invoke(cli, ["history"], env={"POSTLOAD_STORE": store}, standalone_mode=False)
    assert "night-2" in done.output
