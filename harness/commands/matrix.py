# SPDX-License-Identifier: GPL-2.0-or-later
"""``postload matrix``, ``record`` and ``replay``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from harness.arch import architecture_of
from harness.arch.accel import choose_accel, kvm_state
from harness.commands.execute import carry_out
from harness.commands.options import (
    accel_option,
    binaries_of,
    budget_option,
    check_machines,
    common_accel,
    confirm_option,
    cpus_option,
    device_option,
    emit,
    err,
    guest_maker,
    guest_option,
    jobs_option,
    json_option,
    known_option,
    loads_option,
    machine_option,
    mode_option,
    out_option,
    phase_option,
    processes_option,
    profiles_option,
    qemu_option,
    quick_option,
    replay_options,
    rows_and_phases,
    run_ms_option,
    schedule_option,
    shared,
)
from harness.devices.device import select_devices
from harness.errors import UsageError
from harness.packs.pack import StatePack
from harness.report import inspection
from harness.report.terminal import LiveProgress
from harness.state.recorder import PHASES, ordered_phases
from harness.state.recordings import make_recording
from harness.work.run import Options, load_pack_rows


@click.command()
@shared(qemu_option, machine_option, device_option, phase_option, schedule_option, mode_option, loads_option)
@shared(run_ms_option, quick_option, confirm_option, jobs_option, processes_option, budget_option, accel_option)
@shared(guest_option, cpus_option, profiles_option, known_option, out_option)
@click.option("--fresh", is_flag=True, help="Record anew even when a recording is kept.")
@json_option
def matrix(**given: Any) -> int:
    """Record guests, reload their state, print which devices survive."""
    binaries, profiles = binaries_of(given["qemus"], given["profiles"], machines=given["machines"])
    check_machines(binaries, given["machines"])
    accel = common_accel(binaries, given["accel"])
    wanted = [device.name for device in select_devices(profiles, given["devices"])]
    chosen = Options(
        binaries=tuple(binaries),
        accel=accel.name,
        machines=tuple(given["machines"]),
        profiles=tuple(device for device in profiles.values() if device.default or device.name in wanted),
        devices=tuple(wanted),
        phases=tuple(ordered_phases(given["phases"] or PHASES)),
        fresh=given["fresh"],
        cpus=given["cpus"],
        **replay_options(given),
    )
    guest = guest_maker(given["guest"], given["machines"], given["cpus"])
    return carry_out(chosen, accel, given, lambda run: run.execute(), guest=guest)


@click.command()
@click.option("--qemu", metavar="QEMU", help="Path or installed name of the QEMU to record with.")
@click.option("--machine", default="pc", show_default=True, help="Machine type, or pc, q35 or virt: the newest.")
@shared(device_option, phase_option, accel_option, guest_option, cpus_option, profiles_option)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    required=True,
    help="NAME.pack: one file that travels; any other name: a folder.",
)
@json_option
def record(**given: Any) -> int:
    """Boot one guest and record its phases into a state pack."""
    qemus = [given["qemu"]] if given["qemu"] else []
    binaries, profiles = binaries_of(qemus, given["profiles"], machines=[given["machine"]])
    check_machines(binaries, [given["machine"]])
    if given["out"].exists():
        raise UsageError(f"--out {given['out']}: it exists already; a state pack is never overwritten")
    chosen = select_devices(profiles, given["devices"])
    phases = ordered_phases(given["phases"] or PHASES)
    if not any(map(architecture_of(given["machine"]).has_phase, phases)):
        raise UsageError(f"{given['machine']} has no phase {', '.join(phases)}: it starts its kernel without firmware")
    guest = guest_maker(given["guest"], [given["machine"]], given["cpus"])
    accel = choose_accel(binaries[0], given["accel"])
    with LiveProgress(total_cells=0, console=err) as progress:
        make_recording(
            binary=binaries[0],
            machine=given["machine"],
            accel=accel.name,
            guest=guest(architecture_of(given["machine"])),
            devices=chosen,
            phases=phases,
            path=given["out"],
            stage=progress.stage,
            kvm=kvm_state(binaries[0], accel),
        )
    with StatePack(given["out"]) as pack:
        emit(inspection.describe_pack(pack), given["as_json"])
    return 0


@click.command()
@click.argument("pack", type=click.Path(path_type=Path))
@shared(qemu_option, device_option, phase_option, schedule_option, mode_option, loads_option, run_ms_option)
@shared(quick_option, confirm_option, jobs_option, processes_option, budget_option, profiles_option, known_option)
@shared(out_option, json_option)
def replay(pack: Path, **given: Any) -> int:
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
            profiles=tuple(known.values()),
            devices=recorded,
            phases=phases,
            **replay_options(given),
        )
        return carry_out(chosen, accel, given, lambda run: load_pack_rows(run, opened), foreign=opened.foreign)
