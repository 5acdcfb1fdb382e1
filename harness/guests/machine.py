# SPDX-License-Identifier: GPL-2.0-or-later
"""The guest machine: the one place where a plan becomes a command line, for the recording and for every replay."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import Path

from harness.arch import architecture_of, family_of
from harness.devices.backends import (
    Audiodev,
    Backend,
    Canbus,
    Chardev,
    Cryptodev,
    Disk,
    Fsdev,
    Ivshmem,
    LoneTap,
    Memdev,
    Netdev,
    Tpm,
    VhostDisk,
)
from harness.errors import HostError, PackError
from harness.guests.foreign import check_listed, check_plan
from harness.guests.images import empty_qcow2, write_pattern
from harness.guests.lack import Lack, Lacks
from harness.guests.plan import GuestPlan, NumaNode, PlacedDevice
from harness.qemu.beside import Beside
from harness.qemu.cmdline import CommandLine, Option, Scalar
from harness.qemu.ivshmem import ivshmem_option
from harness.qemu.listed import listing
from harness.qemu.lonetap import lone_tap_option
from harness.qemu.swtpm import TpmEmulator, tpm_option
from harness.qemu.vhostdisk import StorageDaemon, vhost_disk_option
from harness.qemu.walls import SANDBOX, confined, standing


class DiskKind(StrEnum):
    """How disks are arranged on the host's side; no guest can tell.

    ``plain`` keeps what the guest wrote, on fresh raw images: fair to a guest without file systems that only judges
    blocks it has not written before. ``replication`` rewinds them with each checkpoint: an active image over a hidden
    one over the parent, the first two emptied by each checkpoint (``block/replication.c:secondary_do_checkpoint``).
    ``snapshots`` holds them in qcow2 images, with one more node that the machine's state is saved in.
    """

    PLAIN = "plain"
    REPLICATION = "replication"
    SNAPSHOTS = "snapshots"


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """A sector of 512 bytes that answers reads and writes with EIO; ``once``: only the first request fails."""

    sector: int
    once: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Boot:
    """Where the kernel and initramfs of a plan are now."""

    kernel: Path
    initramfs: Path


_SANDBOX = Option(name="sandbox", first="on", props=SANDBOX)
_EIO = 5
_VERSION = re.compile(r"-(\d{1,3})\.(\d{1,3})$")
_DESCRIBES = (2, 4)
FAULTS_SUFFIX = "-faults"
_VMSTATE = "postload-vmstate"
#: Memory of the guest that programs beside QEMU have too.
_SHARED = "postload-memory"
#: Memory that no guest knows of, where one may run in a QEMU that sends its memory (:mod:`harness.engines.spare`). QEMU
#: rounds the size of its memory up to a multiple of this.
SPARE_BYTES = 8192
_VMSTATE_FILE = (f"{_VMSTATE}.qcow2", 1 << 20)
#: What of a machine a program beside QEMU is.
_BESIDE: dict[type[Backend], type[Beside]] = {Tpm: TpmEmulator, VhostDisk: StorageDaemon}


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """A guest machine without a binary.

    :param boot: None for a machine that never boots
    :param faults: disk to what fails of it
    :param patterns: disk that holds the pattern, to the name that the guest has for it
    :param extra: further options of the user's, behind all others
    :param dropped: options that are left out, by their number: what turned out not to be needed
    :param foreign: where the plan came from, when that is not this user's own cache: it is checked before each use
    :param resettable: a reset resets it; else QEMU ends at one, so that a guest that faults is seen
    """

    plan: GuestPlan
    accel: str
    boot: Boot | None = None
    disks: DiskKind = DiskKind.PLAIN
    faults: Mapping[str, Fault] = field(default_factory=dict)
    patterns: Mapping[str, str] = field(default_factory=dict)
    extra: tuple[Option, ...] = ()
    dropped: frozenset[int] = frozenset()
    foreign: Path | None = None
    resettable: bool = False

    @property
    def name(self) -> str:
        """The versioned machine type."""
        return self.plan.machine

    @property
    def family(self) -> str:
        """Its alias, e.g. ``q35``."""
        return self.plan.family

    @property
    def options(self) -> tuple[Option, ...]:
        """Everything but machine, accelerator and what a process adds; ``{workdir}`` stands for its folder."""
        options = (*_guest_options(self.plan, self.accel, self.boot), *_device_options(self), *self.extra)
        return tuple(option for number, option in enumerate(options) if number not in self.dropped)

    @property
    def files(self) -> tuple[tuple[str, int], ...]:
        """Raw scratch images that an option names, name to bytes."""
        text = repr(self.options)
        disks = {f"{name}.img": d.size_bytes for name, d in _disks(self.plan) if d.medium == "file"}
        return tuple((name, size) for name, size in disks.items() if f"/{name}" in text)

    def command(self, binary: str, workdir: Path, *extra: Option) -> CommandLine:
        """The command line of one process, its machine stopped (``-S``) until told.

        :raises PackError: the plan is from elsewhere, and asks for more than a guest needs
        """
        confinement = None
        guest_options: tuple[Option, ...] = self.options
        walls: tuple[Option, ...] = ()
        if self.foreign is not None:
            self.check(binary)
            guest_options = self._moved(workdir).options
            confinement = confined(binary, workdir)
            walls = (_SANDBOX,) if confinement.walls.sandbox else ()
        reset = () if self.resettable else ("no-reboot",)
        options = (
            *(Option(name=name) for name in ("nodefaults", "no-user-config", *reset, "S")),
            Option(name="display", first="none"),
            Option(name="machine", first=self.name),
            Option(name="accel", first=self.accel),
            *(filled(option, "{workdir}", workdir) for option in guest_options),
            *walls,
        )
        return CommandLine(binary=binary, options=options + extra, confinement=confinement)

    def check(self, binary: str) -> None:
        """Hold a plan from elsewhere against the QEMU that shall load it; see :mod:`harness.guests.foreign`.

        :raises PackError: it asks for more than a guest needs; names the file, what was met and what was expected
        """
        if self.foreign is None:
            return
        try:
            check_plan(self.plan, self.accel)
            asked = [*self.plan.types(), *(preset.driver for preset in self.plan.presets)]
            check_listed(self.plan, listing(binary, self.name, asked), binary)
        except PackError as error:
            raise PackError(f"{self.foreign}: {error}") from error

    def looked_at(self, binary: str) -> Machine:
        """The machine for a program that stands in for this QEMU, such as gdb: checked here, with no wall but QEMU's
        own.

        :raises PackError: as :meth:`check`
        """
        if self.foreign is None:
            return self
        self.check(binary)
        walls = (_SANDBOX,) if standing(binary).sandbox else ()
        return replace(self, foreign=None, extra=(*self.extra, *walls))

    def _moved(self, workdir: Path) -> Machine:
        """With kernel and initramfs in the scratch folder, where a QEMU behind walls gets at them.

        :raises HostError: no space
        """
        if self.boot is None:
            return self
        boot = Boot(kernel=workdir / "guest-kernel", initramfs=workdir / "guest-initramfs")
        try:
            for source, copy in ((self.boot.kernel, boot.kernel), (self.boot.initramfs, boot.initramfs)):
                # source and destination of a migration share a folder, and one of them may have it open
                if not copy.exists():
                    shutil.copyfile(source, copy)
        except OSError as error:
            raise HostError(f"cannot copy the guest to {workdir}: {error.strerror}") from error
        return replace(self, boot=boot)

    def with_faults(self, faults: Mapping[str, int], *, once: bool = False) -> Machine:
        """The machine with disks that fail: the id of a disk to the sector that does."""
        return replace(self, faults={name: Fault(sector=sector, once=once) for name, sector in faults.items()})

    def make_files(self, workdir: Path) -> None:
        """Make the images of its disks: sparse, and empty but for the patterns.

        :raises HostError: no space
        """
        try:
            for name, size in self.files:
                if self.disks is DiskKind.SNAPSHOTS:
                    (workdir / name).write_bytes(empty_qcow2(size))
                    continue
                with (workdir / name).open("wb") as file:
                    file.truncate(size)
                    write_pattern(file, self.patterns.get(name.removesuffix(".img")))
                if self.disks is DiskKind.REPLICATION:
                    for overlay in _overlays(name.removesuffix(".img")):
                        (workdir / overlay).write_bytes(empty_qcow2(size))
            if self.disks is DiskKind.SNAPSHOTS:
                (workdir / _VMSTATE_FILE[0]).write_bytes(empty_qcow2(_VMSTATE_FILE[1]))
        except OSError as error:
            raise HostError(f"cannot make images in {workdir}: {error.strerror}") from error


def lacking_program(backends: Iterable[Backend]) -> Lack | None:
    """The program that one of some backends is and that this host has not, or None where it has all."""
    for backend in backends:
        beside = _BESIDE.get(type(backend))
        if beside is not None and beside.path() is None:
            return Lack(what=Lacks.PROGRAM, names=(beside.program, beside.package))
    return None


def small_machine(name: str, accel: str = "tcg", memory_mib: int = 16) -> Machine:
    """A machine with nothing in it, to ask a QEMU something."""
    return Machine(plan=GuestPlan(machine=name, family=family_of(name), memory_mib=memory_mib), accel=accel)


def firmware_sink() -> Option:
    """The far end of the firmware's debug port where nobody listens."""
    return Option(name="chardev", first="null", props={"id": "firmware"})


