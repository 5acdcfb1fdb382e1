# SPDX-License-Identifier: GPL-2.0-or-later
"""Functions of the guest's shell say what failed: it stands in the cell of the device."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from harness.guests.recipe import guests_folder

#: Programs of the guest that do as they are told, and its clock: 40 s pass between two looks.
FAKES = """
passed=0
read() { now=$passed.5; passed=$((passed + 40)); }
cat() { echo down; }
sleep() { :; }
ip() { test "$1" != "$FAILS"; }
ping() { test "$FAILS" != ping; }
"""


def function(name: str) -> str:
    """The text of a function, in whichever file of the guests it stands."""
    texts = [path.read_text() for path in sorted(guests_folder().rglob("*.sh"))]
    (found,) = [match[0] for text in texts for match in re.finditer(rf"^{name}\(\) {{$.*?^}}$", text, re.M | re.S)]
    return found


@pytest.mark.parametrize(
    ("fails", "said"),
    [
        ("link", "net_up: eth0 cannot be set up"),
        ("addr", "net_up: eth0 takes no address"),
        ("ping", "net_up: no answer of 10.0.2.2 within 30 s; link of eth0: down"),
        ("nothing", ""),
    ],
)
def test_net_up_says_what_failed(fails: str, said: str) -> None:
    script = f"{FAKES}\n{function('net_up')}\nnet_up"
    done = subprocess.run(
        ["sh", "-c", script], env={"FAILS": fails}, capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout, done.stderr.strip()) == (int(bool(said)), "", said)


def shell(sysfs: Path, names: str, script: str) -> tuple[int, str]:
    """Functions of the guest's, with a folder in place of /sys, /proc and /tmp; a nap is a second."""
    text = "\n".join(map(function, names.split())).replace("/sys/", f"{sysfs}/").replace("/proc/", f"{sysfs}/")
    text = text.replace("/tmp/auto.", f"{sysfs}/auto.")
    (sysfs / "uptime").write_text("1.5 1\n")
    fakes = f'nap() {{ up=$((up + 1)); echo "$up.5 1" > {sysfs}/uptime; }}\n'
    fakes += """auto_modprobe() {
        echo "modprobe $*"
        case $1 in
        gone) said='gone not found'; return 1 ;;
        stuck) said='modprobe stuck did not end within 40 s'; return 1 ;;
        esac
    }
    """
    done = subprocess.run(
        ["sh", "-c", f"{fakes}\n{text}\n{script}"], capture_output=True, text=True, timeout=60, check=False
    )
    return done.returncode, done.stdout + done.stderr


def pci_device(sysfs: Path, slot: str, kind: str) -> Path:
    folder = sysfs / "bus/pci/devices" / slot
    folder.mkdir(parents=True)
    (folder / "class").write_text(f"{kind}\n")
    return folder


@pytest.mark.parametrize(
    ("mine", "other", "alone"),
    [
        ("0x010180", "0x010180", False),
        ("0x01018a", "0x010180", False),
        ("0x01018f", "0x010180", True),  # in native mode: its ports are in its BARs
        ("0x010180", "0x010601", True),
        ("0x020000", "0x010180", True),
    ],
)
def test_an_ide_controller_whose_ports_another_one_has_is_left_alone(
    tmp_path: Path, mine: str, other: str, alone: bool
) -> None:
    path = pci_device(tmp_path, "0000:00:05.0", mine)
    pci_device(tmp_path, "0000:00:01.1", other)
    status, said = shell(tmp_path, "auto_none auto_alone", f"path={path}; auto_alone")
    assert (status, said) == ((0, "") if alone else (3, "the IDE controller 0000:00:01.1 has the same I/O ports\n"))


def test_what_is_behind_a_host_bridge_that_the_kernel_did_not_take_has_nothing_to_do(tmp_path: Path) -> None:
    there = pci_device(tmp_path, "0000:00:05.0", "0x060400")
    (tmp_path / "class/pci_bus/0000:00").mkdir(parents=True)

    def placed(slot: str) -> tuple[int, str]:
        return shell(tmp_path, "auto_none auto_place", f'auto_place {slot} "" && echo "$path"')

    assert placed("0000:00:05.0") == (0, f"{there}\n")
    assert placed("0000:80:00.0") == (3, "the guest's kernel does not see it: there is no PCI bus 0000:80\n")
    # a slot of a bus that is there is another thing
    assert placed("0000:00:06.0") == (1, "there is no PCI device 0000:00:06.0\n")


