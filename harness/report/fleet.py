# SPDX-License-Identifier: GPL-2.0-or-later
"""The answer for a fleet in words: one line for each VM, each cause once with what to change, and the counts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path

from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from harness.arch import architecture_of
from harness.files import folder_without, write_atomically
from harness.guests.origin import Without
from harness.qemu.versions import first_with
from harness.qualify.fleet import FleetDoc, FleetReason, Obstacle, Unjudged, VmAnswer
from harness.qualify.foretold import Foresight, Foretold, Standing
from harness.qualify.model import Answer
from harness.report.console import print_wrapped
from harness.report.markdown import markdown_table, plain_text
from harness.report.qualify import ANSWER_STYLES, answer_table, print_reason
from harness.report.reasons import (
    lacking_type_remedy,
    other_types_remedy,
    reason_cause_text,
    reason_remedy_text,
    reason_text,
)
from harness.report.text import duration, first_of, plural
from harness.results.cause import Side
from harness.results.document import json_text
from harness.text import one_line

JSON_NAME = "fleet.json"
MARKDOWN_NAME = "fleet.md"
#: So many VMs are named behind a reason; the others are counted.
_NAMED = 6


def fleet_json(doc: FleetDoc) -> str:
    """The document as text."""
    return json_text(doc.to_json())


def write_fleet(doc: FleetDoc, out: Path) -> None:
    """Write ``fleet.json`` and ``fleet.md``.

    :raises HostError: the folder cannot be written
    """
    for name, text in ((JSON_NAME, fleet_json(doc)), (MARKDOWN_NAME, fleet_markdown(doc))):
        write_atomically(out / name, text.encode("utf-8", "replace"))


def forget_fleet(out: Path) -> None:
    """Have the folder, without the answer of an earlier run.

    :raises HostError: it cannot be written
    """
    folder_without(out, (JSON_NAME, MARKDOWN_NAME))


def print_fleet(doc: FleetDoc, console: Console) -> None:
    """The table of the VMs, what keeps them, what is to be said beside it, and last the answer."""
    console.print(Text(_way(doc), style="bold"))
    console.print(Padding(_table(doc), (0, 0, 1, 1), expand=False))
    for reason in _told(doc):
        print_reason(list(_reason_lines(reason, doc)), console, ANSWER_STYLES[reason.answer])
    for line in _notes(doc):
        print_wrapped(console, line, style="dim", indent=2)
    print_wrapped(console, fleet_summary(doc), style=ANSWER_STYLES[doc.answer])


def _way(doc: FleetDoc) -> str:
    """Which QEMUs the VMs come from, and where they go."""
    sources = ", ".join(dict.fromkeys(vm.recorder for vm in doc.vms if vm.recorder))
    return f"{plural(len(doc.vms), 'VM')}, {sources or '?'} -> {doc.loader.version}"


def trying_text(vm: VmAnswer, members: int, number: int, total: int) -> str:
    """That a VM is tried now, and for how many."""
    alike = f", and {plural(members - 1, 'VM')} of the same devices" if members > 1 else ""
    return f"{number}/{total}: {vm.name}, {vm.machine} of QEMU {vm.recorder}{alike}"


def fleet_summary(doc: FleetDoc) -> str:
    """The answer in one sentence."""
    counts = Counter(vm.answer for vm in doc.vms)
    answers = ", ".join(f"{counts[answer]} {_answer(answer)}" for answer in Answer if counts[answer])
    state = "" if doc.complete else "stopped early; "
    loads = f"{plural(doc.tried, 'VM')} tried, {plural(doc.loads, 'load')} acknowledged, {duration(doc.seconds)}"
    return f"to QEMU {doc.loader.version}: {_answer(doc.answer)}; {state}{answers or 'no VM'}; {loads}"


def _answer(answer: Answer) -> str:
    return "not tried" if answer is Answer.NONE else str(answer)


def fleet_markdown(doc: FleetDoc) -> str:
    """The answer as GitHub's markdown."""
    parts = ["# postload qualify", f"**{doc.answer}**: {plain_text(fleet_summary(doc))}"]
    rows = [[*map(plain_text, _row(vm, doc))] for vm in doc.vms]
    parts.append(markdown_table(_HEAD, rows))
    reasons = ["- " + "\n  ".join(map(plain_text, _reason_lines(reason, doc))) for reason in _told(doc)]
    if reasons:
        parts += ["## What to change", "\n".join(reasons)]
    notes = [f"- {plain_text(line)}" for line in _notes(doc)]
    if notes:
        parts += ["## Beside it", "\n".join(notes)]
    return "\n\n".join(parts) + "\n"