def filled(option: Option, mark: str, folder: Path) -> Option:
    """An option with a folder in place of its mark."""

    def fill(value: Scalar) -> Scalar:
        return value.replace(mark, str(folder)) if isinstance(value, str) else value

    first = None if option.first is None else option.first.replace(mark, str(folder))
    return Option(name=option.name, first=first, props={key: fill(value) for key, value in option.props.items()})


def _guest_options(plan: GuestPlan, accel: str, boot: Boot | None) -> Iterator[Option]:
    """The options of the guest itself, without any device under test."""
    architecture = architecture_of(plan.machine)
    if plan.cpu is None:
        yield from architecture.cpu_options(accel)
    else:
        yield Option(name="cpu", first=plan.cpu.model, props=plan.cpu.features)
    yield Option(name="m", first=_memory_size(plan), props=_memory_room(plan))
    yield Option(name="smp", first=str(plan.cpus), props=_topology(plan))
    if plan.shares_memory:
        shared: dict[str, Scalar] = {"id": _SHARED, "size": _memory_size(plan), "share": True}
        yield Option(name="object", first="memory-backend-memfd", props=shared)
    for name in plan.memory_backends():
        memory = plan.backends[name]
        assert isinstance(memory, Memdev)  # of a plan that was checked
        yield _object_option(name, memory)
    for node in plan.numa:
        yield Option(name="numa", first="node", props=_numa_node(node))
    for preset in plan.presets:
        yield Option(name="global", props={"driver": preset.driver, "property": preset.property, "value": preset.value})
    if boot is not None:
        yield Option(name="kernel", first=str(boot.kernel))
        yield Option(name="initrd", first=str(boot.initramfs))
        yield Option(name="append", first=plan.cmdline)
    if plan.kernel is not None and architecture.firmware:
        # the recorder reads how far it is, a secondary throws it away
        yield architecture.firmware.device


