# SPDX-License-Identifier: GPL-2.0-or-later
"""From what somebody said of a VM to a guest plan: its devices in their places, and harmless things behind them.

Nothing of a configuration reaches a QEMU as it stands. A device type and each property must be one that the QEMU lists,
its value one that :mod:`harness.guests.foreign` lets through; what a device stands on is made anew from its kind and
shape. What was replaced and what is left out is told, as data. Ids, buses and slots stay as they were given, for names
of saved sections are made of them; a PCI device without a slot gets the one that QEMU gives it, the first that is free.
"""

from __future__ import annotations

import re
from collections.abc import Container, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from difflib import get_close_matches
from fnmatch import fnmatchcase
from typing import Final

from pydantic import ValidationError

from harness.adopt.backends import PARTS, STANDS, SaidBackend, is_unnamed, made, said_backends, unsaid
from harness.adopt.builtin import UNNAMED, Expanded, expand, usb_of_machine
from harness.adopt.configuration import Configuration, SaidOption, Value
from harness.adopt.place import TextPlace, quoted
from harness.adopt.scalars import as_boolean, as_number, as_size, as_slot, as_text, as_word
from harness.arch import RootBus, architecture_of, family_of
from harness.devices.backends import IDENT, Audiodev, Backend, Chardev, Disk, LoneTap, Memdev, Model, Netdev, Tpm
from harness.devices.types import CPU, DeviceType, types_of
from harness.errors import PackError, UsageError
from harness.guests.foreign import (
    BACKEND_KEYS,
    HOST_PROPERTIES,
    MACHINE_PROPERTIES,
    REFERENCE_KEYS,
    check_listed,
    check_override,
    check_plan,
    fits,
    is_of_host,
)
from harness.guests.machine import lacking_program
from harness.guests.origin import LeftOut, Replaced, VmOrigin, VmPart, Without, label
from harness.guests.plan import Cpu, GuestPlan, NumaNode, PlacedDevice, Preset, Topology
from harness.qemu.binary import MachineType, QemuBinary
from harness.qemu.cmdline import on_command_line
from harness.qemu.listed import BOOLEAN, ENUM, NUMBER, Listed, Listing, cpu_models, listing
from harness.qemu.lonetap import has_lone_taps

