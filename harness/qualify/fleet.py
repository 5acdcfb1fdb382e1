# SPDX-License-Identifier: GPL-2.0-or-later
"""The answer for many VMs: which can move to the new QEMU, which cannot, because of what, and what to change.

Each VM keeps its own answer (:class:`harness.qualify.model.QualifyDoc`); here stands what a whole fleet asks: one line
for each VM, and each cause once with all VMs that have it. VMs that are the same machine once names, addresses and
sizes are taken away (:mod:`harness.adopt.alike`) were tried once.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any, Literal

from harness import __version__
from harness.guests.origin import Without
from harness.qualify.explained import Explained, FieldEvidence, LostFeature
from harness.qualify.foretold import Foretold, answer_of
from harness.qualify.model import Answer, DeviceAnswer, QualifyDoc, Reason, worst
from harness.results.document import Qemu, plain_json, read_model, schema_of
from harness.results.verdict import Verdict


class Obstacle(StrEnum):
    """Why a VM was not tried, beyond what was foretold."""

    UNREADABLE = "unreadable"  # ``said`` is the error: its file is wrong, or says what this program does not know
    NO_RECORDER = "no-recorder"  # no QEMU here has its machine type
    SAME_QEMU = "same-qemu"  # the only QEMU here that has its machine type is the new one
    NOT_ADOPTED = "not-adopted"  # ``said``: no guest could be made of it
    NOT_RECORDED = "not-recorded"  # ``said``: its guest could not be recorded
    STOPPED = "stopped"  # Ctrl-C came before it
    NOT_ASKED = "not-asked"  # only what is known without a load was asked for


@dataclass(frozen=True, slots=True, kw_only=True)
class Unjudged:
    """A part of a VM that no answer is about.

    :param device: its id, or its type where it has none, as its owner wrote it
    :param type: as its owner wrote it
    """

    device: str
    type: str
    why: Without


@dataclass(frozen=True, slots=True, kw_only=True)
class VmDevice:
    """One device of a VM and its answer.

    :param device: its name in the VM's own document
    :param type: QEMU's name of its type
    """

    device: str
    type: str
    answer: Answer


@dataclass(frozen=True, slots=True, kw_only=True)
class Remedied:
    """What became of a VM that was tried once more with its remedies.

    :param settings: ``DRIVER.PROPERTY=VALUE``, set on the new QEMU
    :param folder: where that answer lies, below the fleet's
    """

    settings: tuple[str, ...]
    answer: Answer
    folder: str


@dataclass(frozen=True, slots=True, kw_only=True)
class VmAnswer:
    """One VM.

    :param name: of the VM; of its file where it has none
    :param source: file or process that it was read from
    :param machine: versioned machine type, or as somebody wrote it where no QEMU here has it
    :param recorder: version of the QEMU that its guest was recorded with, "" where none was
    :param like: the VM of the same devices that was tried in its place; "" where it was tried itself
    :param folder: where its own answer lies, below the folder of the fleet's; "" where nothing was loaded
    :param obstacle: why it was not tried, None where it was
    :param said: by whoever was the obstacle
    :param replaced: how many of its backends stood on the host, and were replaced by harmless ones
    :param because: numbers of the fleet's reasons
    :param remedied: the same VM with what its reasons say to set; None where they say nothing that can be set
    """

    name: str
    source: str
    answer: Answer
    machine: str = ""
    recorder: str = ""
    like: str = ""
    folder: str = ""
    obstacle: Obstacle | None = None
    said: str = ""
    replaced: int = 0
    devices: tuple[VmDevice, ...] = ()
    unjudged: tuple[Unjudged, ...] = ()
    because: tuple[int, ...] = ()
    remedied: Remedied | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetReason:
    """One cause with all VMs that have it: known before (``foretold``), or seen in a load (``reason``).

    :param answer: what it makes of a VM's answer; ``go`` for a remark
    :param type: of the device that it is about; "" for the machine
    :param reason: as in the document of the first VM that has it; section and ids are that VM's
    :param decides: it is of a use that counts
    :param of_tcg: it is of a CPU under TCG, and its VMs run under KVM, so that nothing is known
    :param vms: names, in their order
    """

    answer: Answer
    vms: tuple[str, ...]
    type: str = ""
    foretold: Foretold | None = None
    reason: Reason | None = None
    decides: bool = True
    of_tcg: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetDoc:
    """The answer for a fleet.

    :param loader: the new QEMU
    :param answer: that of the worst VM
    :param tried: so many VMs were loaded; the others are like one of them, or were not to be tried
    :param skipped: files of a folder that are no VM
    """

    schema: Literal["postload.fleet/1"] = "postload.fleet/1"
    command: tuple[str, ...]
    started: str
    seconds: float
    complete: bool
    answer: Answer
    deciding: tuple[str, ...]
    loader: Qemu
    tried: int
    loads: int
    vms: tuple[VmAnswer, ...]
    reasons: tuple[FleetReason, ...]
    skipped: tuple[str, ...] = ()
    program: dict[str, str] = field(default_factory=lambda: {"name": "postload", "version": __version__})

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types."""
        return plain_json(self)

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> FleetDoc:
        """Read a document back.

        :raises UsageError: it is none, or of another version
        """
        return read_model(cls, document, "an answer of postload qualify for a fleet")


def fleet_schema() -> dict[str, Any]:
    """The JSON Schema (2020-12) of ``fleet.json``, made from the models."""
    return schema_of(FleetDoc)


