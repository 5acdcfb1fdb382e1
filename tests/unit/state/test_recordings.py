# SPDX-License-Identifier: GPL-2.0-or-later
"""Which kept recordings are used again."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from harness.devices.device import Attachment, Device
from harness.devices.recipe import load_recipes
from harness.errors import QemuError
from harness.packs.pack import StatePack
from harness.qemu.binary import QemuBinary
from harness.qemu.disturbance import Disturbance, Disturbed, Hindered, current_account
from harness.state import recorder as recorder_module
from harness.state import recordings as module
from harness.state.recorder import CutShort, Plan, drivers_in, record
from harness.state.recordings import (
    Recordings,
    _keep_drivers,
    booting,
    further,
    planned_guests,
    recorded_driver,
    recording_plan,
)


@pytest.fixture
def made(
    own_cache: Path, make_pack: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> Callable[[dict[str, Any]], tuple[StatePack, list[str], list[str]]]:
    """Asks for a recording where one with such facts of its host is kept."""

    def make(host: dict[str, Any]) -> tuple[StatePack, list[str], list[str]]:
        kept = own_cache / "packs" / "key"
        kept.parent.mkdir(parents=True)
        fresh = make_pack("kept")
        manifest = fresh / "manifest.json"
        manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "host": host}))
        fresh.rename(kept)
        told: list[str] = []
        recorded: list[str] = []

        def anew(_self: Recordings, _plan: object, key: str) -> StatePack:
            recorded.append(key)
            return StatePack(kept)

        monkeypatch.setattr(module, "recording_key", lambda _: "key")
        monkeypatch.setattr(module, "further", lambda _: [])
        monkeypatch.setattr(Recordings, "_recorded", anew)
        keeper = Recordings(fresh=False, stage=lambda _: None, message=told.append)
        return keeper.pack(object()), told, recorded  # type: ignore[arg-type]

    return make


def test_a_kept_recording_is_used_again(made: Callable[..., Any]) -> None:
    pack, told, recorded = made({"schema": "postload.host/1"})
    assert (pack.manifest.host["schema"], told, recorded) == ("postload.host/1", [], [])


@pytest.mark.parametrize("fresh", [False, True])
def test_a_pack_is_closed_when_the_last_who_uses_it_gives_it_back(
    own_cache: Path, make_pack: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, fresh: bool
) -> None:
    recorded: list[Path] = []
    closed: list[StatePack] = []

    def once(_plan: Plan, path: Path, *_: object, **__: object) -> None:
        recorded.append(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        made = make_pack("made")
        manifest = made / "manifest.json"
        manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "host": {"schema": "postload.host/1"}}))
        made.rename(path)

    monkeypatch.setattr(module, "record", once)
    monkeypatch.setattr(module, "recording_key", lambda _: "key")
    monkeypatch.setattr(module, "further", lambda _: [])
    monkeypatch.setattr(module, "facts_of", lambda _: {})
    monkeypatch.setattr(StatePack, "close", lambda self: closed.append(self))
    plan: Any = SimpleNamespace(machine="pc-i440fx-7.2", binary=SimpleNamespace(version="7.2.22"))
    keeper = Recordings(fresh=fresh, stage=lambda _: None, message=lambda _: None)
    pack = keeper.pack(plan)
    assert keeper.pack(plan) is pack
    keeper.release(pack)
    assert closed == []
    keeper.release(pack)
    assert closed == [pack]
    # a later one opens it again, and records nothing, though all is to be recorded anew once
    again = keeper.pack(plan)
    assert again is not pack
    assert len(recorded) == 1
    with StatePack(make_pack("of-the-user")) as other:
        keeper.release(other)
        assert other not in closed


def test_one_without_the_facts_of_its_host_is_made_anew(made: Callable[..., Any]) -> None:
    _, told, recorded = made({})
    assert recorded == ["key"]
    assert "before recordings held the facts" in told[0]


TERM = Hindered(how=Disturbance.ENDED, signal="SIGTERM")
SLOW = Hindered(how=Disturbance.STARVED, seconds=9.0, share=0.9)


@pytest.fixture
def recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[str, list[str]]]:
    """Records guests, each while the host does something; how that ended, and of which try a recording is there.

    A try gives what the host did, and whether a device missed a phase; None for one that was cut short.
    """

    def run(*tries: tuple[Hindered | None, bool | None]) -> tuple[str, list[str]]:
        left = list(enumerate(tries, 1))

        def once(_plan: Plan, path: Path, *_: object) -> bool:
            number, (hindered, missed) = left.pop(0)
            path.mkdir()
            (path / f"try-{number}").touch()
            if hindered is not None:
                current_account().ended(hindered)
            if missed is None:
                raise CutShort("gone", phase="bound", device="ahci", kept=("kernel",))
            return missed

        monkeypatch.setattr(recorder_module, "_record_once", once)
        plan: Any = None
        try:
            record(plan, tmp_path / "pack")
            end = "made"
        except (Disturbed, CutShort) as error:
            end = type(error).__name__
        assert not left
        return end, [file.name for file in tmp_path.glob("pack/*")]

    return run


@pytest.mark.parametrize(
    ("tries", "wanted"),
    [
        ([(None, False)], ("made", ["try-1"])),
        ([(TERM, False)], ("made", ["try-1"])),
        ([(None, True)], ("made", ["try-1"])),
        ([(None, None)], ("CutShort", ["try-1"])),
        ([(TERM, True), (SLOW, None), (None, True)], ("made", ["try-3"])),
        ([(TERM, None), (None, None)], ("CutShort", ["try-2"])),
        # one that is merely slow
        ([(SLOW, True)] * 3, ("made", ["try-3"])),
        ([(SLOW, None)] * 3, ("CutShort", ["try-3"])),
        ([(SLOW, True), (SLOW, None), (TERM, True)], ("Disturbed", [])),
        ([(TERM, None)] * 3, ("Disturbed", [])),
    ],
)
def test_what_went_wrong_while_the_host_disturbed_the_guest_is_recorded_anew(
    recorded: Callable[..., tuple[str, list[str]]],
    tries: list[tuple[Hindered | None, bool | None]],
    wanted: tuple[str, list[str]],
) -> None:
    assert recorded(*tries) == wanted


def test_what_is_there_already_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def ended(*_: object) -> bool:
        current_account().ended(TERM)
        raise QemuError("gone")

    monkeypatch.setattr(recorder_module, "_record_once", ended)
    plan: Any = None
    with pytest.raises(Disturbed):
        record(plan, tmp_path)
    assert tmp_path.is_dir()


def test_a_guest_boots_with_the_words_of_its_machine_and_of_its_devices() -> None:
    identity = {"kernel": {"sha256": "ab" * 32}, "initramfs": {"sha256": "cd" * 32}}
    guest: Any = SimpleNamespace(identity=identity, cmdline="quiet", machines={"pc": ("acpi=noirq", "one")})
    device = replace(load_recipes().devices["ahci"], cmdline=("one", "two"))

    def words(machine: str, family: str) -> str:
        (planned,) = planned_guests(machine, family, [device]).guests
        return booting(planned, guest).plan.cmdline

    assert words("pc-i440fx-7.2", "pc") == "quiet acpi=noirq one two"
    assert words("pc-q35-7.2", "q35") == "quiet one two"


def test_a_recording_that_goes_further_is_as_good(
    own_cache: Path, make_pack: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, binary: QemuBinary
) -> None:
    monkeypatch.setattr(module, "recording_key", lambda plan: "+".join(plan.phases))
    guest: Any = SimpleNamespace(
        identity={"kernel": {"sha256": "ab" * 32}, "initramfs": {"sha256": "cd" * 32}},
        cpus=1,
        memory_mib=16,
        cmdline="",
        machines={},
    )
    (planned,) = planned_guests("pc-i440fx-7.2", "pc", [load_recipes().devices["ahci"]]).guests

    def plan(*phases: str) -> Plan:
        return recording_plan(binary=binary, accel="tcg", guest=guest, planned=planned, phases=phases)

    long, short = plan("firmware", "kernel", "bound"), plan("firmware", "kernel")
    assert long in further(short)
    assert further(plan("kernel")) == []
    kept = own_cache / "packs" / "firmware+kernel+bound"
    kept.parent.mkdir(parents=True)
    fresh = make_pack("kept", "kernel", "bound")
    manifest = fresh / "manifest.json"
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "host": {"schema": "postload.host/1"}}))
    fresh.rename(kept)
    recorded: list[Plan] = []

    def anew(_self: Recordings, plan: Plan, _key: str) -> StatePack:
        recorded.append(plan)
        return StatePack(kept)

    monkeypatch.setattr(Recordings, "_recorded", anew)
    usual = Recordings(fresh=False, stage=lambda _: None, message=lambda _: None)
    assert usual.pack(short).path == kept
    assert recorded == []
    longer = plan("firmware", "kernel", "bound", "busy")
    usual.pack(longer)
    Recordings(fresh=True, stage=lambda _: None, message=lambda _: None).pack(short)
    assert recorded == [longer, short]


@pytest.mark.parametrize(
    ("types", "bound", "driver"),
    [
        ((), ["virtio-pci", "virtio_rng"], "virtio_rng"),
        ((), ["e1000"], "e1000"),
        ((), ["xhci_hcd", "hub", "usb-storage", "sd"], "xhci_hcd"),
        (("qemu-xhci",), ["xhci_hcd", "hub", "usbhid", "hid-generic", "hub"], "usbhid"),
        (("qemu-xhci",), ["xhci_hcd", "hub", "hub"], "hub"),
        (("virtio-scsi-pci",), ["virtio-pci", "virtio_scsi", "sd"], "sd"),
        ((), [], None),
    ],
)
def test_the_driver_that_a_recorded_guest_bound_is_known_afterwards(
    types: tuple[str, ...], bound: list[str], driver: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("POSTLOAD_CACHE", str(tmp_path))
    parts = tuple(Attachment(name=f"a{number}", type=kind) for number, kind in enumerate((*types, "subject")))
    device = Device(name="row", about="", type="subject", attachments=parts)
    model = SimpleNamespace(recipe=device, drivers=bound)
    manifest = SimpleNamespace(devices=[model], qemu={"sha256": "q"}, machine="pc-i440fx-7.2")
    binary = SimpleNamespace(sha256="q")
    assert recorded_driver(binary, "pc-i440fx-7.2", device) is None  # type: ignore[arg-type]
    _keep_drivers(SimpleNamespace(manifest=manifest))  # type: ignore[arg-type]
    assert recorded_driver(binary, "pc-i440fx-7.2", device) == driver  # type: ignore[arg-type]
    assert recorded_driver(binary, "pc-q35-7.2", device) is None  # type: ignore[arg-type]


def test_a_recipe_says_which_driver_its_device_has() -> None:
    device = Device(
        name="disk", about="", attachments=(Attachment(name="dev", type="t"),), drivers=("virtio_pci", "virtio_blk")
    )
    assert recorded_driver(SimpleNamespace(sha256="q"), "pc", device) == "virtio_blk"  # type: ignore[arg-type]


def test_drivers_are_ordered_by_where_their_devices_are() -> None:
    """The guest tells them in the order of its folders, where a device may stand behind what is plugged into it."""
    text = "=xhci_hcd|/usb1/1-1/1-1:1.0/0003:0627:0001.0001=hid-generic|/usb1/1-1/1-1:1.0=usbhid|/usb1/1-0:1.0=hub"
    assert drivers_in(text) == ["xhci_hcd", "hub", "usbhid", "hid-generic"]
