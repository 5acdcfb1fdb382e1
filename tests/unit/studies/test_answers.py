# SPDX-License-Identifier: GPL-2.0-or-later
"""The sentences and tables of ``postload claims`` follow from the cases alone."""

from __future__ import annotations

from typing import Any

import pytest

from harness.stream.vmdesc import VmDesc
from harness.studies import framing, half, interval, loads

Row = dict[str, Any]


def _load_case(name: str, acked: int, verdict: str = "ok", **more: Any) -> Row:
    case: Row = {"name": name, "asked": 10, "acked": acked, "verdict": verdict, "text": "", "sections": []}
    return case | {"left_out": [], "log": "", "isolated": ""} | more


def test_loads_that_all_pass() -> None:
    cases = [_load_case("bound", 10), _load_case("busy", 10)]
    assert loads.text_of(loads.figures_of(cases)).startswith("All 20 loads")
    assert loads.summary(cases) == [
        {"loads": "bound, busy", "asked": 20, "acked": 20, "verdict": "ok", "sections": "", "why": ""}
    ]


def test_a_load_that_fails_is_counted_and_named() -> None:
    crash = _load_case("bound", 3, "crash", text="load 4: SIGABRT", sections=["dev/X"])
    cases = [crash, _load_case("bound", 10, left_out=["dev/X"])]
    figures = loads.figures_of(cases)
    assert (figures["loads"], figures["loads_passed"], figures["sections_failed"]) == (14, 13, ["dev/X"])
    text = loads.text_of(figures)
    assert text.startswith("No: 1 of 2 sessions")
    assert "dev/X (crash: load 4: SIGABRT)" in text
    assert [row["loads"] for row in loads.summary(cases)] == ["bound", "bound, without dev/X"]


def _half_case(kind: str, **more: Any) -> Row:
    case: Row = {"kind": kind, "where": "here", "messages": ("VMSTATE_RECEIVED",), "colo_exit": "error", "said": "x"}
    case |= {"exit": None, "further_checkpoint": False, "ram_of_next": True, "incomplete": True}
    return case | {"takeover": {"status": "running", "alive": False}} | more


def test_a_buffer_that_is_acknowledged_is_never_called_refused() -> None:
    good = [_half_case("cut between sections"), _half_case("bad section")]
    assert "none was acknowledged" in half.text_of(half.figures_of(good, []))
    wrong = _half_case("cut inside a section", messages=("VMSTATE_RECEIVED", "VMSTATE_LOADED"), colo_exit=None)
    figures = half.figures_of([*good, wrong], [])
    assert (figures["bad_buffers"], figures["bad_acknowledged"], figures["bad_reported"]) == (3, 1, 2)
    assert "1 were acknowledged" in half.text_of(figures)


def test_a_further_checkpoint_that_is_taken_changes_the_answer() -> None:
    refused = half.text_of(half.figures_of([_half_case("bad section")], []))
    taken = half.text_of(half.figures_of([_half_case("bad section", further_checkpoint=True)], []))
    assert "cannot be loaded again" in refused
    assert "cannot be loaded again" not in taken


def test_a_hung_monitor_is_said() -> None:
    case = _half_case("connection silent", colo_exit=None, ram_of_next=None, further_checkpoint=None)
    case["takeover"] = {"status": "no-answer", "alive": None}
    figures = half.figures_of([case], [])
    assert (figures["lost"], figures["lost_took_over"]) == (1, 0)
    assert "QMP itself hung in 1" in half.text_of(figures)
    assert half.summary([case])[0]["took over"] == "0/1"


def test_primaries_that_were_not_decided_do_not_count() -> None:
    seen: Row = {"kind": "real primary", "where": "secondary killed", "undecided": "", "noticed": True}
    seen |= {"alive_untold": False, "alive_told": True, "colo_exit": "error", "exit": None, "status_told": "running"}
    figures = half.figures_of([], [seen, {"kind": "real primary", "where": "x", "undecided": "hung"}])
    assert (figures["primary_cases"], figures["primary_undecided"], figures["primary_alone"]) == (1, 1, 0)
    assert "1 real pairs did not get" in half.text_of(figures)


def _frame_case(section: str, **more: Any) -> Row:
    case: Row = {"section": section, "bytes": 4, "vmdesc_bytes": 4, "described": "fields", "lengths": [4]}
    return case | {"exact": "loaded", "more": "refused", "less": "refused"} | more


def test_framing_of_sections_that_stop_at_their_footers() -> None:
    cases = [_frame_case("a"), _frame_case("b", described="open-coded", lengths=[4, 8])]
    figures = framing.figures_of(cases)
    assert (figures["open_coded_sections"], figures["varying_sections"]) == (["b"], ["b"])
    assert framing.text_of(figures, "bound").startswith("By the devices' own loads yes")
    assert [row["count"] for row in framing.summary(cases)] == [1, 1]


@pytest.mark.parametrize("more", [{"more": "loaded"}, {"less": "crash"}, {"exact": "refused"}])
def test_framing_of_a_section_that_does_not(more: Row) -> None:
    figures = framing.figures_of([_frame_case("a"), _frame_case("b", **more)])
    assert framing.text_of(figures, "bound").startswith("Not safely")
    assert bool(figures["crashed"]) == (more == {"less": "crash"})
    assert bool(figures["taken_wrongly"]) == (more == {"more": "loaded"})


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
def test_how_far_a_vmdesc_describes(fields: str, expected: str) -> None:
    assert framing.description(_desc(fields).device("a", 0)) == expected
    assert framing.description(None) == "none"


def test_shares_of_an_interval() -> None:
    times = [interval.Times(stop_s=0.001, receive_s=0.001, load_s=0.002)] * 100
    case = interval.case_of(5.0, times, 101, 1.0, "gone")
    assert (case["survived"], case["asked"]) == (100, 101)
    assert (case["mean_ms"], case["p95_ms"], case["load_mean_ms"]) == (4.0, 4.0, 2.0)
    assert (case["stopped_share"], case["loading_share"]) == (0.4, 0.2)
    assert interval.text_of([case]).startswith("100 of 101 checkpoints survived")
    assert interval.case_of(5.0, [], 1, 1.0, "gone")["stopped_share"] == 0
