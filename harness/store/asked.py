# SPDX-License-Identifier: GPL-2.0-or-later
"""What ``postload history`` is asked: the runs, a cell, a signature or a device."""

from __future__ import annotations

from collections.abc import Sequence

from harness.errors import UsageError
from harness.results.key import CellKey
from harness.store.document import HistoryDoc
from harness.store.read import History, RunRow

_MAX_SHOWN = 6


def ask(history: History, what: str | None, last: int) -> HistoryDoc:
    """What the history knows.

    :param what: key of a cell or a part of it, name of a signature or a part of it, name of a device; None for the runs
    :param last: look at so many runs
    :raises UsageError: it is none of these, or it is several; names some
    """
    runs = history.runs(limit=last)
    if what is None:
        return HistoryDoc(asked="", runs=tuple(runs))
    if what in history.devices():
        return _of_device(history, what, runs)
    signatures = history.signature_names(what)
    if signatures:
        return _of_signature(history, _one(what, signatures, "signatures"), runs)
    return _of_cell(history, _line(history, what), runs)


def _of_device(history: History, device: str, runs: Sequence[RunRow]) -> HistoryDoc:
    outcomes = history.through(device=device, runs=runs)
    newest = outcomes[0].run if outcomes else ""
    return HistoryDoc(
        asked=device,
        runs=tuple(runs),
        outcomes=tuple(row for row in outcomes if row.run == newest),
        signatures=tuple(history.signatures(device=device)),
    )


def _of_signature(history: History, name: str, runs: Sequence[RunRow]) -> HistoryDoc:
    outcomes = history.through(signature=name, runs=runs)
    found = history.signatures(name=name, host=True)
    return HistoryDoc(asked=name, runs=tuple(runs), outcomes=tuple(outcomes), signatures=tuple(found))


def _of_cell(history: History, line: str, runs: Sequence[RunRow]) -> HistoryDoc:
    outcomes = history.through(line=line, runs=runs)
    names = dict.fromkeys(row.signature for row in outcomes if row.signature)
    signatures = (each for name in names for each in history.signatures(name=name, host=True))
    return HistoryDoc(asked=line, runs=tuple(runs), outcomes=tuple(outcomes), signatures=tuple(signatures))


def _line(history: History, what: str) -> str:
    """The line of the cells that are meant: point releases of one QEMU are one."""
    keys = history.keys(what)
    whole = [key for key in keys if f"/{what.strip('/')}/" in f"/{key}/"]
    lines = {key: CellKey.parse(key).line for key in keys}
    if what in lines:
        return lines[what]
    if what in lines.values():
        return what
    found = list(dict.fromkeys(lines[key] for key in whole or keys))
    if not found:
        raise UsageError(f"{what!r} is no cell, signature or device of this history")
    return _one(what, found, "cells")


def _one(what: str, found: Sequence[str], kind: str) -> str:
    if what in found or len(found) == 1:
        return what if what in found else found[0]
    more = f" and {len(found) - _MAX_SHOWN} more" if len(found) > _MAX_SHOWN else ""
    raise UsageError(f"{what!r} is part of {len(found)} {kind}: {', '.join(found[:_MAX_SHOWN])}{more}")