_HEAD = ("VM", "machine", "answer", "because")


def _table(doc: FleetDoc) -> Table:
    table = answer_table()
    for name in _HEAD:
        table.add_column(name, no_wrap=name == "answer")
    for vm in doc.vms:
        row = _row(vm, doc)
        table.add_row(
            *(Text(one_line(word), style=ANSWER_STYLES[vm.answer] if word == vm.answer else "") for word in row)
        )
    return table


def _row(vm: VmAnswer, doc: FleetDoc) -> list[str]:
    return [vm.name, vm.machine, vm.answer, "; ".join(_why(vm, doc))]


def _why(vm: VmAnswer, doc: FleetDoc) -> Iterator[str]:
    """Why a VM is not a go, in a few words each; of a go what it is like."""
    found = [doc.reasons[number] for number in vm.because]
    deciding = [reason for reason in found if reason.answer is not Answer.GO and reason.decides]
    yield from dict.fromkeys(short_reason_text(reason) for reason in deciding)
    if vm.obstacle is not None and not (vm.obstacle is Obstacle.NO_RECORDER and deciding):
        yield obstacle_text(vm)
    if vm.unjudged:
        yield f"not judged: {first_of([*map(_unjudged_text, vm.unjudged)], _NAMED)}"
    if vm.like:
        yield f"as {vm.like}"
    if vm.answer is Answer.NONE:
        yield "nothing speaks against it so far"


def _unjudged_text(device: Unjudged) -> str:
    """A device that no answer is about, and why."""
    kind = f" ({device.type})" if device.type != device.device else ""
    return f"{device.device}{kind}, {_WITHOUT[device.why]}"


_WITHOUT: Mapping[Without, str] = {
    Without.HOST: "which stands on the host",
    Without.TYPE: "which the QEMU has not",
    Without.CPU: "a CPU that is plugged",
    Without.BUS: "whose bus is not there",
    Without.PROGRAM: "for which this host lacks a program",
    Without.START: "with which the QEMU does not start",
    Without.SAVE: "with which the QEMU fails to save",
    Without.MIGRATION: "with which the QEMU does not migrate",
    Without.LOST: "with which the guest that is recorded is lost",
    Without.UNREAD: "which is not known here",
}


_OBSTACLES: Mapping[Obstacle, str] = {
    Obstacle.UNREADABLE: "{said}",
    Obstacle.NO_RECORDER: "no QEMU here has machine type {machine}: postload qemu install {install}",
    Obstacle.SAME_QEMU: "of the QEMUs here only the new one has machine type {machine}",
    Obstacle.NOT_ADOPTED: "no guest could be made of it: {said}",
    Obstacle.NOT_RECORDED: "its guest could not be recorded: {said}",
    Obstacle.STOPPED: "the run was stopped before it",
    Obstacle.NOT_ASKED: "nothing was loaded, as asked",
}


def obstacle_text(vm: VmAnswer) -> str:
    """Why a VM was not tried."""
    assert vm.obstacle is not None
    install = vm.machine and first_with(vm.machine, architecture_of(vm.machine).name)
    return _OBSTACLES[vm.obstacle].format(
        said=vm.said, machine=vm.machine or "(none given)", install=install or "the one that it runs on"
    )


def short_reason_text(reason: FleetReason) -> str:
    """A cause in a few words, for a line of a table."""
    if reason.foretold is not None:
        return foretold_text(reason.foretold)
    assert reason.reason is not None
    cause = reason.reason
    where = ", ".join(part for part in (reason.type or cause.section or "", cause.field or "") if part)
    return f"{cause.verdict} in {cause.use}{f': {where}' if where else ''}"