def _memory_size(plan: GuestPlan) -> str:
    """As ``-m`` has it, in MiB, or with its unit behind it.

    Memory that is a backend cannot be made longer when a guest migrates: it has the spare pages from the start.
    """
    return f"{(plan.memory_mib << 10) + (SPARE_BYTES >> 10)}k" if plan.shares_memory else str(plan.memory_mib)


def _memory_room(plan: GuestPlan) -> dict[str, Scalar]:
    if not plan.memory_room_mib:
        return {}
    return {"slots": plan.memory_slots, "maxmem": f"{plan.memory_mib + plan.memory_room_mib}M"}


def _machine_properties(plan: GuestPlan) -> dict[str, Scalar]:
    ram = _SHARED if plan.shares_memory else plan.ram
    named = {} if ram is None else {"memory-backend": ram}
    return {**plan.machine_properties, **named, **_described(plan.machine)}


def _described(machine: str) -> dict[str, Scalar]:
    """Machine types before 2.4 describe what they save only when they are told to (``suppress-vmdesc``)."""
    version = version_of(machine)
    return {"suppress-vmdesc": False} if version and version < _DESCRIBES else {}


def version_of(machine: str) -> tuple[int, int] | None:
    """The QEMU that a machine type is named for, None for one that is as each QEMU has it."""
    version = _VERSION.search(machine)
    return (int(version[1]), int(version[2])) if version else None


