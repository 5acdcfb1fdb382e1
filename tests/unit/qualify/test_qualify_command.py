# SPDX-License-Identifier: GPL-2.0-or-later
"""``postload qualify --device`` takes what ``matrix`` takes."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from harness.commands import qualify as module
from harness.commands.selection import DeviceSelection
from harness.devices.device import Device
from harness.qemu.binary import QemuBinary
from harness.qualify.pairs import QemuPair
from harness.work.asked import Options


def test_derived_devices_are_found_on_the_machine_of_each_pair(
    binary: QemuBinary, monkeypatch: pytest.MonkeyPatch
) -> None:
    new = replace(binary, version="10.0.13", sha256="ff" * 32)
    asked: list[Any] = []
    made: list[Options] = []
    derived = {(binary.sha256, "pc-i440fx-7.2"): (Device(name="sdhci-pci", about="", default=False, attachments=()),)}

    def select(binaries: Any, machines: Any, _profiles: Any, names: Any, *_: Any) -> DeviceSelection:
        asked.append(([each.sha256 for each in binaries], list(machines), names))
        able = tuple(replace(each, devices=each.devices | {"sdhci-pci"}) for each in binaries)
        return DeviceSelection(binaries=able, recipes=(), derived=derived)

    def pairs(sources: Any, targets: Any, *_: Any, **__: Any) -> list[QemuPair]:
        return [QemuPair(recorder=sources[0], loader=targets[0], machine="pc-i440fx-7.2")]

    def done(_given: Any, options: Options, *_: Any, **__: Any) -> tuple[None, None]:
        made.append(options)
        return None, None

    named = {"old": binary, "new": new}
    monkeypatch.setattr(module, "binaries_of", lambda names, *_: ([named[name] for name in names], {}))
    monkeypatch.setattr(module, "check_machines", lambda *_: None)
    monkeypatch.setattr(module, "plan_pairs", pairs)
    monkeypatch.setattr(module, "common_accel", lambda *_: SimpleNamespace(name="tcg"))
    monkeypatch.setattr(module, "guest_maker", lambda *_: None)
    monkeypatch.setattr(module, "select", select)
    monkeypatch.setattr(module, "_judged", done)
    monkeypatch.setattr(module, "_written", lambda *_: 0)
    given = {
        "sources": ["old"], "targets": ["new"], "profiles": None, "machines": ["pc"], "both_ways": False, "accel": None,
        "guest": None, "cpus": 1, "devices": ["sdhci-*"], "jobs": 2, "phases": [], "schedules": [], "loads": 5,
        "processes": False, "budget_s": None, "run_ms": 0, "fresh": False, "globals_": [],
    }  # fmt: skip
    assert module._of_pairs(given, ()) == 0
    assert asked == [([binary.sha256, new.sha256], ["pc-i440fx-7.2"], ["sdhci-*"])]
    (options,) = made
    assert options.derived == derived
    # the side that loads is asked for the derived types too
    assert all("sdhci-pci" in each.devices for each in options.binaries)
