# SPDX-License-Identifier: GPL-2.0-or-later
"""Builds a guest from its recipe, once: kernel and initramfs in the cache, no root, no network the second
time."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from harness.arch import Architecture
from harness.cache import cache_root, disk_errors, publish_dir
from harness.errors import HostError, UsageError
from harness.files import sweep, temp_dir, write_atomically
from harness.guests.identity import FileIdentity, GuestIdentity
from harness.guests.initramfs import OnBoard, build_initramfs
from harness.guests.kernel import KernelForm, KernelImage, Module, ModuleTree, boot_image, read_module, unsigned
from harness.guests.recipe import PackagedBusybox, PackagedKernel, Recipe
from harness.tools.apt import AptRoot, Deb, extract

FORMAT = 3
"""Raised when the same inputs would give another guest: kept guests of older formats are then built anew."""

_KERNEL_PREFIX = "linux-image-"


@dataclass(frozen=True, slots=True, kw_only=True)
class Guest:
    """A guest that QEMU can boot.

    :param kernel: for ``-kernel``
    :param initramfs: for ``-initrd``
    :param cmdline: for ``-append``
    :param machines: family of machines to what stands behind that on one of them
    :param memory_mib: for ``-m``
    :param cpus: for ``-smp``
    :param pvh: whether ``kernel`` is an ELF booted by PVH, and not what the package has
    :param identity: what the guest is made of: hashes, package versions, drivers, how the kernel was unpacked
    """

    kernel: Path
    initramfs: Path
    cmdline: str
    memory_mib: int
    pvh: bool
    identity: GuestIdentity
    cpus: int = 1
    machines: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


#: Builds the guest of an architecture, when a recording has to be made; true for the wide one.
GuestMaker = Callable[[Architecture, bool], Guest]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Inputs:
    """Files that a guest is made of: packages, or files given by hand."""

    kernel: Deb | tuple[Path, Path]
    busybox: Deb | Path

    def debs(self) -> list[Deb]:
        return [item for item in (self.kernel, self.busybox) if isinstance(item, Deb)]


def build_guest(recipe: Recipe, refresh: bool = False) -> Guest:
    """The guest of a recipe, from the cache when it holds one.

    :param refresh: ask the mirror for newer packages even when the cache holds a guest
    :raises HostError: a package cannot be had, the disk is full, or a driver is not in the kernel
    :raises MissingError: this host has no apt; the message says what to do
    :raises UsageError: a file that the recipe names is not there
    """
    digest = hashlib.sha256(f"{FORMAT} {recipe.digest()}".encode()).hexdigest()
    if not refresh:
        kept = _indexed(digest)
        if kept is not None:
            return _guest(recipe, kept)
    inputs = _fetch(recipe, refresh)
    content = hashlib.sha256(" ".join([digest, *(deb.sha256 for deb in inputs.debs())]).encode()).hexdigest()
    folder = publish_dir(f"guests/{content[:32]}", lambda temp: _build(recipe, inputs, temp))
    write_atomically(_index_path(digest), json.dumps({"folder": folder.name}).encode())
    return _guest(recipe, folder)


def _index_path(digest: str) -> Path:
    return cache_root() / "guests" / "index" / f"{digest[:32]}.json"


def _indexed(digest: str) -> Path | None:
    """The kept folder of a recipe; None when there is none, or when it is not as it was built."""
    try:
        name = str(json.loads(_index_path(digest).read_bytes())["folder"])
        folder = cache_root() / "guests" / name
        identity = json.loads((folder / "guest.json").read_bytes())
        sizes = {part: (folder / part).stat().st_size for part in ("kernel", "initramfs")}
    except (OSError, ValueError, KeyError, TypeError):
        return None
    if all(identity[part]["size_bytes"] == size for part, size in sizes.items()):
        return folder
    # Out of the way, or publish_dir would take it for whole.
    shutil.rmtree(folder, ignore_errors=True)
    return None


def _guest(recipe: Recipe, folder: Path) -> Guest:
    identity = json.loads((folder / "guest.json").read_bytes())
    return Guest(
        kernel=folder / "kernel",
        initramfs=folder / "initramfs",
        cmdline=" ".join([f"console={recipe.architecture.console}", *recipe.cmdline]),
        memory_mib=recipe.memory_mib,
        pvh=bool(identity["pvh"]),
        identity=identity,
        machines=recipe.machines,
    )


def _fetch(recipe: Recipe, refresh: bool) -> _Inputs:
    apt = AptRoot(recipe.suite, recipe.arch)
    into = cache_root() / "debs"
    if refresh and (isinstance(recipe.kernel, PackagedKernel) or isinstance(recipe.busybox, PackagedBusybox)):
        apt.update(force=True)
    kernel: Deb | tuple[Path, Path]
    if isinstance(recipe.kernel, PackagedKernel):
        kernel = apt.download([_versioned(apt, recipe.kernel.package)], into)[0]
    else:
        kernel = recipe.path(recipe.kernel.vmlinuz), recipe.path(recipe.kernel.modules)
    busybox: Deb | Path
    if isinstance(recipe.busybox, PackagedBusybox):
        busybox = apt.download([recipe.busybox.package], into)[0]
    else:
        busybox = recipe.path(recipe.busybox.path)
    return _Inputs(kernel=kernel, busybox=busybox)


def _versioned(apt: AptRoot, package: str) -> str:
    """``linux-image-amd64`` is empty and depends on the kernel of today; a versioned package is taken as it
    is."""
    inner = [name for name in apt.depends(package) if name.startswith(_KERNEL_PREFIX)]
    return inner[0] if inner else package


def _build(recipe: Recipe, inputs: _Inputs, folder: Path) -> None:
    with disk_errors(folder):
        sweep(folder.parent)
        with temp_dir(folder.parent) as work:
            vmlinuz, modules, busybox = _unpacked(inputs, work)
            image = _image(vmlinuz, recipe.pvh)
            tree = ModuleTree.open(modules)
            order = {driver: tree.load_order(driver) for driver in recipe.drivers}
            initramfs = build_initramfs(
                init=recipe.path(recipe.init).read_bytes(),
                library=b"".join(path.read_bytes() for path in recipe.library()),
                busybox=busybox.read_bytes(),
                modules=_on_board(recipe, tree, order),
            )
            (folder / "kernel").write_bytes(image.data)
            (folder / "initramfs").write_bytes(initramfs)
            identity = _identity(recipe, inputs, image, initramfs, order)
            (folder / "guest.json").write_text(json.dumps(identity, indent=2, sort_keys=True) + "\n")


def _on_board(recipe: Recipe, tree: ModuleTree, order: Mapping[str, list[Module]]) -> OnBoard:
    """The drivers of a recipe, and all that they need."""
    modules = {module.name: module for needed in order.values() for module in needed}
    return OnBoard(
        load_order={name: tree.load_order(name) for name in modules},
        data={name: unsigned(read_module(module.path)) for name, module in modules.items()},
        builtin=[driver for driver, needed in order.items() if not needed],
        options=recipe.options,
    )


def _unpacked(inputs: _Inputs, work: Path) -> tuple[Path, Path, Path]:
    """Paths of the kernel, of the folder of modules, and of busybox."""
    for deb in inputs.debs():
        extract(deb.path, work)
    if isinstance(inputs.kernel, Deb):
        # Since Debian 13 the modules are below usr/.
        vmlinuz = _only(work, inputs.kernel.name, "boot/vmlinuz-*")
        modules = _only(work, inputs.kernel.name, "lib/modules/*", "usr/lib/modules/*")
    else:
        vmlinuz, modules = inputs.kernel
    if isinstance(inputs.busybox, Deb):
        busybox = _only(work, inputs.busybox.name, "bin/busybox", "usr/bin/busybox")
    else:
        busybox = inputs.busybox
    for path in (vmlinuz, modules, busybox):
        if not path.exists():
            raise UsageError(f"the guest's recipe names {path}, which is not there")
    return vmlinuz, modules, busybox


def _only(folder: Path, package: str, *patterns: str) -> Path:
    found = [path for pattern in patterns for path in folder.glob(pattern)]
    if len(found) != 1:
        raise HostError(f"package {package} has {len(found)} files {' or '.join(patterns)}; one was expected")
    return found[0]


def _image(vmlinuz: Path, pvh: bool) -> KernelImage:
    data = vmlinuz.read_bytes()
    return boot_image(data) if pvh else KernelImage(data=data, pvh=False, form=KernelForm.PACKAGED)


def _identity(
    recipe: Recipe,
    inputs: _Inputs,
    image: KernelImage,
    initramfs: bytes,
    order: Mapping[str, list[Module]],
) -> GuestIdentity:
    return {
        "schema": "postload.guest/1",
        "name": recipe.name,
        "pvh": image.pvh,
        "kernel_form": image.form,
        "kernel_said": image.said,
        "kernel": _file_identity(image.data),
        "initramfs": _file_identity(initramfs),
        "packages": {deb.name: {"version": deb.version, "sha256": deb.sha256} for deb in inputs.debs()},
        "drivers": {driver: [module.name for module in modules] for driver, modules in order.items()},
    }


def _file_identity(data: bytes) -> FileIdentity:
    return {"sha256": hashlib.sha256(data).hexdigest(), "size_bytes": len(data)}
