# SPDX-License-Identifier: GPL-2.0-or-later
"""``-nic`` and ``-net`` as network backends and cards (``net/net.c: net_init_clients``).

A machine makes these cards itself, before any ``-device``, so that they come before those here.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from harness.adopt.configuration import SaidOption, Value

#: What a machine takes for a type of device, and is none.
_MODELS = {"virtio": "virtio-net-pci"}
#: Devices that QEMU makes before and behind those of ``-device``.
EARLY, LATE = "early-device", "late-device"
#: Keys of ``-net nic`` that its card has under the same name.
_OF_CARD = ("addr", "vectors")
_BACKEND_KEYS = ("vlan", "name")


def with_nics(options: Sequence[SaidOption]) -> list[SaidOption]:
    """Options in which ``-nic`` and ``-net`` are netdevs and devices.

    ``nic`` with type ``none`` stays: there is no card that nobody asked for.
    """
    model = _default_model(options)
    said = [option for option in options if option.name in ("nic", "net")]
    taken = {str(option.values.get("id", "")) for option in options}
    cards = [*_of_nic(said, model, taken), *_of_net(said, model, taken)]
    if model is None:
        cards = [card for card in cards if card.name != "device"]
    if said:
        cards.insert(0, SaidOption(name="nic", values={"type": "none"}, line=said[0].line))
    early, late = ([replace(each, name="device") for each in options if each.name == name] for name in (EARLY, LATE))
    rest = [option for option in options if option.name not in ("nic", "net", EARLY, LATE)]
    first = next((place for place, option in enumerate(rest) if option.name == "device"), len(rest))
    return [*rest[:first], *cards, *early, *rest[first:], *late]


def _default_model(options: Sequence[SaidOption]) -> str | None:
    """The card that a machine makes when nobody names one, None where it makes none at all."""
    machines = [
        str(option.values["type"]) for option in options if option.name == "machine" and "type" in option.values
    ]
    machine = machines[-1] if machines else ""
    if match := re.fullmatch(r"(?:pc-)?q35(?:-(\d{1,4})\.(\d{1,4}).*)?.*", machine):
        return "e1000" if match.group(1) and (int(match.group(1)), int(match.group(2))) < (2, 12) else "e1000e"
    if machine == "microvm":
        return None
    return "virtio-net-pci" if machine.startswith("virt") else "ne2k_isa" if machine == "isapc" else "e1000"


def _of_nic(said: Sequence[SaidOption], default: str | None, taken: set[str]) -> Iterator[SaidOption]:
    for option in said:
        if option.name == "nic" and option.values.get("type") != "none":
            values = {"type": "user"} | dict(option.values)
            card: dict[str, Value] = {"driver": _driver(values.pop("model", None), default)}
            mac = values.pop("mac", values.pop("macaddr", None))
            name = values.setdefault("id", _free("nic", taken))
            yield SaidOption(name="netdev", values=values, line=option.line)
            more = {} if mac is None else {"mac": mac}
            yield SaidOption(name="device", values=card | {"netdev": name} | more, line=option.line)


def _of_net(said: Sequence[SaidOption], default: str | None, taken: set[str]) -> Iterator[SaidOption]:
    """Cards and backends of one hub are paired in their order; a card without a partner has no backend."""
    old = [option for option in said if option.name == "net" and option.values.get("type") != "none"]
    free: dict[str, list[str]] = {}
    for option in old:
        if option.values.get("type") != "nic":
            name = str(option.values.get("id") or option.values.get("name") or _free("net", taken))
            kept = {key: value for key, value in option.values.items() if key not in _BACKEND_KEYS}
            free.setdefault(_hub(option), []).append(name)
            yield SaidOption(name="netdev", values=kept | {"id": name}, line=option.line)
    for option in old:
        if option.values.get("type") == "nic":
            yield _card(option, default, free.get(_hub(option), []))


def _hub(option: SaidOption) -> str:
    return str(option.values.get("vlan", "0"))


def _card(option: SaidOption, default: str | None, backends: list[str]) -> SaidOption:
    said = option.values
    values: dict[str, Value] = {"driver": _driver(said.get("model"), default)}
    values |= {key: said[key] for key in _OF_CARD if key in said}
    if "macaddr" in said:
        values["mac"] = said["macaddr"]
    if "netdev" in said:
        values["netdev"] = said["netdev"]
    elif backends:
        values["netdev"] = backends.pop(0)
    return SaidOption(name="device", values=values | _named(said), line=option.line)


def _named(said: Mapping[str, Value]) -> dict[str, Value]:
    name = said.get("id") or said.get("name")
    return {"id": name} if name else {}


def _driver(model: Value, default: str | None) -> str:
    return default or "" if model is None else _MODELS.get(str(model), str(model))


def _free(stem: str, taken: set[str]) -> str:
    number = 0
    while f"{stem}{number}" in taken:
        number += 1
    taken.add(f"{stem}{number}")
    return f"{stem}{number}"
