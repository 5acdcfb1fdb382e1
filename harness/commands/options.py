# SPDX-License-Identifier: GPL-2.0-or-later
"""Options that several commands share, as click takes them. Nothing of the program is imported here: this is read at
each start, also for ``--help`` and for shell completion."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from harness.names import (
    DEFAULT_STORE,
    MIGRATIONS,
    RECORDED_PHASES,
    SCHEDULES,
    STORE_VARIABLE,
    USUAL_DEVICES,
    USUAL_LOADS,
    USUAL_PHASES,
)

F = TypeVar("F", bound=Callable[..., Any])

DEFAULT_OUT = Path("postload-out")
#: Of ``qualify``: enough for what breaks at all; a matrix of one QEMU goes deeper.
QUALIFY_LOADS = 20
QUALIFY_SCHEDULES = ("same", "alternate", "back-to-back")
#: How long a guest runs after each load, in milliseconds: long enough to take interrupts and to touch its disks.
DEFAULT_RUN_MS = 2.0
FILE = click.Path(path_type=Path)


def names(_context: click.Context, _parameter: click.Parameter, value: tuple[str, ...] | str | None) -> list[str]:
    """Comma-separated and repeated values as one list, each once."""
    given = [value] if isinstance(value, str) else list(value or ())
    return list(dict.fromkeys(name.strip() for part in given for name in part.split(",") if name.strip()))


def shared(*options: Callable[[F], F]) -> Callable[[F], F]:
    """Several options as one decorator, shown in this order."""

    def apply(function: F) -> F:
        for option in reversed(options):
            function = option(function)
        return function

    return apply


def listed(option: str, parameter: str, text: str, **more: Any) -> Callable[[F], F]:
    """An option that takes a comma-separated list, and may be given again."""
    return click.option(option, parameter, multiple=True, callback=names, help=text, **{"metavar": "NAME,...", **more})


def _jobs(what: str) -> Callable[[F], F]:
    return click.option(
        "--jobs",
        type=click.IntRange(1, 64),
        metavar="N",
        default=lambda: os.cpu_count() or 1,
        help=f"{what} at the same time.  [default: one for each CPU]",
    )


def _store(text: str, **more: Any) -> Callable[[F], F]:
    return click.option("--store", envvar=STORE_VARIABLE, metavar="URL", help=text, **more)


def _pack(usual: str = "", **more: Any) -> Callable[[F], F]:
    text = f"State pack to write. NAME.pack is one file; any other name is a folder.{usual}"
    return click.option("--out", type=FILE, metavar="PACK", help=text, **more)


qemu_option = click.option(
    "--qemu",
    "qemus",
    multiple=True,
    metavar="QEMU",
    help="QEMU to test: a path, an installed name or a version. May be repeated.  [default: this host's]",
)
recorder_option = click.option(
    "--qemu", metavar="QEMU", help="QEMU to record with: a path, an installed name or a version."
)
pack_option = _pack(required=True)
vm_pack_option = _pack("  [default: only say what becomes of the VM]")
machine_option = listed(
    "--machine", "machines", "Machine types: pc, q35, virt, or versioned names.", default=("pc,q35",), show_default=True
)
device_option = listed(
    "--device",
    "devices",
    "Devices to judge: names and types of postload devices, patterns such as 'virtio-*', category:network, or all.  "
    f"[default: {','.join(USUAL_DEVICES)}]",
)
phase_option = listed(
    "--phase", "phases", f"Phases: {', '.join(RECORDED_PHASES)}.  [default: {','.join(USUAL_PHASES)}]"
)
schedule_option = listed("--schedule", "schedules", f"Schedules: {', '.join(SCHEDULES)}.  [default: all]")
mode_option = listed(
    "--guest-mode",
    "modes",
    "What the guest does between loads: running, parked, or both.",
    default=("running",),
    show_default=True,
)
loads_option = click.option(
    "--loads", type=click.IntRange(1), metavar="N", default=USUAL_LOADS, show_default=True, help="Loads in each cell."
)
processes_option = click.option(
    "--processes", is_flag=True, help="Judge in separate processes instead of threads. Slower; they share nothing."
)
budget_option = click.option(
    "--budget",
    "budget_s",
    type=click.FloatRange(0, min_open=True),
    metavar="SECONDS",
    help="Give up cells that are judged together when they take longer.  [default: no limit]",
)
jobs_option = _jobs("Cells to judge")
run_ms_option = click.option(
    "--run-ms",
    type=click.FloatRange(0),
    metavar="MS",
    default=DEFAULT_RUN_MS,
    show_default=True,
    help="Time that the guest runs after each load, in milliseconds.",
)
accel_option = click.option(
    "--accel",
    type=click.Choice(["auto", "kvm", "tcg"]),
    default="auto",
    show_default=True,
    help="Accelerator. auto takes KVM where it runs code at full speed, else TCG.",
)
guest_option = click.option(
    "--guest",
    metavar="NAME|FILE",
    default="debian",
    show_default=True,
    help="Guest recipe: a name in guests/, or a YAML file.",
)
cpus_option = click.option(
    "--cpus", type=click.IntRange(1, 64), metavar="N", default=1, show_default=True, help="Virtual CPUs of the guest."
)
profiles_option = click.option(
    "--profiles", type=FILE, metavar="DIR", help="Folder of device recipes.  [default: devices/]"
)
#: Somebody's VMs.
vm_options = (
    click.option("--domain", "domains", type=FILE, multiple=True, metavar="FILE", help="VM of a libvirt domain (XML)."),
    click.option(
        "--command-line",
        "command_lines",
        type=FILE,
        multiple=True,
        metavar="FILE",
        help="VM of a QEMU's command line, as a script, libvirt's log or ps has it.",
    ),
    click.option("--pid", "pids", type=click.IntRange(1), multiple=True, metavar="PID", help="VM of a running QEMU."),
)
migration_option = listed(
    "--migration",
    "migrations",
    f"Ordinary migrations, made before the checkpoints: {', '.join(MIGRATIONS)}.  [default: none]",
)
reset_option = click.option(
    "--reset", is_flag=True, help="Also reset the machine before each load: which devices need it, and what it costs."
)
quick_option = click.option(
    "--quick",
    is_flag=True,
    help="Only load: no controls for findings, and no oracles. Without --loads, go each way between phases once.",
)
confirm_option = click.option(
    "--confirm", type=click.Choice(["pair"]), help="Repeat each break with a real primary and a real secondary."
)
global_option = click.option(
    "--global",
    "globals_",
    multiple=True,
    metavar="DRIVER.PROPERTY=VALUE",
    help="Property to set in the QEMU that loads, as QEMU's own -global does. May be repeated.",
)
run_option = click.option(
    "--run", type=FILE, default=DEFAULT_OUT, show_default=True, metavar="DIR", help="Folder of the run."
)
known_option = click.option(
    "--known", type=FILE, metavar="FILE", help="File of known issues. Exit code 0 when nothing else failed."
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON document; messages go to stderr.")
out_option = click.option(
    "--out", type=FILE, default=DEFAULT_OUT, show_default=True, metavar="DIR", help="Folder for the reports."
)
notify_option = click.option(
    "--notify",
    envvar="POSTLOAD_NOTIFY",
    metavar="URL|COMMAND",
    help="Tell of the run when it has ended: POST its summary and document to a URL, or give a command the summary on "
    "its standard input. No shell reads the command; {headline}, {summary} and {document} stand for a line and two "
    "files.  [default: $POSTLOAD_NOTIFY, else nobody]",
)
shard_option = click.option(
    "--shard", metavar="NUMBER/SHARDS", help="Judge one part of the run's cells, such as 2/5; see postload merge."
)
fresh_option = click.option("--fresh", is_flag=True, help="Record again, even when a recording is in the cache.")
store_option = _store(
    "History to write the run into: an SQLite file, or postgresql://USER@HOST/DATABASE.  "
    "[default: $POSTLOAD_STORE, else none]"
)
history_option = _store(
    "The history: an SQLite file, or postgresql://USER@HOST/DATABASE.  "
    f"[default: $POSTLOAD_STORE, else {DEFAULT_STORE}]",
    default=DEFAULT_STORE,
)
last_option = click.option(
    "--last", type=click.IntRange(1), metavar="N", default=30, show_default=True, help="Look at so many runs, the last."
)
remote_option = click.option(
    "--remote", is_flag=True, help="Have the cells judged by the workers of the store: postload work, on any hosts."
)
each_host_option = click.option(
    "--each-host", is_flag=True, help="Have each cell judged on each host whose worker is able to. Implies --remote."
)
worker_jobs_option = _jobs("Jobs to do")
jobs_store_option = _store("Database of the history: postgresql://USER@HOST/DATABASE.  [default: $POSTLOAD_STORE]")
