# SPDX-License-Identifier: GPL-2.0-or-later
"""VMs are found by the content of files; configurations of public reports are read."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from harness.adopt.files import found_in
from harness.errors import UsageError

DATA = Path(__file__).parents[2] / "data" / "adopted"
SOURCES = yaml.safe_load((DATA / "sources.yaml").read_text(encoding="utf-8"))
LINE = "/usr/bin/qemu-system-x86_64 -name guest={name} -machine pc-q35-7.2 -device virtio-rng-pci\n"


def test_every_configuration_has_its_source() -> None:
    files = {path.name for path in DATA.iterdir() if path.suffix in (".xml", ".args")}
    assert {source["name"] for source in SOURCES} == files
    assert len(files) >= 40
    for source in SOURCES:
        assert source["kind"] == {"xml": "domain", "args": "command-line"}[source["name"].rpartition(".")[2]]
        assert source["project"]
        assert source["address"]
        assert source["what"]


@pytest.mark.parametrize("name", [source["name"] for source in SOURCES])
def test_a_configuration_of_a_public_report_is_read(name: str) -> None:
    path = DATA / name
    (found,), skipped = found_in(*(([path], []) if path.suffix == ".xml" else ([], [path])), [], [])
    assert found.configuration is not None
    assert not skipped
    devices = [option for option in found.configuration.options if option.name in ("device", "drive", "machine")]
    assert devices
    assert all(option.values.get("driver") for option in devices if option.name == "device")


def test_a_folder_is_read_by_content_and_says_what_is_no_vm(tmp_path: Path) -> None:
    (tmp_path / "web.txt").write_text(LINE.format(name="web"))
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "other.txt").write_text(LINE.format(name="web"))
    (tmp_path / "README").write_text("All VMs of this host.\n")
    (tmp_path / "disk.img").write_bytes(b"\xff\xfe\x00" * 100)
    (tmp_path / "network.xml").write_text("<network><name>default</name></network>\n")
    (tmp_path / ".hidden").write_text(LINE.format(name="hidden"))
    found, skipped = found_in([], [], [], [tmp_path])
    assert sorted(vm.name for vm in found) == ["web", "web~2"]
    assert sorted(Path(name).name for name in skipped) == ["README", "disk.img", "network.xml"]


def test_one_of_a_folder_that_is_wrong_keeps_nobody_else_from_an_answer(tmp_path: Path) -> None:
    (tmp_path / "bad.args").write_text("qemu-system-x86_64 -nonsense 1\n")
    (tmp_path / "good.args").write_text(LINE.format(name="good"))
    (bad, good), _ = found_in([], [], [], [tmp_path])
    assert bad.configuration is None
    assert "bad.args:1" in bad.error
    assert "nonsense" in bad.error
    assert good.name == "good"
    assert good.configuration is not None
    with pytest.raises(UsageError, match=r"bad\.args:1"):
        found_in([], [tmp_path / "bad.args"], [], [])


def test_a_file_of_options_is_read_beside_the_one_that_names_it_and_nowhere_else(tmp_path: Path) -> None:
    path = tmp_path / "vm.args"
    path.write_text("qemu-system-x86_64 -readconfig /etc/shadow -machine q35\n")
    with pytest.raises(UsageError, match="shadow"):
        found_in([], [path], [], [])
    (tmp_path / "shadow").write_text('[device "r"]\n driver = "virtio-rng-pci"\n')
    (found,), _ = found_in([], [path], [], [])
    assert found.configuration is not None
    assert any(option.values.get("driver") == "virtio-rng-pci" for option in found.configuration.options)


def test_what_is_named_and_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no\.xml"):
        found_in([tmp_path / "no.xml"], [], [], [])
    with pytest.raises(UsageError, match="no folder"):
        found_in([], [], [], [tmp_path / "no"])
