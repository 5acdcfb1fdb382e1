# SPDX-License-Identifier: GPL-2.0-or-later
"""The document of an answer: its schema, with every part of it there, and what the folder keeps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from harness.colo.messages import Step
from harness.errors import HostError, UsageError
from harness.facts.compare import FactChange, FactKind, Weight, compare_facts
from harness.facts.kvm import KvmTried
from harness.qemu.binary import AccelSeen, AccelState
from harness.qualify.evidence import shown
from harness.qualify.explained import FieldEvidence, LostBy, LostFeature, Origin, SetAlike, SetBy
from harness.qualify.model import (
    Answer,
    Confirmation,
    Confirms,
    DeviceAnswer,
    Ending,
    PairAnswer,
    QualifyDoc,
    Reason,
    Stray,
    qualify_schema,
)
from harness.qualify.pairs import EndingState
from harness.qualify.static import Disagreement, StaticDifference, StaticFinding, StaticKind, StaticNote, StaticState
from harness.report.qualify import forget_qualify, markdown, qualify_plain, write_qualify
from harness.report.schemas import shipped
from harness.results.cause import Refused
from harness.results.document import Qemu
from harness.results.outcome import Outcome
from harness.results.verdict import Verdict

OLD = Qemu(version="7.2.22", build="Debian 1:7.2+dfsg-7+deb12u18+b3", path="/usr/bin/qemu", sha256="a" * 64)
NEW = Qemu(version="10.0.13", build="", path="/new/qemu", sha256="b" * 64)
GONE = FactChange(
    kind=FactKind.FEATURE, subject="VIRTIO_NET_F_CSUM", where="virtio-net 00:05.0", old="", new=None,
    weight=Weight.EXPLAINS,
)  # fmt: skip
FEATURES = Refused(
    step=Step.INCOMING, load=1, phase="bound", reason="unsupported feature bits 0", line="Features 0x1 unsupported"
)
CSUM = LostFeature(
    section="0000:00:05.0/virtio-net", device="net", driver="virtio-net-pci", bit=0, name="VIRTIO_NET_F_CSUM",
    lost_by=LostBy.PROPERTY, property="csum", value="off",
    origin=Origin(by=SetBy.GLOBAL, driver="virtio-net-pci", property="csum", value="off"),
)  # fmt: skip
ENDING = Ending(state=EndingState.DEPRECATED, version="10.0.13")
STRAY = Stray(section="i8259", uses=("migration", "colo"))
NO_KVM = KvmTried(state=AccelState(name="kvm", usable=False, seen=AccelSeen.NOT_TRIED))
GROWN = StaticDifference(path="i8259/imr", kind=StaticKind.SIZE, name="imr", saved=1, loading=2)
STATIC = StaticNote(
    how=Disagreement.ALARM_AND_PASSED,
    findings=(StaticFinding(section="i8259", vmsd="i8259", state=StaticState.ALARM, differences=(GROWN,)),),
)
VRING = FieldEvidence(
    section="0000:00:04.0/virtio-blk", field="vq[0].vring.num", said="no", recorded="1024", loading="256",
    setting=SetAlike.QUEUE_SIZE,
)  # fmt: skip
REASON = Reason(
    use="migration", verdict="reject", causes=(FEATURES,), section="0000:00:05.0/virtio-net",
    field="VIRTIO_NET_F_CSUM", phase="bound", explained=(CSUM,), log="qemu: Features 0x1 unsupported", at_home=False,
    confirmed=Confirmation(
        recorder="7.2.22", loader="10.0.13", phase="bound", outcome=Outcome(verdict=Verdict.REJECT, causes=(FEATURES,)),
        shows=Confirms.SAME,
    ),
    cells=("7.2.22>10.0.13/pc-i440fx-7.2/virtio-net/all/plain",),
)  # fmt: skip


@pytest.fixture
def doc() -> QualifyDoc:
    """A no-go by migration, a device that could not be judged by COLO, and the same at home."""
    uses = {"migration": Answer.NO_GO, "postcopy": Answer.NONE, "colo": Answer.UNKNOWN}
    bare = Reason(use="colo", verdict="host", cells=("7.2.22>10.0.13/pc-i440fx-7.2/virtio-net/bound/same",))
    device = DeviceAnswer(
        device="virtio-net", answer=Answer.NO_GO, uses=uses, loads=7, because=(REASON, bare), static=(STATIC,)
    )
    pair = PairAnswer(
        machine="pc-i440fx-7.2", family="pc", recorder=OLD, loader=NEW, answer=Answer.NO_GO, uses=uses,
        devices=(device,), loads=7, endings=(ENDING,), changes=(GONE,), strays=(STRAY,),
        kvm_refused={"MSR 0x48": 2}, no_static="no dump",
    )  # fmt: skip
    home = replace(pair, loader=OLD, home=True, changes=(), endings=(), no_static="")
    return QualifyDoc(
        command=("postload", "qualify"), started="2026-01-01T00:00:00+00:00", seconds=61.5, complete=True,
        answer=Answer.NO_GO, deciding=("migration", "colo"), loads=14, pairs=(pair, home), kvm=NO_KVM,
    )  # fmt: skip


def check(document: object) -> None:
    validator = jsonschema.Draft202012Validator(qualify_schema())
    validator.check_schema(qualify_schema())
    validator.validate(document)


def test_document_fits_its_schema(doc: QualifyDoc) -> None:
    check(qualify_plain(doc))


@pytest.mark.parametrize(
    "damage",
    [
        lambda d: d.update(schema="postload.qualify/2"),
        lambda d: d.pop("complete"),
        lambda d: d["pairs"][0].update(answer="maybe"),
        lambda d: d["pairs"][0]["uses"].update(luck="perhaps"),
        lambda d: d["pairs"][0]["devices"][0]["because"][0].update(causes=[{"kind": "odd"}]),
        lambda d: d["pairs"][0]["devices"][0]["because"][0].pop("use"),
        lambda d: d["pairs"][0]["devices"][0]["because"][0]["explained"][0].update(lost_by="luck"),
        lambda d: d["pairs"][0]["changes"][0].update(kind="weather"),
        lambda d: d["pairs"][0]["devices"][0]["static"][0].update(how="it alarms"),
        lambda d: d["pairs"][0]["recorder"].pop("sha256"),
        lambda d: d.update(loads="many"),
    ],
)
def test_schema_refuses(doc: QualifyDoc, damage: Callable[[Any], object]) -> None:
    document = qualify_plain(doc)
    damage(document)
    with pytest.raises(jsonschema.ValidationError):
        check(document)


def test_the_shipped_schema_is_the_one_that_the_models_give() -> None:
    """``python -m harness.report.schemas`` writes it anew."""
    assert shipped("qualify-1.schema.json") == qualify_schema()


@pytest.mark.parametrize(
    ("sections", "verdict", "shows", "said"),
    [
        ((REASON.section,), Verdict.REJECT, Confirms.SAME, "confirmed: QEMU 7.2.22 "),
        # QEMU names no section
        ((), Verdict.REJECT, Confirms.SAME, "confirmed: QEMU 7.2.22 "),
        (("cpu",), Verdict.REJECT, Confirms.OTHER, "not confirmed: QEMU 7.2.22 "),
        ((REASON.section,), Verdict.CRASH, Confirms.OTHER, "not confirmed: QEMU 7.2.22 "),
        ((), Verdict.OK, Confirms.PASSED, "not confirmed: QEMU 7.2.22 "),
        ((), Verdict.HOST, Confirms.NOTHING, "not confirmed: QEMU 7.2.22 "),
    ],
)
def test_another_failure_confirms_nothing(
    doc: QualifyDoc, sections: tuple[str, ...], verdict: Verdict, shows: Confirms, said: str
) -> None:
    outcome = Outcome(verdict=verdict, sections=sections, causes=() if verdict is Verdict.OK else (FEATURES,))
    assert shown(REASON, outcome) is shows
    assert REASON.confirmed is not None
    reason = replace(REASON, confirmed=replace(REASON.confirmed, outcome=outcome, shows=shows))
    (pair,) = [pair for pair in doc.pairs if not pair.home]
    text = markdown(replace(doc, pairs=(replace(pair, devices=(replace(pair.devices[0], because=(reason,)),)),)))
    (line,) = [line.strip() for line in text.replace("\\", "").splitlines() if "without this program" in line]
    assert line.startswith(said)
    assert ("ends earlier, with another failure" in line) is (shows is Confirms.OTHER)


def test_what_is_told_of_the_causes(doc: QualifyDoc) -> None:
    text = markdown(doc).replace("\\", "")
    assert "load 1, by an incoming stream: Features 0x1 unsupported" in text
    assert (
        "confirmed: QEMU 7.2.22 migrating to QEMU 10.0.13 without this program between them, bound: reject: load 1"
        in text
    )
    assert "i8259 breaks in migration and colo and was left out: no device that is judged owns it" in text
    assert "this host's KVM refused MSR 0x48 in 2 cells" in text
    assert "cause: 0000:00:05.0/virtio-net (net): the guest uses VIRTIO_NET_F_CSUM (feature bit 0)" in text
    assert "remedy: set -global virtio-net-pci.csum=on on the new host instead of -global" in text
    assert "pc-i440fx-7.2, 7.2.22 -> 10.0.13 (deprecated in 10.0.13)" in text
    assert "-dump-vmstate of both builds says that it can fail: i8259 (field i8259/imr has 1 byte where" in text
    assert "-dump-vmstate of both builds could not be compared: no dump" in text
    assert "KVM state: could not be tried: nobody tried to run guest code under it" in text


def test_document_is_read_back_as_it_was(doc: QualifyDoc) -> None:
    assert QualifyDoc.from_json(qualify_plain(doc)) == doc
    with pytest.raises(UsageError, match=r"not an answer of postload qualify: pairs\.0\.answer"):
        QualifyDoc.from_json({**qualify_plain(doc), "pairs": [{**qualify_plain(doc)["pairs"][0], "answer": "maybe"}]})


def test_an_answer_does_not_outlive_its_run(doc: QualifyDoc, tmp_path: Path) -> None:
    written = write_qualify(doc, tmp_path)
    (tmp_path / "claims.json").write_text("{}")
    assert all(path.is_file() for path in written)
    forget_qualify(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["claims.json"]


def test_a_folder_that_cannot_be_had_is_told_before_the_run(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(HostError, match="cannot write in"):
        forget_qualify(tmp_path / "file" / "out")


def test_a_change_is_told_with_both_sides_and_with_what_it_explains(doc: QualifyDoc) -> None:
    csum = "virtio-net 00:05.0: feature VIRTIO_NET_F_CSUM: offered -> not offered"
    alone = markdown(doc).replace("\\", "")
    assert f"10.0.13: can break a load: {csum}" in alone
    (pair, home) = doc.pairs
    device = replace(pair.devices[0], because=(replace(REASON, changes=(GONE,)),))
    blamed = replace(doc, pairs=(replace(pair, devices=(device,)), home))
    text = markdown(blamed).replace("\\", "")
    assert f"10.0.13: explains what breaks virtio-net: {csum}" in text


def test_one_cause_seen_by_two_uses_is_told_once(doc: QualifyDoc) -> None:
    number = replace(REASON, explained=(replace(VRING, recorded=1024),))
    words = replace(REASON, use="postcopy", explained=(VRING,))
    other = replace(REASON, use="colo", explained=(replace(VRING, recorded=512),))
    device = replace(doc.pairs[0].devices[0], because=(number, words, other))
    pair = replace(doc.pairs[0], devices=(device,))
    text = markdown(replace(doc, pairs=(pair,)))
    assert text.count("reject in migration and postcopy: virtio-net") == 1
    assert text.count("reject in colo: virtio-net") == 1


def test_facts_that_cannot_be_compared_are_told(doc: QualifyDoc) -> None:
    nothing = compare_facts({}, {})
    pair = replace(doc.pairs[0], changes=tuple(nothing))
    text = markdown(replace(doc, pairs=(pair,))).replace("\\", "")
    assert "host facts: the pack holds no facts" in text
