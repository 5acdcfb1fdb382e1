# SPDX-License-Identifier: GPL-2.0-or-later
"""Why a virtio device was refused: which features the guest uses that the loading side does not offer, and who
took them away.

``virtio_load`` (``hw/virtio/virtio.c``) hands the recorded features to ``virtio_set_features_nocheck`` and prints::

    Features 0x130af8024 unsupported. Allowed features: 0x179bf0064                         5.2, 7.2, 10.0
    Features 0x0000000000000000<16 digits> unsupported. Allowed features: 0x<32 digits>     11.1

In 11.1 the first number has lost the refused bits already, so the guest's features are taken from the recorded
section and not from the text. The second one is what the device offers, properties and backend taken together.
A QEMU of the same command line, stopped before its first instruction, then tells the two apart: a property that
is off took the feature away, one that is on did not. What follows from that is data, see
:class:`harness.qualify.explained.LostFeature`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from harness.errors import ConfigError, HarnessError, StreamError
from harness.guests.machine import Machine
from harness.packs.pack import StatePack
from harness.qemu.binary import QemuBinary
from harness.qualify.explained import LostBy, LostFeature
from harness.qualify.qom import QomAnswers, VirtioDevice, ask_virtio, backend_kind, origin
from harness.state.transforms import label_of
from harness.stream.fields import Field, find
from harness.stream.virtio import decode_virtio, feature_names
from harness.yamlfile import load_model

DATA = Path(__file__).with_name("virtio-features.yaml")

_REFUSED = re.compile(r"Features 0x(?P<seen>[0-9a-f]+) unsupported\. Allowed features: 0x(?P<allowed>[0-9a-f]+)")
_DEVICE = re.compile(r"error while loading state for instance 0x[0-9a-f]+ of device '(?P<section>[^']+)'")
#: What ``virtio_net_vnet_post_load`` and ``virtio_net_ufo_post_load`` (``hw/net/virtio-net.c``) print.
_HEADERS = re.compile(r"virtio-net: saved image requires (?P<what>vnet_hdr=on|TUN_F_UFO support)")
_VIRTIO = "virtio-"
_VNET_BACKEND = "vnet-header"
_HEADER_NAMES = {"vnet_hdr=on": "vnet_hdr", "TUN_F_UFO support": "VIRTIO_NET_F_HOST_UFO"}
#: Subsections of ``vmstate_virtio`` with the whole set, its 64-bit words from the lowest.
_FEATURE_FIELDS = (
    ("virtio/64bit_features/guest_features", 0),
    ("virtio/128bit_features/guest_features_ex[1]", 64),
)
_OFF: tuple[str, ...] = ("off", "false")


@dataclass(frozen=True, slots=True, kw_only=True)
class FeatureRefusal:
    """What a log says about features.

    :param section: idstr of the section that failed, or None when the log does not tell
    :param seen: the features as printed
    :param allowed: the features on offer
    :param headers: what virtio-net wants of its backend, instead of both
    """

    section: str | None
    seen: int = 0
    allowed: int = 0
    headers: str = ""


class _RuleModel(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class BackendRule(_RuleModel):
    """An entry of ``backends`` in the data file.

    :param option: what names the backend
    :param switch: a property of the device that may be what switched the backend's own feature off
    """

    option: Literal["netdev", "drive"]
    switch: str | None = None


class FeatureRule(_RuleModel):
    """An entry of ``features`` in the data file.

    :param set: what to give the property for the feature to be there, None for what it is on the old host
    """

    property: str | None = None
    off_when: tuple[str, ...] = _OFF
    set: str | None = "on"
    needs: tuple[str, ...] = ()
    backend: str | None = None

    def asked(self) -> tuple[str, ...]:
        """Properties to ask for."""
        return (*([self.property] if self.property else []), *self.needs)


class Rules(_RuleModel):
    """``virtio-features.yaml``."""

    backends: dict[str, BackendRule]
    features: dict[str, FeatureRule]


@cache
def load_rules(path: Path = DATA) -> Rules:
    """The data file.

    :raises ConfigError: it is wrong, or a feature names a backend that is not described
    """
    rules = load_model(path, Rules)
    for name, rule in rules.features.items():
        if rule.backend is not None and rule.backend not in rules.backends:
            raise ConfigError(path, 0, 0, f"features.{name}.backend: {rule.backend!r} is not among the backends")
    return rules


def explain_features(log: str, pack: StatePack, phase: str, machine: Machine, binary: QemuBinary) -> list[LostFeature]:
    """Explain a load that was refused for its features; empty when it was not.

    :param log: what the loading QEMU printed
    :param machine: what the loading QEMU was, with the user's own options
    :raises QemuError: a QEMU of this machine does not even start
    """
    refusals = parse_refusals(log)
    if not refusals:
        return []
    rules = load_rules()
    guests = guest_features(pack, phase)
    names = {p for rule in rules.features.values() for p in rule.asked()}
    names |= {rule.switch for rule in rules.backends.values() if rule.switch}
    answers = ask_virtio(binary, machine, names)
    return [lost for refusal in refusals for lost in _explain(refusal, guests, answers, rules)]


def parse_refusals(log: str) -> list[FeatureRefusal]:
    """What a log says about features, one entry for each device."""
    found: list[FeatureRefusal] = []
    for line in log.splitlines():
        if match := _REFUSED.search(line):
            found.append(FeatureRefusal(section=None, seen=int(match["seen"], 16), allowed=int(match["allowed"], 16)))
        elif match := _HEADERS.search(line):
            found.append(FeatureRefusal(section=None, headers=match["what"]))
        elif (match := _DEVICE.search(line)) and found and found[-1].section is None:
            last = found.pop()
            found.append(
                FeatureRefusal(section=match["section"], seen=last.seen, allowed=last.allowed, headers=last.headers)
            )
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class GuestFeatures:
    """What the guest of a recording had negotiated with one device.

    :param kind: vmsd name of the section, such as ``virtio-net``
    """

    section: str
    idstr: str
    kind: str
    features: int


def guest_features(pack: StatePack, phase: str) -> list[GuestFeatures]:
    """The negotiated features of every virtio device of a recording.

    :raises HarnessError: a section is not laid out as virtio
    """
    recording = pack.recordings[phase]
    found = []
    for section in recording.sections:
        desc = section.desc
        if desc is None or not desc.vmsd_name.startswith(_VIRTIO):
            continue
        try:
            fields = decode_virtio(section.payload, desc.vmsd_name)
        except StreamError as error:
            raise HarnessError(f"section {label_of(section)} is not laid out as virtio: {error}") from error
        found.append(
            GuestFeatures(
                section=label_of(section),
                idstr=section.idstr,
                kind=desc.vmsd_name,
                features=features_of(fields),
            )
        )
    return found


def features_of(fields: list[Field]) -> int:
    """All feature bits of a decoded virtio section: the low half stands by itself, more in subsections."""
    bits = _number(fields, "guest_features_lo")
    for path, shift in _FEATURE_FIELDS:
        bits |= _number(fields, path) << shift
    return bits


def _number(fields: list[Field], path: str) -> int:
    try:
        value = find(fields, path).value
    except KeyError:
        return 0
    return value if isinstance(value, int) else 0


def _explain(
    refusal: FeatureRefusal, guests: Sequence[GuestFeatures], answers: QomAnswers, rules: Rules
) -> Iterator[LostFeature]:
    for guest in _meant(refusal, guests):
        device = answers.devices.get(guest.idstr.rpartition("/")[0])
        if refusal.headers:
            yield from _without_headers(refusal, guest, device, answers, rules)
            continue
        for bit in _bits(guest.features & ~refusal.allowed):
            yield explain_bit(guest, bit, device, answers, rules)


def _meant(refusal: FeatureRefusal, guests: Sequence[GuestFeatures]) -> list[GuestFeatures]:
    """The device of a refusal: by its name, else the one whose features were printed (or are left over)."""
    if refusal.section is not None:
        return [guest for guest in guests if guest.idstr == refusal.section]
    if refusal.headers:
        return [guest for guest in guests if guest.kind == "virtio-net"][:1]
    for guest in guests:
        lost = guest.features & ~refusal.allowed
        if lost and refusal.seen in (guest.features, guest.features & refusal.allowed):
            return [guest]
    return []


def _bits(number: int) -> list[int]:
    return [bit for bit in range(number.bit_length()) if number >> bit & 1]


def _without_headers(
    refusal: FeatureRefusal, guest: GuestFeatures, device: VirtioDevice | None, answers: QomAnswers, rules: Rules
) -> Iterator[LostFeature]:
    """The features that need headers which the backend does not have, else the headers themselves."""
    used = [
        bit
        for bit in _bits(guest.features)
        if (rule := rules.features.get(_name(guest, bit))) is not None and rule.backend == _VNET_BACKEND
    ]
    for bit in used:
        yield _by_backend(guest, bit, _name(guest, bit), device, answers, rules, _VNET_BACKEND)
    if not used:
        name = _HEADER_NAMES[refusal.headers]
        yield _by_backend(guest, None, name, device, answers, rules, _VNET_BACKEND)


def _name(guest: GuestFeatures, bit: int) -> str:
    return feature_names(guest.kind, 1 << bit)[0]


def explain_bit(
    guest: GuestFeatures, bit: int, device: VirtioDevice | None, answers: QomAnswers, rules: Rules
) -> LostFeature:
    """Who took one feature away.

    :param device: the device on the loading side, None when it was not found there
    """
    name = _name(guest, bit)
    rule = rules.features.get(name)
    if rule is None or device is None:
        return _lost(guest, bit, name, device, lost_by=LostBy.UNKNOWN if device else LostBy.NO_DEVICE)
    for prop in rule.asked():
        own = prop == rule.property
        if prop not in device.values:
            return _lost(guest, bit, name, device, lost_by=LostBy.BUILD, property=prop)
        if _is_off(device.values[prop], rule.off_when if own else _OFF):
            return _by_property(guest, bit, name, device, answers, prop, rule.set if own else "on")
    if rule.backend is not None:
        return _by_backend(guest, bit, name, device, answers, rules, rule.backend)
    return _lost(guest, bit, name, device, lost_by=LostBy.OTHER, property=rule.property or "")


def _is_off(value: object, off_when: Iterable[str]) -> bool:
    return str(value).lower() in off_when


def _by_property(
    guest: GuestFeatures,
    bit: int,
    name: str,
    device: VirtioDevice,
    answers: QomAnswers,
    prop: str,
    wanted: str | None,
) -> LostFeature:
    value = str(device.values[prop]).lower()
    return _lost(
        guest,
        bit,
        name,
        device,
        lost_by=LostBy.PROPERTY,
        property=prop,
        value={"true": "on", "false": "off"}.get(value, str(device.values[prop])),
        wanted=wanted or "",
        origin=origin(answers, device, prop),
    )


def _by_backend(
    guest: GuestFeatures,
    bit: int | None,
    name: str,
    device: VirtioDevice | None,
    answers: QomAnswers,
    rules: Rules,
    backend: str,
) -> LostFeature:
    rule = rules.backends[backend]
    feature = rules.features.get(name)
    switched = device is not None and rule.switch is not None and _is_off(device.values.get(rule.switch), _OFF)
    return _lost(
        guest,
        bit,
        name,
        device,
        lost_by=LostBy.BACKEND,
        property=(feature.property if feature else None) or "",
        origin=origin(answers, device, rule.switch) if switched and device and rule.switch else None,
        backend=backend,
        backend_id=device.drive if device else "",
        backend_kind=backend_kind(answers, device) if device else "",
    )


def _lost(guest: GuestFeatures, bit: int | None, name: str, device: VirtioDevice | None, **more: Any) -> LostFeature:
    return LostFeature(
        section=guest.section,
        device=device.ident if device else "",
        driver=device.driver if device else f"{guest.kind}-pci",
        bit=bit,
        name=name,
        **more,
    )
