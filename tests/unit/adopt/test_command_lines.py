# SPDX-License-Identifier: GPL-2.0-or-later
"""Command lines as libvirt, Proxmox, quickemu and people write them, to configurations."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from harness.adopt.commandline import of_process, read_command_line
from harness.adopt.configuration import Value
from harness.errors import UsageError

Said = tuple[str, Mapping[str, Value]]

LIBVIRT_LOG = r"""
2024-01-05 10:00:00.123+0000: starting up libvirt version: 9.0.0, qemu version: 6.2.0, hostname: it's.old
LC_ALL=C \
/usr/bin/qemu-system-x86_64 \
-name guest=web01,debug-threads=on \
-m 512
2024-01-05 10:02:00.500+0000: shutting down, reason=shutdown
2024-02-05 10:00:00.123+0000: starting up libvirt version: 9.0.0, qemu version: 7.2.0, hostname: it's.host
LC_ALL=C \
PATH=/usr/local/bin:/usr/bin \
HOME=/var/lib/libvirt/qemu/domain-1-web01 \
/usr/bin/qemu-system-x86_64 \
-name guest=web01,debug-threads=on \
-S \
-object '{"qom-type":"secret","id":"masterKey0","format":"raw","file":"/var/lib/libvirt/qemu/master-key.aes"}' \
-machine pc-q35-7.2,usb=off,dump-guest-core=off,memory-backend=pc.ram \
-accel kvm \
-cpu Skylake-Client-IBRS,ss=on,hypervisor=on,-mpx,+md_clear \
-m 4096 \
-object '{"qom-type":"memory-backend-ram","id":"pc.ram","size":4294967296}' \
-smp 2,sockets=2,cores=1,threads=1 \
-no-user-config \
-nodefaults \
-chardev socket,id=charmonitor,fd=33,server=on,wait=off \
-mon chardev=charmonitor,id=monitor,mode=control \
-global kvm-pit.lost_tick_policy=delay \
-no-hpet \
-device '{"driver":"pcie-root-port","port":16,"id":"pci.1","bus":"pcie.0","multifunction":true,"addr":"0x2"}' \
-blockdev '{"driver":"file","filename":"/images/web01.qcow2","node-name":"libvirt-1-storage","discard":"unmap"}' \
-netdev '{"type":"tap","fd":"35","vhost":true,"id":"hostnet0"}' \
-msg timestamp=on
char device redirected to /dev/pts/3 (label charserial0)
2024-02-05T10:02:00.0Z qemu-system-x86_64: terminating on signal 15 from pid 1234 (/usr/sbin/libvirtd)
"""


def read(text: str) -> list[Said]:
    return [(option.name, option.values) for option in read_command_line(text, "vm.txt").options]


def test_the_last_start_of_a_log_of_libvirt() -> None:
    found = read_command_line(LIBVIRT_LOG, "web01.log")
    assert (found.name, found.binary, found.source) == ("web01", "/usr/bin/qemu-system-x86_64", "web01.log")
    options = {option.name: option for option in found.options}
    assert options["name"].line == 13
    assert options["machine"].values == {
        "type": "pc-q35-7.2",
        "usb": "off",
        "dump-guest-core": "off",
        "memory-backend": "pc.ram",
        "hpet": "off",
    }
    assert options["cpu"].values == {
        "model": "Skylake-Client-IBRS",
        "ss": "on",
        "hypervisor": "on",
        "md-clear": "on",
        "mpx": "off",
    }
    assert options["global"].values == {"driver": "kvm-pit", "property": "lost_tick_policy", "value": "delay"}
    assert options["device"].values["multifunction"] is True
    assert options["device"].values["port"] == 16
    assert options["nodefaults"].values == {}
    assert options["m"].values == {"size": "4096"}


def test_an_option_that_nobody_knows_is_named_with_its_line() -> None:
    with pytest.raises(UsageError, match=r"^vm\.txt:3: QEMU has no option '-nodefualts'; did you mean -nodefaults\?$"):
        read("qemu-system-x86_64 \\\n-m 1G \\\n-nodefualts")


def test_old_options_are_what_they_stand_for() -> None:
    assert read("qemu-system-x86_64 -hda x.img -cdrom y.iso -net nic,model=virtio -net user -soundhw hda -usb") == [
        ("drive", {"file": "x.img", "index": "0", "media": "disk"}),
        ("drive", {"file": "y.iso", "index": "2", "media": "cdrom"}),
        ("machine", {"usb": "on"}),
        ("nic", {"type": "none"}),
        ("netdev", {"type": "user", "id": "net0"}),
        ("device", {"driver": "virtio-net-pci", "netdev": "net0"}),
        ("device", {"driver": "intel-hda"}),
        ("device", {"driver": "hda-duplex"}),
    ]


Q35_WITH_NIC = "qemu-system-x86_64 -M q35 -nic user,model=virtio,mac=52:54:00:12:34:56,hostfwd=tcp::1-:2"

FORMS: dict[str, tuple[str, list[Said]]] = {
    "proxmox": (
        "/usr/bin/kvm -id 100 -name 'vm1,debug-threads=on' -no-shutdown -chardev "
        "'socket,id=qmp,path=/var/run/qemu-server/100.qmp,server=on,wait=off' -mon 'chardev=qmp,mode=control' "
        "-smbios 'type=1,uuid=aa' -smp '4,sockets=1,cores=4,maxcpus=4' -nodefaults -boot 'menu=on,strict=on' "
        "-vnc 'unix:/var/run/qemu-server/100.vnc,password=on' -cpu kvm64,enforce,+kvm_pv_eoi,+lahf_lm -m 2048 "
        "-object 'iothread,id=iothread-virtioscsi0' -device 'piix3-usb-uhci,id=uhci,bus=pci.0,addr=0x1.0x2' "
        "-drive 'file=/dev/pve/vm-100-disk-0,if=none,id=drive-scsi0,format=raw,aio=io_uring' "
        "-netdev 'type=tap,id=net0,ifname=tap100i0,script=/var/lib/qemu-server/pve-bridge,vhost=on' "
        "-machine 'type=pc+pve0'",
        [
            ("id", {"value": "100"}),
            ("name", {"guest": "vm1", "debug-threads": "on"}),
            ("no-shutdown", {}),
            (
                "chardev",
                {
                    "backend": "socket",
                    "id": "qmp",
                    "path": "/var/run/qemu-server/100.qmp",
                    "server": "on",
                    "wait": "off",
                },
            ),
            ("mon", {"chardev": "qmp", "mode": "control"}),
            ("smbios", {"type": "1", "uuid": "aa"}),
            ("smp", {"cpus": "4", "sockets": "1", "cores": "4", "maxcpus": "4"}),
            ("nodefaults", {}),
            ("boot", {"menu": "on", "strict": "on"}),
            ("vnc", {"vnc": "unix:/var/run/qemu-server/100.vnc", "password": "on"}),
            ("cpu", {"model": "kvm64", "enforce": "on", "kvm-pv-eoi": "on", "lahf-lm": "on"}),
            ("m", {"size": "2048"}),
            ("object", {"qom-type": "iothread", "id": "iothread-virtioscsi0"}),
            ("device", {"driver": "piix3-usb-uhci", "id": "uhci", "bus": "pci.0", "addr": "0x1.0x2"}),
            (
                "drive",
                {
                    "file": "/dev/pve/vm-100-disk-0",
                    "if": "none",
                    "id": "drive-scsi0",
                    "format": "raw",
                    "aio": "io_uring",
                },
            ),
            (
                "netdev",
                {
                    "type": "tap",
                    "id": "net0",
                    "ifname": "tap100i0",
                    "script": "/var/lib/qemu-server/pve-bridge",
                    "vhost": "on",
                },
            ),
            ("machine", {"type": "pc+pve0"}),
        ],
    ),
    "quickemu": (
        "#!/usr/bin/env bash\n/usr/bin/qemu-system-x86_64 \\\n    -name u,process=u \\\n"
        "    -machine q35,smm=off,vmport=off,accel=kvm \\\n    -device ich9-usb-ehci1,id=ehci -display sdl,gl=on \\\n"
        "    -audiodev pa,id=a,out.mixing-engine=off 2>/dev/null &\n",
        [
            ("name", {"guest": "u", "process": "u"}),
            ("machine", {"type": "q35", "smm": "off", "vmport": "off", "accel": "kvm"}),
            ("device", {"driver": "ich9-usb-ehci1", "id": "ehci"}),
            ("display", {"type": "sdl", "gl": "on"}),
            ("audiodev", {"driver": "pa", "id": "a", "out": {"mixing-engine": "off"}}),
        ],
    ),
    "drives": (
        "kvm -hdd d -fda f -fdb g -sd s -pflash p -mtdblock m disk,1.img",
        [
            ("drive", {"file": "d", "index": "3", "media": "disk"}),
            ("drive", {"file": "f", "if": "floppy", "index": "0"}),
            ("drive", {"file": "g", "if": "floppy", "index": "1"}),
            ("drive", {"file": "s", "if": "sd"}),
            ("drive", {"file": "p", "if": "pflash"}),
            ("drive", {"file": "m", "if": "mtd"}),
            ("drive", {"file": "disk,1.img", "index": "0", "media": "disk"}),
        ],
    ),
    "flags of machines": (
        "kvm -enable-kvm -no-acpi -no-hpet -no-fd-bootchk -no-kvm-irqchip -usb",
        [
            (
                "machine",
                {
                    "accel": "kvm",
                    "acpi": "off",
                    "hpet": "off",
                    "fd-bootchk": "off",
                    "kernel-irqchip": "off",
                    "usb": "on",
                },
            )
        ],
    ),
    "a machine in pieces": (
        "kvm -M pc,kernel_irqchip=split -S -machine q35,smp.cpus=2,smp.cores=1 -smp 4",
        [
            ("machine", {"type": "q35", "kernel-irqchip": "split"}),
            ("S", {}),
            ("smp", {"cpus": "4", "cores": "1"}),
        ],
    ),
    "what counts once": (
        "kvm -m 512 -cpu a,+b -m 1G,slots=2 -cpu c -boot d -boot menu=on -bios x -bios y -name a -name process=b",
        [
            ("m", {"size": "1G", "slots": "2"}),
            ("cpu", {"model": "c"}),
            ("boot", {"order": "d", "menu": "on"}),
            ("bios", {"value": "y"}),
            ("name", {"guest": "a", "process": "b"}),
        ],
    ),
    "what counts each time": (
        "kvm -accel kvm -accel tcg,thread=multi -serial stdio -serial null -global a.b=c -global a.b=d -L x -L y",
        [
            ("accel", {"accel": "kvm"}),
            ("accel", {"accel": "tcg", "thread": "multi"}),
            ("serial", {"backend": "stdio"}),
            ("serial", {"backend": "null"}),
            ("global", {"driver": "a", "property": "b", "value": "c"}),
            ("global", {"driver": "a", "property": "b", "value": "d"}),
            ("L", {"value": "x"}),
            ("L", {"value": "y"}),
        ],
    ),
    "two dashes": ("kvm --nodefaults --m 1G", [("nodefaults", {}), ("m", {"size": "1G"})]),
    "nic": (
        Q35_WITH_NIC,
        [
            ("machine", {"type": "q35"}),
            ("nic", {"type": "none"}),
            ("netdev", {"type": "user", "hostfwd": ["tcp::1-:2"], "id": "nic0"}),
            ("device", {"driver": "virtio-net-pci", "netdev": "nic0", "mac": "52:54:00:12:34:56"}),
        ],
    ),
    "nic without a type": (
        "kvm -device a -nic model=rtl8139,id=n",
        [
            ("nic", {"type": "none"}),
            ("netdev", {"type": "user", "id": "n"}),
            ("device", {"driver": "rtl8139", "netdev": "n"}),
            ("device", {"driver": "a"}),
        ],
    ),
    "no nic": ("kvm -nic none", [("nic", {"type": "none"})]),
    "net none": ("kvm -net none", [("nic", {"type": "none"})]),
    "two hubs": (
        "kvm -net nic,vlan=1,macaddr=m,addr=5,name=x -net nic -net user,vlan=0,id=u -net tap,vlan=1,ifname=t",
        [
            ("nic", {"type": "none"}),
            ("netdev", {"type": "user", "id": "u"}),
            ("netdev", {"type": "tap", "ifname": "t", "id": "net0"}),
            ("device", {"driver": "e1000", "addr": "5", "mac": "m", "netdev": "net0", "id": "x"}),
            ("device", {"driver": "e1000", "netdev": "u"}),
        ],
    ),
    "a card without a cable": (
        "kvm -M microvm -net nic -M isapc",
        [("machine", {"type": "isapc"}), ("nic", {"type": "none"}), ("device", {"driver": "ne2k_isa"})],
    ),
    "a machine without cards of its own": (
        "kvm -M microvm -nic user",
        [
            ("machine", {"type": "microvm"}),
            ("nic", {"type": "none"}),
            ("netdev", {"type": "user", "id": "nic0"}),
        ],
    ),
    "usbdevice": (
        "kvm -usbdevice tablet -usbdevice disk:x,y.img -device a",
        [
            ("machine", {"usb": "on"}),
            ("drive", {"if": "none", "id": "usbdisk-1", "file": "x,y.img"}),
            ("device", {"driver": "usb-tablet"}),
            ("device", {"driver": "usb-storage", "drive": "usbdisk-1"}),
            ("device", {"driver": "a"}),
        ],
    ),
    "sound": (
        "kvm -soundhw ac97,pcspk -audio pa,model=hda,id=x -audio none",
        [
            ("audiodev", {"driver": "pa", "id": "x"}),
            ("audiodev", {"driver": "none", "id": "audiodev0"}),
            ("device", {"driver": "AC97"}),
            ("device", {"driver": "intel-hda"}),
            ("device", {"driver": "hda-duplex", "audiodev": "x"}),
        ],
    ),
    "watchdog": (
        "kvm -watchdog i6300esb -watchdog-action none -device a",
        [("watchdog-action", {"value": "none"}), ("device", {"driver": "a"}), ("device", {"driver": "i6300esb"})],
    ),
    "virtfs": (
        "kvm -virtfs local,path=/a,mount_tag=t,security_model=none",
        [
            ("fsdev", {"fsdriver": "local", "path": "/a", "security_model": "none", "id": "t"}),
            ("device", {"driver": "virtio-9p-pci", "fsdev": "t", "mount_tag": "t"}),
        ],
    ),
    "debugcon": (
        "kvm -debugcon file:x -s",
        [
            ("chardev", {"backend": "file", "path": "x", "id": "debugcon"}),
            ("device", {"driver": "isa-debugcon", "chardev": "debugcon"}),
            ("gdb", {"backend": "socket", "host": "", "port": "1234"}),
        ],
    ),
    "clocks": (
        "kvm -localtime -rtc-td-hack -rtc clock=vm -win2k-hack -std-vga -sdl -balloon virtio,id=b -redir tcp:1::2",
        [
            ("rtc", {"base": "localtime", "driftfix": "slew", "clock": "vm"}),
            ("global", {"driver": "ide-device", "property": "win2k-install-hack", "value": "true"}),
            ("vga", {"value": "std"}),
            ("display", {"type": "sdl"}),
            ("device", {"driver": "virtio-balloon-pci", "id": "b"}),
        ],
    ),
    "displays": (
        "kvm -display vnc=:1,password=on -display none -vga qxl -nographic",
        [
            ("vnc", {"vnc": ":1", "password": "on"}),
            ("display", {"type": "none"}),
            ("vga", {"value": "qxl"}),
            ("nographic", {}),
        ],
    ),
    "set": (
        "kvm -device a,id=d,b=1 -set device.d.b=2 -set device.d.c.d=x=y",
        [("device", {"driver": "a", "id": "d", "b": "2", "c.d": "x=y"})],
    ),
    "blockdev": (
        "kvm -blockdev driver=qcow2,node-name=a,file.driver=file,file.filename=/x,,y",
        [("blockdev", {"driver": "qcow2", "node-name": "a", "file": {"driver": "file", "filename": "/x,y"}})],
    ),
    "numa": (
        "kvm -numa node,cpus=0,cpus=2-3,memdev=m -numa node,nodeid=1 -numa dist,src=0,dst=1,val=20",
        [
            ("numa", {"type": "node", "cpus": ["0", "2-3"], "memdev": "m"}),
            ("numa", {"type": "node", "nodeid": "1"}),
            ("numa", {"type": "dist", "src": "0", "dst": "1", "val": "20"}),
        ],
    ),
    "texts as they stand": (
        "kvm -kernel a,b -append 'x=1, y' -initrd a,,b -uuid u -incoming tcp:0:1",
        [
            ("kernel", {"value": "a,b"}),
            ("append", {"value": "x=1, y"}),
            ("initrd", {"value": "a,,b"}),
            ("uuid", {"value": "u"}),
            ("incoming", {"value": "tcp:0:1"}),
        ],
    ),
    "modern netdev": (
        "kvm -netdev stream,id=n,addr.type=unix,addr.path=/x -netdev \"{'type':'user','id':'u'}\"",
        [
            ("netdev", {"type": "stream", "id": "n", "addr": {"type": "unix", "path": "/x"}}),
            ("netdev", {"type": "user", "id": "u"}),
        ],
    ),
}


@pytest.mark.parametrize("form", FORMS)
def test_command_lines_of_many_kinds(form: str) -> None:
    text, expected = FORMS[form]
    assert read(text) == expected


@pytest.mark.parametrize(
    ("machine", "card"),
    [
        ("pc", "e1000"),
        ("q35", "e1000e"),
        ("pc-q35-2.11", "e1000"),
        ("pc-q35-2.12", "e1000e"),
        ("pc-q35-11.1", "e1000e"),
        ("pc-i440fx-10.0", "e1000"),
        ("isapc", "ne2k_isa"),
        ("virt", "virtio-net-pci"),
    ],
)
def test_the_card_that_a_machine_makes_of_itself(machine: str, card: str) -> None:
    assert read(f"kvm -nic user -M {machine}")[-1] == ("device", {"driver": card, "netdev": "nic0"})


CONFIG = """# a comment
[machine]
  type = "q35"

