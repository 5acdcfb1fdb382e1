# SPDX-License-Identifier: GPL-2.0-or-later
"""Forged packs: each line changes one thing of a good manifest, and says what QEMU must never be given."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from harness.cache import CACHE_VARIABLE, prunable, remove_kept
from harness.devices.recipe import load_recipes
from harness.errors import PackError
from harness.guests import machine as machine_module
from harness.guests.foreign import check_listed, check_plan
from harness.guests.plan import GuestPlan
from harness.packs.export import export_pack
from harness.packs.manifest import MANIFEST
from harness.packs.pack import StatePack
from harness.qemu.listed import Listed, Listing, classified
from harness.qemu.walls import Confinement, Walls
from harness.state.recordings import planned_guests

#: As QEMU 10.0 lists them, shortened: name to type and description.
_COMMON = {
    "romfile": ("str", ""),
    "rombar": ("int32", ""),
    "failover_pair_id": ("str", ""),
    "multifunction": ("bool", "on/off"),
}
_DRIVE = {"drive": ("str", "Node name or ID of a block device to use as a backend"), "serial": ("str", "")}
_NET = {"netdev": ("str", "ID of a netdev to use as a backend"), "mac": ("str", "Ethernet 6-byte MAC Address")}
_TYPES: dict[str, dict[str, tuple[str, str]]] = {
    "virtio-blk-pci": _COMMON | _DRIVE | {
        "werror": ("BlockdevOnError", "Error handling policy (report/ignore/enospc/stop/auto)"),
        "num-queues": ("uint16", ""),
        "iothread": ("link<iothread>", ""),
        "iothread-vq-mapping": ("IOThreadVirtQueueMappingList", 'IOThread list [{"iothread":"<id>"},...]'),
    },
    "virtio-net-pci": _COMMON | _NET | {"tx": ("str", ""), "duplex": ("str", "")},
    "e1000e": _COMMON | _NET,
    "ich9-ahci": _COMMON,
    "ide-hd": _DRIVE | {"model": ("str", ""), "unit": ("uint32", "")},
    "pcie-root-port": _COMMON | {
        "chassis": ("uint8", ""),
        "slot": ("uint16", ""),
        "x-speed": ("PCIELinkSpeed", "2_5/5/8/16"),
    },
    "isa-serial": {"chardev": ("str", "ID of a chardev to use as a backend")},
    "ipmi-bmc-sim": {"sdrfile": ("str", ""), "frudatafile": ("str", ""), "guid": ("str", 'UUID or "auto"')},
    "AC97": _COMMON | {"audiodev": ("str", "ID of an audiodev to use as a backend")},
    "usb-kbd": {"pcap": ("str", ""), "display": ("str", "")},
    "isa-applesmc": {"osk": ("str", "")},
    "vmgenid": {"guid": ("str", "UUID")},
    "cxl-type3": {"cdat": ("str", ""), "volatile-memdev": ("link<memory-backend>", "")},
    "isa-ipmi-kcs": {"bmc": ("link<ipmi-bmc>", "")},
    "nvme-subsys": {"nqn": ("str", "")},
    "nvdimm": {"uuid": ("QemuUUID", ""), "memdev": ("link<memory-backend>", "")},
    "new-smartcard": {"jsonfile": ("str", "")},
    "new-assigned": {"sysfsdev": ("str", "")},
    "new-usb": {"hostbus": ("uint32", ""), "hostaddr": ("uint32", "")},
    "new-vsock": {"guest-cid": ("uint64", "")},
    "new-event": {"evdev": ("str", "")},
}  # fmt: skip
LISTING = Listing(
    devices={name: {key: classified(*said) for key, said in properties.items()} for name, properties in _TYPES.items()},
    machine={"smm": Listed(type="OnOffAuto", kind="enumeration", words=("on", "off", "auto"))}
    | {name: Listed(type="bool", kind="boolean") for name in ("sata", "hpet", "dump-guest-core")}
    | {name: Listed(type="string", kind="string") for name in ("firmware", "dumpdtb", "kernel", "dtb", "append")},
)


class Forged(NamedTuple):
    """:param at: where in the manifest :param value: what stands there :param never: what no option may hold"""

    at: str
    value: Any
    never: str


def added(type_name: str, backends: dict[str, str] | None = None, bus: str | None = None, **properties: Any) -> Any:
    """One more device."""
    return {"id": "x", "type": type_name, "bus": bus, "properties": properties, "backends": backends or {}}


def disk(**more: Any) -> Any:
    return {"kind": "disk", "size_bytes": 1 << 20, **more}


def property_of(type_name: str, key: str, value: Any) -> Forged:
    return Forged("plan.devices.+", {**added(type_name), "properties": {key: value}}, f"{key}=")


FORGED = [
    # -- those of the trial: options and keys that the plan has no place for any more
    Forged("plan.backends.n", {"kind": "netdev", "type": "bridge", "helper": "{workdir}/x; touch y"}, "helper"),
    Forged("plan.backends.n", {"kind": "netdev", "type": "tap", "interface": "tap0"}, "tap"),
    Forged("plan.backends.n", {"kind": "netdev", "type": "tap", "interface": "tap0", "script": "guest/up"}, "script"),
    Forged("plan.backends.c", {"kind": "chardev", "type": "null", "logfile=/tmp/x,logappend": "on"}, "logfile"),
    Forged("plan.backends.o", {"kind": "object", "type": "rng-random", "qom-type": "filter-dump"}, "filter-dump"),
    Forged("plan.backends.c", {"kind": "chardev", "type": "null", "backend": "socket"}, "socket"),
    Forged("plan.backends.c", {"kind": "chardev", "type": "pty"}, "pty"),
    Forged("plan.backends.a", disk(format="nbd"), "nbd"),
    Forged("plan.backends.n", {"kind": "netdev", "restrict": False}, "restrict=off"),
    Forged("plan.backends.a", disk(medium="qcow2"), "qcow2"),
    Forged("plan.options", [["monitor", "stdio"]], "monitor"),
    Forged("plan.options", [["fsdev", "local,path=/"]], "fsdev"),
    Forged("plan.globals", {"virtio-net-pci.romfile": "/etc/passwd"}, "romfile"),
    property_of("virtio-net-pci", "romfile", "/etc/passwd"),
    # -- backends: another kind, a path, an address, one key too many
    Forged("plan.backends.a", disk(filename="/etc/shadow"), "/etc/shadow"),
    Forged("plan.backends.a", disk(medium="host_device"), "host_device"),
    Forged("plan.backends.a", disk(backing="nbd://10.0.0.1"), "nbd:"),
    Forged("plan.backends.a", disk(size_bytes=-1), "size=-1"),
    Forged("plan.backends.a", disk(size_bytes="1M,file=/etc/shadow"), "/etc/shadow"),
    Forged("plan.backends.a", disk(size_bytes=1 << 60), str(1 << 60)),
    Forged("plan.backends.a", disk(sector_bytes=513), "513"),
    Forged("plan.backends.n", {"kind": "netdev", "hostfwd": "tcp::22-:22"}, "hostfwd"),
    Forged("plan.backends.n", {"kind": "netdev", "guestfwd": "tcp:1.2.3.4:1-cmd:id"}, "cmd:"),
    Forged("plan.backends.n", {"kind": "netdev", "smb": "/"}, "smb"),
    Forged("plan.backends.n", {"kind": "netdev", "type": "socket", "connect": "1.2.3.4:5"}, "1.2.3.4"),
    Forged("plan.backends.n", {"kind": "netdev", "interface": "tap0;id"}, "tap0;id"),
    Forged("plan.backends.m", {"kind": "memory", "mem-path": "/dev/mem"}, "/dev/mem"),
    # -- ids and names: separators, options, paths
    Forged("plan.backends.a,file=x", disk(), "file=x"),
    Forged("plan.backends.\N{LATIN SMALL LETTER E WITH ACUTE}", disk(), "\N{LATIN SMALL LETTER E WITH ACUTE}"),
    Forged("plan.backends.a/b", disk(), "a/b"),
    Forged("plan.backends.a\n", disk(), "a\n"),
    Forged("plan.backends.-monitor", disk(), "-monitor"),
    Forged("plan.devices.0.id", "blk,romfile=/etc/passwd", "romfile"),
    Forged("plan.devices.0.id", "", "id=,"),
    Forged("plan.devices.0.id", "blk\n-monitor", "-monitor"),
    Forged("plan.devices.0.type", "virtio-blk-pci,drive=x", "drive=x"),
    Forged("plan.devices.0.type", "{\"driver\":\"e1000\"}", "{"),
    Forged("plan.devices.0.bus", "pci.0,addr=1", "addr=1"),
    Forged("plan.devices.0.bus", "/machine/unattached", "/machine"),
    Forged("plan.devices.0.bus", "other.0", "other.0"),
    Forged("plan.devices.0.slot", "04.0,x=y", "x=y"),
    Forged("plan.devices.0.slot", 4, "addr=4"),
    Forged("plan.devices.0.driver", "e1000", "driver="),
    Forged("plan.devices.0.backends.drive", "nowhere", "nowhere"),
    Forged("plan.devices.0.backends.romfile", "a", "romfile"),
    Forged("plan.devices.0.backends.iothread", "a", "iothread"),
    Forged("plan.devices.0.backends.netdev", "a", "netdev"),
    Forged("plan.devices.+", added("isa-serial", {"chardev": "a"}), "chardev=a"),
    Forged("plan.devices.+", added("virtio-net-pci", {"netdev": "a"}), "netdev=a"),
    # -- properties: keys
    property_of("virtio-blk-pci", "romfile=/x,x", 1),
    property_of("virtio-blk-pci", "driver", True),
    property_of("virtio-blk-pci", "id", "other"),
    property_of("virtio-blk-pci", "bus", "pci.0"),
    property_of("virtio-blk-pci", "addr", 5),
    property_of("virtio-blk-pci", "drive", "/dev/sda"),
    property_of("virtio-blk-pci", "drive", "firmware"),
    property_of("virtio-blk-pci", "not-listed", 1),
    property_of("virtio-blk-pci", "iothread", "a"),
    property_of("virtio-blk-pci", "iothread-vq-mapping", "a"),
    property_of("virtio-blk-pci", "iothread-vq-mapping.0.iothread", "a"),
    property_of("virtio-blk-pci", "failover_pair_id", "a"),
    property_of("virtio-net-pci", "netdev", "a"),
    property_of("isa-serial", "chardev", "firmware"),
    # -- properties: strings that open files, name hosts, or are nobody's business
    property_of("virtio-net-pci", "romfile", "pxe.rom"),
    property_of("ipmi-bmc-sim", "sdrfile", "x"),
    property_of("ipmi-bmc-sim", "frudatafile", "x"),
    property_of("ipmi-bmc-sim", "guid", "auto"),
    property_of("usb-kbd", "pcap", "out"),
    property_of("usb-kbd", "display", "video0"),
    property_of("isa-applesmc", "osk", "x"),
    property_of("cxl-type3", "cdat", "table"),
    property_of("cxl-type3", "volatile-memdev", "a"),
    property_of("nvme-subsys", "nqn", "x"),
    property_of("nvdimm", "uuid", "auto"),
    property_of("virtio-net-pci", "tx", "timer"),
    property_of("virtio-blk-pci", "serial", "../../etc/shadow"),
    property_of("virtio-blk-pci", "serial", "a,romfile=x"),
    property_of("virtio-blk-pci", "serial", "{workdir}"),
    property_of("virtio-blk-pci", "serial", "a\nb"),
    property_of("virtio-blk-pci", "serial", "x" * 65),
    property_of("virtio-net-pci", "mac", "file:/etc/passwd"),
    # -- properties: values of another type
    property_of("virtio-blk-pci", "num-queues", "4"),
    property_of("virtio-blk-pci", "num-queues", "4,romfile=x"),
    property_of("virtio-blk-pci", "num-queues", True),
    property_of("virtio-blk-pci", "num-queues", 1.5),
    property_of("virtio-blk-pci", "num-queues", [1]),
    property_of("virtio-blk-pci", "num-queues", {"a": 1}),
    property_of("virtio-blk-pci", "num-queues", None),
    property_of("virtio-blk-pci", "multifunction", 1),
    property_of("virtio-blk-pci", "multifunction", "yes"),
    property_of("virtio-blk-pci", "werror", "explode"),
    property_of("virtio-blk-pci", "werror", True),
    property_of("pcie-root-port", "x-speed", "64"),
    # -- types of the host's hardware, files, processes, sound and network
    *(
        Forged("plan.devices.+", added(name), f"device {name}")
        for name in (
            *("vfio-pci", "vhost-scsi-pci", "vhost-user-fs-pci", "vhost-vsock-pci", "usb-host", "usb-mtp"),
            *("u2f-passthru", "loader", "guest-loader", "xen-disk", "tpm-tis", "ivshmem-doorbell", "hv-syndbg"),
            *("virtio-9p-pci", "pvrdma", "virtio-input-host-pci", "ccid-card-emulated", "canokey", "x-pci-proxy-dev"),
            *("scsi-block", "vfio-user-pci", "new-smartcard", "new-assigned", "new-usb", "new-vsock", "new-event"),
            *("AC97", "not-listed", "virtio-blk"),
        )
    ),
    # -- what names another device
    *(
        Forged("plan.devices.+", {**added(name), "references": references}, never)
        for name, references, never in (
            ("ipmi-bmc-sim", {"sdrfile": "blk"}, "sdrfile"),
            ("ipmi-bmc-sim", {"bmc": "nobody"}, "nobody"),
            ("ipmi-bmc-sim", {"bmc": "/etc/passwd"}, "/etc/passwd"),
            ("isa-serial", {"chardev": "blk"}, "chardev=blk"),
            ("virtio-blk-pci", {"bmc": "blk"}, "bmc=blk"),
        )
    ),
    Forged("plan.devices.+", added("tpm-tis", {"tpmdev": "a"}), "tpmdev=a"),
    Forged("plan.backends.t", {"kind": "tpm", "path": "/dev/tpm0"}, "/dev/tpm0"),
    Forged("plan.backends.t", {"kind": "tpm", "type": "passthrough"}, "passthrough"),
    Forged("plan.backends.m", {"kind": "memdev", "size_bytes": 4096, "mem-path": "/dev/mem"}, "/dev/mem"),
    Forged("plan.backends.m", {"kind": "memdev", "size_bytes": -1}, "size=-1"),
    Forged("plan.backends.s", {"kind": "audiodev", "type": "wav"}, "wav"),
    Forged("plan.backends.f", {"kind": "fsdev", "type": "local", "path": "/"}, "local"),
    Forged("plan.backends.y", {"kind": "cryptodev", "type": "vhost-user"}, "vhost-user"),
    Forged("plan.backends.b", {"kind": "canbus", "host": "can0"}, "can0"),
    property_of("ipmi-bmc-sim", "sdrfile", ""),
    # -- machine, accelerator, kernel
    Forged("plan.machine", "pc-i440fx-7.2,dumpdtb=/tmp/x", "dumpdtb"),
    Forged("plan.machine", "xenfv-4.2", "xenfv"),
    Forged("plan.machine", "microvm", "microvm"),
    Forged("plan.machine", "none", "none"),
    Forged("plan.machine", "nitro-enclave", "nitro"),
    Forged("plan.machine", "/dev/null", "/dev/null"),
    Forged("plan.machine", "pc-q35-7.2", "q35"),
    Forged("plan.family", "virt", "virt"),
    Forged("plan.machine_properties.dumpdtb", True, "dumpdtb"),
    Forged("plan.machine_properties.firmware", "/etc/passwd", "firmware"),
    Forged("plan.machine_properties.memory-backend", 1, "memory-backend"),
    Forged("plan.machine_properties.dump-guest-core", True, "dump-guest-core"),
    Forged("plan.machine_properties.sata", 5, "sata=5"),
    Forged("plan.machine_properties.nvdimm", True, "nvdimm=on"),
    Forged("plan.memory_mib", "16,maxmem=1T", "maxmem"),
    Forged("plan.memory_mib", 0, "-m 0"),
    Forged("plan.cpus", "1,sockets=2", "sockets"),
    Forged("plan.cpus", 0, "-smp 0"),
    Forged("plan.cmdline", "console=ttyS0\n-monitor stdio", "-monitor"),
    Forged("plan.cmdline", "x" * 5000, "xxxxx"),
    Forged("plan.kernel", "/boot/vmlinuz", "/boot"),
    Forged("plan.kernel", "0" * 64, "-kernel"),
    Forged("plan.initramfs", "/etc/shadow", "/etc/shadow"),
    Forged("plan.initramfs", "0" * 64, "-initrd"),
    Forged("accel", "tcg,thread=single", "thread"),
    Forged("accel", "xen", "xen"),
    Forged("accel", "qtest", "qtest"),
    # -- files of the pack
    Forged("files.../../x", {"size_bytes": 0, "sha256": "0" * 64}, ".."),
    Forged("files./etc/passwd", {"size_bytes": 0, "sha256": "0" * 64}, "/etc/passwd"),
    Forged("files.manifest.json", {"size_bytes": 0, "sha256": "0" * 64}, "x"),
    Forged("phases.0.name", "../kernel", ".."),
    Forged("phases.0.name", "a,b", "a,b"),
]  # fmt: skip


def put(document: Any, at: str, value: Any) -> None:
    """Set one thing of a document: a key may hold dots where it is the last, and ``+`` adds to a list."""
    head, _, rest = at.partition(".")
    if head in ("files", "backends") or not rest:
        if rest:
            document[head][rest] = value
        elif head == "+":
            document.append(value)
        else:
            document[int(head) if isinstance(document, list) else head] = value
        return
    put(document[int(head)] if isinstance(document, list) else document[head], rest, value)


@pytest.fixture
def pack(make_pack: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A good pack's folder, outside of the cache."""
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    monkeypatch.setattr(machine_module, "listing", lambda *_: LISTING)
    monkeypatch.setattr(machine_module, "confined", lambda *_: Confinement(walls=Walls(sandbox=True)))
    return make_pack("pack", "kernel")


