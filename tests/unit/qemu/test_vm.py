# SPDX-License-Identifier: GPL-2.0-or-later
"""A QEMU that does not get to be a machine leaves nothing behind."""

from __future__ import annotations

from pathlib import Path

import psutil
import pytest

from harness.qemu import vm
from harness.qemu.cmdline import CommandLine


def test_a_ctrl_c_before_the_greeting_leaves_no_process_and_no_folder(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    program, workdir = tmp_path / "qemu", tmp_path / "work"
    program.write_text("#!/bin/sh\nexec sleep 60\n")
    program.chmod(0o755)
    workdir.mkdir()
    before = set(psutil.Process().children(recursive=True))

    def interrupted(*_: object, **__: object) -> None:
        assert set(psutil.Process().children(recursive=True)) > before
        assert workdir.exists()
        raise KeyboardInterrupt

    monkeypatch.setattr(vm, "Monitor", interrupted)
    with pytest.raises(KeyboardInterrupt):
        vm.Vm(CommandLine(binary=str(program), options=()), workdir=workdir)
    assert not workdir.exists()
    assert set(psutil.Process().children(recursive=True)) == before
