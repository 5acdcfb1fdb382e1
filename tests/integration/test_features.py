# SPDX-License-Identifier: GPL-2.0-or-later
"""Virtio features that the loading side does not offer: the load is refused, the cause is named, and what is advised
mends it."""

from __future__ import annotations

import dataclasses
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.arch.accel import choose_accel
from harness.colo.primary import ChannelBroken
from harness.devices.backends import Netdev
from harness.devices.recipe import load_recipe
from harness.engines.buffers import Buffers
from harness.engines.incoming import Incoming, State
from harness.guests.build import Guest
from harness.guests.machine import Machine
from harness.guests.plan import GuestPlan, PlacedDevice
from harness.packs.pack import StatePack
from harness.qemu.binary import QemuBinary
from harness.qemu.cmdline import Option
from harness.qemu.scope import ProcessScope
from harness.qualify.explained import LostFeature
from harness.qualify.features import explain_features, guest_features
from harness.qualify.fields import explain_fields
from harness.report.reasons import explained_text, remedy_text
from harness.state.recorder import record
from harness.state.recordings import planned_guests, recording_plan

TIMEOUT_S = 60.0
NET = "0000:00:05.0/virtio-net"
#: Of the guest that has nothing else.
TAP_NET = "0000:00:03.0/virtio-net"
BLK = "0000:00:04.0/virtio-blk"

TAP_RECIPE = """\
name: tap-net
about: virtio-net behind a tap device with virtio-net headers
attach:
  - {{type: virtio-net-pci, backends: {{netdev: net}}}}
backends:
  net: {{kind: netdev, type: tap, interface: {name}}}
drivers: [virtio_pci, virtio_net]
guest:
  bind: load virtio_pci virtio_net && bind_wait /sys/class/net/eth0 10 && ip link set eth0 up
"""


def load(binary: QemuBinary, machine: Machine, pack: StatePack, phase: str) -> str | None:
    """None for a load that passes, else what QEMU printed."""
    with Incoming(binary, machine, timeout_s=TIMEOUT_S, scope=ProcessScope()) as qemu:
        try:
            qemu.load(State(buffers=Buffers(pack), phase=phase))
        except ChannelBroken:
            qemu.vm.ended(5.0)
            return qemu.vm.process.stderr()
    return None


def with_globals(machine: Machine, **values: str) -> Machine:
    """``virtio_net_pci__mrg_rxbuf="off"`` as ``-global virtio-net-pci.mrg_rxbuf=off``."""
    props = {name.replace("__", ".").replace("virtio_", "virtio-", 1): value for name, value in values.items()}
    extra = tuple(Option(name="global", props={key.replace("_pci", "-pci"): value}) for key, value in props.items())
    return dataclasses.replace(machine, extra=machine.extra + extra)


def explained(binary: QemuBinary, machine: Machine, pack: StatePack, phase: str) -> dict[str, LostFeature]:
    log = load(binary, machine, pack, phase)
    assert log is not None, "the load was not refused"
    return {lost.name: lost for lost in explain_features(log, pack, phase, machine, binary)}


def test_net_property(binary: QemuBinary, pc_pack: StatePack) -> None:
    off = with_globals(pc_pack.machine, virtio_net_pci__mrg_rxbuf="off")
    lost = explained(binary, off, pc_pack, "bound")
    assert list(lost) == ["VIRTIO_NET_F_MRG_RXBUF"]
    feature = lost["VIRTIO_NET_F_MRG_RXBUF"]
    assert (feature.section, feature.device, feature.bit) == (NET, "virtio-net-dev", 15)
    assert (feature.lost_by, feature.property) == ("property", "mrg_rxbuf")
    assert "by -global virtio-net-pci.mrg_rxbuf=off" in explained_text(feature)
    assert "-global virtio-net-pci.mrg_rxbuf=on" in remedy_text(feature)
    # as advised
    mended = with_globals(off, virtio_net_pci__mrg_rxbuf="on")
    assert load(binary, mended, pc_pack, "bound") is None


def test_blk_property(binary: QemuBinary, pc_pack: StatePack) -> None:
    off = with_globals(pc_pack.machine, virtio_blk_pci__discard="off")
    lost = explained(binary, off, pc_pack, "bound")
    assert [(f.name, f.lost_by, f.property, f.bit) for f in lost.values()] == [
        ("VIRTIO_BLK_F_DISCARD", "property", "discard", 13)
    ]
    mended = with_globals(off, virtio_blk_pci__discard="on")
    assert load(binary, mended, pc_pack, "bound") is None


