# SPDX-License-Identifier: GPL-2.0-or-later
"""<qemu:commandline> and <qemu:override>: what somebody told QEMU past libvirt."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from dataclasses import replace

from harness.adopt.commandline import read_command_line
from harness.adopt.configuration import SaidOption, Value
from harness.adopt.libvirt.tree import Element


def arguments(root: Element) -> Iterator[SaidOption]:
    """The options of <qemu:commandline>, read like a command line of their own. Its environment is the host's."""
    for commandline in root.all("qemu:commandline"):
        commandline.all("qemu:env")
        words = [argument.get("value") for argument in commandline.all("qemu:arg")]
        text = shlex.join(["qemu-system-x86_64", *words])
        for option in read_command_line(text, root.source).options if words else ():
            yield replace(option, line=commandline.line)


def overridden(root: Element, options: Sequence[SaidOption]) -> Iterator[SaidOption]:
    """All options, with the properties that <qemu:override> gives to devices by their id."""
    changes = {}
    for device in root.at("qemu:override").all("qemu:device"):
        properties = device.at("qemu:frontend").all("qemu:property")
        changes[device.get("alias")] = {one.get("name"): _value(one) for one in properties}
    for option in options:
        id_ = option.values.get("id")
        change = changes.get(id_, {}) if option.name == "device" and isinstance(id_, str) else {}
        values = {**option.values, **change}
        yield replace(option, values={key: value for key, value in values.items() if value is not None})


def _value(one: Element) -> Value:
    """None takes the property away."""
    type_, text = one.get("type"), one.get("value")
    if type_ == "remove":
        return None
    if type_ in ("signed", "unsigned"):
        return one.number("value")
    return one.yes("value") if type_ == "bool" and text in ("on", "yes", "off", "no") else _boolean(type_, text)


def _boolean(type_: str, text: str) -> Value:
    return text == "true" if type_ == "bool" else text