def built(path: Path, workdir: Path) -> list[str]:
    """What QEMU would be given."""
    with StatePack(path) as pack:
        return pack.machine.command("qemu", workdir).argv()


def attempt(path: Path, workdir: Path) -> tuple[str, str]:
    """What is said, and what QEMU would be given."""
    try:
        return "", "\n".join(built(path, workdir))
    except PackError as error:
        return str(error), ""


def test_its_qemu_starts_no_program_and_has_the_guest_under_names_of_ours(
    make_pack: Callable[..., Path], pack: Path, tmp_path: Path
) -> None:
    document = json.loads((pack / MANIFEST).read_text())
    (pack / "guest").mkdir()
    for name in ("kernel", "initramfs"):
        content = f"the {name}".encode()
        (pack / "guest" / name).write_bytes(content)
        digest = hashlib.sha256(content).hexdigest()
        document["files"][f"guest/{name}"] = {"size_bytes": len(content), "sha256": digest}
        document["plan"][name] = digest
    (pack / MANIFEST).write_text(json.dumps(document))
    (tmp_path / "work").mkdir()
    given = built(pack, tmp_path / "work")
    assert "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny" in given
    assert given[given.index("-kernel") + 1] == str(tmp_path / "work/guest-kernel")
    assert (tmp_path / "work/guest-initramfs").read_bytes() == b"the initramfs"
    assert not [word for word in given if str(pack) in word]