#: Options that say nothing of the state of a device: where things go on the host, what is booted first, how QEMU runs,
#: what the guest is told of itself.
_SILENT: Final = frozenset(
    {"D", "L", "S", "accel", "action", "add-fd", "alt-grab", "async-teardown", "audio-help", "boot"}
    | {"chroot", "clock", "compat", "ctrl-grab", "curses", "d", "daemonize", "dfilter", "display"}
    | {"echr", "enable-fips", "enable-sync-profile", "full-screen", "g", "gdb", "h", "help", "id"}
    | {"incoming", "iscsi", "jitdump", "k", "kvm-shadow-memory", "loadvm", "mem-path", "mem-prealloc"}
    | {"mon", "monitor", "msg", "name", "no-frame", "no-kvm-pit", "no-kvm-pit-reinjection", "no-quit"}
    | {"no-reboot", "no-shutdown", "no-user-config", "nodefaults", "nodefconfig", "nographic"}
    | {"only-migratable", "overcommit", "perfmap", "pidfile", "portrait", "preconfig", "qmp"}
    | {"qmp-pretty", "realtime", "rotate", "run-with", "runas", "sandbox", "seed", "show-cursor"}
    | {"singlestep", "smbios", "snapshot", "spice", "tb-size", "trace", "uuid", "version", "vnc"}
    | {"watchdog-action", "writeconfig"}
)
#: Options that are read elsewhere in this module and those beside it.
_READ: Final = frozenset(
    {"append", "audiodev", "bios", "blockdev", "chardev", "cpu", "device", "drive", "dtb", "fsdev"}
    | {"global", "initrd", "kernel", "m", "machine", "netdev", "nic", "numa", "object", "parallel", "rtc"}
    | {"serial", "smp", "tpmdev", "vga"}
)
#: Keys of ``-machine`` that say nothing of the state of a device here.
_SILENT_MACHINE: Final = frozenset(
    {"type", "accel", "dump-guest-core", "mem-merge", "memory-backend", "graphics", "firmware", "kernel-irqchip"}
    | {"pflash0", "pflash1", "kvm-shadow-mem", "suppress-vmdesc", "boot", "pcspk-audiodev", "fd-bootchk"}
)
#: And of ``-cpu``: these let a QEMU refuse to start.
_SILENT_CPU: Final = frozenset({"model", "enforce", "check", "migratable", "host-cache-info", "l3-cache"})
#: Keys of a device that are fields of the plan, or about the order in which firmware boots, or the host's threads.
_OWN: Final = frozenset(
    {"id", "bus", "addr", "driver", "bootindex", "iothread", "rng", "share-rw", "iothread-vq-mapping"}
)
_BOOT = ("kernel", "initrd", "dtb")
#: Models that stand for the host's own processor.
_HOST_MODELS: Final = frozenset({"host", "host-model", "host-passthrough"})
#: Names that QEMU gives to buses of devices without an id (``hw/core/bus.c``: ``qbus_init_internal``), by such devices.
_AUTOMATIC: Mapping[str, tuple[str, ...]] = {
    "scsi": ("virtio-scsi*", "lsi*", "megasas*", "mptsas*", "am53c974", "dc390", "pvscsi"),
    "usb-bus": ("*xhci*", "*uhci*", "*ehci*", "pci-ohci"),
    "virtio-serial-bus": ("virtio-serial*",),
    "hda": ("*intel-hda",),
}
#: Buses that the chipset has and whose devices find them by themselves.
_BY_ITSELF: Final = frozenset({"isa", "floppy-bus", "i2c", "main-system-bus"})
_CONSOLE: Final = "isa-serial"
_DEBUG: Final = "isa-debugcon"
_MIB: Final = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """What a QEMU says of itself, as far as a configuration asks.

    :param machine: versioned machine type
    :param types: its device types
    :param listing: the properties of those that are asked for
    """

    machine: str
    types: Mapping[str, DeviceType]
    listing: Listing

    @property
    def family(self) -> str:
        """Alias of the machine type."""
        return family_of(self.machine)

    def type_named(self, name: str) -> str:
        """The type of a name or alias."""
        if name in self.types:
            return name
        return next((kind.name for kind in self.types.values() if kind.alias == name), name)


@dataclass(frozen=True, slots=True, kw_only=True)
class Adopted:
    """A VM as a guest plan without anything to boot.

    :param plan: CPUs and memory as they were said
    """

    plan: GuestPlan
    origin: VmOrigin


def known_to(binary: QemuBinary, configuration: Configuration, machine: str = "") -> Known:
    """Ask a QEMU about what a configuration names.

    :param machine: a machine type that is taken in place of the configuration's
    :raises UsageError: the QEMU has no such machine type; says what it has
    :raises QemuError: it does not answer
    """
    wanted = machine or said_machine(configuration)
    said = wanted or next(iter(architecture_of("").families.values()))
    found = machine_of(binary, said)
    if found is None:
        raise UsageError(
            f"{configuration.source}: machine type {wanted!r}: QEMU {binary.version} has none of that name; "
            "expected a QEMU that has it (--qemu), or another type (--machine)"
        )
    kinds = types_of(binary.path)
    known = Known(machine=found.name, types=kinds, listing=Listing(devices={}, machine={}))
    named = {
        known.type_named(as_text(each.values.get("driver"))) for each in expand(configuration, known.family).devices
    }
    drivers = {preset for preset, _, _ in _globals(configuration)}
    asked = {name for name in named | drivers if name and not is_of_host(name)}
    return replace(known, listing=listing(binary.path, found.name, {*asked, "mc146818rtc", _CONSOLE}))


def plain_machine(name: str) -> str:
    """QEMU's name of a machine type: Proxmox VE puts the number of its own build behind it."""
    return re.sub(r"\+pve\d+$", "", name)


def machine_of(binary: QemuBinary, name: str) -> MachineType | None:
    """A QEMU's machine type by the name that somebody wrote, None where it has none."""
    return binary.machine(name) or binary.machine(plain_machine(name))


