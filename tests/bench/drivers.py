# SPDX-License-Identifier: GPL-2.0-or-later
"""What the wide guest makes of QEMU's devices: which are bound to a driver, which can be made to move.

``python tests/bench/drivers.py [--qemu Q] [--machine pc] [--only NAME,...] [--per-guest 25]`` puts the devices of
:data:`TRIED` into guests, takes each through every command of ``guests/lib/auto.sh``, and prints a table: ``yes`` for
status 0, ``-`` for status 3 with what the guest said, ``FAILED`` for any other. Ends with 1 when a command failed.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from harness.errors import GuestError
from harness.files import temp_dir
from harness.guests.build import Guest, build_guest
from harness.guests.console import Console
from harness.guests.recipe import load_recipe
from harness.qemu.binary import find_binary
from harness.qemu.cmdline import CommandLine, Option
from harness.qemu.vm import Vm

#: What a device stands on: mark to options; ``%`` is a name of its own, ``DIR`` the scratch folder.
BACKENDS = {
    "@net": "-netdev user,id=%,restrict=on",
    "@disk": "-blockdev file,node-name=%-file,filename=DIR/%.img -blockdev raw,node-name=%,file=%-file",
    "@char": "-chardev null,id=%",
    "@ring": "-chardev ringbuf,id=%",
    "@audio": "-audiodev none,id=%",
    "@share": "-fsdev local,id=%,path=DIR,security_model=none",
    "@rng": "-object rng-builtin,id=%",
    "@crypto": "-object cryptodev-backend-builtin,id=%",
    "@bmc": "-device ipmi-bmc-sim,id=%",
    "@memory": "-object memory-backend-ram,id=%,size=16M",
    "@can": "-object can-bus,id=%",
}
NICS = (
    "e1000 e1000-82544gc e1000-82545em e1000e i82550 i82551 i82557a i82557b i82557c i82558a i82558b i82559a i82559b"
    " i82559c i82559er i82562 i82801 igb ne2k_pci pcnet rtl8139 tulip vmxnet3 virtio-net-pci"
    " virtio-net-pci-non-transitional virtio-net-pci-transitional"
)
HBAS = (
    "am53c974 dc390 lsi53c810 lsi53c895a megasas megasas-gen2 mptsas1068 pvscsi virtio-scsi-pci"
    " virtio-scsi-pci-non-transitional virtio-scsi-pci-transitional"
)
USB_HOSTS = "qemu-xhci nec-usb-xhci usb-ehci ich9-usb-ehci1 pci-ohci piix3-usb-uhci piix4-usb-uhci ich9-usb-uhci1"
USB = {
    "usb-kbd": "usb-kbd",
    "usb-mouse": "usb-mouse",
    "usb-tablet": "usb-tablet",
    "usb-wacom-tablet": "usb-wacom-tablet",
    "usb-storage": "usb-storage,drive=@disk",
    "usb-bot": "usb-bot,id=ID-bot;scsi-hd,bus=ID-bot.0,drive=@disk",
    "usb-uas": "usb-uas,id=ID-uas;scsi-hd,bus=ID-uas.0,drive=@disk",
    "usb-net": "usb-net,netdev=@net",
    "usb-serial": "usb-serial,chardev=@char,always-plugged=on",
    "usb-braille": "usb-braille,chardev=@char",
    "usb-audio": "usb-audio,audiodev=@audio",
    "usb-hub": "usb-hub",
    "usb-ccid": "usb-ccid",
    "usb-mtp": "usb-mtp,rootdir=DIR",
}
#: Name to devices; ``ID`` is a name of its own, the first gets a slot. Behind ``|``: the hint of what is on no PCI bus.
TRIED = {
    **{nic: f"{nic},netdev=@net,romfile=" for nic in NICS.split()},
    **{hba: f"{hba},romfile=;scsi-hd,bus=ID.0,drive=@disk" for hba in HBAS.split()},
    **{f"{host}+kbd": f"{host};usb-kbd,bus=ID.0" for host in USB_HOSTS.split()},
    **{name: f"qemu-xhci;{text},bus=ID.0".replace(",bus=ID.0", "") for name, text in USB.items()},
    "scsi-cd": "virtio-scsi-pci;scsi-cd,bus=ID.0,drive=@disk",
    "virtio-blk-pci": "virtio-blk-pci,drive=@disk",
    "virtio-blk-pci-non-transitional": "virtio-blk-pci-non-transitional,drive=@disk",
    "virtio-blk-pci-transitional": "virtio-blk-pci-transitional,drive=@disk",
    "ich9-ahci": "ich9-ahci;ide-hd,bus=ID.0,drive=@disk;ide-cd,bus=ID.1,drive=@disk",
    "piix3-ide": "piix3-ide;ide-hd,bus=ID.0,drive=@disk",
    "piix4-ide": "piix4-ide;ide-hd,bus=ID.0,drive=@disk",
    "nvme": "nvme,serial=ID,drive=@disk",
    "nvme+namespaces": "nvme,serial=ID;nvme-ns,bus=ID,drive=@disk;nvme-ns,bus=ID,drive=@disk",
    "sdhci-pci": "sdhci-pci;sd-card,drive=@disk,bus=sd-bus",
    "ufs": "ufs,serial=ID;ufs-lu,drive=@disk",
    "pci-serial": "pci-serial,chardev=@char",
    "pci-serial-2x": "pci-serial-2x,chardev1=@char,chardev2=@char",
    "pci-serial-4x": "pci-serial-4x,chardev1=@char,chardev2=@char,chardev3=@char,chardev4=@char",
    "isa-serial": "isa-serial,chardev=@char,index=1|tty:ttyS1",
    "isa-parallel": "isa-parallel,chardev=@char|platform:parport_pc.*@parport_pc",
    "virtio-serial+console": "virtio-serial-pci;virtconsole,chardev=@char,bus=ID.0",
    "virtio-serial+port": "virtio-serial-pci;virtserialport,chardev=@ring,bus=ID.0,name=postload",
    "virtio-rng-pci": "virtio-rng-pci,rng=@rng",
    "virtio-rng-pci-non-transitional": "virtio-rng-pci-non-transitional,rng=@rng",
    "virtio-rng-pci-transitional": "virtio-rng-pci-transitional,rng=@rng",
    "virtio-balloon-pci": "virtio-balloon-pci",
    "virtio-crypto-pci": "virtio-crypto-pci,cryptodev=@crypto",
    "virtio-9p-pci": "virtio-9p-pci,fsdev=@share,mount_tag=ID",
    "virtio-iommu-pci": "virtio-iommu-pci",
    "virtio-keyboard-pci": "virtio-keyboard-pci",
    "virtio-mouse-pci": "virtio-mouse-pci",
    "virtio-tablet-pci": "virtio-tablet-pci",
    "virtio-gpu-pci": "virtio-gpu-pci",
    "intel-hda": "intel-hda;hda-duplex,bus=ID.0,audiodev=@audio",
    "ich9-intel-hda": "ich9-intel-hda;hda-output,bus=ID.0,audiodev=@audio",
    "hda-micro": "intel-hda;hda-micro,bus=ID.0,audiodev=@audio",
    "AC97": "AC97,audiodev=@audio",
    "ES1370": "ES1370,audiodev=@audio",
    "ati-vga": "ati-vga,romfile=",
    "bochs-display": "bochs-display,romfile=",
    "cirrus-vga": "cirrus-vga,romfile=",
    "qxl": "qxl,romfile=",
    "secondary-vga": "secondary-vga,romfile=",
    "vmware-svga": "vmware-svga,romfile=",
    "i6300esb": "i6300esb",
    "ib700": "ib700|platform:ib700wdt*@ib700wdt",
    "pci-ipmi-kcs": "pci-ipmi-kcs,bmc=@bmc",
    "pci-ipmi-bt": "pci-ipmi-bt,bmc=@bmc",
    "isa-ipmi-kcs": "isa-ipmi-kcs,bmc=@bmc|platform:dmi-ipmi-si.*@ipmi_si",
    "pvpanic-pci": "pvpanic-pci",
    "pvpanic": "pvpanic|platform:QEMU0001*@pvpanic_mmio",
    "kvaser_pci": "kvaser_pci,canbus=@can",
    "mioe3680_pci": "mioe3680_pci,canbus0=@can,canbus1=@can",
    "pcm3680_pci": "pcm3680_pci,canbus0=@can,canbus1=@can",
    "ctucan_pci": "ctucan_pci,canbus0=@can",
    "pci-bridge": "pci-bridge,chassis_nr=9",
    "pcie-root-port": "pcie-root-port,chassis=9",
    "pcie-pci-bridge": "pcie-pci-bridge",
    "i82801b11-bridge": "i82801b11-bridge",
    "edu": "edu",
    "pci-testdev": "pci-testdev",
    "rocker": "rocker,len-ports=1,ports[0]=@net",
}
NO_PCI = ("isa-serial", "isa-parallel", "ib700", "isa-ipmi-kcs", "pvpanic")
STEPS = ("busy", "check", "life", "idle", "unbind", "rebind", "life")
MEMORY_OF_DISK = 16 << 20


@dataclass(slots=True, kw_only=True)
class Tried:
    """One device, and what became of it: step to ``yes``, ``-`` or ``FAILED``."""

    name: str
    command: str
    options: list[str]
    steps: dict[str, str] = field(default_factory=dict)
    said: list[str] = field(default_factory=list)
    seconds: float = 0.0
    driver: str = ""


def attach(name: str, number: int, slot: int | None, bus: str, folder: Path) -> Tried:
    """The options of a device, its backends first."""
    text, _, hint = TRIED[name].partition("|")
    options: list[str] = []
    made = 0

    def backend(mark: re.Match[str]) -> str:
        nonlocal made
        made += 1
        own = f"b{number}-{made}"
        options.extend(BACKENDS[mark[0]].replace("%", own).replace("DIR", str(folder)).split(" "))
        if mark[0] == "@disk":
            (folder / f"{own}.img").open("wb").truncate(MEMORY_OF_DISK)
        return own

    text = re.sub(r"@[a-z]+", backend, text).replace("ID", f"d{number}").replace("DIR", str(folder))
    first, *more = text.split(";")
    place = "" if slot is None else f",bus={bus},addr={slot:02x}.0"
    options += ["-device", f"{first},id=d{number}{place}"]
    for each in more:
        options += [
            "-device",
            each if ",bus=" in each or "sd-card" in each or "ufs" in each else f"{each},bus=d{number}.0",
        ]
    address = "" if slot is None else f"0000:00:{slot:02x}.0"
    return Tried(name=name, command=f"'{name}' '{address}' '{hint}'", options=options)


def try_guest(tried: Sequence[Tried], qemu: str, machine: str, guest: Guest) -> None:
    """Boot one guest, and take all of its devices through the steps together."""
    argv = [option for each in tried for option in each.options]
    pairs = [option(name, text) for name, text in zip(argv[::2], argv[1::2], strict=True)]
    base = [Option(name=name) for name in ("nodefaults", "no-user-config", "no-reboot")]
    base += [Option(name="display", first="none"), Option(name="machine", first=machine)]
    base += [Option(name="accel", first="tcg"), Option(name="m", first=str(guest.memory_mib))]
    base += [Option(name="kernel", first=str(guest.kernel)), Option(name="initrd", first=str(guest.initramfs))]
    base += [Option(name="append", first=guest.cmdline)]
    began = time.monotonic()
    with Vm(CommandLine(binary=qemu, options=(*base, *pairs))) as vm:
        console = Console(vm.console, vm.process.clock)
        console.wait_ready(120)
        print(f"  {machine}: {len(tried)} devices, ready in {time.monotonic() - began:.1f} s", flush=True)
        try:
            steps(console, tried)
        except GuestError:
            print(vm.console_text()[-6000:])
            raise
        free = re.search(r"MemAvailable: *(\d+)", console.run("cat /proc/meminfo"))
        print(
            f"  {machine}: done after {time.monotonic() - began:.1f} s; free kB: {free[1] if free else '?'}", flush=True
        )


def option(name: str, text: str) -> Option:
    """``first,key=value,...``."""
    first, *rest = text.split(",")
    return Option(name=name.removeprefix("-"), first=first, props=dict(word.split("=", 1) for word in rest))


def steps(console: Console, tried: Sequence[Tried]) -> None:
    """Each step for each device that got so far."""
    left = list(tried)
    for number, step in enumerate(("bind", *STEPS)):
        began = time.monotonic()
        label = f"{step}{'2' if number == len(STEPS) else ''}"
        for each in left:
            started = time.monotonic()
            outcome = run(console, f"auto_{step} {each.command if step == 'bind' else repr(each.name)}")
            if outcome[0] == "-" and step in ("check", "idle") and each.steps.get("busy") == "-":
                continue
            each.steps[label] = outcome[0]
            each.seconds += time.monotonic() - started
            if outcome[1] and outcome[0] != "yes":
                each.said.append(f"{label}: {outcome[1]}")
            if step == "bind":
                each.driver = driver(console, each.name)
            if time.monotonic() - started > 2:
                each.said.append(f"{label} took {time.monotonic() - started:.1f} s")
        left = [each for each in left if each.steps["bind"] == "yes"]
        print(f"    {label}: {time.monotonic() - began:.1f} s", flush=True)


def run(console: Console, command: str) -> tuple[str, str]:
    """``yes``, ``-`` or ``FAILED``, and what was printed."""
    try:
        return "yes", console.run(command, 60)
    except GuestError as error:
        match = re.search(r"failed with status (\d+): (.*)", str(error), re.DOTALL)
        if match is None:
            raise
        return ("-" if match[1] == "3" else "FAILED"), match[2].replace("\n", " / ")[:1500]


def driver(console: Console, name: str) -> str:
    """The driver of the device, and what was found below it."""
    text = console.run(f"auto_known '{name}' > /dev/null; readlink $path/driver; echo $work")
    first, _, rest = text.partition("\n")
    return f"{first.rpartition('/')[2]} {rest.strip()}"


def print_table(tried: Sequence[Tried]) -> None:
    """One line for each device."""
    head = ("bind", "busy", "check", "life", "idle", "unbind", "rebind", "life2")
    print(f"{'device':34}" + "".join(f"{word:8}" for word in head) + "s     driver")
    for each in tried:
        print(f"{each.name:34}" + "".join(f"{each.steps.get(word, '.'):8}" for word in head), end="")
        print(f"{each.seconds:<6.1f}{each.driver}")
        for line in each.said:
            print(f"      {line}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--qemu", default="qemu-system-x86_64")
    parser.add_argument("--machine", default="pc")
    parser.add_argument("--only", default="")
    parser.add_argument("--per-guest", type=int, default=25)
    given = parser.parse_args()
    qemu = str(find_binary(given.qemu))
    guest = build_guest(load_recipe().widened())
    names = [name for name in TRIED if not given.only or name in given.only.split(",")]
    names = [name for name in names if exists(qemu, name)]
    done: list[Tried] = []
    bus, first = {"pc": ("pci.0", 3), "q35": ("pcie.0", 4)}[given.machine]
    with temp_dir(Path("/tmp")) as folder:
        for start in range(0, len(names), given.per_guest):
            chosen = names[start : start + given.per_guest]
            slots: Iterator[int] = iter(range(first, first + 27))
            tried = [
                attach(name, number, None if name in NO_PCI else next(slots), bus, folder)
                for number, name in enumerate(chosen)
            ]
            try:
                try_guest(tried, qemu, given.machine, guest)
            except Exception as error:
                print(f"  {type(error).__name__}: {error}")
            done += tried
    print_table(done)
    bound, busy = (sum(1 for each in done if each.steps.get(word) == "yes") for word in ("bind", "check"))
    print(f"{given.machine}: {len(done)} tried, {bound} bound, {busy} busy")
    return int(any("FAILED" in each.steps.values() or not each.steps for each in done))


_TYPES: dict[str, str] = {}


def exists(qemu: str, name: str) -> bool:
    """Whether this QEMU has the types that a line names."""
    if qemu not in _TYPES:
        done = subprocess.run([qemu, "-device", "help"], capture_output=True, text=True, check=True, timeout=60)
        _TYPES[qemu] = done.stdout
    types = [each.partition(",")[0] for each in TRIED[name].partition("|")[0].split(";")]
    return all(f'name "{word}"' in _TYPES[qemu] for word in types)


if __name__ == "__main__":
    sys.exit(main())