def test_a_refusal_is_bad_usage() -> None:
    assert PackError.exit_code == 2


def test_a_good_pack_is_taken(pack: Path, tmp_path: Path) -> None:
    assert "virtio-blk-pci,id=blk,addr=04.0,drive=a" in built(pack, tmp_path)


@pytest.mark.parametrize("forged", FORGED, ids=lambda forged: f"{forged.at}={forged.value!r}"[:90])
def test_a_forged_pack_is_refused_with_what_was_met(pack: Path, tmp_path: Path, forged: Forged) -> None:
    document = json.loads((pack / MANIFEST).read_text())
    put(document, forged.at, forged.value)
    (pack / MANIFEST).write_text(json.dumps(document))
    refusal, given = attempt(pack, tmp_path)
    assert forged.never not in given
    assert refusal.startswith(str(pack)), refusal


@pytest.mark.parametrize(
    ("type_name", "properties", "given"),
    [
        ("virtio-blk-pci", {"num-queues": 4}, "num-queues=4"),
        ("virtio-blk-pci", {"multifunction": True}, "multifunction=on"),
        ("virtio-blk-pci", {"multifunction": "off"}, "multifunction=off"),
        ("virtio-blk-pci", {"werror": "stop"}, "werror=stop"),
        ("virtio-blk-pci", {"serial": "dead-beef 1"}, "serial=dead-beef 1"),
        ("virtio-net-pci", {"mac": "52:54:00:12:34:56"}, "mac=52:54:00:12:34:56"),
        ("virtio-net-pci", {"romfile": ""}, "romfile="),
        ("pcie-root-port", {"chassis": 1, "slot": 2, "x-speed": "2_5"}, "chassis=1,slot=2,x-speed=2_5"),
    ],
)
def test_what_a_device_is_like_is_taken(
    pack: Path, tmp_path: Path, type_name: str, properties: dict[str, Any], given: str
) -> None:
    document = json.loads((pack / MANIFEST).read_text())
    document["plan"]["devices"].append({"id": "x", "type": type_name, "properties": properties})
    (pack / MANIFEST).write_text(json.dumps(document))
    assert f"{type_name},id=x,{given}" in built(pack, tmp_path)


