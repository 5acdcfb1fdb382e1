# SPDX-License-Identifier: GPL-2.0-or-later
"""A document as a run gives it: pc all ok, q35 with a platform that passes without its culprit."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
from made_cells import changed, made_cell

from harness.colo.messages import Step
from harness.results.cause import Assertion, Ended
from harness.results.document import Cell, Colo, ColoReason, MachineResult, MatrixDoc, Qemu, Warned
from harness.results.outcome import Isolation, IsolationWay
from harness.results.signature import signature_of_cell
from harness.results.verdict import FailureClass, Verdict

PHASES = ("firmware", "kernel", "bound", "busy", "unbound", "rebound")
DEVICES = ("ahci", "virtio-blk", "virtio-net", "platform")
LPC = "0000:00:1f.0/ICH9LPC"
LINE = "../../softmmu/memory.c:2545: memory_region_add_subregion_common: Assertion '!subregion->container' failed."
DIED = Ended(
    step=Step.LOAD,
    load=1,
    signal="SIGABRT",
    assertion=Assertion(
        function="memory_region_add_subregion_common", expression="!subregion->container", file="memory.c"
    ),
    line=LINE,
)
QEMU = Qemu(
    version="7.2.22",
    build="Debian 1:7.2+dfsg-7+deb12u18+b3",
    path="/usr/bin/qemu-system-x86_64",
    sha256="3f9a0c5be1d24c6787aa1be0c5e02e6f4ad31a2dbe8e0b7d0f1c7cf0a91d5be2",
    label="7.2.22",
)
NEWER = Qemu(
    version="10.0.13",
    build="Debian 1:10.0.13+ds-0+deb13u1",
    path="/opt/q10/bin/qemu",
    sha256="ab" * 32,
    label="10.0.13",
)
RATES = {"same": 612.4, "alternate": 95.0, "walk": 88.3, "back-to-back": 20480.7}
LOG = f"""qemu-system-x86_64: warning: TCG doesn't support requested feature: CPUID.01H:ECX.vmx [bit 5]
qemu-system-x86_64: {LINE}
"""


def make_cell(machine: str, device: str, schedule: str, phases: tuple[str, ...], **changes: Any) -> Cell:
    """A cell that is ok unless told otherwise."""
    where = phases[0] if len(phases) == 1 else "all"
    loads = 100 if schedule in ("same", "back-to-back") else 60
    cell = made_cell(
        f"{machine}/{device}/{where}/{schedule}/parked",
        phases=phases,
        record_qemu=QEMU,
        load_qemu=QEMU,
        sections=("0000:00:1f.2/ich9_ahci",),
        loads_asked=loads,
        loads_acked=loads,
        checkpoints_acked=1 if schedule == "back-to-back" else loads,
        seconds=0.41,
        loads_per_second=RATES[schedule],
    )
    return changed(cell, **changes)


def machine_cells(machine: str) -> Iterator[Cell]:
    for device in DEVICES:
        for phase in PHASES:
            yield make_cell(machine, device, "same", (phase,))
        for schedule in ("alternate", "walk"):
            yield make_cell(machine, device, schedule, PHASES)
        for phase in PHASES:
            yield make_cell(machine, device, "back-to-back", (phase,))


def crashed(cell: Cell) -> Cell:
    found = changed(
        cell,
        verdict=Verdict.CRASH,
        failure_class=FailureClass.NOT_REENTRANT,
        causes=(replace(DIED, phase=cell.phases[0]),),
        blamed=(LPC,),
        log=LOG,
        isolation=Isolation(way=IsolationWay.ALONE, loads=1, of=1),
        loads_acked=0,
        checkpoints_acked=0,
        loads_per_second=0.0,
        warnings=(Warned(text="warning: TCG doesn't support requested feature", load=0),),
    )
    name = signature_of_cell(found)
    return replace(found, signature=name.name if name else None)


def q35_cells() -> Iterator[Cell]:
    for cell in machine_cells("pc-q35-7.2"):
        if cell.device == "platform":
            yield crashed(cell)
            yield changed(cell, rest=1, excluded=(LPC,))
        else:
            yield cell


HOST = {
    "system": "Debian GNU/Linux 12 (bookworm)",
    "kernel": "6.1.0-32-amd64",
    "cpu": "AMD EPYC 7B13",
    "cores": 2,
    "memory_bytes": 8 << 30,
    "accel": {
        "tcg": {"usable": True, "reason": "ran a boot sector in 0.2 s"},
        "kvm": {"usable": False, "reason": "/dev/kvm opens, but no guest runs (boot sector timed out)"},
    },
}


@pytest.fixture
def doc() -> MatrixDoc:
    return MatrixDoc(
        command=("postload", "matrix", "--machine", "pc,q35", "--out", "my reports"),
        started="2026-01-05T09:30:12Z",
        seconds=81.4,
        complete=True,
        host=dict(HOST),
        machines=(
            MachineResult(machine="pc-i440fx-7.2", alias="pc", qemu=QEMU, colo=Colo.SAFE),
            MachineResult(
                machine="pc-q35-7.2",
                alias="q35",
                qemu=QEMU,
                colo=Colo.UNSAFE,
                because=(ColoReason(device="platform", sections=(LPC,), verdict=Verdict.CRASH, causes=(DIED,)),),
            ),
        ),
        cells=(*machine_cells("pc-i440fx-7.2"), *q35_cells()),
    )


@pytest.fixture
def one_cell() -> Callable[..., Cell]:
    """Builds one cell: ``one_cell(device=..., verdict=...)``."""

    def build(**changes: Any) -> Cell:
        return changed(make_cell("pc-q35-7.2", "ahci", "same", ("bound",)), **changes)

    return build


@pytest.fixture
def with_cells(doc: MatrixDoc) -> Callable[..., MatrixDoc]:
    """The document with other cells, for the q35 machine alone."""

    def build(*cells: Cell) -> MatrixDoc:
        return replace(doc, machines=doc.machines[1:], cells=cells)

    return build


@pytest.fixture
def newer_qemu() -> Qemu:
    return NEWER