def said_machine(configuration: Configuration) -> str:
    """The machine type that it names, empty where it names none."""
    types = [as_text(option.values.get("type")) for option in configuration.named("machine")]
    return next((name for name in reversed(types) if name), "")


def adopt_plan(configuration: Configuration, known: Known, *, state: bool = False) -> Adopted:
    """The plan of a VM.

    :param state: it is for the state that the VM was saved in, and not for a guest of this program's
    :raises UsageError: the configuration is no VM that QEMU could start: an id that is there twice, a device that
        names a backend which is not there; names file and line
    """
    return _Adoption(configuration, known, state).run()


class _Adoption:
    """One VM on its way to a plan."""

    def __init__(self, configuration: Configuration, known: Known, state: bool) -> None:
        self._state = state
        self._said = configuration
        self._known = known
        self._expanded = expand(configuration, known.family)
        self._backends = said_backends(configuration)
        self._bus: RootBus | None = architecture_of(known.machine).buses.get(known.family)
        self._devices: list[PlacedDevice] = []
        self._made: dict[str, Backend] = {}
        self._by_name: dict[tuple[type[Model], str], str] = {}
        self._slots: dict[str, set[str]] = {}
        self._ids = {as_text(option.values.get("id")) for option in self._expanded.devices}
        self._automatic = _automatic_buses(self._expanded, known, self._has_usb())
        self._console = self._expanded.console
        self.replaced: list[Replaced] = []
        self.left_out: list[LeftOut] = []

    def run(self) -> Adopted:
        for option in self._said.options:
            if option.name not in _SILENT | _READ:
                self.left_out.append(LeftOut(why=Without.OPTION, type=label(option.name), names=_keys(option)))
        self.left_out += [LeftOut(why=Without.OPTION, type="drive", names=_keys(o)) for o in self._expanded.odd]
        for part in self._said.unread:
            self.left_out.append(LeftOut(why=Without.UNREAD, type=label(part.path), names=(str(part.line),)))
        machine_properties = self._machine()
        cpu, topology, cpus = self._cpu(), *self._cpus()
        memory, room, slots = self._memory()
        ram, numa = self._ram(memory), self._numa(memory)
        for option in self._expanded.devices:
            self._device(option)
        self._others()
        try:
            plan = GuestPlan(
                machine=self._known.machine,
                family=self._known.family,
                machine_properties=machine_properties,
                cpus=cpus,
                cpu=cpu,
                topology=topology,
                memory_mib=memory,
                memory_room_mib=room,
                memory_slots=slots,
                ram=None if numa else ram,
                numa=numa,
                devices=tuple(self._devices),
                backends=self._made,
                presets=tuple(self._presets()),
            )
        except ValidationError as error:
            raise UsageError(
                f"{self._said.source}: {error.errors()[0]['msg'].removeprefix('Value error, ')}"
            ) from error
        origin = VmOrigin(name=label(self._said.name), replaced=tuple(self.replaced), left_out=tuple(self.left_out))
        return Adopted(plan=plan, origin=origin)

    # -- the machine ---------------------------------------------------------------------------------------------------

    def _machine(self) -> dict[str, bool | int]:
        wanted = said_machine(self._said)
        if wanted and self._known.machine != wanted and family_of(self._known.machine) != wanted:
            self.replaced.append(Replaced(part=VmPart.MACHINE, was=label(wanted), stands=self._known.machine))
        values = self._option("machine")
        properties: dict[str, bool | int] = {}
        odd: list[str] = []
        for key, value in values.items():
            if key in _SILENT_MACHINE or value == "auto":
                continue
            listed = self._known.listing.machine.get(key)
            if key not in MACHINE_PROPERTIES or listed is None:
                odd.append(key)
                continue
            said = (each for each in (as_boolean(value), as_number(value)) if each is not None)
            taken = next((each for each in said if fits(key, each, listed)), None)
            if taken is None:
                odd.append(key)
            else:
                properties[key] = taken
        if odd:
            names = tuple(map(label, odd))
            self.left_out.append(LeftOut(why=Without.REFUSED, type="machine", names=names))
        return properties

    def _cpu(self) -> Cpu | None:
        values: dict[str, Value] = self._option("cpu")
        model = as_text(values.get("model"))
        if not model:
            return None
        if model in _HOST_MODELS:
            self.replaced.append(Replaced(part=VmPart.CPU, was=model, stands="max"))
            model = "max"
        features: dict[str, bool | int | str] = {}
        odd = []
        for key, value in values.items():
            name, said = (key[1:], key[0] == "+") if key[:1] in "+-" else (key, value)
            feature = _feature(said)
            if name in _SILENT_CPU:
                continue
            if feature is None:
                odd.append(label(name))
            else:
                features[name] = feature
        try:
            cpu = Cpu(model=model, features=features)
            check_plan(GuestPlan(machine=self._known.machine, family=self._known.family, memory_mib=1, cpu=cpu), "tcg")
        except (ValidationError, PackError):
            odd, cpu = [*map(label, features)], self._bare_cpu(model)
        if odd:
            self.left_out.append(LeftOut(why=Without.REFUSED, type="cpu", names=tuple(odd)))
        return cpu

    def _bare_cpu(self, model: str) -> Cpu:
        try:
            return Cpu(model=model)
        except ValidationError:
            raise self._wrong(self._said.named("cpu")[-1], f"expected a CPU model, found {quoted(model)}") from None

    def _cpus(self) -> tuple[Topology | None, int]:
        values: dict[str, Value] = self._option("smp")
        numbers = {key: number for key in Topology.model_fields if (number := as_number(values.get(key)))}
        cpus = as_number(values.get("cpus"))
        if cpus is None:
            parts = [numbers.get(key, 1) for key in ("sockets", "dies", "cores", "threads")]
            cpus = numbers.get("maxcpus") or parts[0] * parts[1] * parts[2] * parts[3]
        if not 1 <= cpus <= 1024 or any(not 1 <= number <= 1024 for number in numbers.values()):
            raise self._wrong(self._said.named("smp")[-1], f"{cpus} CPUs: expected 1 to 1024 of them")
        return Topology(**numbers) if numbers else None, cpus

    def _memory(self) -> tuple[int, int, int]:
        """Memory, room for more, and slots, in MiB and numbers."""
        values: dict[str, Value] = self._option("m")
        size = as_size(values.get("size"), "m") if "size" in values else 128 << _MIB
        if size is None or not 1 << _MIB <= size < 1 << (24 + _MIB):
            raise self._wrong(self._said.named("m")[-1], "expected a size of memory such as 4G")
        most, slots = as_size(values.get("maxmem"), "m") or size, as_number(values.get("slots")) or 0
        return size >> _MIB, min(max(0, most - size), 1 << 43) >> _MIB, min(max(0, slots), 256)

    def _ram(self, memory_mib: int) -> str | None:
        """A backend that is the machine's memory, whose saved block is called by it."""
        name = as_text(self._option("machine").get("memory-backend"))
        if not _is_ident(name) or (Memdev, name) not in self._backends:
            return None
        said = self._backends[Memdev, name]
        self._made[name] = Memdev(size_bytes=memory_mib << _MIB, share=said.share)
        return name

    def _numa(self, memory_mib: int) -> tuple[NumaNode, ...]:
        """NUMA nodes, all of them or none: their memory has to come to the machine's."""
        said = self._said.named("numa")
        nodes = [option for option in said if option.values.get("type") == "node"]
        kept = [node for number, option in enumerate(nodes) if (node := self._node(option, number)) is not None]
        sizes = [self._backends[Memdev, node.memdev].size_bytes or 0 for node in kept if node.memdev]
        whole = len(kept) == len(nodes) and (not sizes or sum(sizes) == memory_mib << _MIB)
        for option in said:
            if not whole or option not in nodes:
                self.left_out.append(LeftOut(why=Without.OPTION, type="numa", names=_keys(option)))
        for node in kept if whole else ():
            if node.memdev is not None:
                self._made[node.memdev], _ = made(self._backends[Memdev, node.memdev], "")
        return tuple(kept) if whole else ()

    def _node(self, option: SaidOption, number: int) -> NumaNode | None:
        """One node; None where it is one that a plan does not hold."""
        values = option.values
        cpus = values.get("cpus")
        said = [as_text(each) for each in cpus] if isinstance(cpus, list | tuple) else [as_text(cpus)] if cpus else []
        ends = [re.fullmatch(r"(\d{1,4})(?:-(\d{1,4}))?", text) for text in said]
        memdev = as_text(values.get("memdev"))
        if len(said) > 1 or not all(ends) or ("mem" in values and not memdev):
            return None
        if memdev and (not _is_ident(memdev) or (Memdev, memdev) not in self._backends):
            return None
        first = ends[0] if ends else None
        try:
            return NumaNode(
                number=number if (given := as_number(values.get("nodeid"))) is None else given,
                cpus=None if first is None else (int(first[1]), int(first[2] or first[1])),
                memdev=memdev or None,
            )
        except ValidationError:
            return None

    def _presets(self) -> Iterator[Preset]:
        for driver, key, value in _globals(self._said):
            for taken in (as_boolean(value), as_number(value), as_word(value)):
                if taken is None:
                    continue
                try:
                    check_override(driver, key, on_command_line(taken), self._known.listing, "")
                    yield Preset(driver=driver, property=key, value=taken)
                except (PackError, ValidationError):
                    continue
                break
            else:
                self.left_out.append(LeftOut(why=Without.REFUSED, type=label(driver), names=(label(key),)))

    def _others(self) -> None:
        """What is neither device nor machine and has something in its place all the same."""
        flash = [key for o in self._said.named("machine") for key in ("pflash0", "firmware") if o.values.get(key)]
        if flash or self._expanded.flash or self._said.named("bios"):
            was = "file" if self._said.named("bios") else "flash"
            self.replaced.append(Replaced(part=VmPart.FIRMWARE, was=was, stands="the QEMU's own"))
        if self._said.named(*_BOOT):
            self.replaced.append(Replaced(part=VmPart.SYSTEM, was="kernel", stands="postload guest"))
        if self._console is None and _CONSOLE in self._known.types:
            self.replaced.append(Replaced(part=VmPart.CONSOLE, was="none", stands="console"))

    # -- devices -------------------------------------------------------------------------------------------------------

    def _device(self, option: SaidOption) -> None:
        said = as_text(option.values.get("driver"))
        if not said:
            raise self._wrong(option, "a device without a type: expected driver=TYPE")
        kind = self._known.type_named(said)
        lost = self._lost(kind, option)
        if lost is not None:
            why, names = lost
            self._leave(option, why, names)
        elif kind == _CONSOLE and self._takes_console(option):
            return
        elif kind != _DEBUG:  # the recorder has its own
            self._place(kind, option)

    def _lost(self, kind: str, option: SaidOption) -> tuple[Without, tuple[str, ...]] | None:
        """Why a device is not in the plan."""
        listed = self._known.listing.devices.get(kind)
        host = sorted(HOST_PROPERTIES & (option.values.keys() - _backend_keys(listed or {})))
        bus = as_text(option.values.get("bus"))
        if is_of_host(kind) or host:
            return Without.HOST, tuple(host)
        if kind not in self._known.types or listed is None:
            return Without.TYPE, ()
        if self._known.types[kind].category == CPU:
            return Without.CPU, ()
        # of a type that is no more than a shell of the host's
        told = sorted(HOST_PROPERTIES & listed.keys() - _backend_keys(listed))
        if told:
            return Without.HOST, tuple(told)
        if bus and self._bus_named(bus) is None:
            return Without.BUS, (bus,)
        if "tpmdev" in option.values and lacking_program([Tpm()]) is not None:
            return Without.PROGRAM, ("swtpm",)
        network = self._backends.get((Netdev, as_text(option.values.get("netdev"))))
        if (
            network is not None
            and isinstance(made(network, kind, state=self._state)[0], LoneTap)
            and not has_lone_taps()
        ):
            return Without.PROGRAM, ("/dev/net/tun",)
        return None

    def _leave(self, option: SaidOption, why: Without, names: Iterable[str]) -> None:
        name, kind = label(as_text(option.values.get("id"))), label(option.values.get("driver"))
        self.left_out.append(LeftOut(why=why, id=name, type=kind, names=tuple(map(label, names))))

    def _takes_console(self, option: SaidOption) -> bool:
        """The first serial port is the one that this program's guest is driven by."""
        index = as_number(option.values.get("index"))
        if self._console is not None or index not in (None, 0) or "iobase" in option.values:
            return False
        said = self._backends.get((Chardev, as_text(option.values.get("chardev"))), unsaid(Chardev))
        self._console = said.was
        name = label(option.values.get("id") or "")
        self.replaced.append(Replaced(part=VmPart.CONSOLE, id=name, was=said.was, stands="console"))
        return True

    def _place(self, kind: str, option: SaidOption) -> None:
        properties: dict[str, bool | int | str] = {}
        backends: dict[str, str] = {}
        references: dict[str, str] = {}
        lost: dict[Without, list[str]] = {}
        listed = self._known.listing.devices[kind]
        name = self._id(option)
        for key, value in option.values.items():
            if key in REFERENCE_KEYS and key in listed and any(d.id == value for d in self._devices):
                references[key] = as_text(value)
            elif key in _OWN or key in REFERENCE_KEYS:
                continue
            elif (backend := _backend_kind(key, listed)) is not None:
                self._stand(backend, key, as_text(value), kind, name, option, backends)
            elif key == "romfile" and value != "":
                self.replaced.append(Replaced(part=VmPart.ROM, id=name, was="file", stands="the QEMU's own"))
            elif (taken := typed(key, value, listed.get(key))) is not None:
                properties[key] = taken
            else:
                lost.setdefault(Without.REFUSED if key in listed else Without.UNKNOWN, []).append(key)
        if "rng" in option.values:
            self.replaced.append(Replaced(part=VmPart.RANDOM, id=name, was=self._random(option), stands="rng-builtin"))
        if "audiodev" in listed and "audiodev" not in backends:  # a card without a backend would use the host's sound
            backends["audiodev"] = self._stands_for(unsaid(Audiodev), UNNAMED, kind, name)
        for why, keys in lost.items():
            self.left_out.append(LeftOut(why=why, id=name, type=kind, names=tuple(map(label, keys))))
        bus, slot = self._where(kind, option)
        self._devices.append(
            PlacedDevice(
                id=name,
                type=kind,
                bus=bus,
                slot=slot,
                properties=properties,
                backends=backends,
                references=references,
            )
        )

    def _random(self, option: SaidOption) -> str:
        wanted = option.values.get("rng")
        found = (o for o in self._said.named("object") if o.values.get("id") == wanted)
        return next((as_word(o.values.get("qom-type")) or "other" for o in found), "other")

    def _stand(
        self, kind: type[Model], key: str, name: str, device: str, owner: str, option: SaidOption, into: dict[str, str]
    ) -> None:
        """Put something harmless behind a property."""
        said = self._backends.get((kind, name))
        if said is None:
            if not is_unnamed(name):
                raise self._wrong(option, f"{key}={name}: expected the name of one that the configuration has")
            said = unsaid(kind)
        if not said.empty:
            into[key] = self._stands_for(said, name, device, owner)

    def _stands_for(self, said: SaidBackend, name: str, device: str, owner: str) -> str:
        known = self._by_name.get((said.kind, name))
        if known is not None:
            return known
        backend, guessed = made(said, device, state=self._state)
        size = backend.size_bytes if isinstance(backend, Disk | Memdev) else None
        self.replaced.append(
            Replaced(
                part=PARTS[said.kind],
                id=owner if is_unnamed(name) else label(name),
                was=said.was,
                stands=STANDS[type(backend)],
                size_bytes=size,
                guessed=guessed,
            )
        )
        # memory gives its name to what is saved of it
        own = name if said.kind is Memdev and _is_ident(name) else self._free_name(backend.kind)
        self._made[own] = backend
        if not is_unnamed(name):
            self._by_name[said.kind, name] = own
        return own

    def _free_name(self, kind: str) -> str:
        return _free(kind, self._ids | self._made.keys())

    def _id(self, option: SaidOption) -> str:
        name = as_text(option.values.get("id"))
        if _is_ident(name):
            return name
        automatic = self._automatic.get(id(option))
        if automatic is not None:
            return automatic
        return _free("device", self._ids | {device.id for device in self._devices})

    # -- places --------------------------------------------------------------------------------------------------------

    def _bus_named(self, bus: str) -> str | None:
        """A bus as the plan has it, empty where its devices find it by themselves, None where it is not there."""
        if not _is_ident(bus):
            return None
        if self._bus is not None and bus == self._bus.name:
            return bus
        head, _, number = bus.rpartition(".") if not any(d.id == bus for d in self._devices) else (bus, "", "")
        head = head or bus
        if any(device.id == head for device in self._devices):
            return bus
        if head in _AUTOMATIC and number.isdigit():
            name = f"{head}{number}"
            if any(device.id == name for device in self._devices):
                return f"{name}.0"
        if head in _BY_ITSELF:
            return ""
        if head == "ide" or (head == "usb-bus" and self._has_usb()):
            return bus
        return None

    def _has_usb(self) -> bool:
        return any(usb_of_machine(option.values) for option in self._said.named("machine"))

    def _where(self, kind: str, option: SaidOption) -> tuple[str | None, str | None]:
        bus = self._bus_named(as_text(option.values.get("bus"))) if option.values.get("bus") else None
        if self._known.types[kind].bus != "PCI":
            return bus or None, None
        if not bus and self._bus is not None:
            bus = self._bus.name
        slot = as_slot(option.values.get("addr")) if "addr" in option.values else None
        if "addr" in option.values and slot is None:
            raise self._wrong(option, f"addr={option.values['addr']!r}: expected a PCI slot such as 0x2 or 1f.2")
        taken = self._taken(bus or "")
        slot = slot or self._free_slot(bus or "", taken)
        if slot is not None:
            taken.add(slot)
        return bus or None, slot

    def _taken(self, bus: str) -> set[str]:
        """Slots of a bus that something is in; of the root bus those of the chipset too."""
        if bus not in self._slots:
            self._slots[bus] = set()
            if self._bus is not None and bus == self._bus.name:
                free = {f"{number:02x}" for number in self._bus.slots} | (
                    {"02"} if bus == "pci.0" else {"01", "02", "03"}
                )
                self._slots[bus] = {f"{n:02x}.0" for n in range(32) if f"{n:02x}" not in free}
                if self._has_usb() and self._known.family == "q35":
                    self._slots[bus].add("1d.0")
        return self._slots[bus]

    def _free_slot(self, bus: str, taken: set[str]) -> str | None:
        """The first slot that is free, as QEMU takes it (``hw/pci/pci.c``: ``do_pci_register_device``); on a bridge,
        which may keep one for itself, QEMU has to find it."""
        heads = {slot[:2] for slot in taken}
        below = next((device for device in self._devices if device.id == bus), None)
        if below is not None:
            port = "port" in below.type or below.type in ("ioh3420", "x3130-upstream", "xio3130-downstream")
            return "00.0" if port and not taken else None
        return next((f"{number:02x}.0" for number in range(32) if f"{number:02x}" not in heads), None)

    # -- the rest ------------------------------------------------------------------------------------------------------

    def _option(self, name: str) -> dict[str, Value]:
        """All keys of an option, whose last value counts."""
        return {key: value for option in self._said.named(name) for key, value in option.values.items()}

    def _wrong(self, option: SaidOption, text: str) -> UsageError:
        return TextPlace(self._said.source, option.line).error(f"-{option.name}: {text}")


