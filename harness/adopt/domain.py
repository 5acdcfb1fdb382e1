# SPDX-License-Identifier: GPL-2.0-or-later
"""libvirt's XML of a domain as the options that libvirt would start QEMU with.

Held against libvirt's own translation by tests/integration/test_libvirt.py; docs/libvirt.md lists what differs. Nothing
of the host is opened, and no libvirt is needed.
"""

from __future__ import annotations

from collections.abc import Iterator

from harness.adopt.commandline import put_together
from harness.adopt.configuration import Configuration, SaidOption, Unread
from harness.adopt.libvirt import (
    chardevs,
    controllers,
    disks,
    extras,
    machine,
    memory,
    network,
    others,
    pictures,
)
from harness.adopt.libvirt.completion import complete
from harness.adopt.libvirt.irrelevant import matters
from harness.adopt.libvirt.model import Domain
from harness.adopt.libvirt.tree import Element, parse

#: In libvirt's order: a bus comes before what is on it.
FAMILIES = (
    machine.options,
    memory.options,
    controllers.options,
    memory.modules,
    disks.options,
    network.options,
    chardevs.options,
    pictures.options,
    others.options,
)


def read_domain(text: str, source: str) -> Configuration:
    """The VM that a <domain> describes. What it leaves out is added as libvirt adds it.

    :param text: as ``virsh dumpxml`` prints it, or as a person wrote it
    :param source: what errors call it
    :raises UsageError: no XML, no domain of QEMU's, or something in it that libvirt would not take either
    """
    root = _domain(parse(text, source))
    domain = complete(root)
    options = put_together([*_options(domain), *extras.arguments(root)])
    return Configuration(
        name=root.at("name").words(),
        options=tuple(extras.overridden(root, options)),
        source=source,
        binary=domain.emulator,
        unread=tuple(Unread(path=path, line=line) for path, line in root.unread() if matters(path)),
    )


def _domain(root: Element) -> Element:
    """The domain itself: XML of a snapshot or of libvirt's own state has it within another element."""
    if root.tag in ("domainsnapshot", "domstatus", "domainbackup", "domaincheckpoint") and root.has("domain"):
        return root.at("domain")
    return root


def _options(domain: Domain) -> Iterator[SaidOption]:
    for family in FAMILIES:
        yield from family(domain)
