# SPDX-License-Identifier: GPL-2.0-or-later
"""What a guest is made of: the model of ``guests/*.yaml``."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr

from harness.arch import ARCHITECTURES, Architecture, architecture_named
from harness.errors import UsageError
from harness.files import data_dir
from harness.yamlfile import load_model

Word = Annotated[str, Field(pattern=r"^[^\s]+$")]
PackageName = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9.+-]*$")]
DriverName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$")]


class _RecipeModel(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class PackagedKernel(_RecipeModel):
    """A Debian kernel: the package itself, or one that depends on the versioned one
    (``linux-image-amd64``)."""

    package: PackageName


class GivenKernel(_RecipeModel):
    """A kernel by hand: what the machine boots (on x86_64 an ELF with a PVH note too), and its folder
    ``lib/modules/VERSION``."""

    vmlinuz: Path
    modules: Path


class PackagedBusybox(_RecipeModel):
    """A Debian package with a static ``bin/busybox``."""

    package: PackageName


class GivenBusybox(_RecipeModel):
    """A static busybox by hand."""

    path: Path


class Wide(_RecipeModel):
    """What a guest has beside the rest of its recipe when its devices look for their drivers by themselves.

    :param drivers: further ones
    :param options: driver to the parameters that it is loaded with
    :param memory_mib: in place of the recipe's
    :param cmdline: further words
    :param machines: family of machines to further words that a guest on one of them has
    """

    drivers: tuple[DriverName, ...]
    options: dict[DriverName, Annotated[str, Field(pattern=r"^[ -~]+$")]] = Field(default_factory=dict)
    memory_mib: Annotated[int, Field(ge=64, le=65536)]
    cmdline: tuple[Word, ...] = ()
    machines: dict[str, tuple[Word, ...]] = Field(default_factory=dict)


class Recipe(_RecipeModel):
    """One guest.

    ``drivers`` are what ``load`` in the guest can insert, each with all that it needs. Relative paths start
    at the YAML's folder. The ``*.sh`` of the folder ``lib`` beside ``init`` are what the guest's shell begins with.

    :param arch: Debian's name of the architecture
    :param wide: None when the guest is the same for all devices
    :param machines: family of machines, such as ``pc``, to further words of the kernel's on one of them
    :param pvh: the kernel is unpacked and booted by PVH where it can be; else it is booted as the package has it
    """

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    suite: Annotated[str, Field(pattern=r"^[a-z][a-z0-9-]*$")] = "bookworm"
    arch: Annotated[str, Field(pattern=r"^[a-z0-9-]+$")] = "amd64"
    kernel: PackagedKernel | GivenKernel
    busybox: PackagedBusybox | GivenBusybox
    init: Path = Path("init.sh")
    drivers: Annotated[tuple[DriverName, ...], Field(min_length=1)]
    memory_mib: Annotated[int, Field(ge=64, le=65536)]
    cmdline: tuple[Word, ...]
    machines: dict[str, tuple[Word, ...]] = Field(default_factory=dict)
    pvh: bool = True
    options: dict[DriverName, Annotated[str, Field(pattern=r"^[ -~]+$")]] = Field(default_factory=dict)
    wide: Wide | None = None

    _folder: Path = PrivateAttr(default=Path())

    @property
    def architecture(self) -> Architecture:
        """That of the guest."""
        return architecture_named(self.arch)

    def path(self, relative: Path) -> Path:
        """A path of this recipe, made absolute."""
        return self._folder / relative.expanduser()

    def widened(self) -> Recipe:
        """The recipe of the wide guest."""
        if self.wide is None:
            return self
        drivers = tuple(dict.fromkeys((*self.drivers, *self.wide.drivers)))
        update = {
            "drivers": drivers,
            "options": {**self.options, **self.wide.options},
            "memory_mib": self.wide.memory_mib,
            "cmdline": (*self.cmdline, *self.wide.cmdline),
            "machines": {**self.machines, **self.wide.machines},
            "wide": None,
        }
        return self.model_copy(update=update)

    def library(self) -> list[Path]:
        """What the guest's shell begins with, in order."""
        return sorted((self.path(self.init).parent / "lib").glob("*.sh"))

    def digest(self) -> str:
        """A hash over all that the recipe says and over the files that it names; nothing is looked up
        anywhere. What only the wide guest has is no part of it.

        :raises UsageError: a file that the recipe names is not there
        """
        text = self.model_dump_json(exclude={"name", "wide"})
        parts = [text.encode(), *(part for path in self._files() for part in _stamp(path))]
        return hashlib.sha256(b"\0".join(parts)).hexdigest()

    def _files(self) -> list[Path]:
        files = [self.path(self.init), *self.library()]
        if isinstance(self.kernel, GivenKernel):
            files += [self.path(self.kernel.vmlinuz), self.path(self.kernel.modules)]
        if isinstance(self.busybox, GivenBusybox):
            files.append(self.path(self.busybox.path))
        return files


def _stamp(path: Path) -> list[bytes]:
    """Contents of a file; name and time of a folder, whose thousands of files are not worth reading each
    time."""
    try:
        if path.is_dir():
            return [str(path).encode(), str(path.stat().st_mtime_ns).encode()]
        return [path.read_bytes()]
    except OSError as error:
        text = f"the guest's recipe names {path}, which cannot be read: {error.strerror}"
        raise UsageError(text) from error


def guests_folder() -> Path:
    """Where the recipes that come with this program are: in the installed package, else in the source
    tree."""
    return data_dir("guests")


def load_recipe(name: str | Path = "debian", architecture: Architecture = ARCHITECTURES[0]) -> Recipe:
    """A recipe by its name, or by the path of its YAML.

    :param architecture: a name stands for one file of each, ``NAME-ARCH.yaml``, with Debian's ``ARCH``
    :raises ConfigError: the YAML is wrong
    :raises UsageError: there is no recipe of that name for the architecture, or the file is of another
    """
    path = Path(name)
    if path.suffix not in (".yaml", ".yml"):
        path = guests_folder() / f"{name}-{architecture.debian}.yaml"
        if not path.is_file():
            known = sorted(file.name for file in guests_folder().glob("*.yaml"))
            raise UsageError(f"there is no guest {path.name!r}; known: {', '.join(known) or 'none'}")
    recipe = load_model(path, Recipe)
    if recipe.arch != architecture.debian:
        wanted = f"arch: {architecture.debian}"
        raise UsageError(f"{path}: the guest's arch is {recipe.arch}, and this machine wants one with {wanted}")
    recipe._folder = path.absolute().parent
    return recipe
