# SPDX-License-Identifier: GPL-2.0-or-later
"""States that a QEMU saved in all of its ways, of a guest that this program did not build: adopted, and loaded."""

from __future__ import annotations

import contextlib
import gzip
import json
import re
import struct
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from harness.adopt.adopted import AdoptedState, write_adopted
from harness.adopt.redact import redact_pack
from harness.adopt.rows import settled_guest
from harness.adopt.saved import open_saved
from harness.arch.accel import choose_accel
from harness.devices.backends import Disk, Netdev
from harness.devices.device import Device
from harness.devices.recipe import load_recipes
from harness.engines.buffers import Buffers, Selection
from harness.engines.colo import Session
from harness.engines.evidence import Evidence
from harness.engines.probe import ColoAbility
from harness.engines.schedule import Schedule, plan_loads
from harness.engines.secondary import Secondary
from harness.guests.images import empty_qcow2
from harness.guests.origin import VmOrigin
from harness.guests.plan import GuestPlan, PlacedDevice
from harness.guests.planner import PlannedGuest
from harness.names import ADOPTED
from harness.packs.pack import StatePack, incoming_body
from harness.qemu.binary import QemuBinary
from harness.qemu.cmdline import CommandLine, Option
from harness.qemu.scope import ProcessScope
from harness.qemu.vm import Vm
from harness.state.transforms import GuestMode, encode, sections_for

CPUS = 2
MEMORY_MIB = 32
DISK_BYTES = 8 << 20
LOADS = 10
TIMEOUT_S = 60.0
DOMAIN = """\
<domain type='qemu'>
  <name>web01</name>
  <memory unit='MiB'>32</memory>
  <vcpu>2</vcpu>
  <os><type arch='x86_64' machine='{machine}'>hvm</type></os>
  <features><acpi/></features>
  <devices>
    <controller type='usb' model='none'/>
    <interface type='network'>
      <source network='default'/><model type='virtio'/>
      <address type='pci' domain='0' bus='0' slot='4' function='0'/>
    </interface>
    <disk type='file' device='disk'>
      <driver name='qemu' type='qcow2'/><source file='/etc/shadow'/><target dev='vda' bus='virtio'/>
      <address type='pci' domain='0' bus='0' slot='5' function='0'/>
    </disk>
    <serial type='pty'/>
    <memballoon model='none'/>
  </devices>
</domain>
"""
MAPPED = "mapped-ram"
OLD = "pc-i440fx-2.2"


def waited(what: Callable[[], bool]) -> None:
    deadline = time.monotonic() + TIMEOUT_S
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.fixture(scope="module")
def guest(binary: QemuBinary) -> PlannedGuest:
    """What a plan of the VM below is."""
    machine = binary.machine("pc")
    assert machine is not None
    recipes = load_recipes().devices
    devices = (
        PlacedDevice(id="card", type="virtio-net-pci", owner="virtio-net", slot="04.0", backends={"netdev": "line"}),
        PlacedDevice(id="drive", type="virtio-blk-pci", owner="virtio-blk", slot="05.0", backends={"drive": "disk"}),
    )
    plan = GuestPlan(
        machine=machine.name,
        family="pc",
        cpus=CPUS,
        memory_mib=MEMORY_MIB,
        devices=devices,
        backends={"line": Netdev(), "disk": Disk(size_bytes=DISK_BYTES)},
    )
    rows = [Device(name=name, about=name) for name in ("virtio-net", "virtio-blk")]
    return PlannedGuest(devices=(*rows, recipes["platform"]), plan=plan)


@pytest.fixture(scope="module")
def accel(binary: QemuBinary) -> str:
    """What the host has."""
    return choose_accel(binary, "auto").name


@pytest.fixture(scope="module")
def states(
    binary: QemuBinary, accel: str, guest: PlannedGuest, tmp_path_factory: pytest.TempPathFactory
) -> Mapping[str, Path]:
    """A VM of firmware alone, which looks for something to boot on a virtio disk and a network card; saved by QEMU."""
    folder = tmp_path_factory.mktemp("saved")
    files = {name: folder / name for name in ("stream", "save-image", "snapshot", "devices", MAPPED)}
    files["snapshot"].write_bytes(empty_qcow2(DISK_BYTES))
    with _machine(binary, accel, guest.plan.machine, files["snapshot"]) as vm:
        vm.qmp("migrate-set-parameters", max_bandwidth=1 << 40)
        vm.qmp("human-monitor-command", command_line="savevm before")
        _migrate(vm, f"exec:cat > {files['stream']}")
        known = {each["capability"] for each in vm.qmp("query-migrate-capabilities")}
        if MAPPED in known:
            vm.qmp("migrate-set-capabilities", capabilities=[{"capability": MAPPED, "state": True}])
            _migrate(vm, f"file:{files[MAPPED]}")
        vm.qmp("xen-save-devices-state", filename=str(files["devices"]), live=False)
    xml = DOMAIN.format(machine=guest.plan.machine).encode()
    head = struct.pack("<16s5I56x", b"LibvirtQemudSave", 2, len(xml) + 100, 1, 1, 0)
    image = head + xml + bytes(100) + gzip.compress(files["stream"].read_bytes(), 1)
    files["save-image"].write_bytes(image)
    return files