def typed(key: str, value: Value, listed: Listed | None) -> bool | int | str | None:
    """The value of a property as its type has it, None where a plan cannot hold it."""
    if listed is None:
        return None
    candidates: tuple[bool | int | str | None, ...] = (as_boolean(value), as_number(value), as_word(value))
    if value == "":
        candidates = ("",)
    elif listed.kind == NUMBER:
        candidates = (as_number(value),)
    elif listed.kind == BOOLEAN:
        candidates = (as_boolean(value),)
    elif listed.kind != ENUM and listed.type != "OnOffAuto":
        candidates = (str(value),) if as_word(str(value)) and not isinstance(value, bool) else ()
    return next((each for each in candidates if each is not None and fits(key, each, listed)), None)


def _feature(value: Value) -> bool | int | str | None:
    boolean = as_boolean(value)
    if boolean is not None:
        return boolean
    number = as_number(value)
    return number if number is not None and abs(number) < 1 << 63 else as_word(value)


def _backend_kind(key: str, listed: Mapping[str, Listed]) -> type[Model] | None:
    """The class of backend that a property names."""
    if key not in listed:
        return None
    return next((kind for kind, pattern in BACKEND_KEYS.items() if pattern.fullmatch(key)), None)


def _backend_keys(listed: Mapping[str, Listed]) -> set[str]:
    return {key for key in listed if _backend_kind(key, listed) is not None}


