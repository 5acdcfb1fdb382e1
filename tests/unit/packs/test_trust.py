# SPDX-License-Identifier: GPL-2.0-or-later
"""A pack that came as a file brings a command line, and gets no farther than its own files."""

from __future__ import annotations

import pytest

from harness.devices.profile import load_profiles
from harness.errors import PackError
from harness.packs.manifest import OptionModel
from harness.packs.trust import refuse_host_access

Props = dict[str, bool | int | str]


@pytest.mark.parametrize(
    ("name", "first", "props"),
    [
        ("monitor", "unix:/tmp/s", {}),
        ("plugin", "evil.so", {}),
        ("netdev", "tap", {"script": "/tmp/evil"}),
        ("netdev", "user", {"guestfwd": "tcp:10.0.2.100:1-cmd:evil"}),
        ("netdev", "user", {"hostfwd": "tcp::22-:22"}),
        ("chardev", "socket", {"path": "{workdir}/s"}),
        ("chardev", "file", {"path": "relative"}),
        ("chardev", "file", {"path": "{workdir}/../../x"}),
        ("chardev", "file", {"path": "{workdir}x/y"}),
        ("chardev", "null", {"logfile": "x"}),
        ("blockdev", "nbd", {"host": "example"}),
        ("blockdev", "file", {"filename": "/etc/shadow"}),
        ("blockdev", "raw", {"file.driver": "nbd"}),
        ("blockdev", "raw", {"file.filename": "disk"}),
        ("drive", None, {"file": "disk"}),
        ("drive", None, {"file": "nbd://example/"}),
        ("object", "filter-dump", {"file": "x"}),
        ("device", "virtio-net-pci", {"romfile": "x"}),
        ("device", "loader", {"file": "/etc/shadow"}),
        ("kernel", "/boot/vmlinuz", {}),
        ("kernel", "vmlinuz", {}),
        ("initrd", "{pack}/../x", {}),
    ],
)
def test_what_leads_to_the_host_is_refused(name: str, first: str | None, props: Props) -> None:
    with pytest.raises(PackError, match=f"-{name}"):
        refuse_host_access([OptionModel(name=name, first=first, props=props)])


@pytest.mark.parametrize(
    ("name", "first", "props"),
    [
        ("kernel", "{pack}/guest/kernel", {}),
        ("append", "root=/dev/sda init=/init", {}),
        ("m", "128", {}),
        ("blockdev", "file", {"filename": "{workdir}/a.img", "node-name": "a"}),
        ("blockdev", "raw", {"file": "a"}),
        ("object", "rng-random", {"filename": "/dev/urandom"}),
        ("netdev", "user", {"id": "net0", "restrict": True}),
    ],
)
def test_what_a_guest_needs_is_taken(name: str, first: str, props: Props) -> None:
    refuse_host_access([OptionModel(name=name, first=first, props=props)])


def test_every_profile_of_ours_can_travel() -> None:
    for profile in load_profiles().values():
        for family in profile.machines:
            options = profile.options(family)
            refuse_host_access(OptionModel(name=o.name, first=o.first, props=dict(o.props)) for o in options)
