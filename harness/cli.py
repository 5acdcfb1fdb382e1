# SPDX-License-Identifier: GPL-2.0-or-later
"""The command ``postload``: parse and delegate. The only place that exits."""

from __future__ import annotations

import json
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any, TypeVar

import click
from rich.console import Console
from rich.markup import escape
from rich.table import Table

import harness
from harness import inspection
from harness.claims.run import QUESTIONS, Asked, answer_all, exit_status
from harness.claims.text import claims_json, print_claims, write_claims
from harness.errors import PostloadError, UsageError
from harness.guest.build import build_guest
from harness.guest.recipe import load_recipe
from harness.host import check_host, host_facts
from harness.matrix.model import MatrixDoc
from harness.matrix.plan import DEFAULT_LOADS
from harness.matrix.run import Options, Run, load_pack_rows, make_recording
from harness.oracle.verdict import exit_code
from harness.qemu.binary import AccelState, QemuBinary, choose_accel, find_binary, probe_binary
from harness.qemu.process import kill_all, sweep_workdirs
from harness.record.pack import StatePack
from harness.record.profile import Profile, load_profiles, select_profiles
from harness.record.recorder import PHASES, ordered_phases
from harness.replay.schedule import SCHEDULES, Schedule
from harness.replay.state import GuestMode
from harness.report.terminal import LiveProgress, print_matrix
from harness.report.writer import render_json, write_json, write_reports

F = TypeVar("F", bound=Callable[..., Any])

DEFAULT_OUT = Path("postload-out")
#: How long a guest runs after each load, in milliseconds: long enough to take interrupts and to touch its disks.
DEFAULT_RUN_MS = 2.0

#: No --qemu given: the host's own.
_HOSTS: list[str | None] = [None]

_err = Console(stderr=True, highlight=False)


def main() -> None:
    """Entry point: errors become one line on stderr and the exit code that the error tree gives them."""
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        sweep_workdirs()
        code = cli.main(standalone_mode=False)
    except click.exceptions.Abort:
        code = _say("interrupted", 3)
    except KeyboardInterrupt:
        code = _say("interrupted", 3)
    except click.ClickException as error:
        error.show(sys.stderr)
        code = 2
    except PostloadError as error:
        code = _say(str(error), error.exit_code)
    except BrokenPipeError:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115, PTH123 - only to keep the interpreter's last flush quiet
        code = 3
    except Exception:
        # Python itself would end with 1, which here means findings
        traceback.print_exc()
        code = _say("this is a mistake in postload itself, and says nothing about a device", 3)
    finally:
        kill_all()
    sys.exit(code if isinstance(code, int) else 0)


