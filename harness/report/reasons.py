# SPDX-License-Identifier: GPL-2.0-or-later
"""Every sentence about why guests of one QEMU do not live on another, and what to do about it.

As in :mod:`harness.report.sentences`, nothing reads these back.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from harness.qualify.explained import (
    Differs,
    Explained,
    FieldEvidence,
    HostsDiffer,
    LostBy,
    LostFeature,
    NotLookedFor,
    Origin,
    OtherTypes,
    SetAlike,
    SetBy,
    StructureDifference,
)
from harness.qualify.model import Ending, Reason, Stray
from harness.qualify.pairs import EndingState
from harness.qualify.static import (
    Disagreement,
    StaticDifference,
    StaticFinding,
    StaticKind,
    StaticNote,
    Undescribed,
)
from harness.report.facts import matters_text, subject_text
from harness.report.sentences import outcome_text, verdict_meaning
from harness.report.text import plural
from harness.results.cause import KvmRefused
from harness.results.outcome import Outcome
from harness.results.verdict import Verdict

#: More differences of a section are counted only.
_SHOWN_DIFFERENCES = 3
_RESTART = "which takes a restart of the guest"


def reason_text(reason: Reason) -> str:
    """What happened, in one line."""
    verdict = Verdict(reason.verdict)
    outcome = Outcome(verdict=verdict, causes=reason.causes, repeats=reason.repeats)
    return outcome_text(outcome) or verdict_meaning(verdict)


def reason_cause_text(reason: Reason) -> str:
    """Why it failed, each thing once; empty where nobody knows."""
    refused = [f"this host's KVM refuses {c.group}" for c in reason.causes if isinstance(c, KvmRefused)]
    return _joined([*refused[:1], *map(explained_text, reason.explained)])


def reason_remedy_text(reason: Reason) -> str:
    """What to set or to do; empty where nothing is known."""
    return _joined([*map(lacking_type_remedy, reason.lacking), *map(remedy_text, reason.explained)])


def lacking_type_remedy(names: Iterable[str]) -> str:
    """What to do about devices, or their properties, that the new QEMU has not."""
    return (
        f"restart the guest without {', '.join(names)}, or with another type of device; a type that comes as a module "
        "is there with the module's package (postload qemu install --full)"
    )


def explained_text(explained: Explained) -> str:
    """One thing that explains a failure."""
    return _TEXTS[type(explained)](explained)


def remedy_text(explained: Explained) -> str:
    """What to do about it; empty where nothing is known."""
    return _REMEDIES.get(type(explained), _no_remedy)(explained)


def _joined(texts: Iterable[str]) -> str:
    return "; ".join(text for text in dict.fromkeys(texts) if text)


def _no_remedy(_: Explained) -> str:
    return ""


# -- virtio features -------------------------------------------------------------------------------------------------


def lost_feature_text(lost: LostFeature) -> str:
    """Who lost what, and by whom."""
    what = f"{lost.name} (feature bit {lost.bit})" if lost.bit is not None else lost.name
    who = f"{lost.section}{f' ({lost.device})' if lost.device else ''}"
    return f"{who}: the guest uses {what}, which the new host does not offer: {_LOST[lost.lost_by](lost)}"


def _off_property(lost: LostFeature) -> str:
    who = f", by {origin_text(lost.origin)}" if lost.origin else ""
    return f"its property {lost.property} is {lost.value}{who}"


def _bare_backend(lost: LostFeature) -> str:
    who = f" (by {origin_text(lost.origin)})" if lost.origin else ""
    return BACKENDS[lost.backend][0].format_map(_backend_words(lost)) + who


_LOST: Mapping[LostBy, Callable[[LostFeature], str]] = {
    LostBy.PROPERTY: _off_property,
    LostBy.BACKEND: _bare_backend,
    LostBy.BUILD: lambda lost: f"the new host's QEMU has no property {lost.property}: it does not know the feature",
    LostBy.OTHER: lambda lost: f"property {lost.property} is on, so that something else took it away",
    LostBy.NO_DEVICE: lambda _: "the new host has no such device",
    LostBy.UNKNOWN: lambda _: "nothing is known about what decides on it",
}


def lost_feature_remedy(lost: LostFeature) -> str:
    """What to set, at both ends."""
    old = "start the guest on the old host with"
    if lost.lost_by is LostBy.PROPERTY:
        return f"{_new_setting(lost)}; or {old} {lost.property}={lost.value}, {_RESTART}"
    if lost.lost_by is LostBy.BACKEND:
        _, here, there = (text.format_map(_backend_words(lost)) for text in BACKENDS[lost.backend])
        return f"{here}; or {there}, {_RESTART}"
    if lost.lost_by is LostBy.BUILD:
        return f"{old} {lost.property}=off, {_RESTART}"
    return f"do without {lost.name} on the old host"


def _new_setting(lost: LostFeature) -> str:
    here = f"-global {lost.driver}.{lost.property}={lost.wanted}"
    what = here if lost.wanted else f"{lost.property} to what it is on the old host,"
    ours = lost.origin if lost.origin and lost.origin.by in (SetBy.DEVICE, SetBy.GLOBAL) else None
    instead = f" instead of {origin_text(ours)}" if ours else ""
    return f"set {what} on the new host{instead}"


def origin_text(origin: Origin) -> str:
    """Who gave a property its value."""
    return _ORIGINS[origin.by](origin)


_ORIGINS: Mapping[SetBy, Callable[[Origin], str]] = {
    SetBy.DEVICE: lambda o: f"{o.property}={o.value} on its -device",
    SetBy.GLOBAL: lambda o: f"-global {o.driver}.{o.property}={o.value}",
    SetBy.MACHINE_TYPE: lambda o: f"machine type {o.machine}, which sets {o.driver}.{o.property}={o.value}",
    SetBy.NOT_DEFAULT: lambda o: f"machine type {o.machine} (the default of this QEMU is {o.value})",
    SetBy.DEFAULT: lambda o: f"the default of this QEMU, which is {o.value}",
}

#: For each backend of ``virtio-features.yaml``: why the feature is gone, what to do on the new host, or on the old one.
BACKENDS: Mapping[str, tuple[str, str, str]] = {
    "vnet-header": (
        "network backend {backend} has no virtio-net headers (or not those that the feature needs)",
        "give the device a backend that has them on the new host, such as -netdev tap with vnet_hdr=on",
        "start the guest on the old host with {off}",
    ),
    "vhost": (
        "network backend {backend} does not offer it",
        "use the kind of backend on the new host that the old host has (vhost, vhost-user or none)",
        "start the guest on the old host with {off}",
    ),
    "write-cache": (
        "the write cache of drive {backend} is off, and config-wce is off as well",
        "switch the write cache on, on the new host: -global {driver}.write-cache=on",
        "start the guest on the old host with write-cache=off and config-wce=off",
    ),
    "read-only": (
        "drive {backend} is not read-only here, and the guest knows it as read-only",
        "open the drive read-only on the new host, as on the old one",
        "start the guest on the old host with a drive that can be written",
    ),
    "zoned": (
        "drive {backend} is no zoned device",
        "use a zoned disk on the new host as well",
        "start the guest on the old host with a disk that is not zoned",
    ),
    "protection": (
        "backend {backend} does not do protection information",
        "use the same kind of vhost backend on the new host",
        "start the guest on the old host with {off}",
    ),
}


def _backend_words(lost: LostFeature) -> dict[str, str]:
    kind = f" ({lost.backend_kind})" if lost.backend_kind else ""
    return {
        "backend": f"{lost.backend_id}{kind}" if lost.backend_id else "of the device",
        "driver": lost.driver,
        "off": f"{lost.property}=off" if lost.property else "the same kind of backend as here",
    }


# -- fields ----------------------------------------------------------------------------------------------------------


def field_text(found: FieldEvidence) -> str:
    """The field, its value on both sides, QEMU's words, and how the section is described otherwise."""
    what = " ".join(part for part in (found.section or "a section that QEMU does not name", found.field) if part)
    sides = ((found.recorded, "in the recording"), (found.loading, "on the loading side"))
    values = [f"{_value(value)} {where}" for value, where in sides if value not in (None, "")]
    rest = len(found.differences) - _SHOWN_DIFFERENCES
    more = [difference_text(difference) for difference in found.differences[:_SHOWN_DIFFERENCES]]
    more += [plural(rest, "more difference")] if rest > 0 else []
    if found.not_compared:
        more.append(f"the loading QEMU's own state could not be saved to compare with: {found.not_compared}")
    return "; ".join([f"{what}: {', '.join([*values, repr(found.said)])}", *more])


