# SPDX-License-Identifier: GPL-2.0-or-later
"""``postload minimise``: the smallest case of a failing cell."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.status import Status

from harness.commands.output import err, print_json
from harness.commands.resolve import binaries_of, run_scope
from harness.engines.buffers import Buffers
from harness.engines.probe import probe_colo
from harness.errors import Stopped, UsageError
from harness.packs.pack import StatePack
from harness.qemu.binary import QemuBinary
from harness.report.cases import told_case
from harness.report.console import SafeConsole
from harness.report.guesses import guess_text
from harness.report.text import plural
from harness.results.document import Cell, find_cell
from harness.results.folder import folder_of, read_matrix
from harness.results.verdict import Verdict
from harness.triage.case import Case
from harness.triage.elsewhere import loader_path, remember_case
from harness.triage.interrupt import one_interrupt
from harness.triage.journal import FileJournal
from harness.triage.minimise import RATE_TRIES, NotReproduced, Progress, Search
from harness.triage.reduction import Reduction
from harness.triage.smallest import SmallestFound
from harness.triage.tries import Target, Tries, check_target

CASES = "cases"
#: Part of what a journal is about: raised when the passes change, so that older journals are begun anew.
_PASSES = 1
#: Tries after which a cell is believed not to fail any more, when its section was isolated before.
_ISOLATED_TRIES = 5


def minimise(cell: str, run: Path, out: Path | None, qemu: str | None, as_json: bool) -> int:
    """Print and keep the smallest case; returns the exit code."""
    found = find_cell(read_matrix(run), cell)
    folder = out or case_folder(run, found)
    try:
        case = minimise_cell(found, folder, qemu)
    except NotReproduced as error:
        err.print(f"postload: {escape(found.id)}: {error}", soft_wrap=True)
        return error.exit_code
    if as_json:
        print_json(case.to_json())
    _say(case, folder, err if as_json else SafeConsole())
    return 0


def case_folder(run: Path, cell: Cell) -> Path:
    """Where the case of a cell of a run lies."""
    return folder_of(run) / CASES / cell.slug


def minimise_cell(cell: Cell, folder: Path, qemu: str | None = None) -> Case:
    """Minimise one cell and write its case.

    :param folder: of the case; the journal lies beside it until the case is there
    :param qemu: path or installed name; the QEMU that the cell was loaded with when None
    :raises UsageError: the cell holds nothing to minimise, or its pack or QEMU is not there
    :raises NotReproduced: it does not fail any more
    """
    check_target(cell)
    pack_path = _pack_of(cell)
    binary = binaries_of([qemu or loader_path(cell)])[0][0]
    if qemu is None and binary.sha256 != cell.load_qemu.sha256:
        err.print(f"{escape(binary.path)} is not the program any more that the run was made with", soft_wrap=True)
    with (
        run_scope() as scope,
        one_interrupt(scope),
        StatePack(pack_path) as pack,
        FileJournal(folder.parent / f".{folder.name}.journal.jsonl", _subject(cell, binary)) as journal,
        err.status("minimising") as status,
    ):
        target = Target(cell=cell, binary=binary, ability=probe_colo(binary, scope), buffers=Buffers(pack), scope=scope)
        if journal.resumed:
            err.print(f"going on after {journal.resumed} tries of an earlier run")
        try:
            case = _search(target, journal, _Shown(status))
        except NotReproduced:
            # else the same command would believe it without trying
            journal.close(done=True)
            raise
        except (KeyboardInterrupt, Stopped) as error:
            err.print("the same command goes on from here", soft_wrap=True)
            raise KeyboardInterrupt from error
        case.save(folder)
        remember_case(folder)
        journal.close(done=True)
    return case


def _search(target: Target, journal: FileJournal, shown: _Shown) -> Case:
    tries, cell = Tries(target), target.cell
    # a finding whose section was isolated failed more than once
    once_isolated = cell.verdict is not Verdict.FLAKY and cell.is_isolated
    search = Search(
        attempt=tries.attempt,
        key=lambda candidate: candidate.key,
        journal=journal,
        on_try=shown.tell,
        start_tries=_ISOLATED_TRIES if once_isolated else RATE_TRIES,
    )
    result = Reduction(target, search).run()
    return told_case(
        SmallestFound(target=target, result=result, search=search, evidence=tries.seen, leak=tries.figures(search))
    )


def _pack_of(cell: Cell) -> Path:
    if not cell.pack:
        raise UsageError(f"{cell.id}: the run does not say which state pack was loaded; run the matrix again")
    path = Path(cell.pack)
    if not path.exists():
        raise UsageError(f"{cell.id}: its state pack {path} is gone; run the matrix again")
    return path


def _subject(cell: Cell, binary: QemuBinary) -> dict[str, Any]:
    return {"cell": cell.id, "pack": cell.pack, "qemu": binary.sha256, "passes": _PASSES}


class _Shown:
    """Progress on stderr: a line that changes on a terminal, one for each pass elsewhere."""

    def __init__(self, status: Status) -> None:
        self._status = status
        self._stage = ""

    def tell(self, now: Progress) -> None:
        """After each try."""
        count = f"{plural(now.sessions, 'session')}, {plural(now.loads, 'load')}, {now.seconds:.1f} s"
        told = "fails" if now.hit else "passes"
        self._status.update(f"{now.stage}: {escape(guess_text(now.what))}: {told} ({count})")
        if now.stage != self._stage:
            self._stage = now.stage
            if not err.is_terminal:
                err.print(f"{now.stage}: {count}", soft_wrap=True)
        if now.hit and err.is_terminal and not now.replayed:
            err.print(f"  {now.stage}: {escape(guess_text(now.what))}: still fails", soft_wrap=True)


def _say(case: Case, folder: Path, console: Console) -> None:
    spent = case.spent
    console.print(escape(case.sentence), soft_wrap=True)
    console.print(
        f"{case.rate.failed} of {case.rate.tried} tries fail; {plural(spent.sessions, 'session')}, "
        f"{plural(spent.loads, 'load')}, "
        f"{spent.seconds:.1f} s",
        soft_wrap=True,
    )
    size = sum(path.stat().st_size for path in folder.iterdir())
    console.print(f"case: {escape(str(folder))} ({plural(size, 'byte')})", soft_wrap=True)