def _interrupt(_signal: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _say(text: str, code: int) -> int:
    _err.print(f"postload: {escape(text)}", soft_wrap=True)
    return code


def _names(_context: click.Context, _parameter: click.Parameter, value: tuple[str, ...] | str | None) -> list[str]:
    """Comma-separated and repeated values as one list, each once."""
    given = [value] if isinstance(value, str) else list(value or ())
    return list(dict.fromkeys(name.strip() for part in given for name in part.split(",") if name.strip()))


_qemu = click.option("--qemu", "qemus", multiple=True, metavar="PATH", help="QEMU to test; may be given again.")
_machine = click.option(
    "--machine", "machines", multiple=True, default=("pc,q35",), callback=_names, help="Machine types, pc,q35."
)
_device = click.option("--device", "devices", multiple=True, callback=_names, help="Rows to judge; all profiles.")
_phase = click.option(
    "--phase", "phases", multiple=True, callback=_names, help=f"Phases; {','.join(PHASES)}. Also io-error."
)
_schedule = click.option(
    "--schedule", "schedules", multiple=True, callback=_names, help=f"Schedules; {','.join(SCHEDULES)}."
)
_mode = click.option(
    "--guest-mode", "modes", multiple=True, default=("running",), callback=_names, help="running, parked, or both."
)
_loads = click.option(
    "--loads", type=click.IntRange(1), default=DEFAULT_LOADS, show_default=True, help="Loads for each cell."
)
_jobs = click.option(
    "--jobs", type=click.IntRange(1, 64), default=lambda: os.cpu_count() or 1, help="Cells at a time; one a core."
)
_run_ms = click.option(
    "--run-ms", type=click.FloatRange(0), default=DEFAULT_RUN_MS, show_default=True, help="Guest time after a load."
)
_accel = click.option("--accel", type=click.Choice(["auto", "kvm", "tcg"]), default="auto", show_default=True)
_guest = click.option("--guest", default="debian", show_default=True, help="Recipe: a name in guests/, or a YAML file.")
_profiles = click.option("--profiles", type=click.Path(path_type=Path), help="Folder of device profiles; devices/.")
_quick = click.option("--quick", is_flag=True, help="Loads only: no control and no oracle beyond the answers.")
_confirm = click.option(
    "--confirm", type=click.Choice(["pair"]), help="Repeat what breaks with a real primary and a real secondary."
)
_json = click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout, all else on stderr.")
_out = click.option("--out", type=click.Path(path_type=Path), default=DEFAULT_OUT, show_default=True, help="Reports.")


def _options(*options: Callable[[F], F]) -> Callable[[F], F]:
    def apply(function: F) -> F:
        for option in reversed(options):
            function = option(function)
        return function

    return apply


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(harness.__version__, prog_name="postload")
def cli() -> None:
    """Reload device state many times through QEMU's COLO checkpoint path and name what breaks.

    Exit codes: 0 all ok, 1 findings, 2 bad usage or configuration, 3 the harness or host could not decide,
    4 nothing to run.
    """


@cli.command()
@_options(_qemu, _machine, _device, _phase, _schedule, _mode, _loads, _run_ms, _quick, _confirm, _jobs)
@_options(_accel, _guest, _profiles, _out)
@click.option("--fresh", is_flag=True, help="Record anew even when a recording is kept.")
@_json
def matrix(**given: Any) -> int:
    """Record guests, reload their state, print which devices survive."""
    binaries, profiles = _binaries(given["qemus"], given["profiles"])
    _check_machines(binaries, given["machines"])
    accel = choose_accel(Path(binaries[0].path), given["accel"])
    options = Options(
        binaries=tuple(binaries),
        accel=accel.name,
        machines=tuple(given["machines"]),
        profiles=tuple(profiles.values()),
        devices=tuple(p.name for p in select_profiles(profiles, given["devices"] or profiles)),
        phases=tuple(ordered_phases(given["phases"] or PHASES)),
        fresh=given["fresh"],
        **_replay_options(given),
    )
    recipe = load_recipe(given["guest"])
    return _judge(options, accel, given, lambda run: run.execute(), guest=lambda: build_guest(recipe))


@cli.command()
@click.option("--qemu", metavar="PATH", help="QEMU to record with.")
@click.option("--machine", default="pc", show_default=True)
@_options(_device, _phase, _accel, _guest, _profiles)
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder of the new state pack.")
@_json
def record(**given: Any) -> int:
    """Boot one guest and record its phases into a state pack."""
    binaries, profiles = _binaries([given["qemu"]] if given["qemu"] else [], given["profiles"])
    _check_machines(binaries, [given["machine"]])
    if given["out"].exists():
        raise UsageError(f"--out {given['out']}: it exists already; a state pack is never overwritten")
    chosen = select_profiles(profiles, given["devices"] or profiles)
    phases = ordered_phases(given["phases"] or PHASES)
    recipe = load_recipe(given["guest"])
    accel = choose_accel(Path(binaries[0].path), given["accel"])
    with LiveProgress(total_cells=0, console=_err) as progress:
        make_recording(
            binary=binaries[0],
            machine=given["machine"],
            accel=accel.name,
            guest=build_guest(recipe),
            profiles=chosen,
            phases=phases,
            path=given["out"],
            stage=progress.stage,
        )
    with StatePack(given["out"]) as pack:
        _emit(inspection.describe_pack(pack), given["as_json"])
    return 0


@cli.command()
@click.argument("pack", type=click.Path(path_type=Path))
@_options(_qemu, _device, _phase, _schedule, _mode, _loads, _run_ms, _quick, _confirm, _jobs, _out, _json)
def replay(pack: Path, **given: Any) -> int:
    """Reload a recorded state pack."""
    with StatePack(pack) as opened:
        binaries, _ = _binaries(given["qemus"], None)
        recorded = [device.name for device in opened.manifest.devices]
        for name in given["devices"]:
            if name not in recorded:
                raise UsageError(f"device {name!r} is not in {pack}: it holds {', '.join(recorded)}")
        phases = ordered_phases(given["phases"] or opened.phases)
        for name in phases:
            if name not in opened.phases:
                raise UsageError(f"phase {name!r} is not in {pack}: it holds {', '.join(opened.phases)}")
        accel = choose_accel(Path(binaries[0].path), opened.manifest.accel)
        options = Options(
            binaries=tuple(binaries),
            accel=accel.name,
            machines=(opened.manifest.machine,),
            profiles=(),
            devices=tuple(given["devices"] or recorded),
            phases=tuple(phases),
            **_replay_options(given),
        )
        return _judge(options, accel, given, lambda run: load_pack_rows(run, opened))


@cli.command()
@click.argument("path", type=click.Path(path_type=Path))
@click.option("--section", metavar="IDSTR", help="Only sections whose idstr holds this text.")
@click.option("--phase", help="Of a state pack: the phase to show.")
@_json
def inspect(path: Path, section: str | None, phase: str | None, as_json: bool) -> int:
    """Show what a state pack or a migration stream holds, down to the field."""
    _emit(inspection.inspect_path(path, section=section, phase=phase), as_json)
    return 0


@cli.command()
@click.option("--qemu", metavar="PATH", help="QEMU to ask.")
@click.option(
    "--machine", "machines", multiple=True, callback=_names, help="Machine types; pc,q35 for question 1, pc for others."
)
@click.option(
    "--question",
    "questions",
    type=click.IntRange(min(QUESTIONS), max(QUESTIONS)),
    multiple=True,
    help="Questions by number, may be given again; all.",
)
@_options(_jobs, _accel, _guest, _profiles, _out, _json)
def claims(**given: Any) -> int:
    """Answer questions about COLO with numbers from this QEMU: asserts, half checkpoints, framing, frequency."""
    binaries, profiles = _binaries([given["qemu"]] if given["qemu"] else [], given["profiles"])
    machines = given["machines"]
    _check_machines(binaries, machines)
    both = [name for name in ("pc", "q35") if binaries[0].machine(name)]
    asked = Asked(
        binary=binaries[0],
        machines=machines or both,
        others=machines or both[:1],
        questions=given["questions"] or tuple(QUESTIONS),
        accel=choose_accel(Path(binaries[0].path), given["accel"]).name,
        profiles=tuple(profiles.values()),
        guest=partial(build_guest, load_recipe(given["guest"])),
        workers=given["jobs"],
        command=["postload", *sys.argv[1:]],
        stage=lambda text: _err.print(escape(text), soft_wrap=True),
    )
    doc = answer_all(asked)
    paths = write_claims(doc, given["out"])
    _renew_page(given["out"])
    if given["as_json"]:
        sys.stdout.write(claims_json(doc))
    print_claims(doc, _err if given["as_json"] else Console(highlight=False))
    _err.print(f"reports: {escape(', '.join(map(str, paths)))}", soft_wrap=True)
    return exit_status(doc)


def _renew_page(out: Path) -> None:
    """A matrix that lies in the same folder gets the answers into its page."""
    with suppress(OSError, ValueError, UsageError):
        write_reports(MatrixDoc.from_json(json.loads((out / "matrix.json").read_text())), out)


@cli.command()
@click.option("--qemu", metavar="PATH", help="QEMU to look at.")
@_json
def doctor(qemu: str | None, as_json: bool) -> int:
    """Say what this host has and lacks, and what to install."""
    checks = check_host(qemu)
    missing = any(check.needed and not check.ok for check in checks)
    if as_json:
        rows = [{k: getattr(c, k) for k in ("name", "ok", "needed", "found", "remedy")} for c in checks]
        _print_json({"schema": "postload.doctor/1", "ready": not missing, "checks": rows})
        return 3 if missing else 0
    table = Table(show_header=False, box=None, pad_edge=False)
    for check in checks:
        word = "ok" if check.ok else ("missing" if check.needed else "without")
        table.add_row(word, check.name, escape(check.found) + (f"\n-> {escape(check.remedy)}" if check.remedy else ""))
    Console(highlight=False).print(table)
    return 3 if missing else 0


def _binaries(paths: Sequence[str], folder: Path | None) -> tuple[list[QemuBinary], dict[str, Profile]]:
    profiles = load_profiles(folder)
    types = {t for p in profiles.values() for family in p.machines for t in p.device_types(family)}
    return [probe_binary(find_binary(path), types) for path in (paths or _HOSTS)], profiles


def _check_machines(binaries: list[QemuBinary], machines: list[str]) -> None:
    for name in machines:
        if not any(binary.machine(name) for binary in binaries):
            known = sorted({m.alias or m.name for b in binaries for m in b.machines if m.alias})
            raise UsageError(f"unknown machine {name!r}: {binaries[0].path} has {', '.join(known)} and versioned names")


def _replay_options(given: dict[str, Any]) -> dict[str, Any]:
    return {
        "schedules": _members(Schedule, given["schedules"] or list(SCHEDULES), "schedule"),
        "guest_modes": _members(GuestMode, given["modes"], "guest mode"),
        "loads": given["loads"],
        "jobs": given["jobs"],
        "run_s": given["run_ms"] / 1000,
        "quick": given["quick"],
        "pair": given["confirm"] == "pair",
    }


def _members(kind: Any, names: list[str], what: str) -> tuple[Any, ...]:
    known = [str(member) for member in kind]
    for name in names:
        if name not in known:
            raise UsageError(f"unknown {what} {name!r}: expected one of {', '.join(known)}")
    return tuple(member for member in kind if str(member) in names)


def _judge(
    options: Options, accel: AccelState, given: dict[str, Any], work: Callable[[Run], MatrixDoc], **more: Any
) -> int:
    out: Path = given["out"]
    with LiveProgress(total_cells=0, console=_err) as progress:
        run = Run(
            options,
            watcher=progress,
            on_cell=partial(_keep, out),
            host=host_facts({accel.name: accel}),
            command=["postload", *sys.argv[1:]],
            **more,
        )
        with _last_words(run, out):
            doc = work(run)
    write_reports(doc, out)
    return _report(doc, out, given["as_json"])


def _keep(out: Path, doc: MatrixDoc) -> None:
    write_json(doc, out)


@contextmanager
def _last_words(run: Run, out: Path) -> Iterator[None]:
    """A run that ends by an error still leaves all its reports."""
    try:
        yield
    except PostloadError:
        if run.document().cells:
            write_reports(run.document(), out)
        raise


def _report(doc: MatrixDoc, out: Path, as_json: bool) -> int:
    if as_json:
        sys.stdout.write(render_json(doc))
    print_matrix(doc, _err if as_json else Console(highlight=False))
    _err.print(f"reports: {escape(str(out / 'matrix.html'))}, matrix.json, matrix.md, junit.xml", soft_wrap=True)
    if not doc.complete:
        return _say(f"interrupted: {len(doc.cells)} cells were judged", 3)
    return exit_code(cell.verdict for cell in doc.cells)


def _emit(document: dict[str, Any], as_json: bool) -> None:
    if as_json:
        _print_json(document)
    else:
        inspection.print_document(document, Console(highlight=False))


def _print_json(document: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(document, indent=1) + "\n")
