# SPDX-License-Identifier: GPL-2.0-or-later
"""Which QEMUs a night has, and which are told as not there."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import pytest

from harness.commands import nightplan
from harness.errors import HostError, UsageError
from harness.nights.config import load_config
from harness.qemu.binary import QemuBinary


@pytest.fixture
def builds(binary: QemuBinary, monkeypatch: pytest.MonkeyPatch) -> dict[str, QemuBinary]:
    """What is found of a name or a path."""
    found: dict[str, QemuBinary] = {"7.2": binary}

    def find(texts: Iterable[str | None], _types: object) -> list[QemuBinary]:
        (text,) = texts
        if text not in found:
            raise UsageError(f"{text}: no such QEMU")
        return [found[text]]

    monkeypatch.setattr(nightplan, "host_binaries", find)
    return found


def planned(folder: Path) -> tuple[list[str], dict[str, str]]:
    """The QEMUs of a night by the names of their cells; and the others, with what is said of them."""
    path = folder / "nightly.yaml"
    path.write_text("qemus: ['7.2', {name: head, path: head}]\n")
    binaries, absent = nightplan._binaries(load_config(path), set())
    return [each.label or each.version for each in binaries], {each.name: each.said for each in absent}


def test_a_build_is_judged_by_the_name_that_the_file_gives(
    builds: dict[str, QemuBinary], binary: QemuBinary, tmp_path: Path
) -> None:
    builds[str(tmp_path / "head")] = replace(binary, sha256="ab" * 32)
    assert planned(tmp_path) == ([binary.version, "head"], {})


def test_a_build_that_another_name_has_already_is_told_and_not_passed_over(
    builds: dict[str, QemuBinary], binary: QemuBinary, tmp_path: Path
) -> None:
    builds[str(tmp_path / "head")] = binary
    said = f"it is the same build as {binary.version}, and is judged by that name alone"
    assert planned(tmp_path) == ([binary.version], {"head": said})


def test_a_night_with_none_of_its_qemus_is_none(builds: dict[str, QemuBinary], tmp_path: Path) -> None:
    builds.clear()
    with pytest.raises(HostError, match=r"7\.2: no such QEMU; head: "):
        planned(tmp_path)


def test_a_build_that_is_not_there_costs_itself_alone(
    builds: dict[str, QemuBinary], binary: QemuBinary, tmp_path: Path
) -> None:
    assert planned(tmp_path) == ([binary.version], {"head": f"{tmp_path / 'head'}: no such QEMU"})
