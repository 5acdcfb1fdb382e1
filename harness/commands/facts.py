# SPDX-License-Identifier: GPL-2.0-or-later
"""``postload host``: the facts of this host, as they go into a state pack."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from harness.arch.accel import FAST_ACCEL_S, prove_accel
from harness.commands.output import print_json
from harness.commands.resolve import binaries_of, check_machines
from harness.devices.device import Device
from harness.facts import collect_facts, kvm_tried
from harness.guests.machine import Machine
from harness.qemu.binary import QemuBinary
from harness.report.facts import kvm_text, not_known_text
from harness.state.recordings import machine_names, missing, planned_guests
from harness.text import printable

_INDENT = " " * 12
_MEMORY_MIB = 64


def host(qemus: Sequence[str], machine: str, profiles: Path | None, as_json: bool) -> int:
    """Print the facts; returns the exit code."""
    builds, known = binaries_of(qemus, profiles, machines=[machine])
    check_machines(builds, [machine])
    accel = prove_accel(builds[0], "kvm", timeout_s=FAST_ACCEL_S)
    chosen = list(known.values())
    facts = collect_facts(builds, machine=lambda build: all_devices(build, machine, chosen), accel=accel)
    if as_json:
        print_json(facts)
    else:
        click.echo(printable("\n".join(lines_of(facts))))
    return 0


def all_devices(binary: QemuBinary, name: str, devices: Sequence[Device]) -> Machine | None:
    """A machine with every virtio device that is known; None when the build has no such machine."""
    if binary.machine(name) is None:
        return None
    family, machine = machine_names(binary, name)
    chosen = [d for d in devices if _is_virtio(d) and missing(d, binary, machine, family) is None]
    plan = planned_guests(machine, family, chosen).guests[0].plan
    return Machine(plan=plan.model_copy(update={"memory_mib": _MEMORY_MIB}), accel="tcg")


def lines_of(facts: Mapping[str, Any]) -> Iterator[str]:
    """The facts for people; everything else is in the JSON."""
    system, cpu, kvm = facts["system"], facts["cpu"], facts["kvm"]
    yield f"System      {system['os']}, kernel {system['kernel']}, {system['architecture']}"
    yield (
        f"CPU         {cpu['model_name']} ({cpu['vendor']} family {cpu['family']} model {cpu['model']} "
        f"stepping {cpu['stepping']}), microcode {cpu['microcode']}, {len(cpu['flags'] or ())} flags"
    )
    yield kvm_text(kvm_tried(facts)).replace("KVM state: ", "KVM         state ")
    if kvm["extensions"] is not None:
        offered = sum(1 for value in kvm["extensions"].values() if value)
        yield (
            f"{_INDENT}API {kvm['api_version']}, {offered} of {len(kvm['extensions'])} capabilities, "
            f"{_count(kvm['msrs'])} MSRs, {_count(kvm['feature_msrs'])} feature MSRs"
        )
    yield f"Modules     {' '.join(facts['modules']) or 'none that matter'}"
    for build in facts["qemu"]:
        yield from _build_lines(build)
    for name, why in facts["unknown"].items():
        yield f"Not known   {name}: {not_known_text(why)}"


def _build_lines(build: Mapping[str, Any]) -> Iterator[str]:
    ending = sorted(machine["name"] for machine in build["machines"] if machine["deprecated"])
    package = f" ({build['build']})" if build["build"] else ""
    yield f"QEMU        {build['version']}{package} {build['path']}"
    yield f"{_INDENT}{len(build['machines'])} machine types, deprecated: {', '.join(ending) or 'none'}"
    for device in build["virtio"] or ():
        backend = f" on {device['backend']}" if device["backend"] else ""
        yield f"{_INDENT}{build['machine']} {device['slot']} {device['device']}{backend}: {device['bits']}"
        yield f"{_INDENT}  {' '.join(device['features'])}"


def _is_virtio(device: Device) -> bool:
    return any(attachment.type.startswith("virtio-") for attachment in device.attachments)


def _count(values: Sequence[object] | dict[str, object] | None) -> str:
    return "unknown" if values is None else str(len(values))