def _value(value: int | str | None) -> str:
    return f"{value} ({value:#x})" if isinstance(value, int) and not -10 < value < 10 else str(value)


def difference_text(difference: StructureDifference) -> str:
    """How two descriptions of a section differ."""
    where = f"{difference.section} {difference.path}".strip()
    here, there = (_side(difference.differs, side) for side in (difference.recorded, difference.loading))
    return f"{where} ({difference.differs}): {here} in the recording, {there} on the loading side"


def _side(differs: Differs, number: int | None) -> str:
    if number is None:
        return "not there"
    if differs is Differs.VERSION:
        return f"version {number}"
    return bytes_text(number) if number else "there"


def bytes_text(count: int | None) -> str:
    """A size in bytes."""
    return "? bytes" if count is None else plural(count, "byte")


def field_remedy(found: FieldEvidence) -> str:
    """What has to be set alike."""
    if found.setting is SetAlike.QUEUE_SIZE and not _SIZED.search(found.section or ""):
        return _FIXED_QUEUES
    return _SETTINGS[found.setting].format(recorded=found.recorded) if found.setting else ""


#: Sections of devices that have a property for the size of their queues.
_SIZED = re.compile(r"/virtio-(blk|scsi|net)$|^$")
_FIXED_QUEUES = (
    "no property of the device sets the size of its queues: restart the guest on the new QEMU, unplug the device "
    "for the migration, or have a QEMU that saves the true size"
)
_SETTINGS = {
    SetAlike.QUEUE_SIZE: (
        "give the device queues of {recorded} entries on the loading side (queue-size of virtio-blk, "
        "virtqueue_size of virtio-scsi, rx_queue_size of virtio-net; transmit queues and the control queue of "
        "virtio-net stay as they are with most backends, and then only a QEMU that saves the true size helps)"
    ),
    SetAlike.MEMORY_SIZE: "give the loading side the same memory size and ROM sizes (-m, romsize= of the device)",
    SetAlike.BLOCK_OWNER: "give the loading side the device that owns the block",
    SetAlike.REGISTERS: "the loading side's CPU has no such register: restart the guest there",
    SetAlike.MACHINE_TYPE: "use machine type {recorded} on the loading side",
}


