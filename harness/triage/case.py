# SPDX-License-Identifier: GPL-2.0-or-later
"""A case: the smallest thing known to show one failure, in a folder that needs nothing else.

::

    case.json      schema ``postload.case/1``; all but the bytes
    head.bin       magic, version, configuration section
    body.bin       what follows the dialect's command on the wire: RAM sections, FULL sections, EOF, vmdesc
    c1.bin         FULL sections of the first checkpoint, without the EOF; c2.bin, ... those of further ones
    c1.ram         RAM sections of that checkpoint, where it has any
    control.bin    of a leak: what a checkpoint without the section under test loads, which is taken off
    kernel, ...    files that an option names as ``{case}/NAME``

In the options ``{workdir}`` stands for the scratch folder of the process and ``{case}`` for this folder.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from harness.errors import HostError, PackError, UsageError
from harness.files import temp_dir
from harness.qemu.cmdline import Option

CASE_FILE = "case.json"
SCHEMA = "postload.case/1"
HEAD_FILE, BODY_FILE, CONTROL_FILE = "head.bin", "body.bin", "control.bin"
CASE_PLACE = "{case}"

Kind = Literal["load", "leak", "drift"]


@dataclass(frozen=True, slots=True, kw_only=True)
class CaseCheckpoint:
    """One checkpoint.

    :param devices: FULL sections, without the EOF
    :param ram: RAM sections, None where it sends none
    :param times: how often in a row it is sent; ``ram`` with the first of them only
    """

    devices: bytes
    ram: bytes | None = None
    times: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class NeededField:
    """A field without whose value the failure goes away.

    :param path: as ``postload inspect`` has it
    :param offset: first byte that is meant, from the start of the section's payload, and ``size`` how many
    :param field_offset: where the field starts, from the start of the section's payload
    :param bit: the one that is needed, 0 is the least; None where more than one is
    :param value: of the field, byte or bit: an int, or hex digits of a buffer
    :param healthy: the value with which it does not fail; None where the healthy state has no such field
    :param register: name of the register, e.g. ``RCBA``, with the bit's where that has one
    """

    section: str
    path: str
    offset: int
    bit: int | None
    value: int | str
    healthy: int | str | None
    register: str | None = None
    size: int = 1
    field_offset: int = 0

    @property
    def byte(self) -> int:
        """The first byte that is meant, from the start of its field: the offset of a register in a config space."""
        return self.offset - self.field_offset


@dataclass(frozen=True, slots=True, kw_only=True)
class Expect:
    """How the failure is recognised.

    :param exit: name of the signal, or None
    :param reason: of a refused load what QEMU said is wrong, before it named what it gave up on
    :param line: of a refused load the line of QEMU's log that says best what it gave up on
    """

    verdict: str
    exit: str | None = None
    function: str | None = None
    assertion: str | None = None
    reason: str | None = None
    line: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class LeakFigures:
    """What a leak came to.

    :param bytes_per_load: estimate; ``low`` and ``high`` are its 99 % interval
    :param floor_bytes: what would not be called a leak
    :param loads: loads that were measured
    :param loads_per_checkpoint: how often the section stands in ``c1.bin``; 1 as COLO loads it
    :param chunks: heap chunks left behind: size in bytes with malloc's own part, and how many for each load
    """

    bytes_per_load: float
    low: float
    high: float
    floor_bytes: float
    loads: int
    loads_per_checkpoint: int
    chunks: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Rate:
    """How often the case failed of how many tries."""

    failed: int
    tried: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Spent:
    """What it cost to find."""

    sessions: int = 0
    loads: int = 0
    seconds: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A case with its bytes; see the module for its folder.

    :param cell: id of the matrix cell that it comes of
    :param failure_class: ``class`` in JSON
    :param sentence: what is needed, in words; for people alone
    :param kind: what it takes to recognise it: answers of a secondary, growth, or state
    :param signature: ``Signature.to_json()`` or None
    :param qemu: identity of the QEMU that it was found on
    :param machine: versioned machine type
    :param scratch: images to be made in the scratch folder, name to bytes
    :param run_s: how long a running guest runs after each load
    :param dialect_resets: the QEMU resets the machine before each load
    :param loads: loads until it fails, the incoming stream not counted: 0 where that fails, and there is no checkpoint
    :param back_to_back: loads stand in one device buffer
    :param ram_pages: pages that the case holds
    :param control: of a leak: device buffer without the section under test; empty where nothing else is loaded
    :param recorded: identity of the QEMU that recorded the state, None where it is ``qemu`` itself
    :param files: files that options name as ``{case}/NAME``: name to where they are now
    """

    cell: str
    verdict: str
    failure_class: str | None
    kind: Kind
    signature: dict[str, Any] | None
    expect: Expect
    qemu: dict[str, str]
    machine: str
    family: str
    accel: str
    options: tuple[Option, ...]
    scratch: dict[str, int]
    guest_mode: str
    run_s: float
    dialect_resets: bool
    head: bytes
    body: bytes
    checkpoints: tuple[CaseCheckpoint, ...]
    loads: int
    back_to_back: bool
    sections: tuple[str, ...]
    fields: tuple[NeededField, ...]
    ram_pages: int
    rate: Rate
    spent: Spent
    leak: LeakFigures | None = None
    control: bytes | None = None
    recorded: dict[str, str] | None = None
    sentence: str = ""
    files: dict[str, Path] = field(default_factory=dict)

    def save(self, folder: Path) -> Path:
        """Write the folder; it appears whole, in the place of an older case if there is one.

        :raises UsageError: something that is not a case is there
        :raises HostError: no space, or the place cannot be written
        """
        if folder.exists() and not (folder / CASE_FILE).is_file():
            raise UsageError(f"{folder}: it exists and is not a case; it is not overwritten")
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            with temp_dir(folder.parent) as temp:
                self._write(temp / "new")
                if folder.exists():
                    folder.rename(temp / "old")
                (temp / "new").rename(folder)
        except OSError as error:
            raise HostError(f"cannot write {folder}: {error.strerror or error}") from error
        return folder

    @classmethod
    def load(cls, folder: Path) -> Case:
        """Read a case.

        :raises UsageError: there is no case
        :raises PackError: it is damaged, or of another schema
        """
        path = folder / CASE_FILE if folder.is_dir() else folder
        try:
            document = json.loads(path.read_bytes())
        except (FileNotFoundError, NotADirectoryError) as error:
            raise UsageError(f"{folder} is not a case: expected a folder with {CASE_FILE}") from error
        except OSError as error:
            raise UsageError(f"{path}: {error.strerror}") from error
        except ValueError as error:
            raise PackError(f"{path}: not JSON: {error}") from error
        return _read(path, document)

    def to_json(self) -> dict[str, Any]:
        """``case.json``, in the order in which it is documented."""
        return {
            "schema": SCHEMA,
            "cell": self.cell,
            "verdict": self.verdict,
            "class": self.failure_class,
            "sentence": self.sentence,
            "kind": self.kind,
            "signature": self.signature,
            "expect": asdict(self.expect),
            "qemu": self.qemu,
            "recorded": self.recorded,
            "machine": self.machine,
            "family": self.family,
            "accel": self.accel,
            "options": [{"name": o.name, "first": o.first, "props": dict(o.props)} for o in self.options],
            "scratch": self.scratch,
            "guest_mode": self.guest_mode,
            "run_s": self.run_s,
            "dialect_resets": self.dialect_resets,
            "incoming": {"head": HEAD_FILE, "body": BODY_FILE},
            "checkpoints": [
                {"devices": f"c{n}.bin", "ram": None if c.ram is None else f"c{n}.ram", "times": c.times}
                for n, c in enumerate(self.checkpoints, start=1)
            ],
            "loads": self.loads,
            "back_to_back": self.back_to_back,
            "sections": list(self.sections),
            "fields": [asdict(needed) for needed in self.fields],
            "ram_pages": self.ram_pages,
            "rate": asdict(self.rate),
            "spent": asdict(self.spent),
            "leak": None if self.leak is None else asdict(self.leak),
            "control": None if self.control is None else CONTROL_FILE,
            "files": sorted(self.files),
        }

    def _write(self, folder: Path) -> None:
        folder.mkdir()
        content: dict[str, bytes] = {HEAD_FILE: self.head, BODY_FILE: self.body}
        for number, checkpoint in enumerate(self.checkpoints, start=1):
            content[f"c{number}.bin"] = checkpoint.devices
            if checkpoint.ram is not None:
                content[f"c{number}.ram"] = checkpoint.ram
        if self.control is not None:
            content[CONTROL_FILE] = self.control
        for name, data in content.items():
            (folder / name).write_bytes(data)
        for name, source in self.files.items():
            shutil.copyfile(source, folder / _plain(name))
        (folder / CASE_FILE).write_text(json.dumps(self.to_json(), indent=1) + "\n")


