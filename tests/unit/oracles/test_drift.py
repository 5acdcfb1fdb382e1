# SPDX-License-Identifier: GPL-2.0-or-later
"""Drift, the pure part: states made by hand, field by field."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest
from made_cells import symptom, words

from harness.colo.messages import Step
from harness.devices.device import Device
from harness.devices.saved import Comparison, Rule
from harness.engines.evidence import Break
from harness.errors import ConfigError, StreamError
from harness.experiments.drift import DriftRun, Snapshot, saved_after, split_saved
from harness.oracles.drift import (
    Change,
    changes,
    explained_by,
    judge_drift,
    leaves,
    load_rules,
    rules_for,
    unused_rules,
)
from harness.results.cause import Drifted, DriftedField
from harness.results.verdict import Verdict
from harness.stream.model import Section
from harness.stream.vmdesc import VmDesc

REASON = "because this is a test, test_drift()"


def number(name: str, size: int = 4) -> dict[str, Any]:
    return {"name": name, "type": f"uint{size * 8}", "size": size}


SUB: dict[str, Any] = {"vmsd_name": "pit/extra", "version": 1, "fields": [number("deep", 2)]}
SUB_BYTES = b"\x05\x09pit/extra" + struct.pack(">I", 1)
VMDESC = VmDesc.from_json(
    json.dumps(
        {
            "page_size": 4096,
            "devices": [
                {
                    "name": "pit",
                    "instance_id": 0,
                    "vmsd_name": "pit",
                    "version": 2,
                    "fields": [number("count"), {"name": "regs", "type": "buffer", "size": 4}],
                    "subsections": [SUB],
                },
                {
                    "name": "uart",
                    "instance_id": 0,
                    "vmsd_name": "uart",
                    "version": 1,
                    "fields": [
                        {
                            "name": "state",
                            "type": "struct",
                            "size": 1 + len(SUB_BYTES) + 2,
                            "struct": {
                                "vmsd_name": "inner",
                                "version": 1,
                                "fields": [number("lcr", 1)],
                                "subsections": [SUB],
                            },
                        },
                        number("behind", 1),
                    ],
                },
            ],
        }
    ).encode()
)


def section(idstr: str, payload: bytes, *, version: int = 2) -> Section:
    return Section(
        type=4,
        section_id=7,
        idstr=idstr,
        instance_id=0,
        version_id=version,
        offset=0,
        header_size=0,
        payload=payload,
        footer=True,
        desc=next(iter(VMDESC.named(idstr, 0)), None),
    )


def pit(count: int, regs: bytes = b"\0\1\2\3", sub: bytes = SUB_BYTES + b"\0\x63") -> Section:
    return section("pit", struct.pack(">I", count) + regs + sub)


def run_of(sent: Section, *saved: Section | None, idle: Section | None = None, **more: Any) -> DriftRun:
    """A run of 50 loads, saved after as many of the loads 1, 25 and 50 as there are states."""
    snapshots = [
        Snapshot(load=load, sections={} if state is None else {"pit": state})
        for load, state in zip((1, 25, 50), saved, strict=False)
    ]
    return DriftRun(
        machine="pc-i440fx-7.2",
        phase="bound",
        sent={"pit": sent},
        snapshots=tuple(snapshots),
        idle=None if idle is None else Snapshot(load=50, sections={"pit": idle}),
        loads_asked=50,
        loads_acked=50,
        seconds=0.5,
        broken=more.pop("broken", None),
        **more,
    )


def rule(field: str, *compare: Comparison, bits: int | None = None, section: str = "pit", machine: str = "*") -> Rule:
    return Rule(
        section=section,
        fields=(field,),
        bits=bits,
        machine=machine,
        compare=compare or tuple(Comparison),
        reason=REASON,
    )


# --- What differs ------------------------------------------------------------------------------------------


def test_equal_sections_do_not_differ() -> None:
    assert changes(pit(5), pit(5)) == []


def test_a_number_is_told_by_its_path() -> None:
    assert changes(pit(5), pit(9)) == [Change(field="count", type="uint32", old=5, new=9)]


def test_a_field_of_a_subsection_too() -> None:
    found = changes(pit(5), pit(5, sub=SUB_BYTES + b"\1\0"))
    assert found == [Change(field="pit/extra/deep", type="uint16", old=0x63, new=0x100)]


def test_bytes_of_a_buffer_are_told_by_their_offset() -> None:
    found = changes(pit(5), pit(5, regs=b"\0\xff\2\xfe"))
    assert [(c.field, c.old, c.new) for c in found] == [("regs[1]", 1, 255), ("regs[3]", 3, 254)]


@pytest.mark.parametrize(("old", "new"), [(True, False), (False, True)])
def test_a_subsection_that_goes_or_comes(old: bool, new: bool) -> None:
    before, after = (pit(5) if there else pit(5, sub=b"") for there in (old, new))
    found = changes(before, after)
    present = [("present", 0x63) if there else (None, None) for there in (old, new)]
    assert [(c.field, c.old, c.new) for c in found] == [
        ("pit/extra", present[0][0], present[1][0]),
        ("pit/extra/deep", present[0][1], present[1][1]),
    ]


def test_a_subsection_inside_a_struct_goes_and_what_is_behind_it_is_still_told() -> None:
    old = section("uart", b"\x03" + SUB_BYTES + b"\0\x63" + b"\x11")
    found = changes(old, section("uart", b"\x03\x22"))
    assert [(c.field, c.new) for c in found] == [
        ("state.pit/extra", None),
        ("state.pit/extra/deep", None),
        ("behind", 0x22),
    ]


def test_a_subsection_that_nobody_described_stands_by_its_name() -> None:
    found = changes(pit(5), pit(5, sub=SUB_BYTES + b"\0\x63" + b"\x05\x05pit/x" + b"\0\0\0\1\xaa"))
    assert [(c.field, c.old) for c in found] == [("pit/x", None)]


def test_a_payload_that_fits_nothing_is_one_field() -> None:
    assert set(leaves(section("pit", b"\1\2"))) == {"payload"}
    assert set(leaves(section("stranger", b"\1\2"))) == {"payload"}
    (found,) = changes(section("stranger", b"\1\2"), section("stranger", b"\1\2\3"))
    assert (found.field, found.old, found.new) == ("payload", "0102", "010203")


def test_whole_sections_are_compared() -> None:
    assert [(c.field, c.old, c.new) for c in changes(pit(5), None)] == [("(section)", "present", "absent")]
    assert changes(None, None) == []


def test_another_version_alone_is_the_only_difference() -> None:
    newer = section("pit", pit(5).payload, version=3)
    assert changes(pit(5), newer) == [Change(field="(version)", type="section", old=2, new=3)]


# --- The verdict -------------------------------------------------------------------------------------------


def test_a_state_that_stands_still_is_ok() -> None:
    judged = judge_drift(run_of(pit(5), pit(5), pit(5), pit(5)), ())["pit"]
    assert (judged.verdict, judged.cause) == (Verdict.OK, None)
    assert judged.details["changed_by_load"] == []


def test_a_state_that_creeps_is_drift_with_its_rate() -> None:
    judged = judge_drift(run_of(pit(1), pit(1), pit(25), pit(50), idle=pit(50)), ())["pit"]
    assert judged.verdict is Verdict.DRIFT
    assert "count goes from 1 to 50, +1 per load" in words(judged)
    field = DriftedField(
        field="count", type="uint32", values=(1, 25, 50), per_load=1.0, creeps=True, without_loads=False
    )
    assert judged.cause == Drifted(section="pit", fields=(field,), count=1, loads=50, phase="bound")
    json.dumps(judged.details)


def test_a_state_that_differs_half_way_only_is_drift() -> None:
    judged = judge_drift(run_of(pit(1), pit(1), pit(2), pit(1)), ())["pit"]
    assert judged.verdict is Verdict.DRIFT
    assert "count is 1, then 2, then 1" in words(judged)


def test_what_moves_without_loads_is_said_to() -> None:
    judged = judge_drift(run_of(pit(1), pit(1), pit(2), pit(3), idle=pit(4)), ())["pit"]
    assert isinstance(judged.cause, Drifted)
    assert [field.without_loads for field in judged.cause.fields] == [True]


def test_what_the_load_changed_is_told_and_no_drift() -> None:
    judged = judge_drift(run_of(pit(5), pit(6), pit(6), pit(6)), ())["pit"]
    assert judged.verdict is Verdict.OK
    assert judged.details["changed_by_load"] == [{"field": "count", "type": "uint32", "old": 5, "new": 6}]


def test_a_section_that_goes_away_is_drift() -> None:
    judged = judge_drift(run_of(pit(5), pit(5), pit(5), None), ())["pit"]
    assert judged.verdict is Verdict.DRIFT
    assert "(section) is present, then present, then absent" in words(judged)


def test_a_section_that_comes_is_drift_unless_it_was_left_out() -> None:
    base = run_of(pit(5), pit(5), pit(5), pit(5))
    snapshots = [*base.snapshots[:2], Snapshot(load=50, sections={"pit": pit(5), "new": section("new", b"")})]
    more = {"snapshots": tuple(snapshots)}
    fields = {name: getattr(base, name) for name in base.__slots__} | more
    assert judge_drift(DriftRun(**fields), ())["new"].verdict is Verdict.DRIFT
    assert set(judge_drift(DriftRun(**fields | {"excluded": frozenset({"new"})}), ())) == {"pit"}


def test_many_fields_are_counted() -> None:
    judged = judge_drift(run_of(pit(5), pit(5), pit(6, b"abcd"), pit(6, b"abcd")), ())["pit"]
    assert words(judged).endswith("and 2 more fields")
    assert isinstance(judged.cause, Drifted)
    assert (len(judged.cause.fields), judged.cause.count) == (5, 5)


def test_a_secondary_that_broke_early_is_not_judged() -> None:
    broken = Break(step=Step.LOAD, kind="closed", symptom=symptom("gone"), load=2, phase="bound")
    judged = judge_drift(run_of(pit(5), pit(5), broken=broken), ())["pit"]
    assert judged.verdict is Verdict.HARNESS_ERROR
    assert "load 2" in words(judged)


# --- Rules -------------------------------------------------------------------------------------------------


def test_a_rule_explains_its_field_in_its_comparison_only() -> None:
    run = run_of(pit(1), pit(2), pit(3), pit(4))
    judged = judge_drift(run, [rule("count", Comparison.N)])["pit"]
    assert judged.verdict is Verdict.OK
    assert [entry["reason"] for entry in judged.details["by_nature"]] == [REASON]
    assert judged.details["changed_by_load"]
    judged = judge_drift(run, [rule("count", Comparison.RECORDING)])["pit"]
    assert judged.verdict is Verdict.DRIFT
    assert judged.details["changed_by_load"] == []


@pytest.mark.parametrize("other", [{"section": "pi"}, {"machine": "pc-q35-*"}])
def test_a_rule_of_another_section_or_machine_explains_nothing(other: dict[str, str]) -> None:
    run = run_of(pit(1), pit(2), pit(3), pit(4))
    assert judge_drift(run, [rule("count", **other)])["pit"].verdict is Verdict.DRIFT  # type: ignore[arg-type]


def test_brackets_in_a_field_are_no_wildcards() -> None:
    assert rule("regs[1]").applies("pc", "pit", Comparison.N, "regs[1]")
    assert not rule("regs[1]").applies("pc", "pit", Comparison.N, "regs1")
    assert rule("regs[*]").applies("pc", "pit", Comparison.N, "regs[15]")
    assert not rule("regs[?]").applies("pc", "pit", Comparison.N, "regs[15]")


def test_only_the_bits_of_a_rule_may_move() -> None:
    rules = [rule("count", bits=0x10), rule("count", bits=0x02)]
    both = Change(field="count", type="uint32", old=0, new=0x12)
    assert explained_by(rules, both) == rules
    assert explained_by(rules[:1], both) == []
    assert explained_by(rules, Change(field="count", type="uint32", old=0, new=0x13)) == []
    assert explained_by(rules, Change(field="count", type="uint32", old=0, new=None)) == []


def test_rules_that_explain_nothing_are_found() -> None:
    run = run_of(pit(1), pit(2), pit(2), pit(2), idle=pit(2, b"\xff\1\2\3"))
    rules = [rule("count"), rule("regs[0]"), rule("regs[1]")]
    assert unused_rules(rules, [run]) == [
        (rules[0], Comparison.N),
        (rules[2], Comparison.N),
        (rules[2], Comparison.RECORDING),
    ]


def test_a_second_clock_of_the_machine_moves_by_the_rules_of_the_first() -> None:
    for label in ("mc146818rtc", "mc146818rtc#1"):
        assert any(rule.applies("pc-i440fx-7.2", label, Comparison.N, "cmos_data[0]") for rule in load_rules())


def test_the_rules_of_the_program_are_sound() -> None:
    rules = load_rules()
    assert rules
    for each in rules:
        assert "(" in each.reason, f"{each.section}: the reason names no QEMU file"
        assert each.section != "*"
        assert "*" not in each.fields


def test_a_device_speaks_of_its_own_sections_alone() -> None:
    own = Rule(fields=("count",), compare=(Comparison.N,), reason=REASON)
    some = Rule(section="*/other", fields=("count",), compare=(Comparison.N,), reason=REASON)
    devices = [
        Device(name="pit", about="", drift=(own, some)),
        Device(name="platform", about="", rest=True, drift=(own,)),
    ]
    owned = {"pit": ["pit", "pit#1"], "platform": ["cpu"], "absent": ["x"]}
    assert [rule.section for rule in rules_for(devices, owned)[len(load_rules()) :]] == ["pit", "pit#1", "*"]
    rules = rules_for(devices[:1], owned)
    moved = run_of(pit(1), pit(2), pit(3), pit(4))
    assert judge_drift(moved)["pit"].verdict is Verdict.DRIFT
    assert judge_drift(moved, rules)["pit"].verdict is Verdict.OK
    assert judge_drift(moved, rules_for(devices[:1], {"pit": ["pit#1"]}))["pit"].verdict is Verdict.DRIFT


@pytest.mark.parametrize(
    "lines",
    [
        ["fields: []", "compare: [n]", f"reason: {REASON}"],
        ["fields: [a]", "compare: [m]", f"reason: {REASON}"],
        ["fields: [a]", "compare: []", f"reason: {REASON}"],
        ["fields: [a]", "compare: [n]", "reason: short"],
        ["fields: [a]", "compare: [n]", f"reason: {REASON}", "bits: 0"],
        ["field: a", "compare: [n]", f"reason: {REASON}"],
    ],
)
def test_a_mistake_in_the_rules_is_told(tmp_path: Path, lines: list[str]) -> None:
    path = tmp_path / "rules.yaml"
    path.write_text("\n    ".join(["rules:\n  - section: pit", *lines]) + "\n")
    with pytest.raises(ConfigError):
        load_rules(path)


def test_a_rule_without_mistake_is_read(tmp_path: Path) -> None:
    path = tmp_path / "rules.yaml"
    lines = ["fields: [a]", "compare: [n]", "bits: 0x10", f"reason: {REASON}"]
    path.write_text("\n    ".join(["rules:\n  - section: pit", *lines]) + "\n")
    assert load_rules(path) == (rule("a", Comparison.N, bits=0x10),)


# --- What QEMU saved ---------------------------------------------------------------------------------------


def wire_section(idstr: bytes, section_id: int, payload: bytes) -> bytes:
    head = struct.pack(">BIB", 4, section_id, len(idstr)) + idstr + struct.pack(">II", 0, 2)
    return head + payload + struct.pack(">BI", 0x7E, section_id)


HEADER = struct.pack(">II", 0x5145564D, 3)


def test_a_saved_state_is_cut_where_the_vmdesc_says() -> None:
    data = HEADER + wire_section(b"pit", 3, pit(5).payload) + wire_section(b"uart", 4, b"\1\2") + b"\0"
    first, second = split_saved(data, VMDESC)
    assert (first.idstr, first.section_id, first.version_id, first.payload) == ("pit", 3, 2, pit(5).payload)
    assert first.encode() + second.encode() == data[8:-1]


def test_a_longer_section_and_one_that_is_new_are_found_by_their_footers() -> None:
    # what looks like the footer stands in the payload, with no section behind it
    odd = pit(5).payload + b"\x7e\0\0\0\3" + b"abc"
    data = HEADER + wire_section(b"pit", 3, odd) + wire_section(b"stranger", 9, b"xyz") + b"\0"
    assert [s.payload for s in split_saved(data, VMDESC)] == [odd, b"xyz"]


@pytest.mark.parametrize("cut", [1, 3, 6, 20, 40])
def test_a_saved_state_that_is_cut_is_an_error(cut: int) -> None:
    data = HEADER + wire_section(b"pit", 3, pit(5).payload) + wire_section(b"uart", 4, b"\1\2") + b"\0"
    with pytest.raises(StreamError):
        split_saved(data[:-cut], VMDESC)


def test_what_is_no_saved_state_is_an_error() -> None:
    for data in (b"", b"\0" * 40, b"QEVM"):
        with pytest.raises(StreamError):
            split_saved(data, VMDESC)


@pytest.mark.parametrize(("loads", "saved"), [(50, (1, 25, 50)), (2, (1, 2)), (3, (1, 2, 3)), (1, (1,))])
def test_the_state_is_saved_first_half_way_and_last(loads: int, saved: tuple[int, ...]) -> None:
    assert saved_after(loads) == saved