# -- machine types and hosts -----------------------------------------------------------------------------------------


def other_types_text(_: OtherTypes) -> str:
    """Nothing beyond what the verdict says: the QEMU has no such machine type."""
    return ""


def other_types_remedy(types: OtherTypes) -> str:
    """Which machine types would do."""
    ours = f"QEMU {types.version} has {types.oldest} to {types.newest}"
    return f"restart the guest with a machine type that both sides have: {ours}"


def not_looked_for_text(error: NotLookedFor) -> str:
    """Why there is no cause."""
    return f"the cause could not be looked for: {error.said}"


def hosts_differ_text(hosts: HostsDiffer) -> str:
    """What differs between the hosts."""
    return "; ".join(f"{subject_text(change)}: {matters_text(change)}" for change in hosts.changes)


_ENDINGS = {
    EndingState.DEPRECATED: "deprecated",
    EndingState.REMOVED: "removed",
    EndingState.NOT_YET: "not yet",
}


def ending_text(ending: Ending) -> str:
    """For how long a QEMU has a machine type."""
    return f"{_ENDINGS[ending.state]} in {ending.version}"


COLO_BETWEEN_VERSIONS = (
    "COLO between two versions: upstream supports COLO only with the same version on both sides, "
    "so this column decides only where --for names colo"
)


