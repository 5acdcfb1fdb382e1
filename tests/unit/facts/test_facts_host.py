# SPDX-License-Identifier: GPL-2.0-or-later
"""System, CPU and modules, read from a made-up root."""

from __future__ import annotations

from pathlib import Path

from harness.facts.host import cpu_facts, module_facts, system_facts

CPUINFO = """\
processor\t: 0
vendor_id\t: AuthenticAMD
cpu family\t: 25
model\t\t: 1
model name\t: AMD EPYC 7763 64-Core Processor
stepping\t: 1
microcode\t: 0xa0011d1
flags\t\t: svm fpu vme fpu

processor\t: 1
vendor_id\t: SomebodyElse
flags\t\t: none
"""


def root(tmp_path: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path


def test_the_first_cpu_is_described(tmp_path: Path) -> None:
    part = cpu_facts(root(tmp_path, {"proc/cpuinfo": CPUINFO}))
    assert part.values["vendor"] == "AuthenticAMD"
    assert (part.values["family"], part.values["model"], part.values["stepping"]) == (25, 1, 1)
    assert part.values["model_name"] == "AMD EPYC 7763 64-Core Processor"
    assert part.values["microcode"] == "0xa0011d1"
    assert part.values["flags"] == ["fpu", "svm", "vme"]
    assert part.unknown == {}


def test_what_the_kernel_does_not_say_has_a_reason(tmp_path: Path) -> None:
    part = cpu_facts(root(tmp_path, {"proc/cpuinfo": "vendor_id : x\nmodel : many\n"}))
    assert part.values["vendor"] == "x"
    assert part.values["microcode"] is None
    assert part.unknown["microcode"] == {"why": "not-said", "said": "/proc/cpuinfo"}
    assert "many" in part.unknown["model"]["said"]
    assert cpu_facts(tmp_path / "none").unknown["flags"] == {
        "why": "error",
        "said": "/proc/cpuinfo: No such file or directory",
    }


def test_the_distribution_is_named(tmp_path: Path) -> None:
    text = 'NAME="Debian"\nPRETTY_NAME="Debian GNU/Linux 12 (bookworm)"\n'
    assert system_facts(root(tmp_path, {"etc/os-release": text})).values["os"] == "Debian GNU/Linux 12 (bookworm)"
    part = system_facts(tmp_path / "none")
    assert part.values["os"] is None
    assert "No such file" in part.unknown["os"]["said"]


def test_modules_that_matter_come_with_their_parameters(tmp_path: Path) -> None:
    files = {
        "sys/module/kvm_intel/parameters/nested": "Y\n",
        "sys/module/vhost_net/version": "1",
        "sys/module/snd_hda/parameters/power": "1",
        "sys/module/kvmgt_other/x": "",
    }
    part = module_facts(root(tmp_path, files))
    assert part.values == {"kvm_intel": {"nested": "Y"}, "vhost_net": {}}
    assert module_facts(tmp_path / "none").unknown == {
        "*": {"why": "error", "said": "/sys/module: No such file or directory"}
    }


def test_a_parameter_that_cannot_be_read_has_a_reason(tmp_path: Path) -> None:
    folder = root(tmp_path, {"sys/module/kvm/parameters/a": "1"})
    # a folder cannot be read as a file by anybody, root included
    (folder / "sys/module/kvm/parameters/b").mkdir()
    part = module_facts(folder)
    assert part.values == {"kvm": {"a": "1", "b": None}}
    assert "Is a directory" in part.unknown["kvm.b"]["said"]
