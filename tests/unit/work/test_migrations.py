# SPDX-License-Identifier: GPL-2.0-or-later
"""Ordinary migrations before the checkpoints: who is to blame, and which loads count for whom."""

from __future__ import annotations

from typing import Any

import pytest
from made_cells import symptom

from harness.colo.messages import Step
from harness.engines.evidence import Break, Evidence
from harness.engines.incoming import State
from harness.engines.postcopy import PostcopyAbility, PostcopyLack
from harness.lanes import migrations as module
from harness.lanes.checks import OracleCheck, OracleName, perform
from harness.lanes.judge import Bench
from harness.lanes.migrations import migration_check
from harness.qemu.process import Exit
from harness.results.cause import Undecided, Why
from harness.results.document import Cell
from harness.results.outcome import Repeats
from harness.results.verdict import Verdict

AHCI = "0000:00:03.0/ich9_ahci"
ROWS = ("ahci", "virtio-blk", "platform")
PHASES = ("kernel", "bound")


class Destination:
    """Refuses sections in some phases; names them, or does not."""

    def __init__(self) -> None:
        self.refuses: dict[str, set[str]] = {}
        self.names = True
        self.kind = "refused"
        self.once = False
        self.wants_a_cpu = False
        self.tried: list[tuple[str, frozenset[str]]] = []

    def load(self, _bench: Bench, state: State) -> Evidence:
        self.tried.append((state.phase, state.excluded))
        bad = sorted(self.refuses.get(state.phase, set()) - state.excluded)
        if self.wants_a_cpu and "cpu" in state.excluded:
            return evidence(0, exit=Exit(status=0, signal=None))
        if not bad or (self.once and len(self.tried) > 1):
            return evidence(1)
        log = f"qemu: error while loading state for instance 0x0 of device '{bad[0]}'" if self.names else "qemu: no"
        broken = Break(step=Step.INCOMING, kind=self.kind, symptom=symptom("it failed"), load=1, phase=state.phase)
        return evidence(0, broken=broken, log=log)


def evidence(acked: int, **more: Any) -> Evidence:
    given: dict[str, Any] = {
        "loads_asked": 1, "loads_acked": acked, "checkpoints_acked": acked, "broken": None, "exit": None, "log": "",
    }  # fmt: skip
    return Evidence(**{**given, **more})


@pytest.fixture
def there(monkeypatch: pytest.MonkeyPatch) -> Destination:
    destination = Destination()
    monkeypatch.setattr(module, "_by_precopy", destination.load)
    return destination


def plain(bench: Bench) -> dict[str, Cell]:
    check = migration_check(OracleName.PLAIN, PHASES, ROWS)
    return by_row(check, bench)


def by_row(check: OracleCheck, bench: Bench) -> dict[str, Cell]:
    return {cell.device: cell for cell in perform(check, bench)}


def test_every_phase_is_loaded_once_and_counts_for_every_row(there: Destination, bench: Bench) -> None:
    cells = plain(bench)
    assert {cell.verdict for cell in cells.values()} == {Verdict.OK}
    assert {(cell.loads_asked, cell.loads_acked) for cell in cells.values()} == {(2, 2)}
    assert {(cell.lane, cell.engine, cell.guest_mode) for cell in cells.values()} == {("plain", "fresh", "running")}
    assert there.tried == [("kernel", frozenset()), ("bound", frozenset())]
    assert cells["ahci"].id == "7.2.22/pc-i440fx-7.2/ahci/kernel+bound/plain"


def test_a_refused_section_is_its_own_rows_finding_alone(there: Destination, bench: Bench) -> None:
    there.refuses = {"kernel": {AHCI}}
    cells = plain(bench)
    assert [cells[row].verdict for row in ROWS] == [Verdict.REJECT, Verdict.OK, Verdict.OK]
    outcome = cells["ahci"].outcome
    assert (outcome.sections, outcome.phase) == ((AHCI,), "kernel")
    # one refused load is ahci's alone; the two that passed without it are the others'
    assert [(cells[row].loads_asked, cells[row].loads_acked) for row in ROWS] == [(1, 0), (2, 2), (2, 2)]
    assert cells["ahci"].excluded == ()
    assert cells["platform"].excluded == (AHCI,)


def test_what_is_refused_is_left_out_of_all_that_follows(there: Destination, bench: Bench) -> None:
    there.refuses = {"kernel": {AHCI}}
    plain(bench)
    assert bench.refused == {AHCI}
    assert bench.known(("bound",)) == {AHCI}
    assert there.tried[-1] == ("bound", frozenset({AHCI}))


def test_two_refused_sections_are_both_found(there: Destination, bench: Bench) -> None:
    there.refuses = {"kernel": {AHCI}, "bound": {AHCI, "i8259"}}
    cells = plain(bench)
    assert [cells[row].verdict for row in ROWS] == [Verdict.REJECT, Verdict.OK, Verdict.REJECT]
    assert bench.refused == {AHCI, "i8259"}


