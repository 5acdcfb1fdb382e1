# SPDX-License-Identifier: GPL-2.0-or-later
"""``postload qualify``: go or no-go before a host is upgraded."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource
from rich.markup import escape

from harness.arch.accel import choose_accel, kvm_state
from harness.commands.execute import begin, shown_run, told_walls
from harness.commands.options import QUALIFY_SCHEDULES
from harness.commands.output import err
from harness.commands.resolve import (
    binaries_of,
    check_machines,
    common_accel,
    guest_maker,
    members,
    overrides,
    rows_and_phases,
    run_scope,
)
from harness.commands.selection import select
from harness.engines.schedule import Schedule
from harness.errors import UsageError
from harness.facts import KvmTried, collect_facts, kvm_tried
from harness.names import AS_RECORDED, USES, USUAL_PHASES
from harness.packs.pack import StatePack
from harness.qemu.binary import AccelState, QemuBinary
from harness.qualify.evidence import GuestWitness
from harness.qualify.model import QualifyDoc, exit_code
from harness.qualify.pairs import plan_pairs
from harness.qualify.run import Context, home_subjects, pair_subjects, qualify_doc
from harness.report.console import SafeConsole
from harness.report.qualify import forget_qualify, print_qualify, qualify_json, qualify_plain, write_qualify
from harness.report.text import were
from harness.report.writer import FORMATS, write_reports
from harness.results.document import MatrixDoc
from harness.results.events import Answered, EventLog
from harness.results.folder import held_against
from harness.results.known import load_known
from harness.state.recorder import ordered_phases
from harness.state.transforms import GuestMode
from harness.work.asked import Options
from harness.work.run import Run, load_pack_rows

_POLL_S = 0.1
#: Options that a pack has decided already, by the names of their parameters.
_RECORDING = {
    "machines": "--machine", "accel": "--accel", "guest": "--guest", "cpus": "--cpus", "profiles": "--profiles",
    "fresh": "--fresh",
}  # fmt: skip

Work = Callable[[Run, Context], MatrixDoc]


def qualify(context: click.Context, pack: Path | None, given: dict[str, Any]) -> int:
    """Returns the exit code of the answer.

    :param context: of the command, which knows what was typed and what is a default
    """
    if given["static"]:
        raise UsageError("--static is said of VMs: expected --domain, --command-line, --pid or --domains beside it")
    uses = uses_of(given["uses"])
    if pack is not None:
        if given["sources"] or given["both_ways"]:
            raise UsageError("a pack comes from one host and goes one way: give PACK, or --from, not both")
        _refuse_recording(context)
        return _of_pack(pack, given, uses)
    if not given["sources"] or not given["targets"]:
        raise UsageError("expected a PACK, or --from QEMU and --to QEMU")
    return _of_pairs(given, uses)


def _refuse_recording(context: click.Context) -> None:
    """What says how to record is a mistake with a pack, which was recorded already."""
    for name, option in _RECORDING.items():
        if context.get_parameter_source(name) is ParameterSource.COMMANDLINE:
            raise UsageError(f"{option} is for recording, and a pack was recorded already")


def uses_of(given: list[str]) -> tuple[str, ...]:
    """The uses that decide, in their order; empty for the usual ones.

    :raises UsageError: one is unknown
    """
    for name in given:
        if name not in USES:
            raise UsageError(f"--for {name!r}: expected one of {', '.join(USES)}")
    return tuple(use for use in USES if use in given)


def _of_pairs(given: dict[str, Any], uses: tuple[str, ...]) -> int:
    sources, profiles = binaries_of(given["sources"], given["profiles"])
    targets, _ = binaries_of(given["targets"], given["profiles"])
    check_machines([*sources, *targets], given["machines"])
    both_ways = given["both_ways"]
    machines = dict.fromkeys(
        pair.machine for pair in plan_pairs(sources, targets, given["machines"], both_ways=both_ways)
    )
    accel = common_accel(sources, given["accel"])
    builds = {binary.sha256: binary for binary in (*sources, *targets)}
    chosen = select(list(builds.values()), list(machines), profiles, given["devices"], accel.name, given["jobs"])
    able = {binary.sha256: binary for binary in chosen.binaries}
    sources, targets = ([able[binary.sha256] for binary in side] for side in (sources, targets))
    pairs = plan_pairs(sources, targets, given["machines"], both_ways=both_ways)
    options = _options(
        given,
        [*sources, *targets],
        accel,
        phases=tuple(ordered_phases(given["phases"] or USUAL_PHASES)),
        rows=chosen.recipes,
        profiles=tuple(device for device in profiles.values() if device.default or device.name in chosen.recipes),
        derived=chosen.derived,
    )
    guest = guest_maker(given["guest"], given["machines"], given["cpus"])

    def work(run: Run, context: Context) -> MatrixDoc:
        return run.execute(pair_subjects(pairs), then=lambda doc: home_subjects(pairs, doc, context))

    return _written(*_judged(given, options, accel, uses, work, guest=guest), given)


def _of_pack(path: Path, given: dict[str, Any], uses: tuple[str, ...]) -> int:
    answer, doc = judged_pack(path, given, uses)
    return _written(answer, doc, given)


def judged_pack(
    path: Path,
    given: dict[str, Any],
    uses: tuple[str, ...],
    *,
    travelled: bool = True,
    builds: Sequence[QemuBinary] = (),
) -> tuple[QualifyDoc, MatrixDoc]:
    """Load a pack with the QEMUs of ``targets``; what came of it, kept in ``out`` and not written as reports yet.

    :param given: options of ``postload qualify``
    :param travelled: it was recorded elsewhere
    :param builds: QEMUs that are asked for confirmation beside those that load: the one that recorded
    """
    with StatePack(path) as pack:
        targets, _ = binaries_of(given["targets"] or [None], None, pack.device_types)
        rows, phases = rows_and_phases(pack, given)
        accel = choose_accel(targets[0], pack.manifest.accel)
        options = _options(given, targets, accel, rows=tuple(rows), phases=tuple(phases), profiles=())
        walls = told_walls(targets) if pack.foreign else None
        return _judged(
            given,
            options,
            accel,
            uses,
            lambda run, _: load_pack_rows(run, pack),
            travelled=travelled,
            walls=walls,
            builds=builds,
        )


def _options(
    given: dict[str, Any], binaries: list[QemuBinary], accel: AccelState, *, rows: tuple[str, ...], **more: Any
) -> Options:
    return Options(
        binaries=tuple(binaries),
        accel=accel.name,
        machines=tuple(given["machines"]),
        devices=rows,
        schedules=members(Schedule, given["schedules"] or QUALIFY_SCHEDULES, "schedule"),
        guest_modes=(GuestMode.RUNNING,),
        loads=given["loads"],
        jobs=given["jobs"],
        processes=given["processes"],
        budget_s=given["budget_s"],
        run_s=given["run_ms"] / 1000,
        fresh=given["fresh"],
        cpus=given["cpus"],
        migrations=tuple(given.get("migrations", AS_RECORDED)),
        oracles=False,
        checkpoints=given.get("checkpoints", True),
        overrides=overrides(given["globals_"]),
        **more,
    )


def _judged(
    given: dict[str, Any],
    options: Options,
    accel: AccelState,
    uses: tuple[str, ...],
    work: Work,
    *,
    travelled: bool = False,
    walls: str | None = None,
    builds: Sequence[QemuBinary] = (),
    **more: Any,
) -> tuple[QualifyDoc, MatrixDoc]:
    issues = load_known(given["known"]) if given["known"] else None
    binaries = {binary.sha256: binary for binary in (*builds, *options.binaries)}
    witness = GuestWitness(binaries=binaries, overrides=options.overrides, accel=accel, say=_say, scope=run_scope())
    context = Context(
        binaries=binaries,
        deciding=uses,
        witness=witness,
        travelled=travelled,
        kvm=_kvm_tried(accel, options.binaries),
    )
    out: Path = given["out"]
    asked = {"deciding": list(uses), "travelled": travelled, "kvm": context.kvm and asdict(context.kvm)}
    started = begin(accel, issues, asked, walls)
    forget_qualify(out)
    with EventLog(out) as log:
        with shown_run(options, started, log, **more) as run:
            doc = work(run, context)
        doc = held_against(doc, started).doc
        try:
            answer = _told(doc, context, witness)
        except KeyboardInterrupt:
            answer = qualify_doc(replace(doc, complete=False), context)
        finally:
            witness.close()
        plain = qualify_plain(answer)
        run.tell(Answered(qualify=plain))
    # as postload report reads it: the search for causes is a part of the run's time
    return QualifyDoc.from_json(plain), held_against(run.document(), started).doc


def _written(answer: QualifyDoc, doc: MatrixDoc, given: dict[str, Any]) -> int:
    write_answer(answer, doc, given["out"])
    return report_answer(answer, len(doc.cells), given["out"], as_json=given["as_json"])


def write_answer(answer: QualifyDoc, doc: MatrixDoc, out: Path, formats: Sequence[str] = tuple(FORMATS)) -> None:
    """The answer's files, and the matrix's with the answer in its page."""
    write_qualify(answer, out, formats)
    write_reports(doc, out, formats)


def report_answer(answer: QualifyDoc, cells: int, out: Path, *, as_json: bool) -> int:
    """Print an answer whose files are written; returns the exit code of its run."""
    if as_json:
        click.echo(qualify_json(answer), nl=False)
    print_qualify(answer, err if as_json else SafeConsole())
    files = "qualify.json, qualify.md, matrix.html, matrix.json, matrix.md, junit.xml, matrix.tap, summary.md"
    err.print(f"reports: {escape(str(out))}/{files}", soft_wrap=True)
    if not answer.complete:
        err.print(f"postload: interrupted: {were(cells, 'cell')} judged", soft_wrap=True)
    return exit_code(answer.answer) if answer.complete else 3


def _told(doc: MatrixDoc, context: Context, witness: GuestWitness) -> QualifyDoc:
    """The answer with its causes, found in a thread: Ctrl-C then ends the QEMUs that are asked, and cuts no talk with
    one short."""
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="witness") as pool:
        asked = pool.submit(qualify_doc, doc, context)
        try:
            while not wait([asked], timeout=_POLL_S).done:
                pass
        except KeyboardInterrupt:
            witness.scope.close()
            raise
    return asked.result()


def _say(text: str) -> None:
    err.print(escape(text), soft_wrap=True)


def _kvm_tried(accel: AccelState, binaries: Sequence[QemuBinary]) -> KvmTried:
    """Whether state that KVM refuses could be seen; where it could, which builds would not say so."""
    kvm = kvm_state(binaries[0], accel)
    return kvm_tried(collect_facts(binaries, machine=None, accel=kvm) if kvm.usable else kvm)
