# SPDX-License-Identifier: GPL-2.0-or-later
"""``postload claims`` on machine ``pc``, each question once and with little effort."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from harness.engines.buffers import Buffers
from harness.engines.probe import ColoAbility
from harness.packs.pack import StatePack
from harness.qemu.binary import QemuBinary
from harness.studies.half import KINDS
from harness.studies.model import Effort, Lab, StudyAnswer
from harness.studies.run import QUESTIONS

Ask = Callable[[int], StudyAnswer]

EFFORT = Effort(loads=10, boundaries=18, inside=2, sections=6, intervals_ms=(1.0, 20.0), watch_s=0.5, pairs=False)


@pytest.fixture(scope="module")
def ask(binary: QemuBinary, ability: ColoAbility, pc_pack: StatePack) -> Ask:
    def answer(number: int) -> StudyAnswer:
        lab = Lab(binary=binary, ability=ability, buffers=Buffers(pc_pack), effort=EFFORT)
        answer = QUESTIONS[number].answer([lab])
        assert answer.failed == ""
        assert answer.answer
        assert answer.rows
        return answer

    return answer


def test_whole_states_of_pc_pass(ask: Ask) -> None:
    figures = ask(1).figures["pc"]
    assert figures["loads"] == figures["loads_passed"] == 70
    assert figures["failed"] == []


def test_a_checkpoint_by_half(ask: Ask) -> None:
    cases: list[dict[str, Any]] = list(ask(2).cases)
    assert {case["kind"] for case in cases} == set(KINDS)
    whole = [c for c in cases if c["kind"] == "whole"]
    assert all(c["reaction"] == "loaded" and c["takeover"]["alive"] for c in whole)
    for case in cases:
        where = f"{case['kind']}, {case['where']}: {case}"
        if case["kind"] in ("cut between sections", "cut inside a section", "bad section"):
            assert case["reaction"] == "refused", where
            assert "VMSTATE_LOADED" not in case["messages"], where
            assert case["colo_exit"] == "error", where
            assert case["further_checkpoint"] is False, where
            assert case["said"], where
        if case["kind"] in ("connection closed", "shorter than VMSTATE_SIZE"):
            assert case["colo_exit"] == "error", where
            assert case["takeover"]["status"] == "running", where
        if case["kind"] == "shorter than VMSTATE_SIZE":
            assert case["ram_of_next"] is False, where


def test_sections_stop_at_their_footers(ask: Ask) -> None:
    figures = ask(3).figures["pc"]
    assert figures["sections"] == EFFORT.sections
    assert figures["exact_taken"] == figures["more_refused"] == figures["less_refused"] == EFFORT.sections
    assert figures["in_vmdesc"] == EFFORT.sections


def test_checkpoints_at_two_intervals(ask: Ask) -> None:
    answer = ask(4)
    assert [case["interval_ms"] for case in answer.cases] == [1.0, 20.0]
    for case in answer.cases:
        assert case["asked"] == case["survived"] > 0
        assert 0 < case["loading_share"] < case["stopped_share"] < 1
