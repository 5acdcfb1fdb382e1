# SPDX-License-Identifier: GPL-2.0-or-later
"""One answer for many VMs: each cause once, with all VMs that have it and what to change."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jsonschema
import pytest
from rich.console import Console

from harness.colo.messages import Step
from harness.commands import fleet as commands
from harness.errors import Stopped, UsageError
from harness.facts.compare import Matters, incomparable
from harness.facts.model import WhyNotKnown
from harness.guests.lack import Lack, Lacks
from harness.guests.origin import Without
from harness.qualify.explained import Explained, FieldEvidence, HostsDiffer, LostBy, LostFeature, SetAlike
from harness.qualify.fleet import FleetDoc, Obstacle, Remedied, TriedVm, Unjudged, VmAnswer, fleet_doc, fleet_schema
from harness.qualify.foretold import Foresight, Foretold, Standing
from harness.qualify.model import Answer, DeviceAnswer, PairAnswer, QualifyDoc, Reason
from harness.qualify.remedies import is_remediable, settings_of
from harness.report.fleet import fleet_json, fleet_markdown, fleet_summary, print_fleet
from harness.report.qualify import markdown as qualify_markdown
from harness.report.reasons import reason_remedy_text
from harness.report.schemas import shipped
from harness.results.cause import Check, FailedCheck, GuestFaulted, Side, Unsupported
from harness.results.document import Qemu

OLD = Qemu(version="10.0.13", build="", path="/old", sha256="a" * 64)
NEW = Qemu(version="11.1.3", build="", path="/new", sha256="b" * 64)
QUEUE = FieldEvidence(
    section="0000:04:00.0/virtio-blk",
    field="vq[0].vring.num",
    said="VQ 0 vring.num 1024 exceeds allocated max 256",
    recorded=1024,
    loading=256,
    setting=SetAlike.QUEUE_SIZE,
)
FEATURE = LostFeature(
    section="0000:00:05.0/virtio-net",
    device="net0",
    driver="virtio-net-pci",
    bit=57,
    name="RSS",
    lost_by=LostBy.PROPERTY,
    property="rss",
    value="off",
)
OF_RUN: dict[str, Any] = {
    "command": ("postload", "qualify"), "started": "2026-11-27T12:00:00+00:00", "seconds": 61.0, "complete": True,
    "loader": NEW,
}  # fmt: skip


def reason(explained: Explained, use: str = "migration", section: str = "0000:04:00.0/virtio-blk") -> Reason:
    field = explained.field if isinstance(explained, FieldEvidence) else None
    return Reason(use=use, verdict="reject", section=section, field=field, explained=(explained,))


def answered(device: str, *because: Reason, answer: Answer = Answer.GO) -> QualifyDoc:
    """A document of one device."""
    uses = {"migration": answer, "postcopy": answer, "colo": Answer.GO}
    found = DeviceAnswer(device=device, answer=answer, uses=uses, loads=6, because=because)
    pair = PairAnswer(
        machine="pc-q35-10.0",
        family="q35",
        recorder=OLD,
        loader=NEW,
        answer=answer,
        uses=uses,
        devices=(found,),
        loads=6,
        deciding=("migration",),
    )
    return QualifyDoc(
        command=("postload",),
        started="",
        seconds=1.0,
        complete=True,
        answer=answer,
        deciding=("migration",),
        loads=6,
        pairs=(pair,),
    )


def vm(name: str, **more: Any) -> VmAnswer:
    known = {"machine": "pc-q35-10.0", "recorder": "10.0.13", "folder": f"vms/{name}"}
    return VmAnswer(name=name, source=f"{name}.xml", answer=Answer.NONE, **{**known, **more})


def broken(name: str, section: str = "0000:04:00.0/virtio-blk", **more: Any) -> TriedVm:
    because = reason(replace(QUEUE, section=section), section=section)
    doc = answered("virtio-blk", because, answer=Answer.NO_GO)
    return TriedVm(vm=vm(name, **more), types={"virtio-blk": "virtio-blk-pci"}, doc=doc)


def fine(name: str, **more: Any) -> TriedVm:
    return TriedVm(vm=vm(name, **more), types={"ahci": "ich9-ahci"}, doc=answered("ahci"))


def printed(doc: FleetDoc) -> str:
    console = Console(width=120, record=True, file=io.StringIO())
    print_fleet(doc, console)
    return console.export_text()


def test_a_cause_stands_once_with_all_its_vms_wherever_their_device_is() -> None:
    doc = fleet_doc([broken("web"), fine("mail"), broken("db", section="0000:00:07.0/virtio-blk")], **OF_RUN)
    assert [each.answer for each in doc.vms] == [Answer.NO_GO, Answer.GO, Answer.NO_GO]
    (cause,) = doc.reasons
    assert (cause.vms, cause.type, cause.answer) == (("web", "db"), "virtio-blk-pci", Answer.NO_GO)
    assert doc.vms[0].because == doc.vms[2].because == (0,)
    assert doc.answer is Answer.NO_GO


def test_another_device_or_another_cause_is_another_reason() -> None:
    scsi = replace(broken("scsi"), types={"virtio-blk": "virtio-scsi-pci"})
    lost = replace(broken("lost"), doc=answered("virtio-blk", reason(FEATURE, section="x"), answer=Answer.NO_GO))
    assert len(fleet_doc([broken("web"), scsi, lost], **OF_RUN).reasons) == 3


def test_one_cause_of_two_uses_is_told_once() -> None:
    both = answered("virtio-blk", reason(QUEUE), reason(QUEUE, use="postcopy"), answer=Answer.NO_GO)
    assert len(fleet_doc([replace(broken("web"), doc=both)], **OF_RUN).reasons) == 1


def test_vms_of_the_same_devices_are_tried_and_counted_once() -> None:
    doc = fleet_doc([fine("one"), fine("two", like="one"), fine("three", like="one")], **OF_RUN)
    assert (doc.tried, doc.loads, [each.answer for each in doc.vms]) == (1, 6, [Answer.GO] * 3)
    assert "as one" in printed(doc)


def test_what_is_foretold_is_an_answer_without_a_load() -> None:
    gone = Foretold(
        what=Foresight.DEVICE_TYPE, name="qxl-vga", standing=Standing.MISSING, side=Side.LOADER, version="11.1.3",
        devices=("vga",),
    )  # fmt: skip
    late = replace(gone, what=Foresight.MACHINE_TYPE, name="pc-q35-4.2", standing=Standing.DEPRECATED)
    doc = fleet_doc(
        [
            TriedVm(vm=vm("desktop", folder=""), foretold=(gone,)),
            replace(fine("old"), foretold=(late,)),
        ],
        **OF_RUN,
    )
    assert [each.answer for each in doc.vms] == [Answer.NO_GO, Answer.GO]
    text = printed(doc)
    assert "QEMU 11.1.3 has no device qxl-vga" in text
    assert "remark: machine type pc-q35-4.2 is deprecated" in text


LACKING = Lack(what=Lacks.RECORDED_TYPES, names=("qxl-vga",), machine="pc-q35-10.0", qemu="11.1.3")
GONE = Foretold(
    what=Foresight.DEVICE_TYPE, name="qxl-vga", standing=Standing.MISSING, side=Side.LOADER, version="11.1.3",
    devices=("vga",),
)  # fmt: skip


def test_a_device_that_the_new_qemu_has_not_is_one_reason_though_the_rest_was_loaded() -> None:
    cause = Unsupported(side=Side.LOADER, lack=LACKING)
    because = Reason(use="migration", verdict="unsupported", causes=(cause,))
    tried = replace(fine("desktop"), doc=answered("qxl-vga", because, answer=Answer.NO_GO), foretold=(GONE,))
    doc = fleet_doc([tried], **OF_RUN)
    assert [found.foretold for found in doc.reasons] == [GONE]
    assert doc.vms[0].answer is Answer.NO_GO
    assert [device.answer for device in doc.vms[0].devices] == [Answer.NO_GO]


def test_a_pack_with_a_device_that_the_new_qemu_has_not_says_what_to_do() -> None:
    cause = Unsupported(side=Side.LOADER, lack=LACKING)
    text = reason_remedy_text(Reason(use="migration", verdict="unsupported", causes=(cause,)))
    assert text.startswith("restart the guest without qxl-vga, or with another type of device")


@pytest.mark.parametrize("what", list(Foresight))
@pytest.mark.parametrize("side", list(Side))
def test_only_a_machine_that_cannot_be_there_keeps_all_of_a_vm_from_a_load(what: Foresight, side: Side) -> None:
    whole = what in (Foresight.MACHINE_TYPE, Foresight.CPU_MODEL) and side is Side.LOADER
    assert replace(GONE, what=what, side=side).keeps_all is whole
    assert not replace(GONE, what=what, side=side, standing=Standing.DEPRECATED).keeps_all


def test_what_is_not_judged_keeps_a_vm_from_a_go_and_is_named() -> None:
    card = Unjudged(device="hostdev0", type="vfio-pci", why=Without.HOST)
    doc = fleet_doc([fine("gpu", unjudged=(card,)), broken("worse", unjudged=(card,))], **OF_RUN)
    assert [each.answer for each in doc.vms] == [Answer.UNKNOWN, Answer.NO_GO]
    assert "hostdev0 (vfio-pci), which stands on the host" in printed(doc)


@pytest.mark.parametrize("obstacle", list(Obstacle))
def test_every_obstacle_has_its_words(obstacle: Obstacle) -> None:
    doc = fleet_doc([TriedVm(vm=vm("web", obstacle=obstacle, said="it said so", folder=""))], **OF_RUN)
    assert doc.vms[0].answer is Answer.UNKNOWN
    assert doc.answer is Answer.UNKNOWN
    assert "unknown" in printed(doc)
    assert len(fleet_markdown(doc).split("web")[1].split("\n")[0]) > 30


def test_the_remedy_that_can_be_set_and_what_became_of_it_are_told() -> None:
    assert settings_of(broken("web").doc or answered("x"), {"virtio-blk": "virtio-blk-pci-non-transitional"}) == (
        "virtio-blk-device.queue-size=1024",
    )
    remedied = Remedied(settings=("virtio-blk-device.queue-size=1024",), answer=Answer.GO, folder="vms/web/remedy")
    text = printed(fleet_doc([broken("web", remedied=remedied)], **OF_RUN))
    assert "change: give the device queues of 1024 entries" in text
    assert "tried: with --global virtio-blk-device.queue-size=1024 the VM is go" in " ".join(text.split())


def test_remedies_that_take_a_restart_are_not_set() -> None:
    other = replace(FEATURE, lost_by=LostBy.BUILD)
    doc = answered("net", reason(other), reason(FEATURE), answer=Answer.NO_GO)
    assert settings_of(doc, {"net": "virtio-net-pci"}) == ("virtio-net-pci.rss=on",)


@pytest.mark.parametrize(
    ("queue", "setting"), [("vq[0]", "rx_queue_size"), ("vq[1]", "tx_queue_size"), ("vq[2]", "rx_queue_size")]
)
def test_a_queue_of_a_network_card_is_told_by_its_number(queue: str, setting: str) -> None:
    found = replace(QUEUE, field=f"{queue}.vring.num")
    doc = answered("net", reason(found), answer=Answer.NO_GO)
    assert settings_of(doc, {"net": "virtio-net-pci"}) == (f"virtio-net-device.{setting}=1024",)


def test_the_document_is_read_back_and_has_the_shape_of_its_schema() -> None:
    doc = fleet_doc([broken("web"), fine("mail")], skipped=("README",), **OF_RUN)
    document = json.loads(fleet_json(doc))
    jsonschema.validate(document, shipped("fleet-1.schema.json"))
    assert FleetDoc.from_json(document) == doc
    assert shipped("fleet-1.schema.json") == fleet_schema()
    with pytest.raises(UsageError):
        FleetDoc.from_json({**document, "schema": "postload.fleet/2"})


def test_the_summary_has_words_for_what_was_not_tried() -> None:
    doc = fleet_doc([TriedVm(vm=vm("web")), TriedVm(vm=vm("mail"))], **OF_RUN)
    assert fleet_summary(doc).startswith("to QEMU 11.1.3: not tried; 2 not tried; 0 VMs tried")


def test_the_summary_counts_and_the_markdown_escapes() -> None:
    doc = fleet_doc([broken("we_b"), fine("mail")], skipped=("notes",), **OF_RUN)
    assert fleet_summary(doc).startswith("to QEMU 11.1.3: no-go; 1 no-go, 1 go; 2 VMs tried, 12 loads acknowledged")
    text = fleet_markdown(doc)
    assert "we\\_b" in text
    assert "## What to change" in text
    assert "notes" in text


def test_a_difference_of_hosts_that_one_side_could_not_tell_is_told() -> None:
    unknown = incomparable(Matters.ERROR, "no answer")
    hosts = HostsDiffer(changes=(replace(unknown, not_known={"why": WhyNotKnown.NO_INTERFACE, "said": "slot"}),))
    doc = answered("net", reason(hosts), answer=Answer.NO_GO)
    assert "no answer" in qualify_markdown(doc)
    assert "no answer" in printed(fleet_doc([TriedVm(vm=vm("web"), doc=doc)], **OF_RUN))


def test_a_run_that_was_stopped_says_so() -> None:
    doc = fleet_doc([fine("web")], **{**OF_RUN, "complete": False})
    assert "stopped early" in fleet_summary(doc)


def tried_remedies(monkeypatch: pytest.MonkeyPatch, *answers: QualifyDoc) -> tuple[bool, Remedied | None]:
    """Whether the run is complete, and what came of the remedies for a VM whose disk broke.

    :param answers: of the loads with a remedy; Ctrl-C stops the one behind them
    """
    coming = iter(answers)

    def judged(*_: Any, **__: Any) -> tuple[QualifyDoc, None]:
        found = next(coming, None)
        if found is None:
            raise Stopped
        return found, None

    monkeypatch.setattr(commands, "judged_pack", judged)
    monkeypatch.setattr(commands, "write_answer", lambda *_: None)
    rounds = iter(range(9))
    monkeypatch.setattr(commands, "settings_of", lambda *_: (f"virtio-blk-device.queue-size={next(rounds)}",))
    monkeypatch.setattr(commands, "is_remediable", lambda *_: True)
    given: dict[str, Any] = {"out": Path("out"), "globals_": ()}
    parts: dict[str, Any] = {"builds": None, "guest": SimpleNamespace(recorder=None)}
    trial = commands._Trial(given, (), parts["builds"])
    broke = answered("virtio-blk", answer=Answer.NO_GO)
    found = trial._remedied(Path("pack"), given, "vms/web", parts["guest"], broke, {})
    return trial.complete, found


def test_a_remedy_that_was_stopped_leaves_what_was_found(monkeypatch: pytest.MonkeyPatch) -> None:
    no_go = answered("virtio-blk", answer=Answer.NO_GO)
    assert tried_remedies(monkeypatch) == (False, None)
    complete, found = tried_remedies(monkeypatch, no_go)
    assert (complete, found) == (
        False,
        Remedied(settings=("virtio-blk-device.queue-size=0",), answer=Answer.NO_GO, folder="vms/web/remedy"),
    )
    complete, found = tried_remedies(monkeypatch, answered("virtio-blk"))
    assert (complete, found and found.answer) == (True, Answer.GO)


def test_what_broke_before_a_stop_is_a_no_go_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    stopped = replace(answered("virtio-blk", answer=Answer.NO_GO), complete=False)
    complete, found = tried_remedies(monkeypatch, stopped, answered("virtio-blk"))
    assert (complete, found and found.answer) == (False, Answer.NO_GO)
    # and what has not broken until then is no answer
    assert tried_remedies(monkeypatch, replace(answered("virtio-blk"), complete=False)) == (False, None)


@pytest.mark.parametrize("width", range(48, 100))
def test_the_last_line_breaks_within_no_duration(width: int) -> None:
    console = Console(width=width, record=True, file=io.StringIO())
    print_fleet(fleet_doc([fine("web01")], **OF_RUN), console)
    assert any("1 min 01 s" in line for line in console.export_text().splitlines())


@pytest.mark.parametrize(("section", "answer"), [("cpu", Answer.UNKNOWN), ("cpu, cpu#1", Answer.UNKNOWN),
                                                 ("cpu, i8259", Answer.NO_GO), ("i8259", Answer.NO_GO)])  # fmt: skip
def test_what_a_cpu_says_under_tcg_is_in_doubt_for_a_vm_with_kvm(section: str, answer: Answer) -> None:
    doc = answered("platform", Reason(use="migration", verdict="reject", section=section), answer=Answer.NO_GO)
    tried = TriedVm(vm=vm("arm"), doc=doc, doubted=frozenset({"cpu", "cpu_common"}))
    found = fleet_doc([tried], **OF_RUN)
    assert (found.vms[0].answer, found.vms[0].devices[0].answer) == (answer, answer)
    assert found.reasons[0].of_tcg is (answer is Answer.UNKNOWN)
    assert ("change: qualify the VM on a host with KVM" in printed(found)) is (answer is Answer.UNKNOWN)
    assert fleet_doc([replace(tried, doubted=frozenset())], **OF_RUN).answer is Answer.NO_GO


def test_a_cause_that_holds_figures_is_told() -> None:
    check = FailedCheck(check=Check.HEARTBEAT, figures={"beats": 0, "passed_s": 3.12})
    because = Reason(use="colo", verdict="guest-fault", causes=(GuestFaulted(step=Step.LOAD, checks=(check,)),))
    doc = answered("platform", because, replace(because, use="migration"), answer=Answer.NO_GO)
    assert "guest-fault in migration" in qualify_markdown(doc)


def test_where_one_device_has_nothing_to_set_no_remedy_is_tried() -> None:
    both = broken("web").doc
    assert both is not None
    types = {"virtio-blk": "virtio-blk-pci"}
    assert is_remediable(both, types)
    serial = replace(QUEUE, section="0000:00:05.0/virtio-console")
    (pair,) = both.pairs
    (disk,) = pair.devices
    other = replace(disk, device="virtio-serial", because=(reason(serial, section=serial.section or ""),))
    assert not is_remediable(replace(both, pairs=(replace(pair, devices=(disk, other)),)), types)
    beside = replace(other, because=(reason(serial, use="colo", section=serial.section or ""),))
    assert is_remediable(replace(both, pairs=(replace(pair, devices=(disk, beside)),)), types)


def test_queues_that_nothing_sets_have_a_remedy_of_their_own() -> None:
    text = reason_remedy_text(reason(replace(QUEUE, section="0000:00:05.0/virtio-console")))
    assert "no property of the device sets the size of its queues" in text
    assert "queues of 1024 entries" in reason_remedy_text(reason(QUEUE))
