# SPDX-License-Identifier: GPL-2.0-or-later
"""Sentences are made in ``harness/report`` alone: nothing that is stored or that names a finding holds one.

Two walls hold that. No module elsewhere has a piece of English that is not for a user who is being told something
right then: the text of an error, progress on stderr, help. And each field of a cause that is text says whose words it
holds: a name, or what QEMU, the guest or the system said.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, get_args, get_type_hints

import harness
from harness.results.document import Cell

HARNESS = Path(harness.__file__).parent
#: These tell a user something right then, and store nothing.
TELLERS = (
    "report/",
    "commands/",
    "cli.py",
    "pytest_plugin.py",
    "__main__.py",
    "bootstrap.py",
    "triage/reproduce.py",
    "errors.py",
)
#: What is given to these is the text of an error, progress, or an expression that reads the words of others.
HEARD = re.compile(
    r"(\w*\.)*(\w*Error|ConfigError|Stopped|NotReproduced|DeviceFailed|Unrecordable|MissingError|Disturbed|ValueError"
    r"|super\(\).__init__|print|say|_say|stage|_stage|_message|message|step|_fail|compile|match|search|fullmatch|sub"
    r"|read_model|need|take|u8|u16|u32|u64|unpack|text|_expect|_silence|load_model|check_facts)"
)
#: Pieces of English that are none of ours, or that an error is made of elsewhere, by file: why.
ELSEWHERE = {
    "adopt/qcow2.py": "text of errors",
    "adopt/saved.py": "text of errors",
    "cache.py": "text of errors",
    "devices/device.py": "text of errors",
    "devices/recipe.py": "what a recipe lacks: raised with its file and line",
    "files.py": "text of errors",
    "guests/console.py": "text of errors, beside the same as a symptom",
    "guests/foreign.py": "text of errors",
    "guests/kernel.py": "text of errors",
    "guests/recipe.py": "text of errors",
    "oracles/ioerror.py": "QEMU's words",
    "oracles/words.py": "QEMU's words, and names that are made of them",
    "packs/packfile.py": "text of errors",
    "qemu/binary.py": "text of errors",
    "qemu/install.py": "told while something is installed, and text of errors",
    "qemu/installed.py": "text of errors",
    "qemu/kvm.py": "QEMU's words",
    "qemu/monitor.py": "text of errors",
    "qemu/prefix.py": "told while something is installed",
    "qemu/threads.py": "what is added to a log that people read",
    "qemu/vm.py": "text of errors",
    "qualify/fields.py": "QEMU's words",
    "results/events.py": "text of errors",
    "results/known.py": "the head of a file that people write",
    "results/signature.py": "names of findings, which stay as they are",
    "state/devicecheck.py": "names of steps",
    "state/owners.py": "text of errors",
    "state/recorder.py": "text of errors",
    "state/recordings.py": "text of errors",
    "store/engine.py": "text of errors",
    "stream/sections.py": "text of errors",
    "tools/apt.py": "text of errors",
    "tools/program.py": "text of errors",
    "triage/allocations.py": "commands of gdb",
    "triage/backtrace.py": "commands of gdb, and its words",
    "triage/debugger.py": "commands of gdb",
    "triage/bisect.py": "commands of git",
    "triage/bundle.py": "text of errors",
    "triage/case.py": "text of errors",
    "triage/stack.py": "text of errors",
    "triage/tries.py": "text of errors",
    "yamlfile.py": "text of errors",
    "work/admitted.py": "text of errors",
    "work/hosted.py": "told while a worker runs, and text of errors",
    "work/jobs.py": "SQL",
    "work/remote.py": "text of errors",
}
_FEW = "the|a|an|its|it|no|not|is|was|has|does|nothing|nobody|of"
ENGLISH = re.compile(rf"[A-Za-z,']+ [a-z,']+ [A-Za-z,']+|\b({_FEW}) [a-z]+|[a-z]+ ({_FEW})\b")


def english(tree: ast.AST, parents: tuple[ast.AST, ...] = ()) -> Iterator[tuple[int, str]]:
    """Texts of a module that read like English, but for docstrings and what is heard at once."""
    if isinstance(tree, ast.Constant | ast.JoinedStr):
        pieces = [tree] if isinstance(tree, ast.Constant) else tree.values
        text = "".join(p.value if isinstance(p, ast.Constant) and isinstance(p.value, str) else "{}" for p in pieces)
        if ENGLISH.search(text) and not any(map(_heard, parents)):
            yield tree.lineno, text
        return
    for child in ast.iter_child_nodes(tree):
        yield from english(child, (*parents, tree))


def _heard(node: ast.AST) -> bool:
    if isinstance(node, ast.keyword):
        return node.arg == "pattern"
    if isinstance(node, ast.Call):
        return HEARD.fullmatch(ast.unparse(node.func)) is not None
    # a text that is no expression of its own is a docstring; what a generator yields stays
    return isinstance(node, ast.Raise) or (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant))


def modules() -> Iterator[tuple[str, ast.Module]]:
    for path in sorted(HARNESS.rglob("*.py")):
        name = str(path.relative_to(HARNESS))
        if not name.startswith(TELLERS):
            yield name, ast.parse(path.read_text(encoding="utf-8"))


def test_no_module_but_those_of_report_makes_sentences_that_stay() -> None:
    found = {name: list(english(tree)) for name, tree in modules()}
    assert {name: texts for name, texts in found.items() if texts and name not in ELSEWHERE} == {}
    # an entry that holds nothing any more would let the next sentence in
    assert sorted(name for name in ELSEWHERE if not found[name]) == []


#: Whose words stand in each field of a cell that is text: a name of ours or of QEMU's, or what somebody else said.
WORDS = {
    "Assertion": {"function": "QEMU", "expression": "QEMU", "file": "QEMU"},
    "At": {"phase": "name"},
    "Broke": {"how": "name", "phase": "name"},
    "Cell": {"engine": "name", "pack": "path", "signature": "name", "known": "link", "shared_with": "name",
             "host": "name", "sections": "QEMU", "excluded": "QEMU", "beside": "QEMU", "details": "figures"},
    "CellKey": {"machine": "QEMU", "device": "name", "phases": "name", "lane": "name", "guest_mode": "name",
                "arch": "name", "accel": "name"},
    "ControlResult": {},
    "Derived": {"about": "name", "gone": "QEMU", "new": "QEMU", "phase": "name"},
    "Drifted": {"section": "QEMU", "phase": "name"},
    "DriftedField": {"field": "QEMU", "type": "QEMU", "values": "state"},
    "Ended": {"signal": "name", "words": "QEMU", "line": "QEMU", "phase": "name"},
    "FailedCheck": {"said": "guest", "wanted": "name", "device": "name", "figures": "name"},
    "GuestFaulted": {"phase": "name"},
    "Hindered": {"signal": "name", "said": "QEMU"},
    "KvmRefused": {"group": "name", "ioctl": "name", "error": "system", "phase": "name"},
    "Lack": {"names": "name", "machine": "QEMU", "qemu": "QEMU", "said": "QEMU"},
    "Leaked": {"section": "QEMU", "unit": "name", "phase": "name"},
    "Outcome": {"sections": "QEMU", "log": "QEMU"},
    "Qemu": {"version": "QEMU", "build": "QEMU", "path": "path", "sha256": "hash", "label": "name"},
    "Refused": {"section": "QEMU", "field": "QEMU", "function": "QEMU", "reason": "QEMU", "errno": "name",
                "signal": "name", "how": "name", "line": "QEMU", "phase": "name"},
    "Route": {"recorder": "name", "loader": "name"},
    "SanitizerReport": {"tool": "name", "complaint": "sanitizer", "function": "QEMU", "file": "QEMU"},
    "Symptom": {"command": "name", "said": "QEMU", "wanted": "name", "status": "QEMU", "source": "QEMU"},
    # an error carries its text to whoever it is raised to, and the cell that it costs
    "Undecided": {"said": "error", "sections": "QEMU", "phase": "name"},
    "Unreached": {"phase": "name", "step": "name", "said": "guest"},
    "Warned": {"text": "QEMU"},
}  # fmt: skip


def parts(hint: Any) -> Iterator[Any]:
    """A type and all that it is made of."""
    yield hint
    for part in get_args(hint):
        yield from parts(part)


def stored(root: type) -> dict[str, type]:
    """A dataclass and all that stand in it, by name."""
    found: dict[str, type] = {}
    left: list[type] = [root]
    while left:
        model = left.pop()
        if model.__name__ not in found:
            found[model.__name__] = model
            hints = get_type_hints(model, include_extras=False)
            left += [
                part for hint in hints.values() for part in parts(hint) if isinstance(part, type) and is_dataclass(part)
            ]
    return found


def test_each_text_of_a_cell_is_a_name_or_in_the_words_of_others() -> None:
    texts = {
        name: {
            field.name
            for field in fields(model)
            if field.name != "kind" and any(part in (str, Any) for part in parts(get_type_hints(model)[field.name]))
        }
        for name, model in stored(Cell).items()
    }
    assert {name: set(WORDS.get(name, ())) for name in texts} == texts


def test_what_an_enumeration_stores_is_a_name() -> None:
    enums: set[type[StrEnum]] = {
        part
        for model in stored(Cell).values()
        for hint in get_type_hints(model).values()
        for part in parts(hint)
        if isinstance(part, type) and issubclass(part, StrEnum)
    }
    assert len(enums) > 15
    assert [value for enum in enums for value in enum if not re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", str(value))] == []
