# SPDX-License-Identifier: GPL-2.0-or-later
"""Known issues: failures that somebody has looked at, kept in ``known-issues.yaml``.

A known failure is expected. One that does not come although its cell was judged is news, and one that comes although
it is said to be fixed is news that counts. Another failure in the same cell is not excused: issues are told by their
signature, not by their place.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import date, datetime
from enum import StrEnum
from pathlib import Path
from typing import Annotated

from packaging.specifiers import InvalidSpecifier, SpecifierSet
from pydantic import BaseModel, ConfigDict, Field, field_validator

from harness.errors import ConfigError, HostError, UsageError
from harness.files import write_atomically
from harness.names import SCHEDULES
from harness.qemu.process import scratch_folder
from harness.results.document import Cell, MatrixDoc
from harness.results.signature import family_of, name_of, plain_section
from harness.results.verdict import Verdict, exit_code
from harness.yamlfile import load_model

HEADER = """\
# Known issues, for --known. An issue is told by its signature, as matrix.json and "postload explain" give it.
# affected: versions: 7.2 (any 7.2.x), 7.2.22, 8.*, ">=5.2 <11.1", or "*". fixed_in: the first version without it.
# recorded: the versions whose guests have it under an affected one; without it those of any.
# until: the last day on which it is excused; without it for ever.
# seen: the cell it was seen in, without its QEMU and machine; without it any cell that covers the section counts.
issues:
"""

_VERSION = re.compile(r"\d+(\.\d+)*")
_ITEM = re.compile(r"^( *)- ", re.MULTILINE)
_EMPTY_LIST = re.compile(r"^issues:[ \t]*(\[[ \t]*\]|~|null)?[ \t]*(#.*)?$", re.MULTILINE)


def _version_pattern(text: str) -> str:
    try:
        _specifiers(text)
    except InvalidSpecifier as error:
        raise ValueError(f"{text!r} is no version: expected 7.2, 7.2.22, 8.*, '>=5.2 <11.1' or '*'") from error
    return text.strip()


#: Where a finding is written about.
Link = Annotated[str, Field(pattern=r"^[a-z][a-z0-9+.-]*:\S+$")]


class Issue(BaseModel):
    """One known issue.

    :param signature: as :attr:`harness.results.signature.Signature.name` gives it
    :param affected: versions that have it; see :func:`version_matches`
    :param link: where it is written about
    :param fixed_in: the first version of this line of releases that does not have it
    :param until: the last day on which it is excused, None for ever
    :param recorded: versions that recorded the state, where it takes the state of another QEMU; empty for any
    :param seen: ``DEVICE/PHASES/LANE``, as in a cell's key
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    signature: Annotated[str, Field(pattern=r"^(crash|hang|reject|guest-fault|drift|leak|host):")]
    affected: Annotated[tuple[str, ...], Field(min_length=1)]
    link: Link
    note: str = ""
    fixed_in: str | None = None
    until: date | None = None
    recorded: tuple[str, ...] = ()
    seen: Annotated[str, Field(pattern=r"^[^/]+/[^/]+/[^/]+$")] | None = None

    @field_validator("affected", "recorded")
    @classmethod
    def _versions(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(_version_pattern(text) for text in value)

    @field_validator("fixed_in")
    @classmethod
    def _one_version(cls, value: str | None) -> str | None:
        if value is not None and not _VERSION.fullmatch(value):
            raise ValueError(f"{value!r} is no version: expected one such as 10.0 or 7.2.23")
        return value

    def is_fixed(self, version: str) -> bool:
        """Whether this version is said to be without it."""
        return self.fixed_in is not None and version_matches(f">={self.fixed_in}", version)

    def affects(self, version: str) -> bool:
        """Whether it is to be expected of this version."""
        return not self.is_fixed(version) and any(version_matches(pattern, version) for pattern in self.affected)

    def is_past(self, day: date) -> bool:
        """Whether it is excused no longer."""
        return self.until is not None and day > self.until

    def takes(self, cell: Cell) -> bool:
        """Whether the state of a cell comes from a version of which it is to be expected."""
        version = cell.record_qemu.version
        return not self.recorded or any(version_matches(pattern, version) for pattern in self.recorded)

    def expected_in(self, cell: Cell) -> bool:
        """Whether it is to be expected of the versions of a cell."""
        return self.affects(cell.load_qemu.version) and self.takes(cell)

    @property
    def kind(self) -> str:
        return self.signature.partition(":")[0]

    @property
    def section(self) -> str:
        return self.signature.rsplit(":", 2)[-2] if self.signature.count(":") > 2 else ""

    @property
    def family(self) -> str:
        return self.signature.rpartition(":")[2]


class _Issues(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    issues: tuple[Issue, ...]


class NewsKind(StrEnum):
    """What changed about a known issue."""

    GONE = "gone"
    PAST = "past"
    FAILS_ALTHOUGH_FIXED = "fails-although-fixed"
    UNLISTED = "unlisted"


@dataclass(frozen=True, slots=True, kw_only=True)
class News:
    """A known issue that is not what it was.

    :param cells: ids of the cells it speaks of: those that passed, or those that failed
    """

    kind: NewsKind
    issue: Issue
    version: str
    machine: str
    cells: tuple[str, ...]

    def to_json(self) -> dict[str, object]:
        return {
            "kind": str(self.kind),
            "signature": self.issue.signature,
            "version": self.version,
            "machine": self.machine,
            "cells": list(self.cells),
            "link": self.issue.link,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownRun:
    """A run held against the known issues.

    :param doc: the same document; cells of known issues have the issue's link in ``known``
    :param known: ids of the cells whose failure is known
    :param unknown: ids of the cells with a finding that is not
    """

    doc: MatrixDoc
    known: tuple[str, ...]
    unknown: tuple[str, ...]
    news: tuple[News, ...]

    @property
    def exit_code(self) -> int:
        """As :func:`harness.results.verdict.exit_code` says, with known failures taken for passed cells."""
        return exit_code(Verdict.OK if cell.known else cell.verdict for cell in self.doc.cells)


def load_known(path: Path) -> tuple[Issue, ...]:
    """Read a file of known issues.

    :raises ConfigError: it cannot be read, or has a mistake; names file, line and column
    """
    return load_model(path, _Issues).issues


def annotate(doc: MatrixDoc, known: Sequence[Issue]) -> KnownRun:
    """Hold a run against the known issues, as of the day on which it started."""
    day = datetime.fromisoformat(doc.started).date()
    cells: list[Cell] = []
    late: dict[tuple[NewsKind, Issue, str, str], list[str]] = {}
    for cell in doc.cells:
        version = cell.load_qemu.version
        own = _own(cell, known)
        affecting = [issue for issue in own if issue.affects(version)]
        found = next((issue for issue in affecting if not issue.is_past(day)), None)
        fixed = next((issue for issue in own if issue.is_fixed(version)), None)
        if found is None and affecting:
            late.setdefault((NewsKind.PAST, affecting[0], version, cell.machine), []).append(cell.id)
        elif found is None and own:
            kind = NewsKind.FAILS_ALTHOUGH_FIXED if fixed else NewsKind.UNLISTED
            late.setdefault((kind, fixed or own[0], version, cell.machine), []).append(cell.id)
        cells.append(replace(cell, known=found.link if found else ""))
    again = [
        News(kind=kind, issue=issue, version=version, machine=machine, cells=tuple(ids))
        for (kind, issue, version, machine), ids in late.items()
    ]
    return KnownRun(
        doc=replace(doc, cells=tuple(cells)),
        known=tuple(cell.id for cell in cells if cell.known),
        unknown=tuple(cell.id for cell in cells if cell.verdict.is_finding and not cell.known),
        news=(*again, *_gone(doc.cells, known)),
    )


def known_link(cell: Cell, known: Sequence[Issue], day: date) -> str:
    """Where the known issue is described that a cell's finding is on a day; empty when it is none."""
    found = (issue for issue in _own(cell, known) if issue.affects(cell.load_qemu.version) and not issue.is_past(day))
    return next((issue.link for issue in found), "")


def _own(cell: Cell, known: Sequence[Issue]) -> list[Issue]:
    """The issues with the name of a cell's finding, whatever versions they are expected of."""
    name = name_of(cell) or None
    return [issue for issue in known if name is not None and issue.signature == name and issue.takes(cell)]


def _gone(cells: Sequence[Cell], known: Sequence[Issue]) -> Iterable[News]:
    """Issues that were to be expected of a machine, and whose cells all came to something else."""
    machines = dict.fromkeys((cell.machine, cell.load_qemu.version) for cell in cells)
    told: set[tuple[str, str, str]] = set()
    for machine, version in machines:
        mine = [cell for cell in cells if (cell.machine, cell.load_qemu.version) == (machine, version)]
        for issue in known:
            taken = [cell for cell in mine if issue.takes(cell)]
            names = {name_of(cell) or None for cell in taken}
            if issue.signature in names or not issue.affects(version) or issue.family != family_of(machine):
                continue
            # not gone where the cell broke in another way before it could come
            covering = [cell for cell in taken if _covers(cell, issue)]
            passed = tuple(cell.id for cell in covering if cell.verdict is Verdict.OK)
            key = (issue.signature, machine, version)
            if passed and len(passed) == len(covering) and key not in told:
                told.add(key)
                yield News(kind=NewsKind.GONE, issue=issue, version=version, machine=machine, cells=passed)


def _covers(cell: Cell, issue: Issue) -> bool:
    """Whether a cell that was judged would have shown an issue."""
    if cell.verdict in (Verdict.UNSUPPORTED, Verdict.HOST, Verdict.HARNESS_ERROR):
        return False
    if issue.seen is not None:
        return cell.key.place == issue.seen
    lanes = {"drift": ("drift",), "leak": ("leak",), "guest-fault": (*SCHEDULES, "guest", "io-error")}
    if cell.lane not in lanes.get(issue.kind, (*SCHEDULES, "io-error")):
        return False
    wanted = set(issue.section.split("+"))
    return wanted <= {plain_section(label) for label in cell.sections} or f"device {cell.device}" in wanted


def version_matches(pattern: str, version: str) -> bool:
    """Whether a version is meant: ``7.2`` is any 7.2.x, as ``7.2.*`` is, ``>=5.2 <11.1`` is a range, ``*`` is any.

    Versions are compared as far as the pattern is long: 11.1.3 is not ``<11.1``, and it is ``<=11.1``.
    """
    return all(spec.contains(_cut(version, spec.version), prereleases=True) for spec in _specifiers(pattern))


def _specifiers(pattern: str) -> SpecifierSet:
    """:raises InvalidSpecifier: it is no pattern"""
    parts = re.sub(r"([<>=!~])\s+", r"\1", pattern.strip()).replace(",", " ").split()
    if not parts:
        raise InvalidSpecifier(pattern)
    return SpecifierSet(",".join(f"=={part}" if part[0].isdigit() else part for part in parts if part != "*"))


def _cut(version: str, bound: str) -> str:
    """The numbers of a version, no more of them than a bound has."""
    return ".".join(re.findall(r"\d+", version)[: bound.count(".") + 1]) or "0"


def add_known(path: Path, cell: Cell, link: str, note: str = "", until: date | None = None) -> bool:
    """Write the finding of a cell into a file of known issues, behind what is there; comments stay.

    :return: False when the file has it already, for this signature and this version
    :raises UsageError: the cell has no finding that can be known by a name, or the link is none
    :raises ConfigError: the file has a mistake, or issues that cannot be added to line by line
    :raises HostError: it cannot be written
    """
    name = name_of(cell) or None
    if name is None:
        raise UsageError(f"{cell.id} has no finding with a signature: its verdict is {cell.verdict}")
    if not re.fullmatch(r"[a-z][a-z0-9+.-]*:\S+", link):
        raise UsageError(f"--link {link}: expected a URL such as https://gitlab.com/qemu-project/qemu/-/issues/1")
    there = path.exists()
    if there and any(issue.signature == name and issue.expected_in(cell) for issue in load_known(path)):
        return False
    text = _with_entry(path.read_text(encoding="utf-8") if there else HEADER, _entry(cell, name, link, note, until))
    _check(path, text)
    write_atomically(path, text.encode())
    return True


def _entry(cell: Cell, name: str, link: str, note: str, until: date | None) -> list[str]:
    """A JSON string is a YAML string."""
    lines = [
        f"- signature: {json.dumps(name, ensure_ascii=False)}",
        f"  affected: [{json.dumps(cell.load_qemu.version)}]",
        f"  link: {json.dumps(link)}",
    ]
    if cell.record_qemu.sha256 != cell.load_qemu.sha256:
        lines.append(f"  recorded: [{json.dumps(cell.record_qemu.version)}]")
    lines += [f"  until: {until.isoformat()}"] if until else []
    lines += [f"  note: {json.dumps(note, ensure_ascii=False)}"] if note else []
    return [*lines, f"  seen: {json.dumps(cell.key.place, ensure_ascii=False)}"]


def _with_entry(text: str, lines: Sequence[str]) -> str:
    item = _ITEM.search(text)
    indent = item[1] if item else "  "
    if item is None:
        text = _EMPTY_LIST.sub("issues:", text, count=1)
    return text.rstrip("\n") + "\n" + "".join(f"{indent}{line}\n" for line in lines)


def _check(path: Path, text: str) -> None:
    """Refuse to write what could not be read: a list in braces cannot be added to at its end."""
    try:
        with scratch_folder() as folder:
            copy = folder / path.name
            copy.write_text(text, encoding="utf-8")
            load_known(copy)
    except OSError as error:
        raise HostError(f"cannot write {path}: {error.strerror}") from error
    except ConfigError as error:
        message = "an issue cannot be added behind the last line: write 'issues:' with one '- signature:' for each"
        raise ConfigError(path, error.line, error.column, message) from error
