# SPDX-License-Identifier: GPL-2.0-or-later
"""Device recipes on a real QEMU: every shipped one works, and a wrong one costs itself alone and says why."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from harness.devices.recipe import load_recipes
from harness.files import data_dir
from harness.guests.build import Guest
from harness.qemu.binary import QemuBinary
from harness.state.owners import find_owners
from harness.state.recordings import planned_guests

Postload = Callable[..., subprocess.CompletedProcess[str]]

SHIPPED = [device.name for device in load_recipes().devices.values() if not device.rest]
#: What the patterns of the recipes said before sections were found by difference.
OWNERS = {
    "pc": {
        "ahci": ["0000:00:03.0/ich9_ahci"],
        "virtio-blk": ["0000:00:04.0/virtio-blk"],
        "virtio-net": ["slirp", "0000:00:05.0/virtio-net"],
    },
    "q35": {
        "ahci": ["0000:00:1f.2/ich9_ahci"],
        "virtio-blk": ["0000:00:04.0/virtio-blk"],
        "virtio-net": ["slirp", "0000:00:05.0/virtio-net"],
    },
}


@pytest.mark.parametrize("family", OWNERS)
def test_who_owns_what_is_found_by_difference(binary: QemuBinary, own_cache: Path, family: str) -> None:
    machine = binary.machine(family)
    assert machine is not None
    devices = [device for device in load_recipes().devices.values() if device.default]
    (guest,) = planned_guests(machine.name, family, devices).guests
    found = find_owners(binary, guest, "tcg")
    assert {name: sorted(sections) for name, sections in found.sections.items()} == {
        name: sorted(sections) for name, sections in OWNERS[family].items()
    }
    assert found.refused == {}
    # and a second time from what was kept
    assert find_owners(binary, guest, "tcg") == found


@pytest.mark.parametrize("family", ["pc", "q35", "virt"])
def test_every_shipped_recipe_starts_and_owns_sections_on_each_family(
    request: pytest.FixtureRequest, probed: Callable[[Path], QemuBinary], own_cache: Path, family: str
) -> None:
    """Each alone, and all together in the guests that the planner gives them; nothing is booted."""
    binary = probed(request.getfixturevalue("aarch64_qemu" if family == "virt" else "qemu_path"))
    machine = binary.machine(family)
    assert machine is not None
    devices = [device for device in load_recipes().devices.values() if not device.rest]
    together = planned_guests(machine.name, family, devices)
    alone = [planned_guests(machine.name, family, [device]) for device in devices]
    for planned in (together, *alone):
        assert planned.refused == {}
        for guest in planned.guests:
            found = find_owners(binary, guest, "tcg")
            assert found.refused == {}
            assert set(found.sections) == {device.name for device in guest.devices}
            own = [section for sections in found.sections.values() for section in sections]
            assert len(own) == len(set(own))
    assert {device.name for guest in together.guests for device in guest.devices} == set(SHIPPED)


@pytest.mark.parametrize("name", SHIPPED)
def test_every_shipped_recipe_works(postload: Postload, built_guest: Guest, name: str) -> None:
    file = data_dir("devices") / f"{name}.yaml"
    done = postload("devices", "check", file, "--machine", "q35", "--json")
    document = json.loads(done.stdout)
    steps = {step["name"]: step["ok"] for step in document["steps"]}
    assert (done.returncode, document["works"]) == (0, True), document
    assert set(steps) >= {"owns sections", "bind", "life", "busy", "check", "idle", "unbind", "rebind"}


#: Its patterns for sections fit none that there is, which is no fault.
BLK = """\
name: blk
about: a disk that works
attach:
  - {type: virtio-blk-pci, backends: {drive: disk}}
backends:
  disk: {kind: disk, size: 8M}
drift:
  - {section: "*/nosuch", fields: [count], compare: [n], reason: nosuch_save (hw/nosuch.c) counts}
registers:
  - {sections: "*/nosuch", fields: [count], source: a book, registers: [{name: COUNT}]}
drivers: [virtio_pci, virtio_blk]
guest:
  bind: load virtio_pci virtio_blk && bind_wait /dev/vda 10
