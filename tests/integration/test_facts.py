# SPDX-License-Identifier: GPL-2.0-or-later
"""Facts of this host and its QEMU: what a real machine offers, a feature taken away, and what the command prints."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from pydantic import TypeAdapter

from harness.commands.facts import all_devices
from harness.devices.recipe import load_recipes
from harness.errors import QemuError
from harness.facts import collect_facts, compare_facts, explaining
from harness.facts.model import HostFacts
from harness.guests.machine import Machine, firmware_sink
from harness.qemu.binary import QemuBinary
from harness.qemu.cmdline import Option
from harness.qemu.process import new_workdir
from harness.qemu.vm import Vm


def machine_of(binary: QemuBinary, *more: Option) -> Machine:
    machine = all_devices(binary, "q35", list(load_recipes().devices.values()))
    assert machine is not None
    return replace(machine, extra=more)


def test_a_feature_that_a_property_takes_away_is_found_and_explains(binary: QemuBinary, own_cache: Path) -> None:
    before = collect_facts([binary], machine=machine_of(binary))
    off = Option(name="global", props={"driver": "virtio-net-device", "property": "mrg_rxbuf", "value": "off"})
    after = collect_facts([binary], machine=machine_of(binary, off))
    changes = [change for change in compare_facts(before, after) if change.kind == "feature"]
    assert [(c.subject, c.where, c.old, c.new) for c in changes] == [
        ("VIRTIO_NET_F_MRG_RXBUF", "virtio-net 00:05.0", "", None)
    ]
    bits = {d["device"]: int(d["bits"], 16) for d in before["qemu"][0]["virtio"] or ()}
    allowed = bits["virtio-net"] & ~(1 << 15)
    log = f"qemu: Features {bits['virtio-net']:#x} unsupported. Allowed features: {allowed:#x}"
    assert explaining(compare_facts(before, after), log=log, section="0000:00:05.0/virtio-net") == changes
    assert TypeAdapter(HostFacts).validate_python(before, strict=True) == before
    assert "unknown" in before
    assert not [name for name in before["unknown"] if name.startswith("qemu.")]


def test_what_is_read_is_what_qemu_says_where_it_can(binary: QemuBinary, own_cache: Path) -> None:
    machine = machine_of(binary)
    read = {
        d["device"]: set(d["features"]) for d in collect_facts([binary], machine=machine)["qemu"][0]["virtio"] or ()
    }
    assert set(read) == {"virtio-blk", "virtio-net"}
    workdir = new_workdir()
    machine.make_files(workdir)
    with Vm(machine.command(binary.path, workdir, firmware_sink()), workdir=workdir) as vm:
        for name, features in read.items():
            try:
                path = next(d["path"] for d in vm.qmp("x-query-virtio") if d["name"] == name)
                status = vm.qmp("x-query-virtio-status", path=path)["host-features"]
            except QemuError as error:
                pytest.skip(f"x-query-virtio-status: {error}")
            told = {text.partition(":")[0] for text in (*status["dev-features"], *status["transports"])}
            # it has another name for bit 30, and none for the newest ones
            told -= {"VHOST_USER_F_PROTOCOL_FEATURES"}
            assert told <= features
            assert features - told <= {"VIRTIO_F_BAD_FEATURE", "VIRTIO_F_RING_RESET"}


def test_the_command_prints_the_facts(postload: Callable[..., object], binary: QemuBinary, own_cache: Path) -> None:
    done = postload("host", "--json", env={"POSTLOAD_CACHE": str(own_cache)})
    facts = json.loads(done.stdout)  # type: ignore[attr-defined]
    assert facts["qemu"][0]["sha256"] == binary.sha256
    assert facts["qemu"][0]["virtio"]
    text = postload("host", env={"POSTLOAD_CACHE": str(own_cache)}).stdout  # type: ignore[attr-defined]
    assert "KVM         state could" in text
    assert f"QEMU        {binary.version}" in text
    assert "VIRTIO_F_VERSION_1" in text
