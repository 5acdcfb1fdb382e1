# SPDX-License-Identifier: GPL-2.0-or-later
"""Swaps every sentence that ``harness/report`` makes for nonsense that looks like all that was ever read out of one."""

from __future__ import annotations

import inspect
import pkgutil
import sys
from collections.abc import Callable, Iterator
from importlib import import_module

import pytest

import harness.report

NONSENSE = (
    "phase busy: hang in 2 of 3 runs, ok in the others: load 7: SIGSEGV: irq goes from 1 to 2; descriptors failover"
)
#: Documents are data that is read back, and a script runs: these are no sentences.
_DATA = ("_json", "_script", "_plain")


def texts() -> Iterator[tuple[str, Callable[..., str]]]:
    """Every function of the package that gives a text, the pages among them."""
    for info in pkgutil.iter_modules(harness.report.__path__, "harness.report."):
        module = import_module(info.name)
        for name, member in vars(module).items():
            made_here = inspect.isfunction(member) and member.__module__ == module.__name__
            if made_here and inspect.signature(member).return_annotation == "str" and not name.endswith(_DATA):
                yield name, member


def reword(monkeypatch: pytest.MonkeyPatch) -> int:
    """Swap all of them, wherever they were imported to. The number of places."""
    modules = [module for name, module in sys.modules.items() if name.startswith("harness.")]
    places = 0
    for name, made in list(texts()):
        for module in modules:
            if vars(module).get(name) is made:
                monkeypatch.setattr(module, name, lambda *_, **__: NONSENSE)
                places += 1
    return places
