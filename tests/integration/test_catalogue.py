# SPDX-License-Identifier: GPL-2.0-or-later
"""Devices that nobody wrote a recipe for, on a real QEMU: they start, and save what is theirs. Nothing is booted."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import jsonschema
import pytest

from harness.devices.recipe import load_recipes
from harness.devices.rules import Status
from harness.devices.types import types_of
from harness.qemu.binary import QemuBinary
from harness.qemu.scope import ProcessScope
from harness.report.schemas import shipped
from harness.state.catalogue import DeviceTrial, Offer, offer_of

Postload = Callable[..., subprocess.CompletedProcess[str]]

RECIPES = {name: device for name, device in load_recipes().devices.items() if not device.rest}
#: Of each bus and backend one, and each way of standing on something; what its section is called.
TWENTY = {
    "e1000+multifunction": ".1/e1000",
    "sdhci-pci": "sdhci",
    "sd-card": "sd-card",
    "usb-kbd": "usb-kbd",
    "usb-storage": "usb-storage",
    "usb-ccid": "ccid",
    "scsi-hd": "scsi-disk",
    "scsi-cd+lsi53c895a": "scsi-disk",
    "hda-duplex": "hda-audio",
    "virtserialport": "virtio-console",
    "virtio-rng-pci+packed": "virtio-rng",
    "virtio-9p-pci": "virtio-9p",
    "ide-cd": "ich9_ahci",
    "ipoctal232": "ipoctal",
    "pci-ipmi-kcs": "ipmi",
    "kvaser_pci": "kvaser",
    "xio3130-downstream": "xio3130",
    "acpi-erst": "acpi-erst",
    "ivshmem-doorbell": "ivshmem",
    "isa-serial": "serial",
}


@pytest.fixture(scope="module")
def offer(qemu_path: Path, binary: QemuBinary) -> Offer:
    return offer_of(binary, RECIPES)


@pytest.fixture
def trial(binary: QemuBinary, offer: Offer, own_cache: Path) -> DeviceTrial:
    able = replace(binary, devices=frozenset(offer.types))
    return DeviceTrial(binary=able, machine="q35", accel="tcg", scope=ProcessScope())


def test_each_of_twenty_types_saves_sections_of_its_own(trial: DeviceTrial, offer: Offer) -> None:
    devices = [offer.devices[name] for name in TWENTY if name in offer.devices]
    assert len(devices) >= 18  # acpi-erst and the ports of virtio-9p are not in every build
    found = trial.run(devices, 2, lambda _: None)
    assert {name: found[name].lack for name in found if found[name].status is not Status.JUDGED} == {}
    for name, tried in found.items():
        assert any(TWENTY[name] in label for label in tried.sections), (name, tried.sections)
    assert "xhci" not in str(found["usb-kbd"].sections)


def test_what_cannot_be_judged_says_why(trial: DeviceTrial, offer: Offer) -> None:
    names = ["edu", "usb-serial", "pxb"]
    found = trial.run([offer.devices[name] for name in names], 2, lambda _: None)
    assert [str(found[name].status) for name in names] == ["stateless", "unmigratable", "other-machine"]
    lack = found["usb-serial"].lack
    assert lack is not None
    assert "usb-serial" in lack.said


def test_what_dies_of_its_controller_when_it_is_saved_names_that(
    installed_qemu: Callable[[str], Path], probed: Callable[[Path], QemuBinary]
) -> None:
    """The controller has no drive of its own there; one that has is judged."""
    binary = probed(installed_qemu("11.1"))
    offer = offer_of(binary, RECIPES)
    able = replace(binary, devices=frozenset(offer.types))
    trial = DeviceTrial(binary=able, machine="q35", accel="tcg", scope=ProcessScope())
    found = trial.run([offer.devices[name] for name in ("nvme-ns", "nvme")], 2, lambda _: None)
    assert (found["nvme-ns"].status, found["nvme-ns"].bearers) == (Status.FAILS_TO_SAVE, ("nvme",))
    assert "SIGSEGV" in str(found["nvme-ns"].lack)
    assert found["nvme"].status is Status.JUDGED


def test_one_type_is_shown_with_a_recipe_that_check_takes(postload: Postload, tmp_path: Path) -> None:
    shown = postload("devices", "show", "sd-card", "--json")
    document = json.loads(shown.stdout)
    jsonschema.validate(document, shipped("devices-1.schema.json"))
    (entry,) = document["types"]
    assert (entry["type"], entry["status"], entry["sections"]) == ("sd-card", "judged", ["sd-card"])
    file = tmp_path / "mine.yaml"
    file.write_text(postload("devices", "show", "sd-card", "--yaml").stdout)
    checked = postload("devices", "check", file, "--machine", "q35", "--json")
    assert json.loads(checked.stdout)["steps"][0]["ok"] is True


def test_a_device_without_a_recipe_is_judged(postload: Postload, tmp_path: Path) -> None:
    given = ["--machine", "pc", "--phase", "firmware", "--schedule", "same", "--loads", 3, "--quick", "--json"]
    done = postload("matrix", "--device", "sdhci-pci,usb-kb*", "--out", tmp_path / "out", *given)
    cells = json.loads(done.stdout)["cells"]
    verdicts = {cell["key"]["device"]: cell["outcome"]["verdict"] for cell in cells}
    assert verdicts["sdhci-pci"] == "ok"
    assert {name for name in verdicts if name.startswith("usb-kbd")} == set(verdicts) - {"sdhci-pci"}
    assert len(verdicts) > 3


def test_displays_on_the_isa_bus_and_what_is_behind_a_cxl_host_bridge_are_judged_on_q35(
    postload: Postload, tmp_path: Path
) -> None:
    given = ["--machine", "q35", "--phase", "firmware,bound", "--schedule", "same", "--loads", 3, "--quick", "--json"]
    done = postload("matrix", "--device", "isa-vga,cxl-rp,pxb-cxl", "--out", tmp_path / "out", *given)
    cells = json.loads(done.stdout)["cells"]
    assert {(c["key"]["device"], *c["key"]["phases"]): c["outcome"]["verdict"] for c in cells} == {
        ("isa-vga", "firmware"): "ok",
        ("isa-vga", "bound"): "unsupported",
        ("cxl-rp", "firmware"): "ok",
        ("cxl-rp", "bound"): "ok",
        ("pxb-cxl", "firmware"): "ok",
        ("pxb-cxl", "bound"): "unsupported",
    }


def test_every_type_of_the_hosts_qemu_is_told_of(qemu_path: Path, offer: Offer) -> None:
    assert offer.derived.rows.keys() | offer.derived.underived.keys() == types_of(str(qemu_path)).keys()
