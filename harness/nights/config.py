# SPDX-License-Identifier: GPL-2.0-or-later
"""``nightly.yaml``: what is judged each night. ``docs/nightly.md`` has an example of all keys.

Paths are those of the folder that the file lies in.
"""

from __future__ import annotations

import hashlib
import os
import re
import shlex
from collections.abc import Sequence
from datetime import date
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated, Self
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, field_validator, model_validator

from harness.engines.schedule import Schedule
from harness.errors import ConfigError
from harness.names import DEFAULT_STORE, MIGRATIONS, RECORDED_PHASES, STORE_VARIABLE, USUAL_PHASES
from harness.results.key import CellKey
from harness.results.known import Link
from harness.state.transforms import GuestMode
from harness.yamlfile import line_of, load_model

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,39}")


class _ConfigPart(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class OwnBuild(_ConfigPart):
    """A QEMU that is not installed under a name.

    :param name: how cells name it, the same each night, whatever is in it
    :param path: of the program
    :param tree: folder that it was built in, in place of a path
    """

    name: str
    path: Path | None = None
    tree: Path | None = None

    @field_validator("name")
    @classmethod
    def _is_name(cls, value: str) -> str:
        if not _NAME.fullmatch(value):
            raise ValueError(f"{value!r} is no name for a QEMU: expected letters, digits and . _ + -, at most 40")
        return value

    @model_validator(mode="after")
    def _is_one(self) -> Self:
        if (self.path is None) is (self.tree is None):
            raise ValueError(f"{self.name}: expected path (of a program) or tree (the folder it was built in)")
        return self


def _kind(value: object) -> str:
    return "build" if isinstance(value, dict | OwnBuild) else "name"


#: What stands in ``qemus``: a name, a version or a path, or a mapping.
NightQemu = Annotated[Annotated[str, Tag("name")] | Annotated[OwnBuild, Tag("build")], Discriminator(_kind)]


class Quarantine(_ConfigPart):
    """Cells whose findings are told and do not count, until a day.

    :param cell: pattern of a cell's key, such as ``head/pc-q35-*/ahci/*``
    :param until: the last day
    """

    cell: Annotated[str, Field(pattern=r"^[^/]+/[^/]+/[^/]+/.+$")]
    link: Link
    until: date
    note: str = ""

    def has(self, cell: str) -> bool:
        """Whether a cell is meant, by its key or by what it has in common with further looks and point releases."""
        return fnmatchcase(cell, self.cell) or fnmatchcase(CellKey.parse(cell).line, self.cell)

    def is_past(self, day: date) -> bool:
        """Whether its cells count again."""
        return day > self.until


def usual_store() -> str:
    """The history that the other commands read too: what ``POSTLOAD_STORE`` names, else a file beside this one."""
    given = os.environ.get(STORE_VARIABLE, "")
    return str(Path(given).absolute()) if given and "://" not in given else given or DEFAULT_STORE


class NightConfig(_ConfigPart):
    """All of the file; see ``docs/nightly.md``.

    :param store: path of an SQLite file, or a URL; see ``docs/nightly.md``
    :param qemus: installed names, versions or paths, and own builds
    :param out: folder of the nights, each in a folder of its own
    :param remote: the cells are judged by the workers of the store, on any hosts; see ``docs/hosts.md``
    :param budget_minutes: how long a night may take; what it did not come to is told
    :param notify: a URL, or a command line, that is told of each night; see ``docs/ci.md``
    :param bundles: a bug report is made of each finding that has none, whose script is asked of each new build
    """

    store: str = Field(default_factory=usual_store)
    out: Path = Path("nights")
    qemus: tuple[NightQemu, ...]
    machines: tuple[str, ...] = ("pc", "q35")
    devices: tuple[str, ...] = ()
    profiles: Path | None = None
    phases: tuple[str, ...] = USUAL_PHASES
    schedules: tuple[Schedule, ...] = tuple(Schedule)
    guest_modes: tuple[GuestMode, ...] = (GuestMode.RUNNING,)
    migrations: tuple[str, ...] = ()
    loads: Annotated[int, Field(ge=1)] = 100
    run_ms: Annotated[float, Field(ge=0)] = 2.0
    quick: bool = False
    reset: bool = False
    accel: Annotated[str, Field(pattern=r"^(auto|kvm|tcg)$")] = "auto"
    guest: str = "debian"
    cpus: Annotated[int, Field(ge=1, le=64)] = 1
    jobs: Annotated[int | None, Field(ge=1, le=64)] = None
    remote: bool = False
    budget_minutes: Annotated[float, Field(gt=0)] | None = None
    known: Path | None = None
    quarantine: tuple[Quarantine, ...] = ()
    bundles: bool = True
    notify: str | None = None

    @field_validator("qemus", "machines", "phases", "schedules", "guest_modes")
    @classmethod
    def _are_some(cls, value: tuple[object, ...]) -> tuple[object, ...]:
        if not value:
            raise ValueError("expected at least one")
        return value

    @field_validator("phases")
    @classmethod
    def _are_phases(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return _known("phase", RECORDED_PHASES, value)

    @field_validator("migrations")
    @classmethod
    def _are_migrations(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return _known("migration", MIGRATIONS, value)

    @field_validator("notify")
    @classmethod
    def _is_hook(cls, value: str | None) -> str | None:
        if value is None or urlsplit(value).scheme in ("http", "https"):
            return value
        if not shlex.split(value):
            raise ValueError("expected a URL such as https://HOST/PATH, or a command line")
        return value

    @property
    def asked(self) -> str:
        """Names what is judged and how, whatever the night's QEMUs are."""
        how = {"store", "out", "budget_minutes", "known", "quarantine", "bundles", "jobs", "notify", "remote"}
        return hashlib.sha256(self.model_dump_json(exclude=how).encode()).hexdigest()[:16]


def _known(what: str, names: Sequence[str], value: tuple[str, ...]) -> tuple[str, ...]:
    for name in value:
        if name not in names:
            raise ValueError(f"unknown {what} {name!r}: expected {', '.join(names)}")
    return value


def load_config(path: Path) -> NightConfig:
    """Read the file, its paths made absolute.

    :raises ConfigError: it cannot be read, or has a mistake; names file, line and column
    """
    config = load_model(path, NightConfig)
    names = [each.name if isinstance(each, OwnBuild) else each for each in config.qemus]
    for number, name in enumerate(names):
        if name in names[:number]:
            raise ConfigError(path, line_of(path, ("qemus",)), 0, f"two QEMUs have the name {name!r}")
    base = path.absolute().parent
    return config.model_copy(
        update={
            "store": config.store if "://" in config.store else str(base / config.store),
            "out": base / config.out,
            "profiles": config.profiles and base / config.profiles,
            "known": config.known and base / config.known,
            "guest": _at(base, config.guest) if config.guest.endswith((".yaml", ".yml")) else config.guest,
            "qemus": tuple(_placed(base, each) for each in config.qemus),
        }
    )


def past(entries: Sequence[Quarantine], day: date) -> tuple[Quarantine, ...]:
    """Those whose cells count again on a day."""
    return tuple(entry for entry in entries if entry.is_past(day))


def holding(entries: Sequence[Quarantine], cell: str, day: date) -> Quarantine | None:
    """What keeps a cell from counting on a day."""
    return next((entry for entry in entries if entry.has(cell) and not entry.is_past(day)), None)


def _placed(base: Path, qemu: str | OwnBuild) -> str | OwnBuild:
    if isinstance(qemu, OwnBuild):
        return qemu.model_copy(update={"path": qemu.path and base / qemu.path, "tree": qemu.tree and base / qemu.tree})
    return _at(base, qemu) if os.sep in qemu else qemu


def _at(base: Path, text: str) -> str:
    return str(base / Path(text).expanduser())