def _globals(configuration: Configuration) -> Iterator[tuple[str, str, Value]]:
    """Driver, property and value of each ``-global``, whichever of its two forms it has, and what ``-rtc`` says so."""
    for option in configuration.options:
        if option.name == "global":
            if {"driver", "property", "value"} <= option.values.keys():
                values = option.values
                yield as_text(values["driver"]), as_text(values["property"]), values["value"]
                continue
            for key, value in _flat(option.values):
                driver, _, name = key.rpartition(".")
                yield driver, name, value
        elif option.name == "rtc" and option.values.get("driftfix") == "slew":
            yield "mc146818rtc", "lost_tick_policy", "slew"


def _flat(values: Mapping[str, Value], prefix: str = "") -> Iterator[tuple[str, Value]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _keys(option: SaidOption) -> tuple[str, ...]:
    """Keys of an option, which say what it is about and nothing of whom."""
    return tuple(label(key) for key in option.values)[:8]


def _free(stem: str, taken: Container[str]) -> str:
    """The first name that nothing has."""
    return next(name for number in range(1 << 16) if (name := f"{stem}-{number}") not in taken)


def _is_ident(name: str) -> bool:
    return re.fullmatch(IDENT, name) is not None


def _automatic_buses(expanded: Expanded, known: Known, has_usb: bool) -> dict[int, str]:
    """Ids for devices without one whose bus another one names as QEMU would call it: ``scsi.0``."""
    found: dict[int, str] = {}
    counts = dict.fromkeys(_AUTOMATIC, 0) | {"usb-bus": int(has_usb)}
    taken = {as_text(option.values.get("id")) for option in expanded.devices}
    for option in expanded.devices:
        kind = known.type_named(as_text(option.values.get("driver")))
        for bus, patterns in _AUTOMATIC.items():
            if "id" in option.values or not any(fnmatchcase(kind, pattern) for pattern in patterns):
                continue
            name = f"{bus}{counts[bus]}"
            counts[bus] += 1
            if name not in taken:
                found[id(option)] = name
    return found


def check_cpu(adopted: Adopted, binary: QemuBinary, source: str) -> None:
    """Whether a QEMU has the CPU model of a VM.

    :raises UsageError: it has not; says which are near
    :raises QemuError: it does not say
    """
    cpu = adopted.plan.cpu
    models = cpu_models(binary.path) if cpu is not None else {}
    if cpu is not None and cpu.model not in models:
        near = ", ".join(get_close_matches(cpu.model, sorted(models), 4, 0.5)) or "max"
        raise UsageError(
            f"{source}: CPU model {cpu.model!r}: QEMU {binary.version} has none of that name (near it: {near}); "
            "expected one that it has, or a QEMU that has this one (--qemu)"
        )


def check_adopted(adopted: Adopted, known: Known, binary: str, accel: str) -> None:
    """Hold a plan against what one from elsewhere may ask for, which is what it is.

    :raises PackError: it asks for more: a fault of this program's
    """
    check_plan(adopted.plan, accel)
    check_listed(adopted.plan, known.listing, binary)
