# SPDX-License-Identifier: GPL-2.0-or-later
"""The figures of ``postload claims`` follow from the cases alone, and its sentences and tables from both."""

from __future__ import annotations

from typing import Any

import pytest
from made_claims import (
    frame_case,
    framing_of,
    half_case,
    half_of,
    intervals_of,
    load_case,
    loads_of,
    primary_case,
)

from harness.report.claims import finding_text, place_text, table_rows
from harness.results.verdict import Verdict
from harness.stream.vmdesc import VmDesc
from harness.studies import framing, interval
from harness.studies.findings import (
    Damage,
    Described,
    Framed,
    Half,
    HalfPlace,
    How,
    LostAt,
    PairFault,
    PrimaryCase,
    Takeover,
    Way,
    WrongLength,
)


def test_loads_that_all_pass() -> None:
    found = loads_of(load_case("bound"), load_case("busy"))
    assert (found.figures.loads, found.figures.loads_passed, found.figures.sessions_failed) == (20, 20, 0)
    assert finding_text(found).startswith("All 20 loads")
    assert table_rows(found) == [("bound, busy", 20, 20, "ok", "")]


def test_a_load_that_fails_is_counted_and_named() -> None:
    crash = load_case("bound", 3, Verdict.CRASH, line="load 4: SIGABRT", sections=("dev/X",))
    found = loads_of(crash, load_case("bound", left_out=("dev/X",)))
    figures = found.figures
    assert (figures.loads, figures.loads_passed, figures.sections_failed) == (14, 13, ("dev/X",))
    text = finding_text(found)
    assert text.startswith("No: 1 of 2 sessions")
    assert "dev/X (crash: load 4: SIGABRT)" in text
    assert [row[0] for row in table_rows(found)] == ["bound", "bound, without dev/X"]


def test_a_buffer_that_is_acknowledged_is_never_called_refused() -> None:
    good = [half_case(Half.CUT_BETWEEN), half_case(Half.BAD_SECTION)]
    assert "none was acknowledged" in finding_text(half_of(*good))
    messages = ("VMSTATE_RECEIVED", "VMSTATE_LOADED")
    wrong = half_case(Half.CUT_INSIDE, messages=messages, how=How.LOADED, colo_exit=None)
    found = half_of(*good, wrong)
    figures = found.figures
    assert (figures.bad_buffers, figures.bad_acknowledged, figures.bad_reported) == (3, 1, 2)
    assert "1 was acknowledged" in finding_text(found)
    assert "2 were acknowledged" in finding_text(half_of(wrong, wrong))


def test_a_further_checkpoint_that_is_taken_changes_the_answer() -> None:
    assert "cannot be loaded again" in finding_text(half_of(half_case(Half.BAD_SECTION)))
    taken = half_of(half_case(Half.BAD_SECTION, further_checkpoint=True))
    assert "cannot be loaded again" not in finding_text(taken)
    assert "a further checkpoint in 1 of 1 case." in finding_text(taken)


def test_a_hung_monitor_is_said() -> None:
    silent = half_case(
        Half.SILENT, place=HalfPlace(lost_at=LostAt.IN_RAM), how=How.SILENT, colo_exit=None, ram_of_next=None,
        further_checkpoint=None, takeover=Takeover(status="no-answer"),
    )  # fmt: skip
    found = half_of(silent)
    assert (found.figures.lost, found.figures.lost_took_over) == (1, 0)
    assert "QMP itself hung in 1 of these: in the RAM." in finding_text(found)
    assert table_rows(found) == [("connection silent", 1, 0, 0, 0, "-", "0/1", "-", "-")]


def test_primaries_that_were_not_decided_do_not_count() -> None:
    found = half_of(primary=(primary_case(), PrimaryCase(fault=PairFault.SILENT, undecided="hung")))
    figures = found.figures
    assert (figures.primary_cases, figures.primary_undecided, figures.primary_alone) == (1, 1, 0)
    assert "1 real pair did not get to its checkpoints" in finding_text(found)
    assert table_rows(found) == [
        ("primary: secondary killed", 1, "-", 1, 0, "-", "1/1", "1/1", "-"),
        ("primary: connection silent", 0, "-", "-", "-", "-", "-", "-", "-"),
    ]


@pytest.mark.parametrize(
    ("place", "text"),
    [
        (HalfPlace(), "before the first section"),
        (HalfPlace(section="dev"), "behind dev"),
        (HalfPlace(section="dev", byte=3, of=9), "byte 3 of 9 of dev"),
        (HalfPlace(section="dev", damage=Damage.IDSTR), "idstr of dev"),
        (HalfPlace(left_out=4, of=9), "4 of 9 left out at the end"),
        (HalfPlace(lost_at=LostAt.AFTER_REPLY), "after CHECKPOINT_REPLY"),
        (HalfPlace(lost_at=LostAt.BEFORE_LAST_BYTE), "before its last byte"),
    ],
)
def test_places(place: HalfPlace, text: str) -> None:
    assert place_text(place) == text


def test_framing_of_sections_that_stop_at_their_footers() -> None:
    found = framing_of(frame_case("a"), frame_case("b", described=Described.OPEN_CODED, lengths=(4, 8)))
    assert (found.figures.open_coded_sections, found.figures.varying_sections) == (("b",), ("b",))
    assert finding_text(found).startswith("By the devices' own loads yes")
    assert table_rows(found) == [
        ("a", "fields", 1, "no", "taken", "refused", "refused"),
        ("b", "open-coded", 1, "yes", "taken", "refused", "refused"),
    ]


@pytest.mark.parametrize(("way", "how"), [(Way.MORE, How.LOADED), (Way.LESS, How.CRASH), (Way.EXACT, How.REFUSED)])
def test_framing_of_a_section_that_does_not(way: Way, how: How) -> None:
    found = framing_of(frame_case("a"), frame_case("b", **{str(way): Framed(how=how)}))
    assert finding_text(found).startswith("Not safely")
    wrong = (WrongLength(section="b", way=way),)
    assert found.figures.crashed == (wrong if how is How.CRASH else ())
    assert found.figures.taken_wrongly == (wrong if how is How.LOADED else ())


def _desc(fields: str) -> VmDesc:
    head = '{"devices": [{"name": "a", "instance_id": 0, "vmsd_name": "a", "version": 1, "fields": ['
    text = f"{head}{fields}]}}]}}"
    return VmDesc.from_json(text.encode())


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ('{"name": "x", "type": "uint8", "size": 1}', "fields"),
        ('{"name": "virtio", "type": "virtio", "size": 46000}', "open-coded"),
        ('{"name": "x", "type": "uint8", "size": 1}, {"name": "q", "type": "qtailq", "size": 9}', "partly"),
    ],
)
def test_how_far_a_vmdesc_describes(fields: str, expected: Any) -> None:
    assert framing.description(_desc(fields).devices[0]) == expected
    assert framing.description(None) is Described.NONE


def test_shares_of_an_interval() -> None:
    times = [interval.Times(stop_s=0.001, receive_s=0.001, load_s=0.002)] * 100
    case = interval.case_of(5.0, times, 101, 1.0, "gone")
    assert (case.survived, case.asked) == (100, 101)
    assert (case.mean_ms, case.p95_ms, case.load_mean_ms) == (4.0, 4.0, 2.0)
    assert (case.stopped_share, case.loading_share) == (0.4, 0.2)
    assert finding_text(intervals_of(case)).startswith("100 of 101 checkpoints survived over 1 interval;")
    assert interval.case_of(5.0, [], 1, 1.0, "gone").stopped_share == 0