@contextlib.contextmanager
def _machine(binary: QemuBinary, accel: str, machine: str, image: Path) -> Iterator[Vm]:
    """The VM, stopped when it has read of its disk."""
    options = [
        *(Option(name=name) for name in ("nodefaults", "no-user-config", "S")),
        Option(name="machine", first=machine),
        Option(name="accel", first=accel),
        Option(name="display", first="none"),
        Option(name="m", first=str(MEMORY_MIB)),
        Option(name="smp", first=str(CPUS)),
        Option(name="netdev", first="user", props={"id": "n"}),
        Option(name="device", first="virtio-net-pci", props={"netdev": "n", "addr": "4"}),
        Option(name="drive", props={"if": "none", "id": "d", "format": "qcow2", "file": str(image)}),
        Option(name="device", first="virtio-blk-pci", props={"drive": "d", "addr": "5"}),
    ]
    with Vm(CommandLine(binary=binary.path, options=tuple(options))) as vm:
        vm.qmp("cont")
        waited(lambda: vm.qmp("query-blockstats")[0]["stats"]["rd_operations"] > 0)
        vm.qmp("stop")
        yield vm


def _migrate(vm: Vm, uri: str) -> None:
    vm.qmp("migrate", uri=uri)
    waited(lambda: vm.qmp("query-migrate").get("status") in ("completed", "failed"))
    assert vm.qmp("query-migrate")["status"] == "completed"
    # the images are a running machine's again
    vm.qmp("cont")
    vm.qmp("stop")


@pytest.fixture
def adopt(
    binary: QemuBinary, accel: str, guest: PlannedGuest, states: Mapping[str, Path], tmp_path: Path
) -> Iterator[Callable[[str], tuple[StatePack, AdoptedState]]]:
    """The pack of a state, and what was left out of it."""
    opened: list[StatePack] = []

    def pack(name: str) -> tuple[StatePack, AdoptedState]:
        if not states[name].exists():
            pytest.skip(f"QEMU {binary.version} has no {name}")
        settled = settled_guest(guest, VmOrigin(name="web01"), binary, accel)
        with open_saved(states[name], tmp_path) as state:
            adopted = write_adopted(state, settled, binary, tmp_path / "pack", accel=accel)
            del state
        opened.append(StatePack(adopted.path))
        return opened[-1], adopted

    yield pack
    for each in opened:
        each.close()


Adopt = Callable[[str], tuple[StatePack, AdoptedState]]


@pytest.mark.parametrize("name", ["stream", "snapshot", MAPPED])
def test_a_saved_state_is_loaded_again_and_again(
    adopt: Adopt, binary: QemuBinary, ability: ColoAbility, name: str
) -> None:
    pack, adopted = adopt(name)
    assert pack.phases == [ADOPTED]
    assert adopted.left_out == ()
    assert adopted.blocks_left_out == ()
    assert not adopted.without_ram
    assert pack.sections_of("virtio-blk") == ["0000:00:05.0/virtio-blk"]
    assert "0000:00:04.0/virtio-net" in pack.sections_of("virtio-net")
    assert {"cpu", "cpu#1", "cpu_common#1"} <= set(pack.sections_of("platform"))
    evidence = _loaded(pack, binary, ability, ["virtio-blk", "virtio-net"])
    assert (evidence.loads_acked, evidence.exit) == (LOADS, None)


def _loaded(pack: StatePack, binary: QemuBinary, ability: ColoAbility, devices: list[str]) -> Evidence:
    own = frozenset(label for device in devices for label in pack.sections_of(device))
    return Session(
        binary=binary,
        dialect=ability.dialect,
        buffers=Buffers(pack, pack.machine),
        plan=plan_loads(Schedule.SAME, (ADOPTED,), LOADS),
        selection=Selection(own=own, excluded=frozenset(), whole=bool(ability.resets_before_load)),
        mode=GuestMode.PARKED,
        scope=ProcessScope(),
    ).run()


def test_no_cpu_of_an_adopted_guest_runs(adopt: Adopt, binary: QemuBinary, ability: ColoAbility) -> None:
    """Not even where a lane would have the guest run: its disks are not here."""
    pack, _ = adopt("stream")
    recording = pack.recordings[ADOPTED]
    devices = encode(sections_for(recording, GuestMode.RUNNING))
    with Secondary(binary, pack.machine, ability.dialect, timeout_s=TIMEOUT_S, scope=ProcessScope()) as secondary:
        secondary.start(recording.head, incoming_body(recording, pack.ram_whole(ADOPTED), devices))
        secondary.primary.checkpoint(devices)
        before = _registers(secondary.vm)
        time.sleep(0.3)
        secondary.primary.checkpoint(devices)
        assert _registers(secondary.vm) == before
    assert [halted for _, halted in before] == ["1"] * CPUS


