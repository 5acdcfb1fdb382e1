# SPDX-License-Identifier: GPL-2.0-or-later
"""Which QEMUs can be installed, and from where: read from ``versions.yaml`` beside this file."""

from __future__ import annotations

import dataclasses
import re
from functools import lru_cache
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from harness.tools.apt import Mirror
from harness.yamlfile import load_model

VERSIONS_FILE = Path(__file__).with_name("versions.yaml")
_STRICT = ConfigDict(extra="forbid", frozen=True)


class Source(BaseModel):
    """A suite that may have a version.

    :param mirror: where it lies when not on the usual mirror
    :param security: whether the suite has a security archive
    :param ended: an archived release
    """

    model_config = _STRICT
    suite: str
    mirror: str | None = None
    security: bool = True
    ended: bool = False

    def apt_mirror(self) -> Mirror:
        """Where apt has to look."""
        usual = Mirror.from_environment()
        main = (self.mirror or usual.main).rstrip("/")
        return dataclasses.replace(
            usual, main=main, security=usual.security if self.security else None, ended=self.ended
        )

    def __str__(self) -> str:
        return f"{self.suite} from {self.apt_mirror().main}"


class Emulator(BaseModel):
    """A program that emulates one architecture.

    :param package: Debian's, of whose version an installation is
    :param machines: started once, to see that they use nothing of the host
    """

    model_config = _STRICT
    package: str
    program: str
    machines: tuple[str, ...]
    vga: str
    firmware: tuple[str, ...]


class Version(BaseModel):
    """One QEMU: ``full`` are further packages, with modules that few machines need."""

    model_config = _STRICT
    emulator: str = "x86_64"
    packages: tuple[str, ...] = Field(min_length=1)
    full: tuple[str, ...] = ()
    sources: tuple[Source, ...] = Field(min_length=1)


class Versions(BaseModel):
    """The whole file; paths are relative to the root of the unpacked packages."""

    model_config = _STRICT
    arch: str
    libraries: str
    modules: str
    firmware_folders: tuple[str, ...]
    emulators: dict[str, Emulator]
    keep: tuple[str, ...]
    leave: tuple[str, ...]
    versions: dict[str, Version]

    def emulator(self, name: str) -> Emulator:
        """What a version is installed for."""
        return self.emulators[self.versions[name].emulator]


@lru_cache(maxsize=1)
def load_versions() -> Versions:
    """The versions that this program knows.

    :raises ConfigError: the file was damaged
    """
    return load_model(VERSIONS_FILE, Versions)


def is_version(name: str, package_version: str) -> bool:
    """Whether a Debian version (``1:10.0.13+ds-0+deb13u1``) is of the QEMU that a name (``10.0``) means."""
    return re.match(rf"(?:\d+:)?{re.escape(number_of(name))}[.+~-]", package_version) is not None


def number_of(name: str) -> str:
    """``10.0`` of ``10.0-aarch64``."""
    return name.partition("-")[0]


def first_with(machine: str, architecture: str) -> str:
    """The name of the oldest QEMU that can be installed and is new enough for a versioned machine type; empty where
    none is, or the type has no version."""
    match = re.search(r"-(\d+\.\d+)$", machine)
    known = [name for name, version in load_versions().versions.items() if version.emulator == architecture]
    return min((name for name in known if match and _order(name) >= _order(match[1])), key=_order, default="")


def _order(name: str) -> tuple[int, ...]:
    return tuple(map(int, number_of(name).split(".")))
