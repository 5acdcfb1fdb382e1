# SPDX-License-Identifier: GPL-2.0-or-later
"""``-nic`` and ``-net`` as network backends and cards (``net/net.c: net_init_clients``).

A machine makes these cards itself, before any ``-device``, so that they come before those here.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence

from harness.adopt.configuration import SaidOption, Value

#: What a machine takes for ``virtio`` and ``usb``, which are no types of devices.
_MODELS = {"virtio": "virtio-net-pci", "usb": "usb-net", "e1000-82540em": "e1000"}
#: Keys of ``-net nic`` that its card has under the same name.
_OF_CARD = ("addr", "vectors")
_BACKEND_KEYS = ("vlan", "name")


def with_nics(options: Sequence[SaidOption], binary: str) -> list[SaidOption]:
    """Options in which ``-nic`` and ``-net`` are netdevs and devices.

    ``nic`` with type ``none`` stays: there is no card that nobody asked for.
    """
    model = _default_model(options, binary)
    said = [option for option in options if option.name in ("nic", "net")]
    taken = {str(option.values.get("id", "")) for option in options}
    cards = [*_of_nic(said, model, taken), *_of_net(said, model, taken)]
    if said:
        cards.insert(0, SaidOption(name="nic", values={"type": "none"}, line=said[0].line))
    rest = [option for option in options if option.name not in ("nic", "net")]
    early = [_device(option) for option in rest if option.name == "early-device"]
    rest = [option for option in rest if option.name != "early-device"]
    first = next((place for place, option in enumerate(rest) if option.name == "device"), len(rest))
    return [*rest[:first], *cards, *early, *rest[first:]]


def _device(option: SaidOption) -> SaidOption:
    return SaidOption(name="device", values=option.values, line=option.line)


def _default_model(options: Sequence[SaidOption], binary: str) -> str:
    """The card that a machine makes when nobody names one."""
    machines = [
        str(option.values["type"]) for option in options if option.name == "machine" and "type" in option.values
    ]
    machine = machines[-1] if machines else ""
    if match := re.fullmatch(r"(?:pc-)?q35(?:-(\d{1,4})\.(\d{1,4}).*)?.*", machine):
        return "e1000" if match.group(1) and (int(match.group(1)), int(match.group(2))) < (2, 12) else "e1000e"
    if machine == "microvm" or machine.startswith("virt"):
        return "virtio-net-device" if machine == "microvm" else "virtio-net-pci"
    return "ne2k_isa" if machine == "isapc" else "e1000"


def _of_nic(said: Sequence[SaidOption], default: str, taken: set[str]) -> Iterator[SaidOption]:
    for option in said:
        if option.name == "nic" and option.values.get("type") != "none":
            values = {"type": "user"} | dict(option.values)
            card: dict[str, Value] = {"driver": _driver(values.pop("model", None), default)}
            mac = values.pop("mac", values.pop("macaddr", None))
            name = values.setdefault("id", _free("nic", taken))
            yield SaidOption(name="netdev", values=values, line=option.line)
            more = {} if mac is None else {"mac": mac}
            yield SaidOption(name="device", values=card | {"netdev": name} | more, line=option.line)


def _of_net(said: Sequence[SaidOption], default: str, taken: set[str]) -> Iterator[SaidOption]:
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


def _card(option: SaidOption, default: str, backends: list[str]) -> SaidOption:
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


def _driver(model: Value, default: str) -> str:
    return default if model is None else _MODELS.get(str(model), str(model))


def _free(stem: str, taken: set[str]) -> str:
    number = 0
    while f"{stem}{number}" in taken:
        number += 1
    taken.add(f"{stem}{number}")
    return f"{stem}{number}"