def test_blk_write_cache_is_the_backend(binary: QemuBinary, pc_pack: StatePack) -> None:
    plan = pc_pack.machine.plan
    off = dataclasses.replace(pc_pack.machine, plan=plan.model_copy(update={"devices": _without_write_cache(plan)}))
    lost = explained(binary, off, pc_pack, "bound")
    assert {name: f.lost_by for name, f in lost.items()} == {
        "VIRTIO_BLK_F_FLUSH": "backend",
        "VIRTIO_BLK_F_CONFIG_WCE": "property",
    }
    assert (lost["VIRTIO_BLK_F_FLUSH"].backend_id, lost["VIRTIO_BLK_F_FLUSH"].backend_kind) == (
        "virtio-blk-disk",
        "raw",
    )
    assert "write-cache=off on its -device" in explained_text(lost["VIRTIO_BLK_F_FLUSH"])
    assert "config-wce=off on its -device" in explained_text(lost["VIRTIO_BLK_F_CONFIG_WCE"])


def _without_write_cache(plan: GuestPlan) -> tuple[PlacedDevice, ...]:
    off = {"properties": {"write-cache": "off", "config-wce": "off"}}
    return tuple(d.model_copy(update=off) if d.owner == "virtio-blk" else d for d in plan.devices)


def test_the_failed_field_has_its_value_on_both_sides(binary: QemuBinary, pc_pack: StatePack) -> None:
    other = with_globals(pc_pack.machine, virtio_net_pci__vectors="6")
    log = load(binary, other, pc_pack, "bound")
    assert log is not None
    evidence = explain_fields(log, pc_pack, "bound", other, binary)[0]
    assert (evidence.section, evidence.recorded, evidence.loading) == (NET, "3", "5")
    assert (evidence.field or "").startswith("PCI config byte 0x")


@pytest.fixture
def tap() -> Iterator[str]:
    """A tap device, which takes root."""
    name = f"pl{os.getpid()}"[:15]
    tool = shutil.which("ip")
    if tool is None:
        pytest.skip("no program ip to make a tap device with")
    made = subprocess.run(
        [tool, "tuntap", "add", "dev", name, "mode", "tap"], capture_output=True, text=True, timeout=20, check=False
    )
    if made.returncode:
        pytest.skip(f"cannot make a tap device: {made.stderr.strip()}")
    yield name
    subprocess.run([tool, "tuntap", "del", "dev", name, "mode", "tap"], timeout=20, check=False)


@pytest.fixture
def tap_pack(
    tap: str, binary: QemuBinary, built_guest: Guest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[StatePack]:
    """In a cache of its own: a tap device is for packs that were recorded here."""
    recipe = tmp_path / "tap-net.yaml"
    recipe.write_text(TAP_RECIPE.format(name=tap))
    machine = binary.machine("pc")
    assert machine is not None
    plan = recording_plan(
        binary=binary,
        accel=choose_accel(binary, "auto").name,
        guest=built_guest,
        planned=planned_guests(machine.name, "pc", [load_recipe(recipe)]).guests[0],
        phases=("kernel", "bound"),
    )
    monkeypatch.setenv("POSTLOAD_CACHE", str(tmp_path / "cache"))
    with StatePack(record(plan, tmp_path / "cache" / "packs" / "tap")) as pack:
        yield pack


def test_net_backend_without_headers(binary: QemuBinary, tap_pack: StatePack) -> None:
    machine = tap_pack.machine
    assert load(binary, machine, tap_pack, "bound") is None
    (guest,) = guest_features(tap_pack, "bound")
    assert guest.features & 1, "the guest did not negotiate VIRTIO_NET_F_CSUM with a tap device"
    plan = machine.plan.model_copy(update={"backends": {"tap-net-net": Netdev()}})
    user = dataclasses.replace(machine, plan=plan)
    lost = explained(binary, user, tap_pack, "bound")
    assert {"VIRTIO_NET_F_CSUM", "VIRTIO_NET_F_HOST_TSO4", "VIRTIO_NET_F_GUEST_TSO6"} <= set(lost)
    told = {(f.section, f.backend, f.backend_id, f.backend_kind) for f in lost.values()}
    assert told == {(TAP_NET, "vnet-header", "tap-net-net", "user")}
    assert "vnet_hdr=on" in remedy_text(lost["VIRTIO_NET_F_CSUM"])