def stray_text(stray: Stray) -> str:
    """A section that breaks and that nobody asked for."""
    uses = " and ".join(stray.uses)
    return f"{stray.section} breaks in {uses} and was left out: no device that is judged owns it"


def stray_remedy() -> str:
    """What to do about it."""
    return "judge the device that owns it as well, by --device"


# -- the static check ------------------------------------------------------------------------------------------------

_DISAGREE = {
    Disagreement.ALARM_AND_PASSED: "the load passes, though -dump-vmstate of both builds says that it can fail",
    Disagreement.CLEAN_AND_FAILED: "the load fails, though -dump-vmstate of both builds shows no difference",
    Disagreement.BLIND_AND_FAILED: "the load fails, and -dump-vmstate does not describe the section",
}


def static_text(note: StaticNote) -> str:
    """Where the static check and the loads disagree."""
    return f"{_DISAGREE[note.how]}: {'; '.join(map(_finding, note.findings))}"


def _finding(finding: StaticFinding) -> str:
    alarms = [difference for difference in finding.differences if difference.alarm]
    if alarms:
        more = f", and {len(alarms) - 1} more" if len(alarms) > 1 else ""
        return f"{finding.section} ({static_difference_text(alarms[0])}{more})"
    return f"{finding.section}{f' ({undescribed_text(finding)})' if finding.undescribed else ''}"


def undescribed_text(finding: StaticFinding) -> str:
    """Why the dump says nothing of a section."""
    if finding.undescribed is Undescribed.OPEN_CODED:
        return "its code writes the bytes itself"
    return f"no device type has vmstate {finding.vmsd} in the dump"


def static_difference_text(difference: StaticDifference) -> str:
    """One difference between what is saved and what is loaded."""
    known = {True: " (in the recording)", False: " (not in the recording)", None: ""}
    return _DIFFERENCES[difference.kind](difference) + known[difference.in_recording]


def _lone_field(difference: StaticDifference) -> str:
    size = difference.loading if difference.saved is None else difference.saved
    sometimes = ", not always sent" if difference.sometimes else ""
    where = "is only" if difference.saved is None else "is not"
    return f"field {difference.path} ({bytes_text(size)}{sometimes}) {where} in the loading QEMU"


_DIFFERENCES: Mapping[StaticKind, Callable[[StaticDifference], str]] = {
    StaticKind.REMOVED: _lone_field,
    StaticKind.ADDED: _lone_field,
    StaticKind.SIZE: lambda d: (
        f"field {d.path} has {bytes_text(d.saved)} where it is saved and {d.loading} where it is loaded"
    ),
    StaticKind.TOO_NEW: lambda d: (
        f"{d.path} is saved as version {d.saved}, and the loading QEMU knows up to {d.loading}"
    ),
    StaticKind.TOO_OLD: lambda d: (
        f"{d.path} is saved as version {d.saved}, and the loading QEMU wants at least {d.loading}"
    ),
    StaticKind.SUBSECTION: lambda d: f"subsection {d.path} is unknown to the loading QEMU",
    StaticKind.TYPE: lambda d: (
        f"vmstate {d.name} is not in the loading QEMU's dump (gone, or registered without a device type)"
    ),
    StaticKind.RENAMED: lambda d: (
        f"{d.name} at {d.path} is {d.name_loading} where it is loaded, {bytes_text(d.saved)} as before"
    ),
}

_TEXTS: Mapping[type, Callable[[Any], str]] = {
    LostFeature: lost_feature_text,
    FieldEvidence: field_text,
    NotLookedFor: not_looked_for_text,
    OtherTypes: other_types_text,
    HostsDiffer: hosts_differ_text,
}
_REMEDIES: Mapping[type, Callable[[Any], str]] = {
    LostFeature: lost_feature_remedy,
    FieldEvidence: field_remedy,
    OtherTypes: other_types_remedy,
}