@dataclass(frozen=True, slots=True, kw_only=True)
class TriedVm:
    """What was found out about one VM.

    :param vm: without its answer, devices and reasons
    :param types: of the VM's devices by the names that its document has, where it was loaded
    :param doc: None where nothing was loaded
    :param doubted: names of sections whose failure says nothing of the VM: of a CPU under TCG, where it has KVM
    """

    vm: VmAnswer
    foretold: tuple[Foretold, ...] = ()
    types: Mapping[str, str] = field(default_factory=dict)
    doc: QualifyDoc | None = None
    doubted: frozenset[str] = frozenset()

    def doubts(self, reason: Reason) -> bool:
        """Whether a reason is of such sections alone."""
        labels = reason.section.split(", ") if reason.section else []
        return bool(labels) and all(label.partition("#")[0] in self.doubted for label in labels)


def fleet_doc(tried: Sequence[TriedVm], **of_run: Any) -> FleetDoc:
    """One document of what was found out about each VM.

    :param of_run: what :class:`FleetDoc` has beside answer, VMs and reasons
    """
    causes = _Causes()
    vms = tuple(_answered(each, causes) for each in tried)
    return FleetDoc(
        answer=worst(vm.answer for vm in vms),
        vms=vms,
        reasons=tuple(causes.reasons()),
        tried=sum(1 for each in tried if each.doc is not None and not each.vm.like),
        loads=sum(each.doc.loads for each in tried if each.doc is not None and not each.vm.like),
        deciding=tuple(dict.fromkeys(use for each in tried if each.doc for use in each.doc.deciding)),
        **of_run,
    )


def _answered(tried: TriedVm, causes: _Causes) -> VmAnswer:
    vm = tried.vm
    devices = tuple(_devices(tried))
    doubt = [Answer.UNKNOWN] if vm.obstacle is not None or vm.unjudged else []
    loaded = [] if tried.doc is None else [tried.doc.answer]
    if loaded == [Answer.NO_GO] and not any(device.answer is Answer.NO_GO for device in devices):
        loaded = [Answer.UNKNOWN]
    return replace(
        vm,
        answer=worst([*doubt, *loaded, answer_of(tried.foretold)]),
        devices=devices,
        because=tuple(dict.fromkeys(causes.of(tried))),
    )


def _devices(tried: TriedVm) -> Iterable[VmDevice]:
    for pair in [] if tried.doc is None else tried.doc.abroad:
        for device in pair.devices:
            answer = _device_answer(device, pair.deciding, tried)
            yield VmDevice(device=device.device, type=tried.types.get(device.device, ""), answer=answer)


def _device_answer(device: DeviceAnswer, deciding: Collection[str], tried: TriedVm) -> Answer:
    """That of the loads; nothing is known where all that speaks against it is in doubt."""
    against = device.against(deciding)
    doubted = device.answer is Answer.NO_GO and bool(against) and all(map(tried.doubts, against))
    return Answer.UNKNOWN if doubted else device.answer


@dataclass(slots=True)
class _Cause:
    """A cause, as the first VM has it.

    :param vms: names of all that have it, in their order
    """

    number: int
    first: FleetReason
    vms: dict[str, None] = field(default_factory=dict)


class _Causes:
    """Reasons in the order in which they were met, each once."""

    def __init__(self) -> None:
        self._found: dict[object, _Cause] = {}

    def of(self, tried: TriedVm) -> Iterable[int]:
        """Numbers of a VM's reasons."""
        for key, found in (*_foretold(tried), *_loaded(tried)):
            cause = self._found.setdefault(key, _Cause(len(self._found), found))
            cause.vms[tried.vm.name] = None
            yield cause.number

    def reasons(self) -> Iterable[FleetReason]:
        """All of them, with their VMs."""
        for cause in self._found.values():
            yield replace(cause.first, vms=tuple(cause.vms))


def _foretold(tried: TriedVm) -> Iterable[tuple[object, FleetReason]]:
    for each in tried.foretold:
        key = ("foretold", each.what, each.name, each.standing, each.side, each.version)
        yield key, FleetReason(answer=each.answer, vms=(), foretold=each)


def _loaded(tried: TriedVm) -> Iterable[tuple[object, FleetReason]]:
    if tried.doc is None:
        return
    for pair in tried.doc.abroad:
        for device in pair.devices:
            kind = tried.types.get(device.device, "")
            for reason in device.because:
                if tried.foretold and reason.lacking:
                    continue  # it was foretold
                doubted = tried.doubts(reason)
                found = FleetReason(
                    answer=Answer.UNKNOWN if doubted else device.uses.get(reason.use, device.answer),
                    vms=(),
                    type=kind,
                    reason=reason,
                    decides=reason.use in pair.deciding,
                    of_tcg=doubted,
                )
                yield (_likeness(kind, reason), doubted), found


def _likeness(kind: str, reason: Reason) -> object:
    """What the reasons of two VMs share that are one cause: not where the device is, nor what it is called."""
    why: object = tuple(map(_bare, reason.explained)) or (tuple(map(str, reason.causes)) if not reason.section else "")
    # a feature that is lost breaks every use alike, and is set once
    use = "" if reason.explained else reason.use
    return kind, reason.verdict, use if reason.verdict != Verdict.UNSUPPORTED else "", reason.field, why


def _bare(explained: Explained) -> object:
    """Without section, id and values, which differ from VM to VM."""
    if isinstance(explained, LostFeature):
        return explained.driver, explained.name, explained.lost_by, explained.property
    if isinstance(explained, FieldEvidence):
        return explained.field, explained.setting
    return explained.kind