def _numa_node(node: NumaNode) -> dict[str, Scalar]:
    cpus = {} if node.cpus is None else {"cpus": "-".join(str(number) for number in node.cpus)}
    return {"nodeid": node.number, **cpus, **({} if node.memdev is None else {"memdev": node.memdev})}


def _topology(plan: GuestPlan) -> dict[str, Scalar]:
    return {} if plan.topology is None else plan.topology.model_dump(exclude_none=True)


def _device_options(machine: Machine) -> Iterator[Option]:
    """Each device behind the backends that it is the first to name."""
    made: set[str] = {*machine.plan.memory_backends()}
    for device in machine.plan.devices:
        for name in device.backends.values():
            if name not in made:
                made.add(name)
                yield from _backend_options(machine, name, machine.plan.backends[name])
        yield device_option(machine, device)
    if properties := _machine_properties(machine.plan):
        # QEMU puts it together with the one that names the machine; here it is part of a case too
        yield Option(name="machine", props=properties)
    if machine.disks is DiskKind.SNAPSHOTS:
        yield from _image_nodes(_VMSTATE, _VMSTATE_FILE[0], "qcow2")


def device_option(machine: Machine, device: PlacedDevice) -> Option:
    """The ``-device`` of one device, which is what ``device_add`` takes too."""
    props: dict[str, Scalar] = {"id": device.id}
    if device.bus is not None:
        props["bus"] = device.bus
    if device.slot is not None:
        props["addr"] = device.slot
    props |= device.properties
    props |= device.references
    for key, name in device.backends.items():
        backend = machine.plan.backends[name]
        props[key] = name
        if isinstance(backend, Disk):
            props |= (
                {key: f"{name}{FAULTS_SUFFIX}", "werror": "stop", "rerror": "stop"} if name in machine.faults else {}
            )
            sector = backend.sector_bytes
            props |= {"logical_block_size": sector, "physical_block_size": sector} if sector != 512 else {}
    return Option(name="device", first=device.type, props=props)


def _backend_options(machine: Machine, name: str, backend: Backend) -> Iterator[Option]:
    if isinstance(backend, Netdev):
        yield _netdev_option(name, backend)
    elif isinstance(backend, LoneTap):
        yield lone_tap_option(name, backend.queues)
    elif isinstance(backend, Chardev | Audiodev | Fsdev):
        yield Option(name=backend.kind, first=backend.type, props={"id": name})
    elif isinstance(backend, Memdev | Cryptodev | Canbus):
        yield _object_option(name, backend)
    elif isinstance(backend, Tpm):
        yield tpm_option(name)
    elif isinstance(backend, VhostDisk):
        yield vhost_disk_option(name, backend.size_bytes)
    elif isinstance(backend, Ivshmem):
        yield ivshmem_option(name, backend.size_bytes)
    else:
        yield from _disk_options(machine, name, backend)
        if name in machine.faults:
            yield _failing(name, machine.faults[name])