@dataclass(frozen=True, slots=True, kw_only=True)
class _OptionModel:
    name: str
    first: str | None = None
    props: dict[str, bool | int | str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class _IncomingModel:
    head: str
    body: str


@dataclass(frozen=True, slots=True, kw_only=True)
class _CheckpointModel:
    devices: str
    ram: str | None = None
    times: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class _Document:
    """``case.json`` as it stands; ``failure_class`` is ``class`` there."""

    cell: str
    verdict: str
    failure_class: str | None
    sentence: str
    kind: Kind
    signature: dict[str, Any] | None
    expect: Expect
    qemu: dict[str, str]
    machine: str
    family: str
    accel: str
    options: tuple[_OptionModel, ...]
    scratch: dict[str, int]
    guest_mode: Literal["parked", "running"]
    run_s: float
    dialect_resets: bool
    incoming: _IncomingModel
    checkpoints: tuple[_CheckpointModel, ...]
    loads: int
    back_to_back: bool
    sections: tuple[str, ...]
    fields: tuple[NeededField, ...]
    ram_pages: int
    rate: Rate
    spent: Spent
    leak: LeakFigures | None = None
    control: str | None = None
    recorded: dict[str, str] | None = None
    files: tuple[str, ...] = ()


def _read(path: Path, document: object) -> Case:
    # late: pydantic costs a tenth of a second, which only readers of cases need
    from pydantic import TypeAdapter, ValidationError

    if not isinstance(document, dict) or document.get("schema") != SCHEMA:
        found = document.get("schema") if isinstance(document, dict) else None
        raise PackError(f"{path}: schema is {found!r}, expected {SCHEMA!r}")
    named = {("failure_class" if key == "class" else key): value for key, value in document.items()}
    try:
        model = TypeAdapter(_Document).validate_json(json.dumps(named), strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"]).replace("failure_class", "class")
        raise PackError(f"{path}: {where or 'the document'}: {first['msg']}") from error
    return _with_bytes(path.parent, model)


def _with_bytes(folder: Path, model: _Document) -> Case:
    if bool(model.checkpoints) != bool(model.loads) or any(c.times < 1 for c in model.checkpoints):
        wanted = "expected at least one, each sent at least once, or none for 0 loads"
        raise PackError(f"{folder / CASE_FILE}: checkpoints: {wanted}")
    given: Mapping[str, Any] = {
        name: getattr(model, name)
        for name in _Document.__dataclass_fields__
        if name not in ("options", "incoming", "checkpoints", "control", "files")
    }
    return Case(
        **given,
        options=tuple(Option(name=o.name, first=o.first, props=o.props) for o in model.options),
        head=_bytes(folder, model.incoming.head),
        body=_bytes(folder, model.incoming.body),
        checkpoints=tuple(
            CaseCheckpoint(
                devices=_bytes(folder, c.devices), ram=None if c.ram is None else _bytes(folder, c.ram), times=c.times
            )
            for c in model.checkpoints
        ),
        control=None if model.control is None else _bytes(folder, model.control),
        files={name: _existing(folder, name) for name in model.files},
    )


def _bytes(folder: Path, name: str) -> bytes:
    return _existing(folder, name).read_bytes()


def _existing(folder: Path, name: str) -> Path:
    path = folder / _plain(name)
    if not path.is_file():
        raise PackError(f"{path}: no such file; the case is not complete")
    return path


def _plain(name: str) -> str:
    if not name or Path(name).name != name:
        raise PackError(f"file {name!r}: expected a plain file name")
    return name
