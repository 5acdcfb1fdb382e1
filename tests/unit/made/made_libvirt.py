# SPDX-License-Identifier: GPL-2.0-or-later
"""libvirt's own translation of the domains in ``tests/data/domains``, and a form in which it can be compared.

libvirt runs within virsh (``qemu:///embed``), in a folder of its own and in a user namespace: no daemon is started, no
socket of the system's is asked, and no domain starts. ``python tests/unit/made/made_libvirt.py`` writes each command
line anew beside its domain.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TypeAlias

from harness.adopt.configuration import Configuration, SaidOption, Value

DOMAINS = Path(__file__).parents[2] / "data" / "domains"
#: ``domxml-to-native`` forgets all of an interface but its model and its address on the wire. These domains are started
#: instead, with an emulator that ends before it is one, and libvirt's log has the command line.
STARTED = ("bridges", "bridges-pc", "network")
#: What answers for an emulator that is not to start.
EMULATOR = """#!/bin/sh
case "$*" in *"-machine none"*) exec /usr/bin/qemu-system-x86_64 "$@";; esac
exit 1
"""
#: Of processes, sockets and files on the host: nothing of it is the guest's.
_HOST_OPTIONS = {
    "S",
    "chardev",
    "k",
    "mon",
    "msg",
    "name",
    "no-shutdown",
    "no-user-config",
    "overcommit",
    "sandbox",
    "spice",
    "vnc",
    "watchdog-action",
}
#: Keys that say where on the host something is or how the host does it, by option.
_HOST_KEYS = {
    "blockdev": {"auto-read-only", "cache", "detect-zeroes", "aio", "filename", "server", "export", "name"},
    "device": {"vhostfd", "iothread"},
    "machine": {"dump-guest-core"},
    "netdev": {"fd", "fds", "type", "queues", "vhost"},
    "object": {"mem-path", "x-use-canonical-path-for-ramblock-id"},
}
#: What some libvirts say and others leave to QEMU, which does the same then.
_USUAL = {
    "machine": {"acpi": "on", "hpet": "on"},
    "smp": {"clusters": "1", "dies": "1"},
    "device": {"removable": "off"},
}
Told: TypeAlias = "tuple[str, tuple[tuple[str, str], ...]]"


def told(configuration: Configuration, *, interfaces: bool) -> Counter[Told]:
    """What is said of the guest, in a form in which two translations of a domain are equal.

    :param interfaces: also what ``domxml-to-native`` forgets of them
    """
    options = [option for option in configuration.options if _is_guests(option)]
    images = _images([option for option in options if option.name == "blockdev"])
    return Counter([*images, *(_told(option, interfaces) for option in options if option.name != "blockdev")])


def _is_guests(option: SaidOption) -> bool:
    # libvirt 9.1 and later add a watchdog to each q35 that names none, and say what it does
    usual_watchdog = option.values.get("property") == "noreboot"
    internal = option.values.get("qom-type") in ("secret", "iothread")
    return option.name not in _HOST_OPTIONS and not usual_watchdog and not internal


def _images(blockdevs: list[SaidOption]) -> Iterator[Told]:
    """Each image as one: libvirt 10 and later have one node for a raw one, and two for the others."""
    images: dict[str, dict[str, str]] = {}
    for blockdev in blockdevs:
        values = dict(_flat(blockdev.values))
        name, _, part = values.pop("node-name").rpartition("-")
        image = images.setdefault(name, {"name": name, "format": "raw"})
        image[part] = values.pop("driver")
        for key in ("read-only", "backing"):
            if key in values:
                image[key] = values[key].replace("-format", "").replace("-storage", "")
    for image in images.values():
        yield "image", tuple(sorted(image.items()))


def _told(option: SaidOption, interfaces: bool) -> Told:
    values = dict(_flat(option.values))
    for key in _HOST_KEYS.get(option.name, ()):
        values.pop(key, None)
    for key, usual in _USUAL.get(option.name, {}).items():
        if values.get(key) == usual:
            del values[key]
    if option.name == "machine":
        values["type"] = re.sub(r"^(pc-q35|pc-i440fx|virt)-[\d.]+$", _family, values["type"])
    if option.name == "m" and values["size"].isdecimal():
        values["size"] = f"{int(values['size']) << 10}k"
    if option.name == "device" and "netdev" in values and not interfaces:
        values = {key: values[key] for key in ("driver", "id", "mac", "netdev")}
    for key in ("drive", "pflash0", "pflash1"):
        if key in values:
            values[key] = re.sub("-(format|storage)$", "", values[key])
    if option.name == "rtc" and values["base"][:1].isdecimal():
        values["base"] = "utc"  # and so many seconds from it on, as the guest had set its clock
    if option.name == "smbios":
        values = {key: value for key, value in values.items() if value}
    # libvirt 9.0 does not tell QEMU this yet
    values.pop("discard_granularity", None)
    return option.name, tuple(sorted(values.items()))


def _family(machine: re.Match[str]) -> str:
    return {"pc-q35": "q35", "pc-i440fx": "pc", "virt": "virt"}[machine[1]]


def _flat(values: Mapping[str, Value]) -> Iterator[tuple[str, str]]:
    for key, value in values.items():
        yield key, {True: "on", False: "off"}[value] if isinstance(value, bool) else _text(value)


def _text(value: Value) -> str:
    if isinstance(value, Mapping):
        return str(sorted(_flat(value)))
    return str([_text(one) for one in value]) if isinstance(value, list | tuple) else str(value)


class Refused(Exception):
    """This libvirt does not take a domain: it is too old for it, or its QEMU lacks something."""


def lacks() -> str:
    """Why libvirt cannot be asked here, empty where it can."""
    programs = {"virsh": "libvirt-clients", "virt-qemu-run": "libvirt-daemon-driver-qemu"}
    programs |= {"swtpm_setup": "swtpm-tools", "unshare": "util-linux"}
    programs |= {"qemu-system-x86_64": "qemu-system-x86", "qemu-system-aarch64": "qemu-system-arm"}
    packages = [package for program, package in programs.items() if not shutil.which(program)]
    if packages:
        return f"libvirt is not here: apt-get install --no-install-recommends {' '.join(packages)}"
    return "" if _virsh(Path("/"), "--version").returncode == 0 else "this user may not make a user namespace"


def _virsh(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """virsh as nobody in particular, who may make network devices in a network of their own."""
    alone = ["unshare", "--user", "--map-user=65534", "--map-group=65534", "--net", "--keep-caps"]
    home = ["env", f"HOME={folder}", f"XDG_RUNTIME_DIR={folder}", "PATH=/usr/sbin:/usr/bin:/sbin:/bin"]
    virsh = ["virsh", "-q", "-c", f"qemu:///embed?root={folder}", *words]
    return subprocess.run([*alone, *home, *virsh], capture_output=True, text=True, timeout=120, check=False)


def translated(domain: Path, folder: Path) -> str:
    """The command line that libvirt makes of a domain.

    :param folder: of libvirt's, as short as a socket's name must be; that of another domain makes the second one faster
    :raises Refused: it makes none
    """
    if domain.stem in STARTED:
        return _log_of_start(domain, folder)
    done = _virsh(folder, "domxml-to-native", "qemu-argv", "--xml", str(domain))
    if done.returncode:
        raise Refused(f"{domain.name}: {done.stderr.strip()}")
    return _without_host(done.stdout, folder)


def _log_of_start(domain: Path, folder: Path) -> str:
    """What libvirt's log has of a start. Capabilities are asked of the real emulator, and any other call ends."""
    emulator = folder / "qemu-system-x86_64"
    if not emulator.exists():  # libvirt asks a changed one for its capabilities again
        emulator.write_text(EMULATOR)
        emulator.chmod(0o755)
    text = domain.read_text().replace("/usr/bin/qemu-system-x86_64", str(emulator))
    (folder / domain.name).write_text(text)
    name = re.search("<name>(.*)</name>", text)
    assert name
    log = folder / "log" / "qemu" / f"{name[1]}.log"
    log.unlink(missing_ok=True)
    done = _virsh(folder, "create", str(folder / domain.name))
    if not log.exists():
        raise Refused(f"{domain.name}: {done.stderr.strip()}")
    lines = [line for line in log.read_text().splitlines() if not re.match(r"\d{4}-\d\d-\d\d \d\d:|qemu", line)]
    return _without_host("\n".join(lines).replace(str(emulator), "/usr/bin/qemu-system-x86_64"), folder)


def _without_host(text: str, folder: Path) -> str:
    start = re.search(r"/usr/bin/qemu-system-\w+", text)
    assert start, text
    return text[start.start() :].replace(str(folder), "/run/libvirt").strip() + "\n"


def record() -> None:
    """Write all command lines anew; those that this libvirt refuses stay as they are."""
    with tempfile.TemporaryDirectory(prefix="v", dir="/tmp") as folder:
        for domain in sorted(DOMAINS.glob("*.xml")):
            try:
                domain.with_suffix(".argv").write_text(translated(domain, Path(folder)))
            except Refused as why:
                print(why)


if __name__ == "__main__":
    record()