def _registers(vm: Vm) -> list[tuple[str, str]]:
    """Where each CPU is, and whether it is halted."""
    text = vm.qmp("human-monitor-command", command_line="info registers -a")
    return re.findall(r"[ER]IP=([0-9a-f]+)[^\n]*HLT=(\d)", text)


def test_devices_without_ram_get_that_of_a_machine_that_never_ran(
    adopt: Adopt, binary: QemuBinary, ability: ColoAbility
) -> None:
    pack, adopted = adopt("devices")
    assert adopted.without_ram
    # at load they look at their rings, which are not in the file
    assert adopted.left_out == ("kvm-tpr-opt", "0000:00:04.0/virtio-net", "0000:00:05.0/virtio-blk")
    # what has no section left is no row: it would pass without a load
    assert [device.name for device in pack.manifest.devices] == ["platform"]
    evidence = _loaded(pack, binary, ability, ["platform"])
    assert (evidence.loads_acked, evidence.exit) == (LOADS, None)


def test_a_stream_of_a_machine_type_before_2_4_is_loaded(
    binary: QemuBinary, accel: str, guest: PlannedGuest, ability: ColoAbility, tmp_path: Path
) -> None:
    """It says neither its machine type nor what is in its sections, nor where they end."""
    if binary.machine(OLD) is None:
        pytest.skip(f"QEMU {binary.version} has no {OLD}")
    image, stream = tmp_path / "image", tmp_path / "stream"
    image.write_bytes(empty_qcow2(DISK_BYTES))
    with _machine(binary, accel, OLD, image) as vm:
        _migrate(vm, f"exec:cat > {stream}")
    old = replace(guest, plan=guest.plan.model_copy(update={"machine": OLD}))
    settled = settled_guest(old, VmOrigin(), binary, accel)
    with open_saved(stream, tmp_path) as state:
        assert (state.machine, state.vmdesc) == ("", None)
        adopted = write_adopted(state, settled, binary, tmp_path / "pack", accel=accel)
        del state
    assert adopted.left_out == ()
    with StatePack(adopted.path) as pack:
        assert not pack.recordings[ADOPTED].footers
        assert _loaded(pack, binary, ability, ["virtio-blk", "virtio-net", "platform"]).loads_acked == LOADS


def test_a_save_image_of_libvirt_is_enough_for_a_pack(
    states: Mapping[str, Path],
    binary: QemuBinary,
    ability: ColoAbility,
    postload: Callable[..., subprocess.CompletedProcess[str]],
    tmp_path: Path,
) -> None:
    """Its domain stands in it, with names of the host that nothing takes up."""
    out = tmp_path / "web01.pack"
    done = postload(
        *("adopt", "--state", states["save-image"], "--qemu", binary.path, "--accel", "tcg"), *("--out", out, "--json")
    )
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert (document["phases"], document["origin"]["name"], document["origin"]["state"]) == ([ADOPTED], "web01", True)
    assert "shadow" not in done.stdout
    with StatePack(out) as pack:
        assert _loaded(pack, binary, ability, ["virtio-blk", "virtio-net"]).loads_acked == LOADS
    again = postload("adopt", "--state", states["stream"], "--qemu", binary.path, "--out", tmp_path / "other.pack")
    assert again.returncode == 2
    assert "no libvirt domain is in it: expected one of --domain FILE" in " ".join(again.stderr.split())
    assert sorted(each.name for each in tmp_path.iterdir()) == ["web01.pack"]


def test_a_state_that_was_redacted_is_loaded_all_the_same(
    adopt: Adopt, binary: QemuBinary, ability: ColoAbility, tmp_path: Path
) -> None:
    """QEMU holds the rings of virtio against RAM, which is not in the pack any more but for their indices."""
    pack, _ = adopt("stream")
    mac = bytes.fromhex("525400123456")
    assert any(mac in section.payload for section in pack.recordings[ADOPTED].sections)
    redaction = redact_pack(pack, ADOPTED, tmp_path / "given", ["web01"])
    assert set(redaction.left_out) - {"slirp"} == {"kvm-tpr-opt"}
    assert "0000:00:04.0/virtio-net" in redaction.changed
    assert redaction.rings
    assert redaction.pages > 10
    with StatePack(tmp_path / "given") as given:
        assert not any(mac in section.payload for section in given.recordings[ADOPTED].sections)
        evidence = _loaded(given, binary, ability, ["virtio-blk", "virtio-net"])
    assert (evidence.loads_acked, evidence.exit) == (LOADS, None)
    # what QEMU says when it takes a device for a broken one
    assert "inconsistent" not in evidence.log + str(evidence.warnings)
