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


def test_a_process_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"process 7: .* cannot be read: No such file or directory"):
        of_process(7, proc=tmp_path)
