# SPDX-License-Identifier: GPL-2.0-or-later
"""``postload claims`` on machine ``pc``, each question once and with little effort."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jsonschema
import pytest

from harness.engines.buffers import Buffers
from harness.engines.probe import ColoAbility
from harness.packs.pack import StatePack
from harness.qemu.binary import QemuBinary
from harness.report.claims import machine_text, table_rows
from harness.report.schemas import shipped
from harness.studies.findings import Half, HalfFinding, How, IntervalFinding
from harness.studies.model import Effort, Lab, document
from harness.studies.run import QUESTIONS

Ask = Callable[[int], Any]

EFFORT = Effort(loads=10, boundaries=18, inside=2, sections=6, intervals_ms=(1.0, 20.0), watch_s=0.5, pairs=False)


@pytest.fixture(scope="module")
def ask(binary: QemuBinary, ability: ColoAbility, pc_pack: StatePack) -> Ask:
    def answer(number: int) -> Any:
        lab = Lab(binary=binary, ability=ability, buffers=Buffers(pc_pack), effort=EFFORT)
        answer = QUESTIONS[number].answer([lab])
        assert answer.failed == ()
        (one,) = answer.machines
        assert machine_text(one).startswith("pc: ")
        assert table_rows(one.found)
        asked = document(binary, [answer], ["postload", "claims"], 1.0)
        jsonschema.validate(asked.to_json(), shipped("claims-1.schema.json"))
        return one.found

    return answer


def test_whole_states_of_pc_pass(ask: Ask) -> None:
    figures = ask(1).figures
    assert figures.loads == figures.loads_passed == 70
    assert figures.sessions_failed == 0


def test_a_checkpoint_by_half(ask: Ask) -> None:
    found: HalfFinding = ask(2)
    assert {case.half for case in found.cases} == set(Half)
    whole = [case for case in found.cases if case.half is Half.WHOLE]
    assert all(case.how is How.LOADED and case.takeover.alive for case in whole)
    for case in found.cases:
        if case.half in (Half.CUT_BETWEEN, Half.CUT_INSIDE, Half.BAD_SECTION):
            assert case.how is How.REFUSED, case
            assert not case.acknowledged, case
            assert case.colo_exit == "error", case
            assert case.further_checkpoint is False, case
            assert case.said, case
        if case.half in (Half.CLOSED, Half.SHORTER):
            assert case.colo_exit == "error", case
            assert case.takeover.running, case
        if case.half is Half.SHORTER:
            assert case.ram_of_next is False, case


def test_sections_stop_at_their_footers(ask: Ask) -> None:
    figures = ask(3).figures
    assert figures.sections == EFFORT.sections
    assert figures.exact_taken == figures.more_refused == figures.less_refused == EFFORT.sections
    assert figures.in_vmdesc == EFFORT.sections


def test_checkpoints_at_two_intervals(ask: Ask) -> None:
    found: IntervalFinding = ask(4)
    assert [case.interval_ms for case in found.cases] == [1.0, 20.0]
    for case in found.cases:
        assert case.asked == case.survived > 0
        assert 0 < case.loading_share < case.stopped_share < 1