[device "net0"]
  driver = "virtio-net-pci"
  mac = "a,b"
  empty = ""
[drive "d"]
  file.driver = "raw"
[memory]
  size = "1G"
"""


def test_files_of_readconfig_come_from_who_asked() -> None:
    found = read_command_line("kvm \\\n-readconfig a.cfg -S", "vm.txt", read={"a.cfg": CONFIG}.__getitem__)
    assert [(option.name, option.values, option.line) for option in found.options] == [
        ("machine", {"type": "q35"}, 2),
        ("device", {"id": "net0", "driver": "virtio-net-pci", "mac": "a,b", "empty": ""}, 2),
        ("drive", {"id": "d", "file": {"driver": "raw"}}, 2),
        ("m", {"size": "1G"}, 2),
        ("S", {}, 2),
    ]


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("kvm -readconfig a.cfg", "vm.txt:1: -readconfig 'a.cfg': the file is not at hand: write its options out"),
        ("kvm -set device.x.y=z", "vm.txt:1: -set 'device.x.y=z': no 'device' with the id 'x' comes before it"),
        ("kvm -set device.x", "vm.txt:1: expected -set GROUP.ID.KEY=VALUE, found 'device.x'"),
        ("kvm -soundhw tuba", "vm.txt:1: expected a sound card, one of ac97, "),
        ("kvm -usbdevice tuba", "vm.txt:1: expected a USB device such as tablet, found 'tuba'"),
        ("kvm -balloon tuba", "vm.txt:1: expected virtio or none, found 'tuba'"),
        ("kvm -virtfs local", "vm.txt:1: expected -virtfs FSDRIVER,path=...,mount_tag=..."),
        ("kvm -m", "vm.txt:1: option -m needs an argument"),
        ("kvm -zzz", "vm.txt:1: QEMU has no option '-zzz'"),
        ("kvm -", "vm.txt:1: QEMU has no option '-'"),
    ],
)
def test_complaints_name_the_line(text: str, complaint: str) -> None:
    with pytest.raises(UsageError) as error:
        read(text)
    assert str(error.value).startswith(complaint)


@pytest.mark.parametrize(
    ("config", "complaint"),
    [
        ('[tuba]\nx = "y"', "a.cfg:1: QEMU has no group 'tuba' of options"),
        ('x = "y"', 'a.cfg:1: expected [group "id"] or key = "value", found \'x = "y"\''),
        ("[device]\nx = y", 'a.cfg:2: expected [group "id"] or key = "value", found \'x = y\''),
        ('[drive]\na.b = "1"\na = "2"', "a.cfg:1: 'a' has a value, and keys below it as well"),
    ],
)
def test_complaints_about_a_file_of_readconfig(config: str, complaint: str) -> None:
    with pytest.raises(UsageError) as error:
        read_command_line("kvm -readconfig a.cfg", "vm.txt", read=lambda path: config)
    assert str(error.value) == complaint


def test_a_file_of_readconfig_that_cannot_be_read() -> None:
    with pytest.raises(UsageError, match=r"^vm\.txt:1: -readconfig '/nowhere': it cannot be read: .*No such file"):
        read_command_line("kvm -readconfig /nowhere", "vm.txt", read=lambda path: Path(path).read_text("utf-8"))


def test_a_complaint_of_who_gives_the_file_names_the_option() -> None:
    def read(path: str) -> str:
        raise UsageError(f"{path}: larger than any such file")

    with pytest.raises(UsageError, match=r"^vm\.txt:2: -readconfig 'a\.cfg': it cannot be read: a\.cfg: larger than"):
        read_command_line("kvm \\\n-readconfig a.cfg", "vm.txt", read=read)


def process(tmp_path: Path, cmdline: bytes) -> Path:
    (tmp_path / "7").mkdir()
    (tmp_path / "7" / "cmdline").write_bytes(cmdline)
    return tmp_path


def test_a_process(tmp_path: Path) -> None:
    found = of_process(7, proc=process(tmp_path, b"/usr/bin/kvm\0-name\0it's a \xff\0-append\0\0-S\0"))
    assert (found.name, found.source, found.binary) == ("it's a \N{REPLACEMENT CHARACTER}", "process 7", "/usr/bin/kvm")
    assert [option.name for option in found.options] == ["name", "append", "S"]


@pytest.mark.parametrize(
    ("cmdline", "complaint"),
    [
        (b"", "process 7 has no command line: it has ended, or is the kernel's own"),
        (b"/usr/bin/bash\0-c\0x\0", "process 7 is no QEMU: it runs 'bash'"),
        (b"/usr/bin/kvm\0-zzz\0", "process 7:1: QEMU has no option '-zzz'"),
    ],
)
def test_a_process_that_is_no_guest(tmp_path: Path, cmdline: bytes, complaint: str) -> None:
    with pytest.raises(UsageError) as error:
        of_process(7, proc=process(tmp_path, cmdline))
    assert str(error.value) == complaint


def test_a_process_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"process 7: .* cannot be read: No such file or directory"):
        of_process(7, proc=tmp_path)
