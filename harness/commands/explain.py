# SPDX-License-Identifier: GPL-2.0-or-later
"""``postload explain``: everything known about one cell, on one page of a terminal."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from pathlib import Path

from harness.commands.output import err, print_json
from harness.errors import MissingError, PostloadError
from harness.packs.pack import StatePack
from harness.qemu.binary import QemuBinary
from harness.report.console import SafeConsole
from harness.report.explain import explain_json, print_page
from harness.results.document import Cell, find_cell
from harness.results.folder import read_matrix
from harness.results.known import load_known
from harness.triage.allocations import Allocations, AllocationsHow, find_allocations, kept_allocations, leaks_of_heap
from harness.triage.backtrace import Backtrace, StackHow
from harness.triage.case import Case
from harness.triage.explain import ExplainMaterial, explain
from harness.triage.interrupt import one_interrupt
from harness.triage.stack import binary_of, given_binary, has_stack, kept_stack, repeat_under_gdb, told_stack


def explain_cell(cell: str, run: Path, backtrace: bool, qemu: str | None, known: Path | None, as_json: bool) -> int:
    """Print what is known; returns the exit code."""
    doc = read_matrix(run)
    found = find_cell(doc, cell)
    binary = given_binary(qemu) if qemu else None
    issues = load_known(known) if known else ()
    case, folder = _case(run, found)
    with one_interrupt(), contextlib.ExitStack() as stack:
        pack, note = _pack(found, stack)
        material = ExplainMaterial(run=run, pack=pack, pack_note=note, case=case, case_folder=folder, issues=issues)
        material = replace(
            material,
            stack=_stack(found, material, binary, backtrace),
            allocations=_allocations(found, material, binary, backtrace),
        )
        told = explain(found, doc, material)
    if as_json:
        print_json(explain_json(told))
    else:
        print_page(told, SafeConsole())
    return 0 if told.told else 3


def _pack(cell: Cell, stack: contextlib.ExitStack) -> tuple[StatePack | None, str]:
    if not cell.pack:
        return None, "the run does not say which state pack was loaded"
    try:
        return stack.enter_context(StatePack(Path(cell.pack))), ""
    except PostloadError as error:
        return None, str(error)


def _case(run: Path, cell: Cell) -> tuple[Case | None, Path | None]:
    """The smallest case; one that is damaged is as good as none, and said."""
    from harness.triage.bundle import kept_case

    folder = kept_case(run, cell)
    if folder is None:
        return None, None
    try:
        return Case.load(folder), folder
    except PostloadError as error:
        err.print(f"its case is left out: {error}", markup=False, soft_wrap=True)
        return None, None


def _stack(cell: Cell, material: ExplainMaterial, given: QemuBinary | None, wanted: bool) -> Backtrace | None:
    """The stack: kept, or in the log, or of a repetition under gdb."""
    if not has_stack(cell):
        return None
    kept = kept_stack(material.run, cell, given.sha256 if given else None)
    logged = None if given else told_stack(cell)
    if kept or (logged and (logged.how is StackHow.PRINTED or not wanted)):
        return kept or logged
    if not wanted:
        return None
    if material.pack is None:
        return logged or Backtrace(how=StackHow.FAILED, said=material.pack_note)
    try:
        binary = given or binary_of(cell)
    except MissingError as error:
        return logged or Backtrace(how=StackHow.FAILED, said=str(error))
    with err.status("repeating the failing load under gdb"):
        found = repeat_under_gdb(cell, material.run, material.pack, binary)
    return found if found.frames or not logged else logged


def _allocations(cell: Cell, material: ExplainMaterial, given: QemuBinary | None, wanted: bool) -> Allocations | None:
    """Who allocates what a leak leaves behind: kept, or of loads under gdb."""
    if not leaks_of_heap(cell):
        return None
    kept = kept_allocations(material.run, cell, given.sha256 if given else None)
    if kept or not wanted:
        return kept
    if material.pack is None:
        return Allocations(how=AllocationsHow.FAILED, said=material.pack_note)
    try:
        binary = given or binary_of(cell)
    except MissingError as error:
        return Allocations(how=AllocationsHow.FAILED, said=str(error))
    with err.status("loading what leaks under gdb"):
        return find_allocations(cell, material.run, material.pack, Path(binary.path))
