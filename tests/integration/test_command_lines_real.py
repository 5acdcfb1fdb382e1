# SPDX-License-Identifier: GPL-2.0-or-later
"""What is read of a command line is what QEMU itself reads of it.

QEMU 5.2 is the last one that writes what it has read (``-writeconfig``), and does so before it starts anything.
"""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from harness.adopt.commandline import of_process, read_command_line
from harness.adopt.configuration import Configuration
from harness.adopt.optiontable import Form, known_options, option_of_group
from harness.qemu.binary import QemuBinary

#: Options that stand in what QEMU writes.
WRITTEN = frozenset(
    {"boot", "chardev", "device", "drive", "fw_cfg", "global", "icount", "m", "machine", "mon", "msg", "name", "netdev"}
    | {"numa", "object", "option-rom", "overcommit", "rtc", "smbios", "smp", "spice", "tpmdev"}
)

PLAIN = """-hda a,b.img -hdd d -cdrom c.iso -fda f.img -fdb g -sd s.img -pflash p.img -mtdblock m.img -usb -enable-kvm
-drive file=a,,b.img,if=none,id=x,file.locking=off,noreadonly -device virtio-blk-pci,drive=x,id=d -no-acpi -no-hpet
-device foo,bar,nobaz,a=,,b,c==d,c= -netdev user,id=n,hostfwd=tcp::1-:2,hostfwd=tcp::3-:4 -machine pc,usb=off
-net nic,model=virtio,macaddr=52:54:00:12:34:56 -net user -nic user,model=e1000e,mac=52:54:00:12:34:57 -nic none
-machine accel=tcg -m 1G,slots=4 -m maxmem=4G -smp 4,cores=2 -boot dc,menu=on -boot strict=on -M q35,kernel_irqchip=on
-name foo,process=bar -rtc base=utc -rtc clock=vm -chardev socket,id=c,path=/tmp/x,server,nowait,nodelay
-global ide-hd.foo=a,b=c -global driver=x,property=y,value=z,,w -set device.d.bus=pci.0 -set drive.x.format=raw
-numa node,cpus=0,cpus=2-3,mem=1G -numa node,cpus=1 -icount 4 -object secret,id=s0,data=x,,y -fw_cfg opt/x,string=a,,b
-smbios type=11,value=a,value=b -smbios type=1,serial=x -tpmdev emulator,id=t,chardev=c -mon c,mode=control
-mon chardev=c
-msg timestamp -overcommit mem-lock=off -option-rom foo,bootindex=1 -virtfs local,path=/tmp,mount_tag=t"""


def written(qemu: Path, arguments: Sequence[str]) -> Configuration:
    """What QEMU writes of its own command line."""
    done = subprocess.run(
        [qemu, *arguments, "-writeconfig", "-", "-version"], capture_output=True, timeout=60, check=False
    )
    text = done.stdout.decode()
    assert done.returncode == 0, done.stderr
    # what -virtfs stands for is written as well
    config = re.sub(r"\[virtfs.*\n(?:  .*\n)*", "", text[: text.rindex("\nQEMU emulator version")])
    return read_command_line("kvm\0-readconfig\0written\0", "written", read=lambda _: config)


def said(configuration: Configuration) -> list[str]:
    """Options in an order of their own: QEMU writes one group behind the other."""
    options = (option for option in configuration.options if option.name in WRITTEN)
    return sorted(f"{option.name} {sorted(option.values.items())}" for option in options)


@pytest.fixture(scope="module")
def qemu_5_2(installed_qemu: Callable[[str], Path]) -> Path:
    return installed_qemu("5.2")


def test_every_kind_of_option_is_read_as_qemu_reads_it(qemu_5_2: Path) -> None:
    ours = said(read_command_line(f"kvm {PLAIN}", "plain"))
    assert ours == said(written(qemu_5_2, PLAIN.split()))
    assert {line.split()[0] for line in ours} == WRITTEN - {"spice"}


#: What QEMU's own file of options can hold: it has no way to write a quote.
TEXT = st.text(st.sampled_from("ab,=.- no:/\\$'{}é"), max_size=12)
KEY = st.from_regex(r"[a-z][a-z0-9._-]{0,12}", fullmatch=True).filter(lambda key: key not in ("id", "driver", "help"))


