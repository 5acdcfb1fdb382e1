# SPDX-License-Identifier: GPL-2.0-or-later
"""All facts of this host in one JSON document, made on one host and read on another."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any, cast

from harness.errors import UsageError
from harness.facts.host import cpu_facts, module_facts, system_facts
from harness.facts.kvm import kvm_facts
from harness.facts.model import HostFacts, NotKnown
from harness.facts.part import Part
from harness.facts.qemu import build_facts
from harness.guests.machine import Machine
from harness.qemu.binary import AccelState, QemuBinary

SCHEMA = "postload.host/1"

#: One machine for all builds, or one for each.
MachineOf = Machine | Callable[[QemuBinary], Machine | None] | None


def collect_facts(
    binaries: Sequence[QemuBinary], *, machine: MachineOf = None, accel: AccelState | None = None
) -> HostFacts:
    """What this host is, as JSON of schema :data:`SCHEMA`; never raises for a fact that cannot be had.

    :param binaries: the QEMUs of interest; the first is the one that records
    :param machine: whose virtio devices are asked what they offer; the machine is started once, stopped.
        A function gives each build its own
    :param accel: what came of running guest code under KVM, None when nobody tried
    """
    parts = {
        "system": system_facts(),
        "cpu": cpu_facts(),
        "modules": module_facts(),
        "kvm": kvm_facts(accel if accel is None or accel.name == "kvm" else None),
    }
    facts: dict[str, Any] = {"schema": SCHEMA, "collected": datetime.now(UTC).isoformat(timespec="seconds")}
    unknown: dict[str, NotKnown] = {}
    for name, part in parts.items():
        facts[name] = part.values
        unknown |= _prefixed(name, part)
    builds = [build_facts(binary, machine(binary) if callable(machine) else machine) for binary in binaries]
    facts["qemu"] = [build.values for build in builds]
    for number, build in enumerate(builds):
        unknown |= _prefixed(f"qemu.{number}", build)
    facts["unknown"] = unknown
    return cast(HostFacts, facts)


def check_facts(facts: HostFacts, whose: str) -> None:
    """Facts that this version can read.

    :raises UsageError: another schema
    """
    schema = facts.get("schema")
    if schema != SCHEMA:
        raise UsageError(f"host facts of {whose}: expected schema {SCHEMA}, got {schema!r}")


def _prefixed(prefix: str, part: Part) -> dict[str, NotKnown]:
    return {f"{prefix}.{name}": why for name, why in part.unknown.items()}
