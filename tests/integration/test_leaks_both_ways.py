# SPDX-License-Identifier: GPL-2.0-or-later
"""Leaks of real devices, with one load a checkpoint and back to back, each called what it is for COLO.

Two versions here, the others, and the case and the bundle of what they find, by ``tox -e versions``.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from harness.results.cause import Leaked, LoadedBy, Unsupported
from harness.results.document import Colo, MatrixDoc
from harness.results.folder import read_matrix
from harness.triage.bundle import kept_case
from harness.triage.case import Case

Done = subprocess.CompletedProcess[str]
RECIPES = Path(__file__).parents[1] / "recipes"
ALL = [name for name in os.environ.get("POSTLOAD_TEST_QEMUS", "").split(",") if name]
NAMES = [name for name in ALL if name != "5.2"] or ["7.2", "10.0"]
TIMEOUT_S = 900.0


@dataclass(frozen=True)
class Wanted:
    """What a leak comes to: bytes a load, as COLO loads and back to back, each from and to."""

    way: LoadedBy
    once: tuple[float, float]
    together: tuple[float, float]


#: Where a build resets the machine before each load, the reset frees what the load before allocated.
RESETS = {
    "usb-disk": Wanted(LoadedBy.BACK_TO_BACK, (-16, 16), (590, 660)),
    # its list of multicast addresses alone
    "vmxnet3": Wanted(LoadedBy.CHECKPOINT, (16, 200), (81_500, 83_500)),
}
USED = {
    "usb-disk": Wanted(LoadedBy.CHECKPOINT, (590, 660), (590, 660)),
    "vmxnet3": Wanted(LoadedBy.CHECKPOINT, (81_500, 83_500), (81_500, 83_500)),
}


def _devices(name: str) -> str:
    # from 11 on nvme migrates, and a second load of it in one buffer ends QEMU, in all that load it so
    return "vmxnet3,usb-disk" if name.startswith("11.") else "vmxnet3,usb-disk,nvme"


@pytest.fixture(scope="module", params=NAMES)
def run(
    request: pytest.FixtureRequest,
    postload: Callable[..., Done],
    qemu_path: Path,
    installed_qemu: Callable[[str], Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """A matrix of devices that leak, and of one that cannot migrate before 11."""
    out = tmp_path_factory.mktemp("leaks") / "run"
    qemu = qemu_path if request.param == "7.2" and not ALL else installed_qemu(request.param)
    words = ["--qemu", qemu, "--machine", "pc", "--profiles", RECIPES / "devices"]
    words += ["--guest", RECIPES / "guests" / "leaks-amd64.yaml", "--device", _devices(request.param)]
    words += ["--phase", "bound", "--schedule", "same", "--loads", "5", "--out", out]
    done = postload("matrix", *words, timeout_s=TIMEOUT_S)
    assert done.returncode in (0, 1), done.stderr[-4000:]
    return out


def leaks(doc: MatrixDoc) -> dict[str, Leaked]:
    """Device to its leak of memory."""
    return {
        cell.device: cause
        for cell in doc.cells
        for cause in cell.outcome.causes
        if isinstance(cause, Leaked) and cause.unit == "bytes"
    }


def test_each_leak_is_called_what_it_is_for_colo(run: Path) -> None:
    doc = read_matrix(run)
    (machine,) = doc.machines
    found = leaks(doc)
    for device, wanted in (RESETS if machine.resets_before_load else USED).items():
        leak = found[device]
        assert leak.way is wanted.way, leak
        assert leak.other is not None
        once, together = (leak, leak.other) if wanted.way is LoadedBy.CHECKPOINT else (leak.other, leak)
        assert wanted.once[0] < once.per_load < wanted.once[1], leak
        assert wanted.together[0] < together.per_load < wanted.together[1], leak
        assert leak.low <= leak.per_load <= leak.high
    hidden = {reason.device for reason in machine.because if reason.hidden}
    assert hidden == ({"usb-disk"} if machine.resets_before_load else set())


def test_a_device_that_cannot_migrate_is_refused_by_colo(run: Path) -> None:
    doc = read_matrix(run)
    (machine,) = doc.machines
    cells = [cell for cell in doc.cells if cell.device == "nvme"]
    blocked = [c for cell in cells for c in cell.outcome.causes if isinstance(c, Unsupported) and c.keeps_from_colo]
    if machine.qemu.version.startswith("11."):
        assert not blocked
        assert machine.colo is Colo.UNDECIDED  # the platform was not asked for
        assert machine.because[0].device == "platform"
    else:
        assert len(blocked) == len(cells) == 1
        assert machine.colo is Colo.REFUSED
        assert machine.because[0].device == "nvme"


#: Device to the size of a chunk that it loses, and a name in the stack of who allocates it, in builds without symbols.
CALL_SITES = {"vmxnet3": (65_648, "net_tx_pkt_init"), "usb-disk": (144, "vmstate_load_state")}


@pytest.mark.skipif(shutil.which("gdb") is None, reason="gdb is not installed")
@pytest.mark.parametrize("device", CALL_SITES if ALL else ["vmxnet3"])
def test_a_leak_is_told_with_who_allocates_it(
    run: Path, device: str, postload: Callable[..., Done], strays: Callable[[], list[int]], scratch: Path
) -> None:
    done = postload("explain", f"{device}/bound/leak", "--run", run, "--json", env={"TMPDIR": str(scratch)})
    assert done.returncode == 0, done.stderr[-4000:]
    found = json.loads(done.stdout)["allocations"]
    assert found["sites"], found
    lost = leaks(read_matrix(run))[device]
    # each chunk that is lost is somebody's; malloc may have given a step of 16 bytes more than it had to
    bytes_per_load = sum(site["size_bytes"] * site["per_load"] for site in found["sites"])
    assert bytes_per_load == pytest.approx(sum(size * count for size, count in lost.chunks), rel=0.03, abs=16)
    size, name = CALL_SITES[device]
    if size in (each for each, _ in lost.chunks):
        sites = [site for site in found["sites"] if site["size_bytes"] == size]
        assert name in {frame["function"] for site in sites for frame in site["frames"]}, found["text"]
    assert strays() == []


@pytest.mark.skipif(not ALL, reason="the smallest case of a leak takes minutes: tox -e versions")
def test_matrix_case_and_script_have_one_figure(run: Path, postload: Callable[..., Done], tmp_path: Path) -> None:
    doc = read_matrix(run)
    leak = leaks(doc)["usb-disk"]
    cell = next(cell for cell in doc.cells if cell.device == "usb-disk" and cell.lane == "leak")
    done = postload("minimise", "usb-disk/bound/leak", "--run", run, timeout_s=TIMEOUT_S)
    assert done.returncode == 0, done.stderr[-4000:]
    folder = kept_case(run, cell)
    assert folder is not None
    figures = Case.load(folder).leak
    assert figures is not None
    assert (figures.loads_per_checkpoint == 1) is (leak.way is LoadedBy.CHECKPOINT)
    done = postload("bundle", "usb-disk/bound/leak", "--run", run, "--out", tmp_path / "bundle", timeout_s=TIMEOUT_S)
    assert done.returncode == 0, done.stderr[-4000:]
    said = re.search(r"reproduced: .*? ([\d,.]+) \[([-\d,.]+), ([-\d,.]+)\] bytes of heap", done.stdout)
    assert said, done.stdout
    issue = (tmp_path / "bundle" / "issue.md").read_text()
    assert "Allocated for each load, and never freed:" in issue, issue
    figure, low, high = (float(text.replace(",", "")) for text in said.groups())
    # of one load a checkpoint some 200 are measured, and glibc rounds: within one allocation
    for one, other in ((leak.per_load, figures.bytes_per_load), (leak.per_load, figure)):
        assert one == pytest.approx(other, abs=32)
    assert low <= figure <= high
    assert low - 32 <= leak.per_load <= high + 32
