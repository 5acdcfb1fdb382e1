# SPDX-License-Identifier: GPL-2.0-or-later
"""What becomes of each type when a QEMU on paper is asked to start and save it."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from dataclasses import replace

import jsonschema
import pytest
from rich.console import Console

from harness.devices.derive import derive_all
from harness.devices.device import Device
from harness.devices.rules import Status, load_rules
from harness.devices.types import DeviceType
from harness.errors import QemuError, Unmigratable, UnsavedError
from harness.guests.plan import GuestPlan
from harness.qemu.binary import MachineType, QemuBinary
from harness.qemu.scope import ProcessScope
from harness.report.catalogue import Catalogue, catalogue_of, devices_schema, print_catalogue
from harness.report.schemas import shipped
from harness.state import catalogue
from harness.state.catalogue import DeviceTrial, Offer

KINDS = [
    DeviceType(name="plain", category="network", bus="PCI"),
    DeviceType(name="stateless", category="misc", bus="PCI"),
    DeviceType(name="blocker", category="misc", bus="PCI"),
    DeviceType(name="broken", category="misc", bus="PCI"),
    DeviceType(name="deadly", category="misc", bus="PCI"),
    DeviceType(name="vmbus-bridge", category="bridge", bus="System"),
    DeviceType(name="hv-balloon", category="misc", bus="vmbus"),
    DeviceType(name="elsewhere", category="misc", bus="PCI"),
    DeviceType(name="usb-stick", category="usb", bus="usb-bus"),
    DeviceType(name="usb-nothing", category="usb", bus="usb-bus"),
    DeviceType(name="qemu-xhci", category="usb", bus="PCI"),
    DeviceType(name="toy-x86_64-cpu", category="cpu"),
    DeviceType(name="ich9-ahci", category="storage", bus="PCI"),
    DeviceType(name="ide-cd", category="storage", bus="IDE"),
    DeviceType(name="vfio-pci", category="misc", bus="PCI"),
]
TYPES = {kind.name: kind for kind in KINDS}


def saved(_: QemuBinary, plan: GuestPlan, *__: object) -> list[str]:
    types = plan.types()
    if "blocker" in types:
        raise Unmigratable("State blocked by toy")
    if "deadly" in types or "vmbus-bridge" in types:
        raise UnsavedError("QEMU ended with SIGSEGV")
    if "broken" in types or ("elsewhere" in types and plan.family == "pc"):
        raise QemuError("it did not start:\nno such luck")
    own = [name for name in types if name not in ("stateless", "usb-nothing", "ide-cd")]
    return ["cpu", *(f"0000:00:03.0/{name}" for name in own)]


@pytest.fixture
def trial(monkeypatch: pytest.MonkeyPatch, binary: QemuBinary) -> DeviceTrial:
    monkeypatch.setattr(catalogue, "saved_labels", saved)
    machines = (
        MachineType(name="pc-i440fx-7.2", alias="pc", deprecated=False),
        MachineType(name="pc-q35-7.2", alias="q35", deprecated=False),
    )
    asked = replace(binary, devices=frozenset(TYPES), machines=machines)
    return DeviceTrial(binary=asked, machine="pc", accel="tcg", scope=ProcessScope())


def offer(recipes: Sequence[Device] = ()) -> Offer:
    named = {device.name: device for device in recipes}
    return Offer(types=TYPES, derived=derive_all(TYPES, load_rules(), recipes), recipes=named)


def asked_of(trial: DeviceTrial) -> Catalogue:
    return catalogue_of(trial, offer(), 2, lambda _: None)


def test_each_type_has_its_status_and_the_sums_are_all_types(trial: DeviceTrial) -> None:
    found = asked_of(trial)
    assert {entry.type: str(entry.status) for entry in found.types} == {
        "plain": "judged",
        "stateless": "stateless",
        "blocker": "unmigratable",
        "broken": "fails-to-start",
        "deadly": "fails-to-save",
        "vmbus-bridge": "fails-to-save",
        "hv-balloon": "fails-to-save",
        "elsewhere": "other-machine",
        "usb-stick": "judged",
        "usb-nothing": "stateless",
        "qemu-xhci": "judged",
        "ich9-ahci": "judged",
        "ide-cd": "judged",
        "toy-x86_64-cpu": "cpu",
        "vfio-pci": "host-only",
    }
    assert sum(found.sums.values()) == len(TYPES)
    assert all(entry.reason for entry in found.types if entry.status is not Status.JUDGED)


def test_what_a_device_stands_on_is_not_its_own(trial: DeviceTrial) -> None:
    entries = {entry.type: entry for entry in asked_of(trial).types}
    assert entries["usb-stick"].sections == ("0000:00:03.0/usb-stick",)
    assert entries["qemu-xhci"].sections == ("0000:00:03.0/qemu-xhci",)


def test_one_that_saves_nothing_itself_has_what_its_controller_saves(trial: DeviceTrial) -> None:
    """Were its rule not there, it would be taken for one without state."""
    (entry,) = catalogue_of(trial, offer(), 1, lambda _: None, ["ide-cd"]).types
    assert entry.sections == ("0000:00:03.0/ich9-ahci",)


def test_another_machine_is_named_with_what_was_said_here(trial: DeviceTrial) -> None:
    (entry,) = catalogue_of(trial, offer(), 1, lambda _: None, ["elsewhere"]).types
    assert entry.reason == "judged on q35; here it did not start: no such luck"


def test_what_a_device_stands_on_is_named_where_that_alone_is_not_saved(trial: DeviceTrial) -> None:
    (bridge, balloon) = catalogue_of(trial, offer(), 1, lambda _: None, ["vmbus-bridge", "hv-balloon"]).types
    assert bridge.reason == "QEMU ended with SIGSEGV"
    assert balloon.reason == "vmbus-bridge, which it stands on, does that without it: QEMU ended with SIGSEGV"


def test_the_document_has_the_shape_of_its_schema(trial: DeviceTrial) -> None:
    document = json.loads(json.dumps(asked_of(trial).document()))
    jsonschema.validate(document, shipped("devices-1.schema.json"))
    assert document["schema"] == "postload.devices/1"
    assert document["machine"] == "pc-i440fx-7.2"
    assert document["qemu"]["version"] == trial.binary.version
    (plain,) = (entry for entry in document["types"] if entry["type"] == "plain")
    assert plain == {
        "type": "plain",
        "row": "plain",
        "bus": "PCI",
        "category": "network",
        "status": "judged",
        "reason": "",
        "driver": None,
        "sections": ["0000:00:03.0/plain"],
        "variants": [],
    }
    for wrong in ({"status": "fine"}, {"sections": None}):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate({**document, "types": [plain | wrong]}, shipped("devices-1.schema.json"))


def test_the_shipped_schema_is_that_of_the_model() -> None:
    assert shipped("devices-1.schema.json") == devices_schema()


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("plain", ["plain"]),
        ("usb-*", ["usb-stick", "usb-nothing"]),
        ("category:usb", ["usb-stick", "usb-nothing", "qemu-xhci", "qemu-xhci+port"]),
        ("category:none", []),
        ("vfio-pci", []),
        ("nosuch", []),
    ],
)
def test_devices_by_name_pattern_and_category(name: str, found: list[str]) -> None:
    assert [device.name for device in offer().named(name)] == found


@pytest.mark.parametrize(
    ("width", "head"), [(80, ["TYPE", "STATUS", "WHAT"]), (140, ["TYPE", "BUS", "CATEGORY", "STATUS", "WHAT"])]
)
def test_each_type_is_a_line_of_a_terminal(trial: DeviceTrial, width: int, head: list[str]) -> None:
    found = asked_of(trial)
    said = "/cache/qemu did not start: it ended with exit status 1: qemu-system-x86_64: -device toy,id=x: no such luck"
    types = tuple(e.model_copy(update={"reason": said + 90 * "!"}) if e.type == "broken" else e for e in found.types)
    out = io.StringIO()
    broken_one = found.model_copy(update={"types": types})
    print_catalogue(broken_one, Console(file=out, width=width, force_terminal=True, color_system=None))
    lines = out.getvalue().splitlines()
    assert lines[0].split() == head
    table = lines[: lines.index("")]
    assert len(table) == 1 + sum(1 + len(e.variants) for e in found.types if e.status is not Status.CPU)
    (broken,) = [line for line in table if line.startswith("broken")]
    assert len(broken) == width
    assert "fails-to-start" in broken
    assert "no such luck!!" in broken
    assert broken.endswith("\N{HORIZONTAL ELLIPSIS}")
    # what is piped goes to grep, and is whole
    piped = io.StringIO()
    print_catalogue(broken_one, Console(file=piped, width=80))
    assert f"no such luck{90 * '!'}\n" in piped.getvalue()
