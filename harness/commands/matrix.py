# SPDX-License-Identifier: GPL-2.0-or-later
"""``postload matrix``, ``record`` and ``replay``."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from harness.arch import architecture_of
from harness.arch.accel import choose_accel, kvm_state
from harness.commands.execute import carry_out
from harness.commands.output import err
from harness.commands.resolve import (
    binaries_of,
    check_machines,
    common_accel,
    emit,
    guest_maker,
    recorded_phases,
    replay_options,
    rows_and_phases,
)
from harness.commands.selection import select
from harness.devices.phases import Missed
from harness.errors import HarnessError, UsageError
from harness.guests.build import GuestMaker
from harness.names import USUAL_PHASES
from harness.packs.pack import StatePack
from harness.qemu.binary import AccelState
from harness.report import inspection
from harness.report.lacks import lack_text
from harness.report.terminal import LiveProgress
from harness.results.known import Issue, load_known
from harness.state.recorder import ordered_phases
from harness.state.recordings import Unrecordable, make_recording
from harness.work.asked import Options
from harness.work.run import load_pack_rows
from harness.work.shards import Shard


@dataclass(frozen=True, slots=True, kw_only=True)
class MatrixAsked:
    """What the options of ``postload matrix`` mean on this host.

    :param guest: builds what is booted
    :param issues: that the run is held against; None when it is held against none
    """

    options: Options
    accel: AccelState
    guest: GuestMaker
    issues: tuple[Issue, ...] | None


def matrix(given: dict[str, Any]) -> int:
    """Record guests, reload their state, print which devices survive."""
    asked = asked_of(given)
    options, shard = asked.options, None
    if given["shard"]:
        share, shard = Shard.parse(given["shard"]).share(options)
        options = replace(options, share=share)
    return carry_out(
        options, asked.accel, given, lambda run: run.execute(), issues=asked.issues, guest=asked.guest, shard=shard
    )


def asked_of(given: dict[str, Any]) -> MatrixAsked:
    """Find the QEMUs, devices and guests that options name.

    :raises UsageError: one names what is not there
    """
    binaries, profiles = binaries_of(given["qemus"], given["profiles"], machines=given["machines"])
    check_machines(binaries, given["machines"])
    accel = common_accel(binaries, given["accel"])
    phases, replayed = tuple(ordered_phases(given["phases"] or USUAL_PHASES)), replay_options(given)
    guest = guest_maker(given["guest"], given["machines"], given["cpus"])
    selection = select(binaries, given["machines"], profiles, given["devices"], accel.name, given["jobs"])
    chosen = Options(
        binaries=selection.binaries,
        accel=accel.name,
        machines=tuple(given["machines"]),
        profiles=selection.planned_with(profiles),
        devices=selection.recipes,
        derived=selection.derived,
        phases=phases,
        fresh=given["fresh"],
        cpus=given["cpus"],
        **replayed,
    )
    return MatrixAsked(options=chosen, accel=accel, guest=guest, issues=_issues(given))


def record(given: dict[str, Any]) -> int:
    """Boot one guest and record its phases into a state pack."""
    qemus = [given["qemu"]] if given["qemu"] else []
    binaries, profiles = binaries_of(qemus, given["profiles"], machines=[given["machine"]])
    check_machines(binaries, [given["machine"]])
    if given["out"].exists():
        raise UsageError(f"--out {given['out']}: it exists already; a state pack is never overwritten")
    phases = recorded_phases(given["phases"] or (), given["machine"])
    guest = guest_maker(given["guest"], [given["machine"]], given["cpus"])
    accel = choose_accel(binaries[0], given["accel"])
    selection = select(binaries, [given["machine"]], profiles, given["devices"], accel.name, jobs=1)
    chosen = selection.on(selection.binaries[0], given["machine"], profiles)
    try:
        with LiveProgress(total_cells=0, console=err) as progress:
            make_recording(
                binary=selection.binaries[0],
                machine=given["machine"],
                accel=accel.name,
                guest=guest(architecture_of(given["machine"]), any(device.wide for device in chosen)),
                devices=chosen,
                phases=phases,
                path=given["out"],
                stage=progress.stage,
                kvm=kvm_state(binaries[0], accel),
            )
    except Unrecordable as error:
        raise UsageError(f"cannot record {error.device} on {error.machine}: {lack_text(error.lack)}") from error
    with StatePack(given["out"]) as pack:
        emit(inspection.describe_pack(pack), given["as_json"])
        failed = any(lack.how is Missed.FAILED for device in pack.manifest.devices for lack in device.unreached)
    return HarnessError.exit_code if failed else 0


def replay(pack: Path, given: dict[str, Any]) -> int:
    """Reload a recorded state pack."""
    with StatePack(pack) as opened:
        machine = opened.manifest.machine
        binaries, known = binaries_of(given["qemus"], given["profiles"], opened.device_types, [machine])
        recorded, phases = rows_and_phases(opened, given)
        accel = choose_accel(binaries[0], opened.manifest.accel)
        chosen = Options(
            binaries=tuple(binaries),
            accel=accel.name,
            machines=(opened.manifest.machine,),
            profiles=() if given["profiles"] is None else tuple(known.values()),
            devices=recorded,
            phases=phases,
            **replay_options(given),
        )
        return carry_out(
            chosen,
            accel,
            given,
            lambda run: load_pack_rows(run, opened),
            issues=_issues(given),
            foreign=opened.foreign,
        )


def _issues(given: dict[str, Any]) -> tuple[Issue, ...] | None:
    return None if given["known"] is None else load_known(given["known"])