"""
WRONG = {
    "broken": "name: broken\nabout: x\nattach:\n  - {type: virtio-rng-pci, oon: pci}\n",
    "refused": "name: refused\nabout: x\nattach:\n  - {type: virtio-rng-pci, properties: {max-bytes: -1}}\n",
    # its slot is the one of the chipset
    "taken": "name: taken\nabout: x\nattach:\n  - {type: virtio-rng-pci, properties: {addr: 1}}\n",
    # 7.2 and 10.0 do not migrate it
    "stuck": "name: stuck\nabout: x\nattach:\n"
    "  - {type: nvme, properties: {serial: x}, backends: {drive: disk}}\nbackends:\n  disk: {kind: disk, size: 8M}\n",
    "silent": "name: silent\nabout: x\nattach:\n  - {type: isa-debug-exit, on: none}\n",
    "unbound": "name: unbound\nabout: x\nattach:\n  - {type: virtio-rng-pci}\nguest:\n  bind: echo alas >&2; false\n",
    **{
        name: f"name: {name}\nabout: x\nattach:\n  - {{type: pxb, properties: {{bus_nr: 128}}}}\n"
        for name in ("bridge", "twin")
    },
    "undriven": "name: undriven\nabout: x\nattach:\n  - {type: virtio-rng-pci}\nguest:\n  bind: echo none; (exit 3)\n",
}


@pytest.fixture
def recipes(tmp_path: Path) -> Path:
    folder = tmp_path / "devices"
    folder.mkdir()
    for name, text in {"blk": BLK, **WRONG}.items():
        (folder / f"{name}.yaml").write_text(text)
    (folder / "platform.yaml").write_text((data_dir("devices") / "platform.yaml").read_text())
    return folder


def test_a_wrong_device_costs_itself_alone(postload: Postload, recipes: Path, own_cache: Path, tmp_path: Path) -> None:
    given = ["--machine", "pc", "--phase", "bound", "--schedule", "same", "--loads", 2, "--quick", "--json"]
    done = postload(
        *("matrix", "--profiles", recipes, "--out", tmp_path / "out", *given), env={"POSTLOAD_CACHE": str(own_cache)}
    )
    assert f"{recipes / 'broken.yaml'}:4:" in done.stderr.replace("\n", "")
    assert "did you mean 'on'" in done.stderr.replace("\n", " ")
    document = json.loads(done.stdout)
    verdicts = {cell["key"]["device"]: cell["outcome"]["verdict"] for cell in document["cells"]}
    assert verdicts == {
        "blk": "ok", "platform": "ok", "bridge": "ok", "twin": "ok",
        "refused": "unsupported", "silent": "unsupported", "taken": "unsupported", "stuck": "unsupported",
        "unbound": "harness-error", "undriven": "unsupported",
    }  # fmt: skip
    outcomes = {cell["key"]["device"]: cell["outcome"] for cell in document["cells"]}
    causes = {device: outcome["causes"][0] for device, outcome in outcomes.items() if outcome["causes"]}
    lacks = {device: cause["lack"] for device, cause in causes.items() if cause["kind"] == "unsupported"}
    wanted = {"refused": "start", "silent": "section", "taken": "start", "stuck": "migration"}
    assert {device: lack["what"] for device, lack in lacks.items()} == wanted
    assert "in use by PIIX3" in lacks["taken"]["said"]
    assert document["machines"][0]["colo"] == "refused"
    bound = {"phase": "bound", "step": "bind", "kind": "unreached"}
    assert causes["unbound"] == {**bound, "how": "failed", "said": "alas"}
    assert causes["undriven"] == {**bound, "how": "nothing-to-do", "said": "none"}
    # one guest was booted for all of them, and one for the bridge whose number another one has
    packs = [json.loads((pack / "manifest.json").read_text()) for pack in (own_cache / "packs").iterdir()]
    recorded = sorted(sorted(device["name"] for device in pack["devices"]) for pack in packs)
    assert recorded == [["blk", "bridge", "platform", "unbound", "undriven"], ["platform", "twin"]]


def test_a_machine_without_a_pci_bus_costs_each_device_its_own_cells(postload: Postload, tmp_path: Path) -> None:
    given = ["--machine", "isapc", "--phase", "firmware", "--schedule", "same", "--loads", 2, "--quick", "--json"]
    document = json.loads(postload("matrix", "--out", tmp_path / "out", *given).stdout)
    found = {cell["key"]["device"]: cell["outcome"] for cell in document["cells"]}
    assert found.pop("platform")["verdict"] == "ok"
    assert found.keys() == {"ahci", "virtio-blk", "virtio-net"}
    # its guest has no kernel and ends by itself: nobody is judged by that
    assert {cell["key"]["guest_mode"] for cell in document["cells"]} == {"parked"}
    assert {outcome["causes"][0]["lack"]["what"] for outcome in found.values()} == {"bus"}


#: What goes wrong only when the guest is booted, or its commands are run.
LATE = {
    "driverless": "name: driverless\nabout: x\nattach:\n  - {type: virtio-rng-pci}\ndrivers: [nosuch]\n",
    "late": "name: late\nabout: x\nattach:\n  - {type: virtio-rng-pci}\nguest:\n  unbind: 'false'\n",
    "deadly": "name: deadly\nabout: x\nattach:\n  - {type: virtio-rng-pci}\nguest:\n"
    "  bind: echo o > /proc/sysrq-trigger && sleep 20\n",
    # a write to port 0x70, which is the clock's index, ends QEMU
    "killer": "name: killer\nabout: x\nattach:\n  - {type: virtio-rng-pci}\n"
    "  - {type: isa-debug-exit, name: exit, on: none, properties: {iobase: 0x70, iosize: 1}}\n",
}


def test_what_goes_wrong_in_a_guest_costs_the_device_that_did_it(
    postload: Postload, tmp_path: Path, own_cache: Path
) -> None:
    folder = tmp_path / "devices"
    folder.mkdir()
    for name, text in {"blk": BLK, **LATE}.items():
        (folder / f"{name}.yaml").write_text(text)
    (folder / "platform.yaml").write_text((data_dir("devices") / "platform.yaml").read_text())
    given = ["--machine", "pc", "--phase", "kernel,bound,unbound", "--schedule", "same", "--loads", 2, "--quick"]
    done = postload(
        *("matrix", "--profiles", folder, "--out", tmp_path / "out", *given), env={"POSTLOAD_CACHE": str(own_cache)}
    )
    document = json.loads((tmp_path / "out" / "matrix.json").read_text())
    verdicts: dict[str, list[str]] = {}
    for cell in document["cells"]:
        verdicts.setdefault(cell["key"]["device"], []).append(cell["outcome"]["verdict"])
    assert verdicts == {
        "blk": ["ok", "ok", "ok"],
        "platform": ["ok", "ok", "ok"],
        "late": ["ok", "ok", "harness-error"],
        "deadly": ["ok", "harness-error", "harness-error"],
        "driverless": ["harness-error"] * 3,
        "killer": ["harness-error"] * 3,
    }, done.stderr
    assert done.returncode == 3
    # as it happens, with the first of its cells, and as a finding; the answer has its name alone
    said = " ".join((done.stdout + done.stderr).split())
    assert said.count("has no driver nosuch: name it under 'drivers' in the guest's recipe") == 3, said


@pytest.mark.parametrize(
    ("name", "line", "said"),
    [
        ("refused", 3, "does not run with it"),
        ("silent", 3, "saves no section of its own"),
        ("unbound", 6, "failed with status 1: alas"),
    ],
)
def test_check_says_what_is_wrong_and_where(postload: Postload, recipes: Path, name: str, line: int, said: str) -> None:
    file = recipes / f"{name}.yaml"
    done = postload("devices", "check", file, "--machine", "pc")
    assert done.returncode == 1
    assert f"{file}:{line}: " in done.stdout
    assert said in done.stdout


def test_check_of_a_file_that_is_wrong_is_the_users_to_mend(postload: Postload, recipes: Path) -> None:
    done = postload("devices", "check", recipes / "broken.yaml")
    assert done.returncode == 2
    assert "broken.yaml:4:" in done.stderr.replace("\n", "")


MEM = """\
name: mem
about: memory that can be unplugged, which COLO does not take
attach:
  - {type: virtio-mem-pci, backends: {memdev: room}}