def foretold_text(foretold: Foretold) -> str:
    """What a QEMU lacks or is about to lose."""
    kind = _KINDS[foretold.what]
    if foretold.standing is Standing.DEPRECATED:
        return f"{kind} {foretold.name} is deprecated in QEMU {foretold.version}"
    return f"QEMU {foretold.version} has no {kind} {foretold.name}"


_KINDS: Mapping[Foresight, str] = {
    Foresight.MACHINE_TYPE: "machine type",
    Foresight.CPU_MODEL: "CPU model",
    Foresight.DEVICE_TYPE: "device",
    Foresight.PROPERTY: "property",
}


def foretold_remedy(foretold: Foretold) -> str:
    """What to do about it; empty where nothing is known."""
    if foretold.side is Side.RECORDER:
        return f"name the QEMU that the VM runs on by --from: QEMU {foretold.version} cannot make it"
    if foretold.what is Foresight.MACHINE_TYPE:
        if foretold.types is not None:
            return other_types_remedy(foretold.types)
        return "" if foretold.standing is Standing.MISSING else "restart the guest with a newer machine type, in time"
    devices = ", ".join(foretold.devices[:_NAMED])
    if foretold.standing is Standing.UNUSED:
        return f"leave it out on the new host: the VM has it switched off on {devices}"
    near = f", such as {' or '.join(foretold.near)}" if foretold.near else ""
    return {
        Foresight.CPU_MODEL: f"restart the guest with a CPU model that both QEMUs have{near}",
        Foresight.DEVICE_TYPE: lacking_type_remedy(foretold.devices[:_NAMED]),
        Foresight.PROPERTY: f"restart the guest without the property on {devices}",
    }[foretold.what]


def _told(doc: FleetDoc) -> list[FleetReason]:
    """Reasons that keep a VM first, those that most VMs have in front; remarks last."""
    order = list(Answer)
    return sorted(doc.reasons, key=lambda r: (not r.decides, order.index(r.answer), -len(r.vms)))


def _reason_lines(reason: FleetReason, doc: FleetDoc) -> Iterator[str]:
    """What it is, why, what to change, and for which VMs."""
    head = "remark" if reason.answer is Answer.GO else str(reason.answer)
    beside = "" if reason.decides else " (decides nothing here)"
    yield f"{head}: {short_reason_text(reason)}{beside}"
    if reason.foretold is not None:
        remedy = foretold_remedy(reason.foretold)
    else:
        assert reason.reason is not None
        yield reason_text(reason.reason)
        cause, remedy = reason_cause_text(reason.reason), reason_remedy_text(reason.reason)
        if reason.of_tcg:
            cause = "the guest ran under TCG here, and the VM runs under KVM, which saves other registers of a CPU"
            remedy = "qualify the VM on a host with KVM"
        if cause:
            yield f"cause: {cause}"
    if remedy:
        yield f"change: {remedy}"
    yield from _remedied(reason, doc)
    yield f"in {first_of(reason.vms, _NAMED)} ({plural(len(reason.vms), 'VM')})"


def _remedied(reason: FleetReason, doc: FleetDoc) -> Iterator[str]:
    """What became of its VMs with what can be set on the new QEMU."""
    if reason.reason is None or reason.answer is not Answer.NO_GO:
        return
    tried = {vm.remedied: None for vm in doc.vms if vm.name in reason.vms and vm.remedied and not vm.like}
    for remedied in tried:
        settings = " ".join(f"--global {setting}" for setting in remedied.settings)
        yield f"tried: with {settings} the VM is {remedied.answer} ({remedied.folder})"


def _notes(doc: FleetDoc) -> Iterator[str]:
    alike = sum(1 for vm in doc.vms if vm.like)
    if alike:
        yield f"{plural(alike, 'VM')} of the same devices as another one: tried once, together"
    replaced = sum(vm.replaced for vm in doc.vms)
    if replaced:
        yield f"{plural(replaced, 'backend')} of the host replaced by harmless ones of the same shape"
    if doc.skipped:
        yield f"neither a libvirt domain nor a command line, and left out: {first_of(doc.skipped, _NAMED)}"
