# SPDX-License-Identifier: GPL-2.0-or-later
"""From cells to go and no-go."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from made_cells import changed, made_cell, refused
from rich.console import Console

from harness.colo.messages import Step
from harness.devices.phases import Missed, Unreached
from harness.guests.lack import Lack, Lacks
from harness.names import DECIDING, USES
from harness.qualify.answer import Leg, answer_leg, legs_of
from harness.qualify.explained import NotLookedFor
from harness.qualify.model import Answer, Reason, Stray, exit_code, worst
from harness.qualify.run import Context, qualify_doc
from harness.report.qualify import markdown, print_qualify, qualify_html
from harness.report.reasons import reason_cause_text
from harness.results.cause import KvmRefused, Side, Unsupported
from harness.results.document import Cell, MachineResult, MatrixDoc, Qemu
from harness.results.verdict import Verdict

OLD = Qemu(version="7.2.22", build="", path="/old", sha256="a" * 64)
NEW = Qemu(version="10.0.13", build="", path="/new", sha256="b" * 64)
MACHINE = "pc-q35-7.2"


def cell(device: str = "ahci", lane: str = "plain", verdict: Verdict = Verdict.OK, **more: Any) -> Cell:
    known: dict[str, Any] = {"record_qemu": OLD, "load_qemu": NEW, "loads_asked": 5, "loads_acked": 5}
    if verdict is not Verdict.OK:
        causes = (refused(str(verdict)),)
        known |= {"causes": causes, "blamed": ("0000:00:1f.2/ich9_ahci",), "log": "qemu: no"}
    return made_cell(f"{MACHINE}/{device}/bound/{lane}", verdict, **{**known, **more})


def leg(*cells: Cell, **more: Any) -> Leg:
    return Leg(machine=MACHINE, recorder=OLD, loader=NEW, cells=cells, **more)


def test_a_device_that_loads_is_a_go() -> None:
    answer = answer_leg(leg(cell(), cell(lane="same")), None, DECIDING)
    (device,) = answer.devices
    assert device.uses == {"migration": Answer.GO, "postcopy": Answer.NONE, "colo": Answer.GO}
    assert (answer.answer, device.loads, device.because) == (Answer.GO, 10, ())


def test_ok_without_a_load_is_never_a_go() -> None:
    answer = answer_leg(leg(cell(loads_acked=0), cell(lane="same")), None, DECIDING)
    assert answer.answer is Answer.UNKNOWN


def test_migration_and_colo_are_separate_answers() -> None:
    broken = cell(lane="same", verdict=Verdict.CRASH)
    both = answer_leg(leg(cell(), broken), None, DECIDING)
    assert (both.uses["migration"], both.uses["colo"], both.answer) == (Answer.GO, Answer.NO_GO, Answer.NO_GO)
    assert answer_leg(leg(cell(), broken), None, ("migration",)).answer is Answer.GO


def test_postcopy_is_told_apart() -> None:
    cells = (cell(), cell(lane="same"), cell(lane="postcopy", verdict=Verdict.REJECT))
    answer = answer_leg(leg(*cells), None, DECIDING)
    assert (answer.answer, answer.uses["postcopy"]) == (Answer.GO, Answer.NO_GO)
    assert answer_leg(leg(*cells), None, USES).answer is Answer.NO_GO
    assert [reason.use for reason in answer.devices[0].because] == ["postcopy"]


def test_postcopy_that_the_host_cannot_do_says_nothing() -> None:
    cells = (cell(), cell(lane="postcopy", verdict=Verdict.HOST))
    assert answer_leg(leg(*cells), None, DECIDING).uses["postcopy"] is Answer.NONE


@pytest.mark.parametrize("verdict", [Verdict.HARNESS_ERROR, Verdict.HOST])
def test_what_could_not_be_judged_is_unknown(verdict: Verdict) -> None:
    assert answer_leg(leg(cell(verdict=verdict)), None, DECIDING).answer is Answer.UNKNOWN


@pytest.mark.parametrize("use", USES)
def test_a_use_that_decides_and_has_no_answer_is_unknown(use: str) -> None:
    lanes = {"migration": "plain", "postcopy": "postcopy", "colo": "same"}
    others = [cell(lane=lane) for name, lane in lanes.items() if name != use]
    answer = answer_leg(leg(*others), None, USES)
    assert answer.answer is Answer.UNKNOWN
    assert answer_leg(leg(*others), None, [name for name in USES if name != use]).answer is Answer.GO


def test_postcopy_that_was_asked_for_and_could_not_be_tried_says_why() -> None:
    cells = (cell(), cell(lane="postcopy", verdict=Verdict.HOST, loads_acked=0))
    answer = answer_leg(leg(*cells), None, ("postcopy",))
    assert answer.answer is Answer.UNKNOWN
    assert [reason.use for reason in answer.devices[0].because] == ["postcopy"]


def test_only_loads_that_do_not_count_are_no_go_ahead() -> None:
    answer = answer_leg(leg(cell(), cell(lane="back-to-back", verdict=Verdict.CRASH), resets=True), None, DECIDING)
    assert (answer.uses["colo"], answer.answer) == (Answer.NONE, Answer.UNKNOWN)


LPC = "0000:00:1f.0/ICH9LPC"


def test_a_section_of_nobodys_row_that_was_left_out_leaves_the_host_unknown() -> None:
    cells = (cell(), cell(lane="same", excluded=(LPC,)))
    answer = answer_leg(leg(*cells), None, DECIDING)
    assert (answer.devices[0].answer, answer.answer) == (Answer.GO, Answer.UNKNOWN)
    assert answer.strays == (Stray(section=LPC, uses=("colo",)),)
    assert answer_leg(leg(*cells), None, ("migration",)).answer is Answer.GO
    crash = cell(device="platform", lane="same", verdict=Verdict.CRASH, blamed=(LPC,))
    assert answer_leg(leg(*cells, crash), None, DECIDING).strays == ()


def test_a_section_of_nobodys_row_that_migration_refuses_costs_no_row_its_answer() -> None:
    cells = (cell(excluded=(LPC,)), cell(lane="same", excluded=(LPC,)))
    answer = answer_leg(leg(*cells), None, ())
    assert (answer.devices[0].answer, answer.devices[0].because) == (Answer.GO, ())
    assert answer.strays == (Stray(section=LPC, uses=("migration", "colo")),)
    assert (answer.uses["migration"], answer.answer) == (Answer.UNKNOWN, Answer.UNKNOWN)


def test_a_pair_that_is_unknown_for_nobodys_section_says_so_as_a_reason(run_doc: MatrixDoc) -> None:
    cells = (cell(excluded=(LPC,)), cell(lane="same", excluded=("i8259",)))
    doc = qualify_doc(replace(run_doc, cells=cells), Context(binaries={}))
    assert doc.answer is Answer.UNKNOWN
    because, beside = markdown(doc).replace("\\", "").split("## Beside it")
    assert f"unknown in migration: {LPC}" in because
    assert "remedy: judge the device that owns it as well, by --device" in because
    assert "i8259" not in because
    assert "i8259 breaks in colo and was left out: no device that is judged owns it" in beside


def test_colo_decides_between_hosts_of_one_version_only() -> None:
    cells = (cell(), cell(lane="same", verdict=Verdict.CRASH))
    between = answer_leg(leg(*cells), None, ())
    assert (between.answer, between.uses["colo"], between.deciding) == (Answer.GO, Answer.NO_GO, ("migration",))
    assert [reason.use for reason in between.devices[0].because] == ["colo"]
    other_host = replace(NEW, version=OLD.version)
    alike = answer_leg(replace(leg(*cells), loader=other_host), None, ())
    assert (alike.answer, alike.deciding) == (Answer.NO_GO, ("migration", "colo"))
    assert answer_leg(leg(*cells), None, ("colo",)).answer is Answer.NO_GO


def test_a_phase_in_which_a_device_has_nothing_to_do_is_no_reason() -> None:
    causes = (Unreached(phase="bound", how=Missed.NOTHING_TO_DO, step="bind", said="no driver"),)
    over = cell(lane="same", verdict=Verdict.UNSUPPORTED, loads_acked=0, causes=causes)
    (device,) = answer_leg(leg(over, cell(), cell(lane="same")), None, DECIDING).devices
    assert (device.answer, device.because) == (Answer.GO, ())
    assert answer_leg(leg(over), None, DECIDING).devices[0].answer is Answer.NONE


@pytest.mark.parametrize(("side", "wanted"), [(Side.LOADER, Answer.NO_GO), (Side.RECORDER, Answer.NONE)])
def test_a_device_that_only_the_new_side_has_is_no_no_go(side: Side, wanted: Answer) -> None:
    causes = (Unsupported(side=side, lack=Lack(what=Lacks.TYPES)),)
    gone = cell(device="virtio-net", lane="same", verdict=Verdict.UNSUPPORTED, loads_acked=0, causes=causes)
    answer = answer_leg(leg(gone), None, DECIDING)
    assert (answer.devices[0].answer, answer.answer) == (wanted, wanted)
    whole = answer_leg(leg(gone, cell(), cell(lane="same")), None, DECIDING)
    assert whole.answer is (Answer.NO_GO if wanted is Answer.NO_GO else Answer.GO)


def kvm_refused(group: str, device: str = "platform", lane: str = "same") -> Cell:
    cause = KvmRefused(step=Step.LOAD, load=1, group=group, ioctl="KVM_SET_MSRS")
    return cell(device=device, lane=lane, verdict=Verdict.HOST, causes=(cause,), blamed=())


def test_what_kvm_refused_is_named_by_register() -> None:
    cells = [
        kvm_refused("MSR 0x48 (MSR_IA32_SPEC_CTRL)"),
        kvm_refused("MSR 0x48 (MSR_IA32_SPEC_CTRL)", lane="alternate"),
        kvm_refused("MSR 0xda0 (MSR_IA32_XSS)", lane="back-to-back"),
        cell("ahci"),
    ]
    answer = answer_leg(leg(*cells), None, DECIDING)
    assert (answer.answer, answer.uses["colo"]) == (Answer.UNKNOWN, Answer.UNKNOWN)
    platform = answer.devices[0]
    assert [(reason_cause_text(reason), len(reason.cells)) for reason in platform.because] == [
        ("this host's KVM refuses MSR 0x48 (MSR_IA32_SPEC_CTRL)", 2),
        ("this host's KVM refuses MSR 0xda0 (MSR_IA32_XSS)", 1),
    ]
    assert answer.kvm_refused == {"MSR 0x48 (MSR_IA32_SPEC_CTRL)": 2, "MSR 0xda0 (MSR_IA32_XSS)": 1}


def test_a_load_that_brings_every_row_is_counted_once() -> None:
    cells = [cell(name, lane) for name in ("ahci", "platform") for lane in ("plain", "postcopy", "same")]
    assert answer_leg(leg(*cells), None, DECIDING).loads == 5 + 5 + 2 * 5


def test_a_machine_that_is_gone_is_a_no_go_for_migration_too() -> None:
    gone = cell(lane="same", verdict=Verdict.UNSUPPORTED, loads_acked=0)
    answer = answer_leg(leg(gone), None, ("migration",))
    assert (answer.answer, answer.uses["migration"]) == (Answer.NO_GO, Answer.NO_GO)


@pytest.mark.parametrize(("resets", "wanted"), [(True, Answer.GO), (False, Answer.NO_GO)])
def test_twice_in_one_buffer_is_no_reason_where_a_build_resets(resets: bool, wanted: Answer) -> None:
    cells = (cell(), cell(lane="same"), cell(lane="back-to-back", verdict=Verdict.CRASH))
    assert answer_leg(leg(*cells, resets=resets), None, DECIDING).answer is wanted


def test_a_reason_is_told_once_with_all_its_cells() -> None:
    first = cell(lane="same", verdict=Verdict.CRASH)
    second = changed(first, phases=("busy",))
    (device,) = answer_leg(leg(cell(), first, second), None, DECIDING).devices
    (reason,) = device.because
    assert (reason.section, reason.cells) == ("0000:00:1f.2/ich9_ahci", (first.id, second.id))


def test_the_recorder_at_home_says_whether_it_is_new() -> None:
    broken = cell(lane="same", verdict=Verdict.CRASH)
    fine = cell(lane="same")

    def told(home: Leg | None) -> bool | None:
        return answer_leg(leg(cell(), broken), home, DECIDING).devices[0].because[0].at_home

    assert told(None) is None
    assert told(leg(broken)) is True
    assert told(leg(fine)) is False
    assert told(leg(cell(device="virtio-blk"))) is None
    assert told(leg(changed(broken, blamed=("i8259",)))) is False


def test_explanations_are_put_in() -> None:
    def explain(_: Cell, reason: Reason) -> Reason:
        return replace(reason, explained=(NotLookedFor(said="no time"),))

    (device,) = answer_leg(leg(cell(verdict=Verdict.REJECT)), None, DECIDING, explain).devices
    assert device.because[0].explained == (NotLookedFor(said="no time"),)


@pytest.mark.parametrize(
    ("answers", "wanted", "code"),
    [
        ([Answer.GO, Answer.NO_GO, Answer.UNKNOWN], Answer.NO_GO, 1),
        ([Answer.GO, Answer.UNKNOWN], Answer.UNKNOWN, 3),
        ([Answer.GO, Answer.NONE], Answer.GO, 0),
        ([], Answer.NONE, 3),
    ],
)
def test_order_and_exit_codes(answers: list[Answer], wanted: Answer, code: int) -> None:
    assert worst(answers) is wanted
    assert exit_code(wanted) == code


@pytest.fixture
def run_doc() -> MatrixDoc:
    """There broken, at home fine, and a COLO crash that both have."""
    refused = cell(verdict=Verdict.REJECT, loads_acked=1)
    crash = cell(device="platform", lane="same", verdict=Verdict.CRASH, loads_acked=0)
    there = [refused, cell(lane="same"), cell(device="platform"), crash]
    home = [changed(c, load_qemu=OLD, verdict=Verdict.OK, causes=(), blamed=(), loads_acked=5) for c in there[:3]]
    home.append(changed(crash, load_qemu=OLD))
    return MatrixDoc(
        command=("postload", "qualify"), started="2026-01-01T00:00:00+00:00", seconds=61.0, complete=True, host={},
        machines=(
            MachineResult(machine=MACHINE, qemu=NEW, record_qemu=OLD), MachineResult(machine=MACHINE, qemu=OLD),
        ),
        cells=(*there, *home),
    )  # fmt: skip


def test_legs_do_not_mix(run_doc: MatrixDoc) -> None:
    there, home = legs_of(run_doc)
    assert (len(there.cells), len(home.cells)) == (4, 4)
    assert (there.at_home, home.at_home) == (False, True)


def test_guests_that_stayed_at_home_do_not_count(run_doc: MatrixDoc) -> None:
    doc = qualify_doc(run_doc, Context(binaries={}, deciding=DECIDING))
    assert doc.answer is Answer.NO_GO
    assert [pair.answer for pair in doc.pairs] == [Answer.NO_GO, Answer.NO_GO]
    alone = qualify_doc(run_doc, Context(binaries={}, deciding=("migration",)))
    assert [pair.answer for pair in alone.pairs] == [Answer.NO_GO, Answer.GO]


@pytest.mark.parametrize("deciding", [DECIDING, ("migration",)])
def test_a_run_that_was_stopped_has_no_go(run_doc: MatrixDoc, deciding: tuple[str, ...]) -> None:
    fine = [cell(), cell(lane="same")]
    early = replace(run_doc, complete=False, cells=tuple(fine))
    doc = qualify_doc(early, Context(binaries={}, deciding=deciding))
    assert (doc.answer, doc.pairs[0].answer, doc.pairs[0].devices[0].answer) == (Answer.UNKNOWN,) * 3
    assert doc.pairs[0].uses["migration"] is Answer.GO
    assert doc.pairs[0].uses["colo"] is Answer.UNKNOWN
    assert qualify_doc(replace(early, complete=True), Context(binaries={}, deciding=deciding)).answer is Answer.GO
    assert qualify_doc(replace(run_doc, complete=False), Context(binaries={})).answer is Answer.NO_GO


def test_nothing_judged_is_unknown(run_doc: MatrixDoc) -> None:
    empty = replace(run_doc, cells=(), machines=(), complete=False)
    assert qualify_doc(empty, Context(binaries={})).answer is Answer.UNKNOWN


def test_a_pack_that_comes_home_counts_beside_other_targets(run_doc: MatrixDoc) -> None:
    doc = qualify_doc(run_doc, Context(binaries={}, travelled=True))
    assert [pair.home for pair in doc.pairs] == [False, False]
    assert doc.pairs[0].devices[1].because[0].at_home is True


def test_reports_say_who_why_and_whether_it_is_new(run_doc: MatrixDoc) -> None:
    doc = qualify_doc(run_doc, Context(binaries={}))
    console = Console(width=100, record=True, file=open("/dev/null", "w"), color_system=None)  # noqa: SIM115, PTH123
    print_qualify(doc, console)
    text = console.export_text()
    for told in (text, markdown(doc).replace("\\", ""), qualify_html(doc).replace("&gt;", ">")):
        assert "reject in migration: ahci: 0000:00:1f.2/ich9_ahci" in told
        assert "7.2.22 -> 10.0.13 (new)" in told
        assert "7.2.22 -> 10.0.13 (as at home)" in told
        assert "no-go for migration: 1 no-go" in told
        assert "crash in colo: platform: 0000:00:1f.2/ich9_ahci (decides nothing here)" in told
        assert "upstream supports COLO only with the same version on both sides" in told
        assert told.index("reject in migration") < told.index("crash in colo")
    both = qualify_doc(run_doc, Context(binaries={}, deciding=DECIDING))
    assert "no-go for migration and colo: 1 no-go" in markdown(both)
    assert "decides nothing" not in markdown(both)


def test_what_keeps_every_device_away_is_one_reason(run_doc: MatrixDoc) -> None:
    gone = {
        "causes": (Unsupported(side=Side.LOADER, lack=Lack(what=Lacks.MACHINE, machine="pc-q35-7.2", qemu="10.0.13")),),
        "blamed": (),
    }
    cells = [cell(name, "same", Verdict.UNSUPPORTED, loads_acked=0, **gone) for name in ("ahci", "platform")]
    text = markdown(qualify_doc(replace(run_doc, cells=tuple(cells)), Context(binaries={})))
    assert text.count("unsupported: ahci, platform") == text.count("has no machine") == 1


def test_html_holds_no_markup_of_a_log(run_doc: MatrixDoc) -> None:
    cells = [
        changed(c, causes=(refused("<script>alert(1)</script>"),), blamed=("a<b",)) if c.outcome.causes else c
        for c in run_doc.cells
    ]
    doc = qualify_doc(replace(run_doc, cells=tuple(cells)), Context(binaries={}))
    assert "<script>" not in qualify_html(doc)
    assert "a<b" not in qualify_html(doc)


def test_a_known_issue_is_named_and_counts_all_the_same(run_doc: MatrixDoc) -> None:
    link = "https://example.org/issues/7"
    cells = tuple(replace(c, known=link) if c.verdict is Verdict.REJECT else c for c in run_doc.cells)
    doc = qualify_doc(replace(run_doc, cells=cells), Context(binaries={}))
    assert doc.answer is Answer.NO_GO
    assert f"known: {link}" in markdown(doc).replace("\\", "")