def test_a_refusal_says_what_was_met(pack: Path, tmp_path: Path) -> None:
    document = json.loads((pack / MANIFEST).read_text())
    document["plan"]["devices"][0]["bus"] = "a\x1b[2J,b"
    (pack / MANIFEST).write_text(json.dumps(document))
    refusal, _ = attempt(pack, tmp_path)
    assert refusal.endswith(
        r"plan.devices.0.bus: String should match pattern '^[A-Za-z][A-Za-z0-9._-]{0,63}$', found 'a\x1b[2J,b'"
    )


def test_a_file_is_checked_as_a_folder_is(pack: Path, tmp_path: Path) -> None:
    with StatePack(pack) as opened:
        export_pack(opened, tmp_path / "good.pack")
        devices = (
            *opened.manifest.plan.devices,
            opened.manifest.plan.devices[0].model_copy(update={"id": "b", "type": "vfio-pci"}),
        )
        plan = opened.manifest.plan.model_copy(update={"devices": devices})
        opened.manifest = opened.manifest.model_copy(update={"plan": plan})
        export_pack(opened, tmp_path / "bad.pack")
    assert "-device" in built(tmp_path / "good.pack", tmp_path)
    with pytest.raises(PackError, match=r"bad.pack: .*vfio-pci stands on the host's own"):
        built(tmp_path / "bad.pack", tmp_path)