backends:
  room: {kind: memdev, size: 128M}
memory-room: 256M
"""


def test_a_device_that_qemu_does_not_start_colo_with_is_no_reject(
    postload: Postload, qemu_7_2: QemuBinary, tmp_path: Path
) -> None:
    """Its whole guest was refused, and each device of it was called a reject."""
    folder, pack = tmp_path / "devices", tmp_path / "mem.pack"
    folder.mkdir()
    (folder / "mem.yaml").write_text(MEM)
    for name in ("platform", "ahci"):
        (folder / f"{name}.yaml").write_text((data_dir("devices") / f"{name}.yaml").read_text())
    given = ["--qemu", qemu_7_2.path, "--profiles", folder, "--phase", "firmware"]
    loads = ["--schedule", "same", "--loads", 2, "--quick", "--json", "--out", tmp_path / "out"]
    chosen = ["--machine", "pc", "--device", "mem,ahci,platform"]
    done = postload("matrix", *given, *chosen, *loads)
    verdicts, document = told(done)
    assert verdicts == {"mem": "unsupported", "ahci": "ok", "platform": "ok"}, done.stderr
    assert document["machines"][0]["colo"] == "refused"
    assert "does not start COLO with it: COLO: cannot disable RAM discard" in done.stderr.replace("\n", " ")
    # it is taken out of a pack as well
    made = postload("record", *given, "--machine", "pc", "--device", "mem,ahci,platform", "--out", pack)
    assert made.returncode == 0, made.stderr
    verdicts, document = told(postload("replay", pack, "--qemu", qemu_7_2.path, *loads))
    assert verdicts == {"mem": "unsupported", "ahci": "ok", "platform": "ok"}
    (refused,) = (cell for cell in document["cells"] if cell["key"]["device"] == "mem")
    assert "cannot disable RAM discard" in refused["outcome"]["causes"][0]["lack"]["said"]
    assert document["machines"][0]["colo"] == "refused"


def test_a_guest_that_dies_without_any_section_is_held_against_the_device_that_does_it(
    postload: Postload, installed_qemu: Callable[[str], Path], tmp_path: Path
) -> None:
    """Under TCG a small memory backend ends each secondary from 10.0 on: all devices of the guest had that crash."""
    chosen = ["--machine", "q35", "--accel", "tcg", "--device", "acpi-erst,pvpanic-pci", "--phase", "firmware"]
    loads = ["--schedule", "same", "--loads", 2, "--quick", "--json", "--out", tmp_path / "out"]
    done = postload("matrix", "--qemu", installed_qemu("10.0"), *chosen, *loads)
    verdicts, document = told(done)
    assert verdicts == {"acpi-erst": "crash", "pvpanic-pci": "ok"}, done.stderr
    (signature,) = {cell["signature"] for cell in document["cells"]} - {None}
    assert signature == "crash:tlb_reset_dirty_range_all:block == qemu_get_ram_block(end - 1):-:q35"


def test_what_qemu_does_not_save_once_the_guest_has_run_is_unsupported(
    postload: Postload, installed_qemu: Callable[[str], Path], tmp_path: Path
) -> None:
    """QEMU 11.1 saves a controller with three namespaces before it ran, and not once the firmware has used it."""
    chosen = ["--machine", "q35", "--device", "nvme+ns3", "--phase", "kernel"]
    loads = ["--schedule", "same", "--loads", 2, "--quick", "--json", "--out", tmp_path / "out"]
    done = postload("matrix", "--qemu", installed_qemu("11.1"), *chosen, *loads)
    verdicts, _ = told(done)
    assert verdicts == {"nvme+ns3": "unsupported"}, done.stderr
    assert "only one NVMe namespace is supported for migration" in " ".join(done.stderr.split())


def test_what_qemu_does_not_start_colo_with_is_migrated_all_the_same(
    postload: Postload, qemu_7_2: QemuBinary, installed_qemu: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = tmp_path / "devices"
    folder.mkdir()
    (folder / "mem.yaml").write_text(MEM)
    (folder / "platform.yaml").write_text((data_dir("devices") / "platform.yaml").read_text())
    way = ["--from", qemu_7_2.path, "--to", installed_qemu("10.0"), "--machine", "pc", "--device", "mem,platform"]
    more = ["--profiles", folder, "--phase", "firmware", "--schedule", "same", "--loads", 2, "--out", tmp_path / "out"]
    done = postload("qualify", *way, *more, "--json")
    (pair,) = [pair for pair in json.loads(done.stdout)["pairs"] if not pair["home"]]
    uses = {device["device"]: device["uses"] for device in pair["devices"]}
    assert (uses["mem"]["migration"], uses["mem"]["colo"]) == ("go", "no-go"), done.stderr
    assert (uses["platform"]["migration"], uses["platform"]["colo"]) == ("go", "go")


def told(done: subprocess.CompletedProcess[str]) -> tuple[dict[str, str], dict[str, Any]]:
    """Verdict of each device, and the document."""
    document: dict[str, Any] = json.loads(done.stdout)
    return {cell["key"]["device"]: cell["outcome"]["verdict"] for cell in document["cells"]}, document
