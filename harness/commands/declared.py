# SPDX-License-Identifier: GPL-2.0-or-later
"""Every command with its arguments, options and help. What a command does is imported when it is called.

``--help``, shell completion and the manual page need this file alone, and it must stay so: it imports click, the names
that a user types, and nothing else of the program. The first sentence of a docstring is the short help.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from harness.commands import options
from harness.commands.options import FILE, json_option, listed, run_option, shared
from harness.names import DECIDING, DECIDING_BETWEEN_VERSIONS, FORMATS, QUESTIONS, USES

KNOWN_FILE = Path("known-issues.yaml")
NIGHTLY_FILE = Path("nightly.yaml")


class OwningCommand(click.Command):
    """A command that owns scratch folders and processes, from when it is called."""

    def invoke(self, ctx: click.Context) -> Any:
        own(ctx.find_root())
        return super().invoke(ctx)


def own(root: click.Context) -> None:
    """Let a command line own scratch folders and processes: each of its runs has a scope within the one of this."""
    from harness.qemu.process import sweep_workdirs
    from harness.qemu.scope import ProcessScope

    sweep_workdirs()
    root.obj = root.with_resource(ProcessScope())


class Commands(click.Group):
    """A group that shows its commands in the order in which they were added, and their first sentences whole."""

    command_class = OwningCommand

    def add_command(self, cmd: click.Command, name: str | None = None) -> None:
        cmd.short_help = cmd.get_short_help_str(limit=1000)
        super().add_command(cmd, name)

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)


_cell_argument = click.argument("cell")
_known_file_option = click.option(
    "--file", "path", type=FILE, default=KNOWN_FILE, show_default=True, metavar="FILE", help="File of known issues."
)


@click.command(cls=OwningCommand)
@shared(options.qemu_option, options.machine_option, options.device_option, options.phase_option)
@shared(
    options.schedule_option, options.migration_option, options.reset_option, options.mode_option, options.loads_option
)
@shared(options.run_ms_option, options.quick_option, options.confirm_option, options.jobs_option)
@shared(options.processes_option)
@shared(options.budget_option, options.accel_option, options.guest_option, options.cpus_option, options.profiles_option)
@shared(options.known_option, options.store_option, options.remote_option, options.each_host_option)
@shared(options.out_option, options.fresh_option, options.shard_option, options.notify_option, json_option)
def matrix(**given: Any) -> int:
    """Test which devices survive COLO checkpoints, and print the matrix.

    Boots a guest, records its device state, and loads that state many times into COLO secondaries, device by device.
    """
    from harness.commands.matrix import matrix as run

    return run(given)


@click.command(cls=OwningCommand)
@options.recorder_option
@click.option(
    "--machine",
    metavar="NAME",
    default="pc",
    show_default=True,
    help="Machine type: pc, q35, virt, or a versioned name.",
)
@shared(options.device_option, options.phase_option, options.accel_option, options.guest_option)
@shared(options.cpus_option, options.profiles_option)
@options.pack_option
@json_option
def record(**given: Any) -> int:
    """Boot a guest and record its phases into a state pack."""
    from harness.commands.matrix import record as run

    return run(given)


@click.command(cls=OwningCommand)
@click.option("--domain", type=FILE, metavar="FILE", help="libvirt domain, as virsh dumpxml prints it.")
@click.option(
    "--command-line",
    "command_line",
    type=FILE,
    metavar="FILE",
    help="Command line of QEMU: a script, a log of libvirt's, what ps printed.",
)
@click.option("--pid", type=click.IntRange(1), metavar="PID", help="Running QEMU of this host; it is not touched.")
@click.option(
    "--state",
    type=FILE,
    metavar="FILE",
    help="Saved state of the VM: a migration stream, compressed or not, a save image of libvirt's, which has its "
    "domain in it, or a qcow2 image with a snapshot.",
)
@click.option("--snapshot", metavar="NAME", help="Internal snapshot of a qcow2 image, where it has several.")
@options.recorder_option
@click.option("--machine", metavar="NAME", help="Machine type to take in place of the VM's.")
@shared(options.phase_option, options.accel_option, options.guest_option)
@options.vm_pack_option
@click.option(
    "--redact",
    is_flag=True,
    help="Leave out the guest's memory and what names it, so that the pack can be given away; see redact.",
)
@json_option
def adopt(**given: Any) -> int:
    """Make a state pack of your own VM.

    Its devices, as its libvirt domain or command line has them, stand in their places with harmless things behind them,
    and nothing of the host is opened. A guest of postload's is booted in it and recorded, or the VM's own saved state
    is taken. What is replaced and what is not judged is said.
    """
    from harness.commands.adopt import adopt as run

    return run(given)


@click.command(cls=OwningCommand)
@click.argument("pack", type=FILE)
@options.pack_option
@click.option("--phase", metavar="NAME", help="Phase to take.  [default: the pack's last]")
@click.option("--name", "names", multiple=True, metavar="TEXT", help="What else names the guest. May be repeated.")
@json_option
def redact(**given: Any) -> int:
    """Make a state pack that can be given away.

    One phase of PACK is written without the guest's memory, with buffers and general registers emptied, and with other
    MAC addresses, serials and UUIDs. What remains is listed. Its guest stays halted when it is loaded.
    """
    from harness.commands.redact import redact as run

    return run(given)


@click.command(cls=OwningCommand)
@click.argument("pack", type=FILE)
@shared(options.qemu_option, options.device_option, options.phase_option, options.schedule_option)
@shared(options.migration_option, options.reset_option)
@shared(options.mode_option, options.loads_option, options.run_ms_option, options.quick_option)
@shared(options.confirm_option, options.jobs_option, options.processes_option, options.budget_option)
@shared(options.profiles_option)
@shared(options.known_option, options.store_option, options.remote_option, options.each_host_option)
@shared(options.out_option, options.notify_option, json_option)
def replay(pack: Path, **given: Any) -> int:
    """Load a recorded state pack, and print the matrix."""
    from harness.commands.matrix import replay as run

    return run(pack, given)


@click.command(cls=OwningCommand)
@click.argument("pack", type=FILE, required=False)
@listed("--from", "sources", "QEMUs that the guests run on now.", metavar="QEMU")
@listed("--to", "targets", "QEMUs that they are to run on.", metavar="QEMU")
@click.option("--both-ways", is_flag=True, help="Try the way back too: from the new QEMU to the old one.")
@listed(
    "--for",
    "uses",
    f"Uses that decide the answer: {', '.join(USES)}.  [default: {','.join(DECIDING_BETWEEN_VERSIONS)}; between hosts "
    f"of one version {','.join(DECIDING)}]",
    metavar="USE",
)
@click.option(
    "--loads",
    type=click.IntRange(1),
    metavar="N",
    default=options.QUALIFY_LOADS,
    show_default=True,
    help="Loads in a COLO cell.",
)
@listed("--schedule", "schedules", f"COLO schedules.  [default: {','.join(options.QUALIFY_SCHEDULES)}]")
@shared(options.machine_option, options.device_option, options.phase_option, options.run_ms_option)
@shared(options.global_option, options.jobs_option, options.processes_option, options.budget_option)
@shared(options.accel_option, options.guest_option)
@shared(options.cpus_option, options.profiles_option, options.out_option)
@click.option(
    "--known", type=FILE, metavar="FILE", help="File of known issues. They are named, and count all the same."
)
@shared(*options.vm_options)
@click.option(
    "--domains", "folders", type=FILE, multiple=True, metavar="DIR", help="Folder of such files, of any number."
)
@click.option("--static", is_flag=True, help="Of VMs say only what is known before anything is loaded.")
@shared(options.fresh_option, json_option)
def qualify(pack: Path | None, **given: Any) -> int:
    """Say whether guests can move to another QEMU or host: go or no-go.

    Give a state PACK that the old host recorded, or --from and --to, or VMs and --to. Exit codes: 0 go, 1 no-go, 3
    unknown.
    """
    if any(given[name] for name in ("domains", "command_lines", "pids", "folders")):
        from harness.commands.fleet import qualify_vms

        return qualify_vms(click.get_current_context(), pack, given)
    from harness.commands.qualify import qualify as run

    return run(click.get_current_context(), pack, given)


@click.command(cls=OwningCommand)
@click.argument("run", type=FILE, default=options.DEFAULT_OUT, required=False, metavar="[DIR]")
@listed("--format", "formats", f"Reports to write: {', '.join(FORMATS)}.  [default: all]")
@click.option("--out", type=FILE, metavar="DIR", help="Folder for the reports.  [default: the run's]")
@json_option
def report(**given: Any) -> int:
    """Make the reports of a run again, even of one that was killed.

    They are made of its cells.jsonl, also while the run goes on. Ends with the exit code of the run, or with 3 when the
    run did not come to its end.
    """
    from harness.commands.report import report as run

    return run(**given)


@click.command(cls=OwningCommand)
@click.option("--qemu-a", required=True, metavar="QEMU", help="The build to compare with: a path, a name or a version.")
@click.option("--qemu-b", required=True, metavar="QEMU", help="The build that was changed.")
@shared(options.machine_option, options.device_option, options.phase_option, options.schedule_option)
@shared(options.migration_option, options.reset_option, options.mode_option, options.loads_option)
@shared(options.run_ms_option, options.quick_option, options.confirm_option, options.jobs_option)
@shared(options.processes_option, options.budget_option, options.accel_option, options.guest_option)
@shared(options.cpus_option, options.profiles_option, options.known_option, options.out_option, options.fresh_option)
@json_option
def ab(**given: Any) -> int:
    """Compare two builds of QEMU, cell by cell, on the same recordings.

    A records, and both load. Only what differs is told. Ends with 1 for what B breaks and A does not, or breaks worse;
    else with 3 when something was not decided.
    """
    from harness.commands.ab import ab as run

    return run(given)


@click.command(cls=OwningCommand)
@click.argument("folders", type=FILE, nargs=-1, required=True, metavar="DIR...")
@shared(options.out_option, options.known_option, options.store_option, options.notify_option, json_option)
def merge(notify: str | None, **given: Any) -> int:
    """Put the shards of a run together.

    Each DIR is the folder of a run with --shard. Ends with the exit code of the whole run, or with 3 when a shard or a
    cell is missing.
    """
    from harness.commands.merge import merge as run

    return run(hook=notify, **given)


@click.command(cls=OwningCommand)
@_cell_argument
@run_option
@click.option(
    "--backtrace/--no-backtrace",
    default=True,
    show_default=True,
    help="Repeat a crash, a hang or a leak under gdb, to get a stack.",
)
@click.option("--qemu", metavar="QEMU", help="QEMU to repeat it with.  [default: the cell's]")
@click.option("--known", type=FILE, metavar="FILE", help="File of known issues to look it up in.")
@json_option
def explain(**given: Any) -> int:
    """Tell everything that is known of one CELL, on one page.

    CELL is the name of a cell, or a part of it that only one failing cell has. A stack from gdb is kept in
    DIR/backtraces. Ends with 3 when the cell was not judged.
    """
    from harness.commands.explain import explain_cell

    return explain_cell(**given)


@click.command(cls=OwningCommand)
@_cell_argument
@run_option
@click.option("--out", type=FILE, metavar="DIR", help="Folder for the case.  [default: cases/CELL in the run's]")
@click.option("--qemu", metavar="QEMU", help="QEMU to try it on.  [default: the cell's]")
@json_option
def minimise(**given: Any) -> int:
    """Find the smallest case of a failing CELL.

    CELL is the name of a cell, or a part of it that only one failing cell has. Tries fewer loads, sections, memory
    pages and fields. Ctrl-C loses nothing: the same command goes on from there. Ends with 3 when the cell does not fail
    any more.
    """
    from harness.commands.minimise import minimise as run

    return run(**given)


@click.command(cls=OwningCommand)
@click.argument("cell", required=False)
@run_option
@click.option("--all", "every", is_flag=True, help="Minimise and bundle each signature of the run once.")
@click.option(
    "--out",
    type=FILE,
    metavar="DIR",
    help="Folder to write. It must not exist yet.  [with --all, default: bundles in the folder of the run]",
)
@click.option(
    "--qemu",
    "qemus",
    multiple=True,
    metavar="QEMU",
    help="Another QEMU to try it on. May be repeated.  [default: all that are installed]",
)
@json_option
def bundle(cell: str | None, every: bool, out: Path | None, **given: Any) -> int:
    """Write a bug report with a script that reproduces the finding.

    CELL is the name of a cell, or a part of it that only one failing cell has. The case is that of postload minimise
    where there is one, else the cell's own. The script is run once on the QEMU that the cell was found on,
    and on the others that are installed. With --all each signature of the run gets a bundle of its smallest case; a
    signature that has one already is passed over, so that the same command goes on from there.
    """
    if every is (cell is not None):
        raise click.UsageError("expected a CELL, or --all")
    if cell is None:
        from harness.commands.bundle import bundle_all

        return bundle_all(out=out, **given)
    if out is None:
        raise click.UsageError("Missing option '--out'.")
    from harness.commands.bundle import bundle as run_bundle

    return run_bundle(cell, out=out, **given)


@click.command(cls=OwningCommand)
@_cell_argument
@run_option
@click.option("--bundle", type=FILE, metavar="DIR", help="Its bundle.  [default: one is made]")
@click.option("--good", required=True, metavar="QEMU", help="A QEMU without the failure.")
@click.option("--bad", required=True, metavar="QEMU", help="A QEMU with the failure.")
@click.option("--qemu", "qemus", multiple=True, metavar="QEMU", help="Another build to try. May be repeated.")
@json_option
def bisect(**given: Any) -> int:
    """Find the QEMU version that changed a finding.

    CELL is the name of a cell, or a part of it that only one failing cell has. Each installed QEMU between GOOD and
    BAD is tried with the script of the cell's bundle. A QEMU is a path, an installed name or a version.
    """
    from harness.commands.bisect import bisect_cell

    return bisect_cell(**given)


@click.group(cls=Commands)
def known() -> None:
    """Keep a file of known issues, for --known FILE."""


@known.command("add")
@_cell_argument
@run_option
@click.option("--link", required=True, metavar="URL", help="Where the issue is described.")
@click.option("--note", default="", metavar="TEXT", help="A note for whoever meets it next.")
@click.option("--until", type=click.DateTime(["%Y-%m-%d"]), metavar="DATE", help="The last day on which it is excused.")
@_known_file_option
def known_add(**given: Any) -> int:
    """Add the finding of a CELL to the file.

    CELL is the name of a cell, or a part of it that only one failing cell has.
    """
    from harness.commands.known import add

    return add(**given)


@known.command("list")
@shared(_known_file_option, json_option)
def known_list(**given: Any) -> int:
    """Show the known issues."""
    from harness.commands.known import list_known

    return list_known(**given)


@click.command(cls=OwningCommand)
@click.argument("what", required=False, metavar="[CELL|SIGNATURE|DEVICE]")
@shared(options.history_option, options.last_option, json_option)
def history(**given: Any) -> int:
    """Show the runs of a history, or what became of a cell or device.

    CELL is the name of a cell or a part of it, as in matrix.json; SIGNATURE that of a finding. A run that was killed
    is marked, and what its folder has of it is taken in.
    """
    from harness.commands.history import history as run

    return run(**given)


_rules_option = click.option(
    "--rules", type=FILE, metavar="FILE", help="Rules of what is new, back or flaky.  [default: built in]"
)


@click.command(cls=OwningCommand)
@click.argument("before", metavar="RUN")
@click.argument("after", metavar="RUN")
@_rules_option
@click.option("--all", "everything", is_flag=True, help="Show every cell, and those that did not run.")
@shared(options.history_option, json_option)
def compare(**given: Any) -> int:
    """Say what is new, back or gone in one run against an earlier one.

    RUN is last, last~1 (the one before), baseline, or a run's name or its beginning. The earlier run comes first. Exit
    codes: 1 when something is new or back, else 3 when planned cells were not judged, else 0.
    """
    from harness.commands.history import compare_runs

    return compare_runs(**given)


@click.command(cls=OwningCommand)
@click.option("--out", type=FILE, metavar="DIR", required=True, help="Folder of the pages. It is replaced as a whole.")
@click.option(
    "--against",
    metavar="RUN",
    help="What the last run is held against: last~7, baseline, or a run's name.  [default: the run before it]",
)
@_rules_option
@shared(options.history_option, options.last_option)
def pages(**given: Any) -> int:
    """Write a history as pages.

    They tell what is new, back, gone and not run, and have each device, finding and run. They need no server, and load
    nothing from elsewhere. The folder is written beside DIR and then put in its place, so that nobody who reads it sees
    half of it. DIR must be new, empty, or of an earlier call.
    """
    from harness.commands.pages import write_pages

    return write_pages(**given)


@click.group(cls=Commands)
def baseline() -> None:
    """Name the run that others are compared with."""


@baseline.command("set")
@click.argument("run", metavar="RUN")
@options.history_option
def baseline_set(**given: Any) -> int:
    """Make RUN the baseline.

    RUN is last, last~1, or a run's name or its beginning. The baseline is never pruned.
    """
    from harness.commands.history import set_baseline

    return set_baseline(**given)


@click.command(cls=OwningCommand)
@click.option(
    "--config", type=FILE, default=NIGHTLY_FILE, show_default=True, metavar="FILE", help="What is judged each night."
)
@json_option
def nightly(**given: Any) -> int:
    """Judge a night, and say what is new since the one before.

    FILE names QEMUs, machines, devices, a budget in minutes and the history. A night that was cut off goes on. Ends
    with 1 when something is new, back or excused no longer; else with 3 when the night does not count, or planned cells
    were not judged; else with 0.
    """
    from harness.commands.nightly import nightly as run

    return run(**given)


@click.command("import", cls=OwningCommand)
@click.argument("folders", type=FILE, nargs=-1, required=True, metavar="DIR...")
@shared(options.history_option, json_option)
def import_(**given: Any) -> int:
    """Take runs into a history by their folders.

    A run that is there already gets what it lacks. Of a folder without cells.jsonl, matrix.json is read.
    """
    from harness.commands.history import import_runs

    return import_runs(**given)


@click.group(cls=Commands, invoke_without_command=True)
@click.option(
    "--qemu",
    "qemus",
    multiple=True,
    metavar="QEMU",
    help="QEMU to offer: a path, an installed name or a version. May be repeated.  [default: this host's and all "
    "installed]",
)
@options.worker_jobs_option
@click.option(
    "--idle",
    "idle_s",
    type=click.FloatRange(0, min_open=True),
    metavar="SECONDS",
    help="End when there was no job for so long.  [default: wait for the next]",
)
@click.option(
    "--lost",
    "lost_s",
    type=click.FloatRange(1),
    metavar="SECONDS",
    default=30.0,
    show_default=True,
    help="Give the jobs of a worker to others that did not say for so long that it lives. The same for all workers.",
)
@click.option("--name", metavar="NAME", help="Name of this host in runs and reports.  [default: its host name]")
@options.jobs_store_option
def work(**given: Any) -> int:
    """Judge cells for runs of other hosts: those of matrix --remote.

    Takes jobs that this host's QEMUs can do from the PostgreSQL database of a history, until it is told to stop. With
    a command, do that instead.
    """
    if click.get_current_context().invoked_subcommand is not None:
        return 0
    from harness.commands.work import work as run

    return run(**given)


@work.command("status")
@shared(options.jobs_store_option, json_option)
def work_status(**given: Any) -> int:
    """Show the workers, and what waits for which of their abilities.

    Ends with 1 when jobs wait for what no living worker has.
    """
    from harness.commands.work import status

    return status(**given)


@click.command(cls=OwningCommand)
@click.option("--keep", metavar="N|DAYSd", help="Keep so many runs, or those of so many days: 200, or 90d.")
@click.option("--logs", "log_days", type=click.FloatRange(0), metavar="DAYS", help="Keep logs for so many days.")
@click.option("--dry-run", is_flag=True, help="Only say what would be removed.")
@shared(options.history_option, json_option)
def prune(**given: Any) -> int:
    """Remove old runs and logs from a history.

    The baseline stays, and a run that still goes on. Signatures stay, and know when they were seen first. Logs are the
    causes and the text of cells that were not ok.
    """
    from harness.commands.history import prune_runs

    return prune_runs(**given)


@click.command(cls=OwningCommand)
@click.argument("path", type=FILE)
@click.option("--section", metavar="IDSTR", help="Show the fields of the sections whose idstr contains this text.")
@click.option("--phase", metavar="PHASE", help="Phase of a state pack to show.")
@click.option(
    "--like",
    type=FILE,
    help="Stream or state pack of the same machine, to name the fields of a stream without a description of its own.",
)
@click.option("--snapshot", metavar="NAME", help="Internal snapshot of a qcow2 image, where it has several.")
@json_option
def inspect(**given: Any) -> int:
    """Show what a state pack or the saved state of a machine contains.

    Lists its sections; with --section their fields and values. A saved state is a migration stream, compressed or not,
    a save image of libvirt's, or a qcow2 image with an internal snapshot.
    """
    from harness.commands.show import inspect as run

    return run(**given)


@click.command(cls=OwningCommand)
@click.option("--qemu", metavar="QEMU", help="QEMU to ask: a path, an installed name or a version.")
@listed("--machine", "machines", "Machine types.  [default: pc,q35 for question 1, pc for the others]")
@click.option(
    "--question",
    "questions",
    type=click.IntRange(min(QUESTIONS), max(QUESTIONS)),
    metavar="N",
    multiple=True,
    help="Number of a question. May be repeated.  [default: all]",
)
@shared(options.jobs_option, options.accel_option, options.guest_option, options.profiles_option)
@shared(options.out_option, json_option)
def claims(**given: Any) -> int:
    """Answer four questions about COLO, in numbers.

    \b
    1  May QEMU assert that a device load succeeds?
    2  What is left of a checkpoint that broke off half-way?
    3  Can a device stream be read without its size?
    4  What does a higher checkpoint frequency cost?
    """
    from harness.commands.claims import claims as run

    return run(given)


@click.group(cls=Commands)
def qemu() -> None:
    """Install several QEMU versions side by side, without root."""


@qemu.command("install")
@click.argument("what", metavar="VERSION|NAME=PATH")
@click.option("--full", is_flag=True, help="With modules for OpenGL, SPICE and remote disks: up to 80 MB more.")
@click.option("--refresh", is_flag=True, help="Ask the mirror for newer packages of an installed version.")
@click.option(
    "--datadir", "datadirs", multiple=True, type=FILE, metavar="DIR", help="Firmware folder (-L). May be repeated."
)
@click.option("--module-dir", type=FILE, metavar="DIR", help="Folder of the build's modules.")
@click.option("--env", "env", multiple=True, metavar="KEY=VALUE", help="Variable to start it with. May be repeated.")
def qemu_install(**given: Any) -> int:
    """Install a version of Debian's, or give your own build a name.

    VERSION is 5.2, 7.2, 10.0 or 11.1; with -aarch64 behind it, it is the emulator for the machine virt. NAME=PATH, such
    as asan=/path/to/qemu-system-x86_64, names a build of yours. The name then works wherever a QEMU is asked for.
    """
    from harness.commands.qemu import install

    return install(**given)


@qemu.command("list")
@json_option
def qemu_list(as_json: bool) -> int:
    """Show the installed QEMUs, and the versions that can be installed."""
    from harness.commands.qemu import list_installed

    return list_installed(as_json)


@qemu.command("remove")
@click.argument("name")
def qemu_remove(name: str) -> int:
    """Remove a name and its folder in the cache. Files of yours stay."""
    from harness.commands.qemu import remove

    return remove(name)


@click.group(cls=Commands)
def cache() -> None:
    """Show and shrink the cache of recordings, guests and QEMUs."""


@cache.command("show")
@json_option
def cache_show(as_json: bool) -> int:
    """Show where the cache is, and how large each part of it is."""
    from harness.commands.cache import show

    return show(as_json)


@cache.command("prune")
@click.option("--keep", metavar="SIZE", help="Keep so much of recordings, such as 2G or 500M: those used last.")
@click.option("--older", type=click.FloatRange(0), metavar="DAYS", help="Remove what was not used for so many days.")
@click.option("--dry-run", is_flag=True, help="Only say what would be removed.")
def cache_prune(**given: Any) -> int:
    """Remove recordings and unpacked packs that were not used lately.

    They are made again when a run needs them. What a running process uses, and what was used in the last hour, stays.
    Guests and downloads stay too; QEMUs are removed by postload qemu remove. Marks of cases that were made here go as
    well: such a case is then checked as one from elsewhere.
    """
    from harness.commands.cache import prune

    return prune(**given)


_one_machine_option = click.option(
    "--machine", metavar="NAME", default="q35", show_default=True, help="Machine type: pc, q35, or a versioned name."
)
_one_qemu_option = click.option("--qemu", metavar="QEMU", help="QEMU to ask: a path, an installed name or a version.")


@click.group(cls=Commands, invoke_without_command=True)
@shared(_one_qemu_option, _one_machine_option, options.accel_option, options.jobs_option, json_option)
def devices(**given: Any) -> int:
    """Show the device types of a QEMU, and what becomes of each.

    Every type of -device help is listed: judged, or the reason why it is not. Types that were not tried before are
    started once, which takes half a minute. With a command, do that instead.
    """
    if click.get_current_context().invoked_subcommand is not None:
        return 0
    from harness.commands.devices import catalogue

    return catalogue(given)


@devices.command("show")
@click.argument("name", metavar="TYPE")
@click.option("--yaml", "as_yaml", is_flag=True, help="Print the recipe alone, to save, edit and give with --profiles.")
@shared(_one_qemu_option, _one_machine_option, options.accel_option, json_option)
def devices_show(name: str, **given: Any) -> int:
    """Show one device TYPE: what becomes of it, and its recipe."""
    from harness.commands.devices import show

    return show(name, given)


@devices.command("check")
@click.argument("file", type=FILE)
@shared(options.qemu_option, options.machine_option, options.accel_option, options.guest_option, json_option)
def devices_check(file: Path, **given: Any) -> int:
    """Try a device recipe on a real QEMU.

    Does the device start, does it own sections, do its guest commands work? What fails is named with file and line.
    """
    from harness.commands.devices import check

    return check(file, given)


@click.command(cls=OwningCommand)
@options.qemu_option
@click.option(
    "--machine", metavar="NAME", default="pc", show_default=True, help="Machine type whose virtio devices are asked."
)
@shared(options.profiles_option, json_option)
def host(**given: Any) -> int:
    """Show the facts of this host that matter to its guests.

    Kernel, CPU, KVM, modules, QEMUs, and the virtio features that they offer. Each state pack keeps the same facts, so
    that qualify can compare two hosts.
    """
    from harness.commands.facts import host as run

    return run(**given)


@click.command(cls=OwningCommand)
@click.option("--qemu", metavar="QEMU", help="QEMU to look at.  [default: this host's]")
@json_option
def doctor(**given: Any) -> int:
    """Say what this host lacks, and what to install."""
    from harness.commands.show import doctor as run

    return run(**given)


#: In the order of the help.
COMMANDS = (
    matrix,
    record,
    adopt,
    redact,
    replay,
    qualify,
    report,
    merge,
    ab,
    explain,
    minimise,
    bundle,
    bisect,
    known,
    nightly,
    history,
    compare,
    baseline,
    pages,
    import_,
    prune,
    work,
    inspect,
    claims,
    qemu,
    cache,
    devices,
    host,
    doctor,
)