def test_a_recording_of_this_users_own_cache_is_not_asked(
    make_pack: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    (tmp_path / "cache/packs").mkdir(parents=True)
    own = make_pack("pack", "kernel").rename(tmp_path / "cache/packs/pc-1")
    document = json.loads((own / MANIFEST).read_text())
    document["plan"]["backends"]["n"] = {"kind": "netdev", "type": "tap", "interface": "tap0"}
    document["plan"]["devices"].append(added("virtio-net-pci", {"netdev": "n"}))
    (own / MANIFEST).write_text(json.dumps(document))
    assert "tap,id=n,ifname=tap0,script=no,downscript=no" in built(own, tmp_path)
    own.rename(tmp_path / "cache/packs/imported-1")
    with pytest.raises(PackError, match="backend n: a tap device belongs to the host"):
        built(tmp_path / "cache/packs/imported-1", tmp_path)


@pytest.mark.parametrize("kind", ["link", "fifo"])
def test_a_file_of_a_pack_is_a_plain_file(pack: Path, tmp_path: Path, kind: str) -> None:
    index = pack / "kernel/ram.index"
    content = index.rename(tmp_path / "elsewhere")
    os.mkfifo(index) if kind == "fifo" else index.symlink_to(content)
    with pytest.raises(PackError, match=r"ram.index: expected a plain file"):
        StatePack(pack)


@pytest.mark.parametrize(
    ("type_name", "key", "backend", "given"),
    [
        ("AC97", "audiodev", {"kind": "audiodev"}, "none,id=x-b"),
        ("nvdimm", "memdev", {"kind": "memdev", "size_bytes": 4096}, "memory-backend-ram,id=x-b,size=4096,share=off"),
    ],
)
def test_a_backend_is_made_anew_from_its_shape(
    pack: Path, tmp_path: Path, type_name: str, key: str, backend: dict[str, Any], given: str
) -> None:
    document = json.loads((pack / MANIFEST).read_text())
    document["plan"]["devices"].append(added(type_name, {key: "x-b"}))
    document["plan"]["backends"]["x-b"] = backend
    (pack / MANIFEST).write_text(json.dumps(document))
    assert given in built(pack, tmp_path)


def test_a_device_can_name_another_one(pack: Path, tmp_path: Path) -> None:
    document = json.loads((pack / MANIFEST).read_text())
    document["plan"]["devices"].append({**added("isa-ipmi-kcs"), "references": {"bmc": "blk"}})
    (pack / MANIFEST).write_text(json.dumps(document))
    assert "isa-ipmi-kcs,id=x,bmc=blk" in built(pack, tmp_path)


@pytest.mark.parametrize("family", ["pc", "q35", "virt"])
def test_every_device_of_ours_can_travel(family: str) -> None:
    prefixes = {"pc": "pc-i440fx-7.2", "q35": "pc-q35-7.2", "virt": "virt-7.2"}
    devices = list(load_recipes().devices.values())
    for guest in planned_guests(prefixes[family], family, devices).guests:
        for plan in (guest.plan, *(guest.without(frozenset({device.name})).plan for device in guest.devices)):
            check_plan(plan, "tcg")
            check_listed(plan, LISTING, "qemu")


def test_the_grammar_of_an_enumeration_is_read_from_its_description() -> None:
    assert classified("OnOffAuto", "on/off/auto").words == ("on", "off", "auto")
    assert classified("PCIELinkSpeed", "2_5/5/8/16").words == ("2_5", "5", "8", "16")
    words = ("report", "ignore", "enospc", "stop", "auto")
    assert classified("BlockdevOnError", "Error handling policy, report/ignore/enospc/stop/auto").words == words
    assert classified("BlockdevOnError", "Error handling policy (report/ignore/enospc/stop/auto)").words == words
    for name, about in [
        ("link<iothread>", ""),
        ("strList", "a/b"),
        ("child<bus>", ""),
        ("LostTickPolicy", ""),
        ("New", ""),
    ]:
        assert classified(name, about).kind == "other"


def test_a_plan_of_a_task_has_the_same_grammar() -> None:
    with pytest.raises(ValueError, match="pattern"):
        GuestPlan.model_validate({"machine": "pc-i440fx-7.2\n", "family": "pc", "memory_mib": 1})


def test_what_a_pack_from_elsewhere_left_in_the_cache_stays_while_it_is_open(
    make_pack: Callable[..., Path], pack: Path, tmp_path: Path
) -> None:
    """Its QEMUs read kernel and initramfs from there, and it maps its pages."""
    document = json.loads((pack / MANIFEST).read_text())
    (pack / "guest").mkdir()
    for name in ("kernel", "initramfs"):
        (pack / "guest" / name).write_bytes(name.encode())
        digest = hashlib.sha256(name.encode()).hexdigest()
        document["files"][f"guest/{name}"] = {"size_bytes": len(name), "sha256": digest}
        document["plan"][name] = digest
    (pack / MANIFEST).write_text(json.dumps(document))
    with StatePack(pack) as folder:
        export_pack(folder, tmp_path / "one.pack")
    with StatePack(pack) as folder, StatePack(tmp_path / "one.pack") as file:
        assert folder.machine.boot != file.machine.boot
        kept = {each.path.parent.name: each for each in prunable()}
        assert sorted(kept) == ["imported", "packs"]
        assert all(each.in_use for each in kept.values())
        assert not any(map(remove_kept, kept.values()))
    assert not any(each.in_use for each in prunable())
    assert all(map(remove_kept, prunable()))
    assert list((tmp_path / "cache").glob("*/*")) == []