def test_a_section_that_nobody_names_is_searched_for(there: Destination, bench: Bench) -> None:
    there.refuses, there.names = {"bound": {"i8259#1"}}, False
    cells = plain(bench)
    assert [cells[row].verdict for row in ROWS] == [Verdict.OK, Verdict.OK, Verdict.REJECT]
    assert bench.refused == {"i8259#1"}


def test_a_load_that_fails_for_no_section_is_the_platforms(there: Destination, bench: Bench) -> None:
    there.names = False
    there.refuses = {"kernel": {"a RAM block"}}
    cells = plain(bench)
    # nobody's load passed in that phase: the others are not ok for that, and not to blame either
    assert [cells[row].verdict for row in ROWS] == [Verdict.HARNESS_ERROR, Verdict.HARNESS_ERROR, Verdict.REJECT]
    assert bench.refused == frozenset()
    assert {(cell.loads_asked, cell.loads_acked) for cell in cells.values()} == {(2, 1)}


def test_a_section_that_nobody_names_is_found_though_no_guest_starts_without_its_cpu(
    there: Destination, bench: Bench
) -> None:
    there.names, there.wants_a_cpu, there.refuses = False, True, {"kernel": {AHCI}, "bound": {AHCI}}
    cells = plain(bench)
    assert [cells[row].verdict for row in ROWS] == [Verdict.REJECT, Verdict.OK, Verdict.OK]
    assert cells["ahci"].blamed == (AHCI,)
    assert bench.refused == frozenset({AHCI})


def test_a_failure_that_does_not_come_back_blames_no_section(there: Destination, bench: Bench) -> None:
    there.names, there.refuses, there.once = False, {"kernel": {AHCI}}, True
    cells = plain(bench)
    assert [cells[row].verdict for row in ROWS] == [Verdict.OK, Verdict.OK, Verdict.REJECT]
    assert cells["platform"].outcome.repeats == Repeats(seen=1, of=2, verdict=Verdict.REJECT, others=(Verdict.OK,))
    assert cells["platform"].blamed == ()
    assert bench.refused == frozenset()
    assert [cells[row].loads_acked for row in ROWS] == [2, 2, 2]


def test_more_refused_sections_than_are_searched_for_leave_nobody_ok(
    there: Destination, bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_BLAMED", 1)
    there.refuses = {"kernel": {AHCI, "i8259"}, "bound": {"i8259"}}
    cells = plain(bench)
    assert [cells[row].verdict for row in ROWS] == [Verdict.REJECT, Verdict.HARNESS_ERROR, Verdict.REJECT]


def test_a_section_of_a_row_that_is_not_judged_is_left_out_and_named(there: Destination, bench: Bench) -> None:
    there.refuses = {"kernel": {AHCI}}
    (cell,) = perform(migration_check(OracleName.PLAIN, PHASES, ("virtio-blk",)), bench)
    assert (cell.verdict, cell.loads_asked, cell.loads_acked) == (Verdict.OK, 2, 2)
    assert cell.excluded == (AHCI,)
    assert bench.refused == {AHCI}


def test_a_load_that_fails_for_no_section_and_without_the_platform_leaves_the_others_undecided(
    there: Destination, bench: Bench
) -> None:
    there.names, there.refuses = False, {"kernel": {"a RAM block"}}
    (cell,) = perform(migration_check(OracleName.PLAIN, PHASES, ("virtio-blk",)), bench)
    assert (cell.verdict, cell.loads_asked, cell.loads_acked) == (Verdict.HARNESS_ERROR, 2, 1)
    assert cell.outcome.causes == (Undecided(why=Why.OTHERS, acked=1, asked=2),)


def test_a_failure_that_does_not_come_back_is_not_hidden_where_the_platform_is_not_judged(
    there: Destination, bench: Bench
) -> None:
    there.names, there.refuses, there.once = False, {"kernel": {AHCI}}, True
    (cell,) = perform(migration_check(OracleName.PLAIN, PHASES, ("virtio-blk",)), bench)
    assert (cell.verdict, cell.loads_asked, cell.loads_acked) == (Verdict.HARNESS_ERROR, 3, 2)


def test_postcopy_that_cannot_be_is_the_hosts_and_not_ok(
    there: Destination, bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    ability = PostcopyAbility(lack=PostcopyLack.KERNEL)
    monkeypatch.setattr(module, "probe_postcopy", lambda *_: ability)
    cells = by_row(migration_check(OracleName.POSTCOPY, PHASES, ROWS), bench)
    assert {cell.verdict for cell in cells.values()} == {Verdict.HOST}
    assert {cell.loads_acked for cell in cells.values()} == {0}


@pytest.mark.parametrize(("came", "wanted"), [(True, 3), (False, 2)])
def test_a_guest_that_came_from_elsewhere_is_asked_how_it_is(
    there: Destination, bench: Bench, monkeypatch: pytest.MonkeyPatch, came: bool, wanted: int
) -> None:
    monkeypatch.setattr(module, "plain_life", lambda *_, **__: evidence(1))
    monkeypatch.setattr(module, "judge_life", lambda _: {})
    bench.came = came
    assert {cell.loads_acked for cell in plain(bench).values()} == {wanted}
