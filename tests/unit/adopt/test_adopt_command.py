# SPDX-License-Identifier: GPL-2.0-or-later
"""What is typed wrong for ``postload adopt`` is told in its own words; what comes after a pack is."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from click.testing import CliRunner
from rich.console import Console

from harness.cli import cli
from harness.errors import UsageError
from harness.report.adopted import print_next


@pytest.fixture
def vm(tmp_path: Path) -> Path:
    path = tmp_path / "web.args"
    path.write_text("qemu-system-x86_64 -machine pc-q35-7.2\n")
    return path


def refused(*words: str) -> str:
    with pytest.raises(UsageError) as error:
        CliRunner().invoke(cli, ["adopt", *words], catch_exceptions=False, standalone_mode=False)
    return str(error.value)


def test_two_vms_are_named_by_their_options(vm: Path) -> None:
    assert refused("--domain", str(vm), "--pid", "3").startswith("--domain and --pid name 2 VMs")
    assert "3 VMs" in refused("--domain", str(vm), "--pid", "3", "--command-line", str(vm))


def test_two_vms_beside_a_state_are_too_many_as_well(vm: Path, tmp_path: Path) -> None:
    (tmp_path / "web.state").write_bytes(b"QEVM")
    words = ("--domain", str(vm), "--pid", "3", "--state", str(tmp_path / "web.state"))
    assert refused(*words, "--out", str(tmp_path / "x.pack")).startswith("--domain and --pid name 2 VMs")


def test_no_vm_is_a_mistake() -> None:
    assert refused().startswith("no VM is named: expected --domain FILE")


def test_a_state_wants_a_pack_and_speaks_of_no_phase_that_nobody_gave(vm: Path) -> None:
    said = refused("--command-line", str(vm), "--state", str(vm))
    assert "--out NAME.pack" in said
    assert "--phase" not in said


def test_a_state_has_its_own_phase(vm: Path, tmp_path: Path) -> None:
    out = str(tmp_path / "x.pack")
    said = refused("--command-line", str(vm), "--state", str(vm), "--out", out, "--phase", "bound")
    assert "--phase" in said
    assert "--out" not in said


def test_what_is_given_away_is_a_pack_of_one_phase(vm: Path, tmp_path: Path) -> None:
    assert "--phase" not in refused("--command-line", str(vm), "--redact")
    out = str(tmp_path / "x.pack")
    assert "one --phase" in refused("--command-line", str(vm), "--redact", "--out", out, "--phase", "kernel,bound")


def test_what_a_pack_is_for_can_be_copied() -> None:
    console = Console(width=60, record=True, file=io.StringIO())
    print_next(Path("web 01.pack"), console)
    said = " ".join(console.export_text().split())
    assert said == "next: postload replay 'web 01.pack', or postload qualify 'web 01.pack' --to QEMU"