def pairs_of(keys: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    values = st.tuples(keys, TEXT).map(lambda pair: f"{pair[0]}={pair[1].replace(',', ',,')}")
    return st.lists(values | keys | keys.map(lambda key: f"no{key}"), min_size=1, max_size=6).map(",".join)


PAIRS = pairs_of(KEY)
OPTION = st.one_of(
    PAIRS.map(lambda pairs: ("-device", f"some,{pairs}")),
    st.tuples(TEXT, PAIRS).map(lambda both: ("-device", f"driver={both[0].replace(',', ',,')},{both[1]}")),
    pairs_of(KEY.filter(lambda key: "." not in key)).map(lambda pairs: ("-netdev", f"user,{pairs}")),
    TEXT.map(lambda text: ("-global", f"some.thing={text}")),
    TEXT.map(lambda text: ("-global", f"driver=some,property=x,value={text.replace(',', ',,')}")),
    TEXT.map(lambda text: ("-hda", f"x{text}")),
)


@given(st.lists(OPTION, min_size=10, max_size=40))
@settings(max_examples=10, deadline=None, suppress_health_check=list(HealthCheck))
def test_values_of_any_kind_are_read_as_qemu_reads_them(qemu_5_2: Path, options: list[tuple[str, str]]) -> None:
    arguments = [word for option in options for word in option]
    ours = read_command_line("\0".join(["kvm", *arguments, ""]), "any")
    assert said(ours) == said(written(qemu_5_2, arguments))


def test_every_option_of_the_hosts_qemu_is_known_with_its_argument(binary: QemuBinary) -> None:
    names = set(re.findall(r"(?m)^-([A-Za-z][A-Za-z0-9_-]*)", helped(binary.path)))
    assert len(names) > 90
    with ThreadPoolExecutor(2) as pool:
        takes = dict(zip(names, pool.map(lambda name: takes_argument(binary.path, name), names), strict=True))
    assert takes == {name: known_options()[name].takes is not Form.NOTHING for name in takes}


def helped(qemu: str | Path) -> str:
    return subprocess.run([qemu, "-help"], capture_output=True, text=True, timeout=60, check=True).stdout


def takes_argument(qemu: str, name: str) -> bool:
    """QEMU looks at all options before it does what the first one says, and misses an argument where one belongs."""
    done = subprocess.run([qemu, "-version", f"-{name}"], capture_output=True, text=True, timeout=60, check=False)
    assert "invalid option" not in done.stderr
    return "requires an argument" in done.stderr


def test_every_group_of_the_hosts_qemu_is_known(binary: QemuBinary) -> None:
    """A file of -readconfig may have any of them."""
    asked = [{"execute": name} for name in ("qmp_capabilities", "query-command-line-options", "quit")]
    arguments = ["-machine", "none", "-S", "-nodefaults", "-display", "none", "-qmp", "stdio"]
    done = subprocess.run(
        [binary.path, *arguments], input="\n".join(map(json.dumps, asked)), capture_output=True, text=True, timeout=60
    )
    answers = [json.loads(line).get("return") for line in done.stdout.splitlines()]
    groups = [each["option"] for answer in answers if isinstance(answer, list) for each in answer]
    assert len(groups) > 30
    # one has no name: no file can have it
    assert [group for group in groups if group and option_of_group(group) is None] == []


@pytest.mark.parametrize("version", ["5.2", "10.0", "11.1"])
def test_every_option_that_a_version_tells_of_is_known(version: str, installed_qemu: Callable[[str], Path]) -> None:
    names = set(re.findall(r"(?m)^-([A-Za-z][A-Za-z0-9_-]*)", helped(installed_qemu(version))))
    assert len(names) > 90
    assert names - set(known_options()) == set()


def test_a_running_qemu_is_read_from_its_process(binary: QemuBinary, eventually: Callable[..., None]) -> None:
    arguments = ["-machine", "none", "-S", "-nodefaults", "-display", "none", "-name", "it's a guest,process=x,,y"]
    with subprocess.Popen([binary.path, *arguments], stdin=subprocess.DEVNULL) as process:
        try:
            eventually(Path(f"/proc/{process.pid}/cmdline").read_bytes, "the kernel has put its arguments there")
            found = of_process(process.pid)
        finally:
            process.kill()
    assert (found.name, found.binary) == ("it's a guest", binary.path)
    assert [(option.name, dict(option.values)) for option in found.options] == [
        ("machine", {"type": "none"}),
        ("S", {}),
        ("nodefaults", {}),
        ("display", {"type": "none"}),
        ("name", {"guest": "it's a guest", "process": "x,y"}),
    ]
