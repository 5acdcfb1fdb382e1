# SPDX-License-Identifier: GPL-2.0-or-later
"""Devices without a recipe: a type of a QEMU and the rules that fit it make one. Pure: no QEMU is asked.

Whatever is behind :class:`~harness.devices.device.Device` does not know whether somebody wrote it or it was derived.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import reduce

from harness.devices.backends import Backend
from harness.devices.device import VARIANT, Attachment, Device, GuestCommands
from harness.devices.recipe import DiskModel, backend_of, size_bytes
from harness.devices.rules import PartModel, Status, TypeRule
from harness.devices.types import DeviceType

#: Name of the attachment that a derived device stands for.
SUBJECT = "dev"


@dataclass(frozen=True, slots=True, kw_only=True)
class Underived:
    """Why a type makes no device of its own.

    :param reason: in the words of the rule that says so
    :param row: the device that it is judged as, where there is one
    :param needs: types that it stands on and that the QEMU has not
    """

    status: Status
    reason: str = ""
    row: str = ""
    needs: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class DerivedDevices:
    """Every type of a QEMU: each is in ``rows`` or in ``underived``.

    :param devices: by name: those that were derived, and variants among them
    :param rows: type to the name of its device, its variants behind it
    """

    devices: Mapping[str, Device] = field(default_factory=dict)
    rows: Mapping[str, Sequence[str]] = field(default_factory=dict)
    underived: Mapping[str, Underived] = field(default_factory=dict)


def derive_all(
    types: Mapping[str, DeviceType], rules: Sequence[TypeRule], recipes: Iterable[Device] = ()
) -> DerivedDevices:
    """Devices of all types.

    :param recipes: a type that one of them stands for has no other device, but variants
    """
    written = {alias: device.name for device in recipes for alias in device.aliases}
    devices: dict[str, Device] = {}
    rows: dict[str, list[str]] = {}
    left: dict[str, tuple[list[TypeRule], Underived]] = {}
    for kind in types.values():
        found = derive(kind, rules, types)
        if isinstance(found, Underived):
            left[kind.name] = [rule for rule in rules if rule.when.fits(kind)], found
            continue
        mine = [] if kind.name in written else [found]
        mine += _variants(kind, rules, types)
        devices |= {device.name: device for device in mine}
        rows[kind.name] = [*filter(None, [written.get(kind.name)]), *(device.name for device in mine)]
    names = {**{name: name for name in (*types, *devices)}, **written}
    underived = {name: _same_as(name, fitting, names) or why for name, (fitting, why) in left.items()}
    return DerivedDevices(devices=devices, rows=rows, underived=underived)


def derive(
    kind: DeviceType, rules: Sequence[TypeRule], types: Mapping[str, DeviceType], variant: str | None = None
) -> Device | Underived:
    """The device of a type, or why there is none.

    :param types: all that the QEMU has
    :param variant: the device of this variant; there has to be a rule of it
    """
    fitting = [rule for rule in rules if rule.when.fits(kind) and rule.variant in (None, variant)]
    for rule in reversed(fitting):
        if rule.status is not None:
            return Underived(status=Status(rule.status), reason=rule.reason)
        if rule.same_as:
            return Underived(status=Status.ALIAS)
    rule = reduce(_together, fitting, TypeRule())
    if not any(each.variant and each.after for each in fitting):
        # what is plugged in gives it something to do, and is no need; but of a variant it is the point
        rule = rule.model_copy(update={"after": tuple(part for part in rule.after or () if part.type in types)})
    device = _device(kind, variant, rule)
    lacking = tuple(sorted({attachment.type for attachment in device.attachments} - types.keys()))
    if lacking:
        return Underived(status=Status.NEEDS, needs=lacking)
    return device


def _variants(kind: DeviceType, rules: Sequence[TypeRule], types: Mapping[str, DeviceType]) -> Iterator[Device]:
    names = dict.fromkeys(rule.variant for rule in rules if rule.variant is not None and rule.when.fits(kind))
    for name in names:
        found = derive(kind, rules, types, name)
        if isinstance(found, Device):
            yield found


def _same_as(name: str, rules: Sequence[TypeRule], names: Mapping[str, str]) -> Underived | None:
    """The other name of a type, the first that there is."""
    for rule in rules:
        for pattern, other in rule.same_as.items():
            match = re.fullmatch(pattern, name)
            row = names.get(match.expand(other)) if match else None
            if row is not None:
                return Underived(status=Status.ALIAS, row=row)
    return None


def _together(first: TypeRule, second: TypeRule) -> TypeRule:
    """Both rules: of a list or a word the second's, where it has one; of a mapping, and of commands, all keys."""
    update = {}
    for name in second.model_fields_set - {"when", "variant"}:
        value, before = getattr(second, name), getattr(first, name)
        if isinstance(before, dict):
            value = {**before, **value}
        elif isinstance(before, GuestCommands):
            value = before.model_copy(update=value.model_dump(exclude_unset=True))
        update[name] = value
    return first.model_copy(update=update)


def _device(kind: DeviceType, variant: str | None, rule: TypeRule) -> Device:
    subject = PartModel(
        name=SUBJECT,
        type=kind.name,
        on=rule.on or "none",
        properties=rule.properties,
        needs=rule.needs,
        references=rule.references,
    )
    name = kind.name if variant is None else f"{kind.name}{VARIANT}{variant}"
    parts = (*(rule.before or ()), subject, *(rule.after or ()))
    guest = rule.guest or GuestCommands()
    faults = {name: sector for part in parts for name, sector in _faults(part)}
    filled = {
        "{name}": name,
        "{hint}": rule.hint or "",
        "{sectors}": " ".join(str(sector) for sector in sorted(set(faults.values()))),
    }
    return Device(
        name=name,
        about=kind.description or f"device type {kind.name}",
        type=kind.name,
        default=False,
        attachments=tuple(_attachment(part, name) for part in parts),
        backends=dict(pair for part in parts for pair in _backends(part)),
        machine=rule.machine,
        memory_room_mib=size_bytes(rule.memory_room or "0") >> 20,
        cmdline=rule.cmdline,
        within=(rule.within or "") if rule.within in [part.name for part in parts] else "",
        faults=faults,
        reports_errors=rule.reports_errors and not faults,
        takes=frozenset(rule.takes),
        decoder=rule.decoder or "",
        drift=rule.drift,
        guest=guest.model_copy(update={key: _filled(line, filled) for key, line in guest}),
    )


def _filled(line: str, words: Mapping[str, str]) -> str:
    for name, text in words.items():
        line = line.replace(name, text)
    return line


def _attachment(part: PartModel, device: str) -> Attachment:
    words = {
        key: _filled(value, {"{name}": device}) for key, value in part.properties.items() if isinstance(value, str)
    }
    return Attachment(
        name=part.name,
        type=part.type,
        on=part.on,
        properties={**part.properties, **words},
        backends={key: _backend_name(part, key) for key in part.needs},
        references=part.references,
    )


def _backends(part: PartModel) -> Iterator[tuple[str, Backend]]:
    for key, model in part.needs.items():
        yield _backend_name(part, key), backend_of(model)


def _faults(part: PartModel) -> Iterator[tuple[str, int]]:
    """Backend to the sector of it that fails."""
    for key, model in part.needs.items():
        if isinstance(model, DiskModel) and model.fails_at is not None:
            yield _backend_name(part, key), model.fails_at


def _backend_name(part: PartModel, key: str) -> str:
    """QEMU has one name space for the ids of devices, and others for backends; a plan has one for all."""
    return key if part.name == SUBJECT else f"{part.name}-{key}"
