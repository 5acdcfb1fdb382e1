# SPDX-License-Identifier: GPL-2.0-or-later
"""A pack that came as a file brings a plan, and gets no farther than its own files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from harness.devices.backends import Netdev
from harness.devices.recipe import load_recipes
from harness.errors import PackError
from harness.guests.plan import PlacedDevice
from harness.packs.manifest import Manifest, read_manifest
from harness.packs.trust import refuse_host_access
from harness.state.recordings import planned_guests


@pytest.fixture
def manifest(make_pack: Callable[..., Path]) -> Manifest:
    return read_manifest(make_pack("pack", "kernel"))


def with_device(manifest: Manifest, kind: str, **properties: bool | int | str) -> Manifest:
    device = PlacedDevice(id="x", type=kind, properties=properties)
    plan = manifest.plan.model_copy(update={"devices": (*manifest.plan.devices, device)})
    return manifest.model_copy(update={"plan": plan})


@pytest.mark.parametrize(
    ("kind", "key", "value"),
    [
        ("virtio-net-pci", "romfile", "pxe.rom"),
        ("virtio-net-pci", "romfile", ""),
        ("ipmi-bmc-sim", "sdrfile", "x"),
        ("ipmi-bmc-sim", "frudatafile", "x"),
        ("nvme", "serial", "../../etc/shadow"),
        ("nvme", "serial", "a,b"),
        ("usb-redir", "filter", "x"),
    ],
)
def test_a_string_that_could_open_a_file_is_refused(manifest: Manifest, kind: str, key: str, value: str) -> None:
    with pytest.raises(PackError, match=f"device x: {key}="):
        refuse_host_access(with_device(manifest, kind, **{key: value}))


@pytest.mark.parametrize(
    "kind",
    [
        "vfio-pci",
        "vhost-scsi-pci",
        "usb-host",
        "usb-mtp",
        "u2f-passthru",
        "loader",
        "guest-loader",
        "xen-disk",
        "tpm-tis",
    ],
)
def test_a_type_that_stands_on_the_host_is_refused(manifest: Manifest, kind: str) -> None:
    with pytest.raises(PackError, match=f"{kind} stands on the host's own"):
        refuse_host_access(with_device(manifest, kind))


@pytest.mark.parametrize("name", ["dumpdtb", "firmware", "memory-backend"])
def test_a_machine_is_no_more_than_a_machine(manifest: Manifest, name: str) -> None:
    plan = manifest.plan.model_copy(update={"machine_properties": {name: True}})
    with pytest.raises(PackError, match=f"machine: property '{name}'"):
        refuse_host_access(manifest.model_copy(update={"plan": plan}))


def test_an_accelerator_is_one_of_two(manifest: Manifest) -> None:
    with pytest.raises(PackError, match="accel: 'xen'"):
        refuse_host_access(manifest.model_copy(update={"accel": "xen"}))


def test_a_tap_device_stays_with_its_host(manifest: Manifest) -> None:
    plan = manifest.plan.model_copy(update={"backends": {"n": Netdev(type="tap", interface="tap0")}})
    with pytest.raises(PackError, match="backend n: a tap device belongs to the host"):
        refuse_host_access(manifest.model_copy(update={"plan": plan}))


def test_what_a_guest_needs_is_taken(manifest: Manifest) -> None:
    refuse_host_access(manifest)
    refuse_host_access(with_device(manifest, "nvme", serial="dead-beef 1", num_queues=4, msix="auto", cmb=True))


@pytest.mark.parametrize("family", ["pc", "q35", "virt"])
def test_every_device_of_ours_can_travel(manifest: Manifest, family: str) -> None:
    devices = list(load_recipes().devices.values())
    for guest in planned_guests(f"{family}-1", family, devices).guests:
        refuse_host_access(manifest.model_copy(update={"plan": guest.plan}))
        for device in guest.devices:
            refuse_host_access(manifest.model_copy(update={"plan": guest.without(frozenset({device.name})).plan}))