def _object_option(name: str, backend: Memdev | Cryptodev | Canbus) -> Option:
    if isinstance(backend, Memdev):
        props: dict[str, Scalar] = {"id": name, "size": backend.size_bytes, "share": backend.share}
        return Option(name="object", first="memory-backend-ram", props=props)
    first = "can-bus" if isinstance(backend, Canbus) else f"cryptodev-backend-{backend.type}"
    return Option(name="object", first=first, props={"id": name})


def _netdev_option(name: str, netdev: Netdev) -> Option:
    if netdev.interface is None:
        return Option(name="netdev", first="user", props={"id": name, "restrict": netdev.restrict})
    scripts = {"script": "no", "downscript": "no"}
    return Option(name="netdev", first="tap", props={"id": name, "ifname": netdev.interface, **scripts})


def _disk_options(machine: Machine, name: str, disk: Disk) -> Iterator[Option]:
    image = f"{name}.img"
    if disk.medium == "null":
        props: dict[str, Scalar] = {"node-name": name, "size": disk.size_bytes, "read-zeroes": True}
        yield Option(name="blockdev", first="null-co", props=props)
    elif machine.disks is DiskKind.REPLICATION:
        yield from _replicated(name, image)
    else:
        yield from _image_nodes(name, image, "qcow2" if machine.disks is DiskKind.SNAPSHOTS else "raw")


def _image_nodes(name: str, image: str, form: str) -> Iterator[Option]:
    yield Option(name="blockdev", first="file", props={"node-name": f"{name}-file", "filename": f"{{workdir}}/{image}"})
    yield Option(name="blockdev", first=form, props={"node-name": name, "file": f"{name}-file"})


def _failing(name: str, fault: Fault) -> Option:
    """A ``blkdebug`` node between a disk and its device.

    The rule's event is ``none``: it is active from the start, without a driver below that would have to name its
    requests (``block/blkdebug.c:add_rule``).
    """
    rule: dict[str, Scalar] = {"event": "none", "errno": _EIO, "sector": fault.sector, "once": fault.once}
    return Option(
        name="blockdev",
        first="blkdebug",
        props={"node-name": f"{name}{FAULTS_SUFFIX}", "image": name}
        | {f"inject-error.0.{key}": value for key, value in (rule | {"immediately": False}).items()},
    )


def _overlays(name: str) -> tuple[str, str]:
    return f"{name}-active.qcow2", f"{name}-hidden.qcow2"


def _replicated(name: str, image: str) -> Iterator[Option]:
    """Parent, replication and quorum, as QEMU's ``docs/COLO-FT.txt`` has them.

    The parent is a ``-drive`` for the block backend that it comes with: replication wants one on the secondary
    disk, which otherwise the NBD export of the real primary's writes provides.
    """
    active, hidden = _overlays(name)
    parent = {"if": "none", "id": f"{name}-parent", "driver": "raw", "file.filename": f"{{workdir}}/{image}"}
    replication = {
        "if": "none",
        "id": f"{name}-secondary",
        "driver": "replication",
        "mode": "secondary",
        "top-id": name,
        "file.driver": "qcow2",
        "file.file.filename": f"{{workdir}}/{active}",
        "file.backing.driver": "qcow2",
        "file.backing.file.filename": f"{{workdir}}/{hidden}",
        "file.backing.backing": f"{name}-parent",
    }
    quorum = {
        "if": "none",
        "id": name,
        "driver": "quorum",
        "read-pattern": "fifo",
        "vote-threshold": "1",
        "children.0": f"{name}-secondary",
    }
    for props in (parent, replication, quorum):
        yield Option(name="drive", props=props)


def _disks(plan: GuestPlan) -> Iterator[tuple[str, Disk]]:
    for name, backend in plan.backends.items():
        if isinstance(backend, Disk):
            yield name, backend