def test_a_device_on_no_pci_bus_is_found_by_its_name_or_by_its_pnp_id(tmp_path: Path) -> None:
    (tmp_path / "bus/platform/devices/ib700wdt.0").mkdir(parents=True)
    for number, ids in (("00:00", "PNP0b00"), ("00:05", "PNP0400")):
        (tmp_path / f"bus/pnp/devices/{number}").mkdir(parents=True)
        (tmp_path / f"bus/pnp/devices/{number}/id").write_text(f"{ids}\n")

    def hinted(text: str) -> tuple[int, str]:
        return shell(tmp_path, "auto_none auto_hinted auto_found", f"auto_hinted {text} && pwd")

    assert hinted("platform 'ib700wdt*@ib700wdt'") == (
        0,
        f"modprobe ib700wdt\n{tmp_path}/bus/platform/devices/ib700wdt.0\n",
    )
    assert hinted("pnp PNP0400@parport_pc@lp") == (
        0,
        f"modprobe parport_pc\nmodprobe lp\n{tmp_path}/bus/pnp/devices/00:05\n",
    )
    assert hinted("pnp PNP0501") == (3, "the guest has no pnp PNP0501\n")
    assert hinted("pnp PNP0400@gone") == (
        3,
        "modprobe gone\nthis guest's kernel has no driver gone, or it found no device\n",
    )
    # all that is loaded behind it waits for it too
    assert hinted("pnp PNP0400@stuck") == (4, "modprobe stuck\nmodprobe stuck did not end within 40 s\n")


def test_a_card_in_a_slot_asks_for_the_driver_of_cards_until_it_has_it(tmp_path: Path) -> None:
    card = tmp_path / "mmc_host/mmc0/mmc0:4567"
    (card / "power").mkdir(parents=True)
    names = "auto_look auto_look_bare auto_look_card auto_look_driver auto_passes"
    script = f'path={tmp_path}; auto_look; echo "$fresh,$bare,$work,$drivers"'
    assert shell(tmp_path, names, script) == (0, " mmc:block, mmc:block,,\n")
    (tmp_path / "mmcblk").mkdir()
    (card / "driver").symlink_to(tmp_path / "mmcblk")
    (card / "block/mmcblk0/queue").mkdir(parents=True)
    assert shell(tmp_path, names, script) == (0, ",, block:mmcblk0,|/mmc_host/mmc0/mmc0:4567=mmcblk\n")


def test_what_is_plugged_into_no_usb_bus_is_not_bound(tmp_path: Path) -> None:
    """Its controller has a driver, and it is not the controller."""
    names = "auto_none auto_look auto_look_alias auto_look_bare auto_look_card auto_look_driver auto_passes"
    names += " auto_settle auto_quiet"
    (tmp_path / "kernel").mkdir()
    (tmp_path / "kernel/uevent_seqnum").write_text("7\n")
    root = tmp_path / "usb1"
    (root / "driver").mkdir(parents=True)
    (root / "modalias").write_text("usb:v1D6Bp0002d0601dc09dsc00dp01ic09isc00ip00in00\n")
    script = f"path={root.parent}; want=usb; auto_settle"
    assert shell(tmp_path, names, script) == (3, "nothing is plugged into its USB bus\n")
    (root / "1-1/driver").mkdir(parents=True)
    (root / "1-1/modalias").write_text("usb:v0627p0001d0000dc00dsc00dp00ic03isc01ip01in00\n")
    status, said = shell(tmp_path, names, f'{script}; echo "$? $want $drivers"')
    assert (status, set(said.strip().split("|"))) == (0, {"0 input ", "/usb1=driver", "/usb1/1-1=driver"})


@pytest.mark.parametrize(
    ("least", "found"), [("", {"sda"}), ("1", {"sda"}), ("2", {"sda", "sdb"}), ("3", {"sda", "sdb"})]
)
def test_a_controller_is_waited_for_until_it_has_all_that_it_had(tmp_path: Path, least: str, found: set[str]) -> None:
    names = "auto_none auto_look auto_look_alias auto_look_bare auto_look_card auto_look_driver auto_passes"
    names += " auto_settle auto_quiet"
    (tmp_path / "kernel").mkdir()
    (tmp_path / "kernel/uevent_seqnum").write_text("7\n")
    (tmp_path / "hba/ata1/block/sda").mkdir(parents=True)
    nap = f'nap() {{ up=$((up + 1)); echo "$up.5 1" > {tmp_path}/uptime; '
    nap += f"[ $up != 5 ] || mkdir -p {tmp_path}/hba/ata2/block/sdb; }}"
    status, said = shell(tmp_path, names, f'{nap}; path={tmp_path}/hba; want=block; auto_settle {least}; echo "$work"')
    assert (status, set(said.split())) == (0, {f"block:{disk}" for disk in found})


def test_a_bridge_without_a_driver_passes_things_on_to_what_is_behind_it(tmp_path: Path) -> None:
    path = pci_device(tmp_path, "0000:00:05.0", "0x060400")
    assert shell(tmp_path, "auto_passes", f"path={path}; auto_passes") == (1, "")
    (path / "0000:01:00.0").mkdir()
    assert shell(tmp_path, "auto_passes", f"path={path}; auto_passes") == (0, "")
    (path / "class").write_text("0x010601\n")
    assert shell(tmp_path, "auto_passes", f"path={path}; auto_passes") == (1, "")


@pytest.mark.parametrize(
    ("counts", "checks", "status"),
    [("1 2 2 3 3", 2, 0), ("1 1 1 2 2 2 3", 2, 0), ("1 2 2 2 2", 2, 1), ("1 1 1 1 1", 1, 1), ("1 2 2 2 2", 1, 0)],
)
def test_what_moved_once_may_have_been_its_driver_and_is_not_busy(
    tmp_path: Path, counts: str, checks: int, status: int
) -> None:
    """The last of a driver's own requests came behind the first look at an IPMI device whose workload did nothing: each
    look waits for what is behind the one before."""
    (tmp_path / "auto.name").mkdir()
    script = f"""
    auto_known() {{ work=k:w; }}
    auto_count() {{ read -r count rest < {tmp_path}/left; [ -z "$rest" ] || echo "$rest" > {tmp_path}/left; }}
    echo "{counts}" > {tmp_path}/left
    auto_busy_k() {{ :; }}
    auto_busy name
    {"auto_check name && " * (checks - 1)} auto_check name
    """
    names = "auto_none auto_busy auto_note auto_moves auto_there auto_check"
    done, said = shell(tmp_path, names, script)
    assert (done, "did not move" in said) == (status, bool(status))


KERNEL_LOG = """\
[    8.0] virtio_blk virtio0: PM: failed to suspend: error -5
[    9.0] postload: mark suspended
[    9.1] PM: suspend entry (deep)
[    9.2] sd 0:0:0:0: PM: failed to suspend noirq: error -16
[    9.3] PM: Some devices failed to suspend, or early wake event detected
"""


@pytest.mark.parametrize(
    ("kinds", "log", "status", "said"),
    [
        ("s2idle [deep]", "", 0, ""),
        ("[s2idle]", "", 3, "the machine has no S3 for this kernel: [s2idle] in mem_sleep\n"),
        (
            "[s2idle] deep",
            KERNEL_LOG,
            3,
            "refused {sysfs}/devices/host0/0:0:0:0\n[    9.2] sd 0:0:0:0: PM: failed to suspend noirq: error -16\n",
        ),
        ("s2idle [deep]", "[ 9.0] PM: no more tasks\n", 3, "[ 9.0] PM: no more tasks\n"),
    ],
)
def test_who_keeps_the_machine_from_sleep_is_said(tmp_path: Path, kinds: str, log: str, status: int, said: str) -> None:
    (tmp_path / "power").mkdir()
    (tmp_path / "power/mem_sleep").write_text(f"{kinds}\n")
    (tmp_path / "devices/host0/0:0:0:0").mkdir(parents=True)
    (tmp_path / "log").write_text(log)
    if log:
        (tmp_path / "power/state").mkdir()  # cannot be written to
    fakes = f"log_mark() {{ :; }}; dmesg() {{ cat {tmp_path}/log; }}"
    done, told = shell(tmp_path, "suspend log_new", f"{fakes}; suspend 2> /dev/null")
    assert (done, told) == (status, said.format(sysfs=tmp_path))


def test_interrupts_are_counted_on_all_cpus(tmp_path: Path) -> None:
    device = tmp_path / "device"
    (device / "msi_irqs").mkdir(parents=True)
    for number, counts in ((24, "3,40"), (25, "5"), (26, "0,0,100,0")):
        (device / "msi_irqs" / str(number)).touch()
        (tmp_path / f"kernel/irq/{number}").mkdir(parents=True)
        (tmp_path / f"kernel/irq/{number}/per_cpu_count").write_text(f"{counts}\n")
    assert shell(tmp_path, "auto_irqs", f'path={device}; auto_irqs; echo "$count"') == (0, "148\n")


MOVES = "auto_none auto_moves auto_there auto_count auto_count_block auto_gone_block"


@pytest.mark.parametrize(
    ("log", "status", "said"),
    [
        (
            "[ 4.1] ohci-pci 0000:00:03.0: OHCI Unrecoverable Error, disabled\n[ 4.2] ohci-pci 0000:00:03.0: HC died\n",
            3,
            "its controller dies under the workload: ohci-pci 0000:00:03.0: OHCI Unrecoverable Error, disabled\n",
        ),
        ("[ 4.2] ohci-pci 0000:00:04.0: HC died\n", 1, "sda went away under the workload\n"),
    ],
)
def test_a_disk_that_is_gone_does_not_move(tmp_path: Path, log: str, status: int, said: str) -> None:
    (tmp_path / "log").write_text(log)
    script = f"dmesg() {{ cat {tmp_path}/log; }}; path=/sys/devices/pci0000:00/0000:00:03.0; auto_moves x block:sda 7"
    assert shell(tmp_path, MOVES, script) == (status, said)
    (tmp_path / "block/sda").mkdir(parents=True)
    (tmp_path / "block/sda/stat").write_text("5 0 0 0 3 0\n")
    assert shell(tmp_path, MOVES, script) == (0, "")


def test_a_workload_ends_with_its_disk_and_leaves_no_file_in_its_place(tmp_path: Path) -> None:
    node = tmp_path / "sda"
    fakes = 'auto_page() { at=64 writable=1; }; auto_spawn() { shift; sh -c "$@" > /dev/null 2>&1; }'
    name = f"..{node}"
    assert shell(tmp_path, "auto_busy_block", f"{fakes}; auto_busy_block x {name}") == (0, "")
    assert not node.exists()
    node.write_text("written by the last round")
    shell(tmp_path, "auto_stop_block", f"auto_stop_block x {name}")
    assert not node.exists()
