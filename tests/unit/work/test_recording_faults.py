# SPDX-License-Identifier: GPL-2.0-or-later
"""What goes wrong while a guest is recorded costs the device that did it, and no other; nothing is booted here."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from threading import Lock
from types import SimpleNamespace
from typing import Any

import pytest
from made_cells import changed, made_cell

from harness.colo.primary import ENABLE_COLO
from harness.devices.phases import Missed, Unreached
from harness.devices.recipe import load_recipes
from harness.engines.admission import Admission
from harness.engines.probe import ColoAbility
from harness.engines.schedule import Schedule
from harness.errors import GuestError, HarnessError
from harness.lanes import schedules
from harness.packs.pack import StatePack
from harness.qemu.binary import QemuBinary
from harness.qemu.process import Exit
from harness.report.lost import lost_text
from harness.report.sentences import cause_text, where_text
from harness.results.document import MatrixDoc, Qemu
from harness.results.events import Event, Said, Started
from harness.results.plan import CellPlan
from harness.results.verdict import Verdict
from harness.state.owners import Owners
from harness.state.recorder import CutShort, Plan
from harness.state.recordings import Recordings
from harness.state.transforms import GuestMode
from harness.work import guests as guests_module
from harness.work import run as run_module
from harness.work.asked import Options
from harness.work.run import Run

DRIVERS = ("ahci", "sd_mod", "virtio_pci", "virtio_blk")
SHA = "ab" * 32
Record = Callable[[tuple[str, ...], tuple[str, ...]], None]
Lacking = Mapping[str, Sequence[Unreached]]


class Watcher:
    """Is told, and does nothing."""

    def start_cell(self, cell_id: str) -> None: ...
    def loads(self, cell_id: str, total: int) -> None: ...
    def stage(self, text: str) -> None: ...


class Recorder:
    """Records on paper: ``refuses`` raises for a guest with some devices and phases that cannot be recorded."""

    def __init__(self, make_pack: Callable[..., Path], refuses: Record, unreached: Lacking) -> None:
        self.asked: list[tuple[tuple[str, ...], tuple[str, ...]]] = []
        self._unreached = unreached
        self._make_pack = make_pack
        self._lock = Lock()
        self._refuses = refuses

    def pack(self, _keeper: Recordings, plan: Plan) -> StatePack:
        devices = tuple(device.name for device in plan.planned.devices if not device.rest)
        with self._lock:  # guests are recorded side by side
            self.asked.append((devices, plan.phases))
            number = len(self.asked)
        self._refuses(devices, plan.phases)
        folder = self._make_pack(f"pack{number}", *(p for p in plan.phases if p in ("kernel", "bound")))
        file = folder / "manifest.json"
        manifest = json.loads(file.read_text())
        # no two guests have the same memory: neither have these the same content
        manifest["qemu"]["build"] = f"Debian {number}"
        manifest["devices"] = [
            {
                "name": device.name,
                "sections": [],
                "recipe": {"name": device.name, "about": ""},
                "unreached": [asdict(lack) for lack in self._unreached.get(device.name, ())],
            }
            for device in plan.planned.devices
        ]
        file.write_text(json.dumps(manifest))
        return StatePack(folder)


@pytest.fixture
def judged(
    make_pack: Callable[..., Path], binary: QemuBinary, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., tuple[MatrixDoc, Recorder, list[str]]]:
    """Runs a matrix of ahci, virtio-blk and the platform; every cell that can be judged is ok."""

    def all_well(plan: CellPlan, *_: Any) -> Iterator[Any]:
        qemu = Qemu(**binary.identity(), label=plan.key.route.loader)
        cell = replace(made_cell(verdict=Verdict.OK, record_qemu=qemu, load_qemu=qemu), key=plan.key)
        yield changed(cell, blamed=())

    def run(
        refuses: Record, drivers: tuple[str, ...] = DRIVERS, unreached: Lacking | None = None, **changes: Any
    ) -> Any:
        recorder = Recorder(make_pack, refuses, unreached or {})
        monkeypatch.setattr(
            run_module, "probe_colo", lambda *_: ColoAbility(dialect=ENABLE_COLO, resets_before_load=False)
        )
        monkeypatch.setattr(guests_module, "settled", lambda _recorder, guest, *_: (guest, Owners(sections={})))
        monkeypatch.setattr(guests_module, "guest_admission", lambda *_: Admission())
        monkeypatch.setattr(schedules, "judge_cell", all_well)
        monkeypatch.setattr(Recordings, "pack", lambda keeper, plan: recorder.pack(keeper, plan))
        identity = {"kernel": {"sha256": SHA}, "initramfs": {"sha256": SHA}, "drivers": drivers}
        guest: Any = SimpleNamespace(identity=identity, cpus=1, memory_mib=16, cmdline="", machines={})
        names = ("ahci", "virtio-blk", "platform")
        options = Options(
            binaries=(binary,), accel="tcg", machines=("pc-i440fx-7.2",),
            profiles=tuple(load_recipes().devices[name] for name in names), devices=names, phases=("kernel", "bound"),
            schedules=(Schedule.SAME, Schedule.WALK), guest_modes=(GuestMode.RUNNING,), loads=5, jobs=1, run_s=0.0,
            quick=True,
        )  # fmt: skip
        seen: list[Event] = []
        started = Started(command=("postload",), host={})
        made = Run(
            replace(options, **changes), guest=lambda *_: guest, watcher=Watcher(), started=started, write=seen.append
        )
        return made.execute(), recorder, [event.text for event in seen if isinstance(event, Said)]

    return run


def verdicts(doc: MatrixDoc) -> dict[str, dict[str, str]]:
    found: dict[str, dict[str, str]] = {}
    for cell in doc.cells:
        found.setdefault(cell.key.device, {})["+".join(cell.key.phases) + "/" + cell.key.lane] = str(cell.verdict)
    return found


WELL = {"kernel/same": "ok", "bound/same": "ok", "kernel+bound/walk": "ok"}
UNDECIDED = dict.fromkeys(WELL, "harness-error")


def nothing(_devices: tuple[str, ...], _phases: tuple[str, ...]) -> None:
    pass


def test_a_guest_stops_behind_the_last_phase_that_is_wanted(judged: Callable[..., Any]) -> None:
    doc, recorder, _ = judged(nothing, phases=("kernel",), schedules=(Schedule.SAME,))
    assert recorder.asked == [(("ahci", "virtio-blk"), ("firmware", "kernel"))]
    assert [cell.verdict for cell in doc.cells] == [Verdict.OK] * 3
    assert judged(nothing)[1].asked == [(("ahci", "virtio-blk"), ("firmware", "kernel", "bound"))]


def test_a_driver_that_the_guest_has_not_is_told_once_with_what_to_do(judged: Callable[..., Any]) -> None:
    doc, recorder, said = judged(nothing, DRIVERS[:3])
    assert verdicts(doc) == {"ahci": WELL, "virtio-blk": UNDECIDED, "platform": WELL}
    assert [devices for devices, _ in recorder.asked] == [("ahci",)]
    assert len(said) == 1
    assert "the guest has no driver virtio_blk" in said[0]
    assert "name it under 'drivers' in the guest's recipe, and give that with --guest FILE" in said[0]


def test_phases_that_were_recorded_before_a_device_hung_are_judged(judged: Callable[..., Any]) -> None:
    def refuses(devices: tuple[str, ...], phases: tuple[str, ...]) -> None:
        if "virtio-blk" in devices and "bound" in phases:
            kept = ("firmware", "kernel")
            raise CutShort("bind: it did not end", phase="bound", device="virtio-blk", kept=kept)

    doc, recorder, said = judged(refuses)
    assert verdicts(doc) == {
        "ahci": WELL,
        "virtio-blk": {"kernel/same": "ok", "bound/same": "harness-error", "kernel+bound/walk": "harness-error"},
        "platform": WELL,
    }
    # whose command it was is known: nobody else is looked at
    assert recorder.asked[1:] == [
        (("virtio-blk",), ("firmware", "kernel", "bound")),
        (("virtio-blk",), ("firmware", "kernel")),
        (("ahci",), ("firmware", "kernel", "bound")),
    ]
    assert said == [
        "7.2.22 pc-i440fx-7.2: phase bound: virtio-blk: bind: it did not end; what was recorded until then is kept: "
        "firmware, kernel"
    ]


@pytest.mark.parametrize(("how", "verdict"), [(Missed.NOTHING_TO_DO, "unsupported"), (Missed.FAILED, "harness-error")])
def test_a_phase_that_a_device_did_not_reach_costs_that_cell(
    judged: Callable[..., Any], how: Missed, verdict: str
) -> None:
    lack = Unreached(phase="bound", how=how, step="bind", said="no driver for pci:v00001AF4")
    doc, recorder, said = judged(nothing, unreached={"ahci": [lack]})
    assert verdicts(doc) == {
        # what is loaded over all phases goes through all that the guest went through
        "ahci": {"kernel/same": "ok", "bound/same": verdict, "kernel+bound/walk": "ok"},
        "virtio-blk": WELL,
        "platform": WELL,
    }
    assert len(recorder.asked) == 1
    assert [cell.outcome.causes for cell in doc.cells if cell.verdict is not Verdict.OK] == [(lack,)]
    assert said == []


@pytest.mark.parametrize("error", [GuestError("the guest did not boot within 120 s"), HarnessError("QEMU died")])
def test_a_device_that_nobody_names_is_found_by_recording_each_alone(
    judged: Callable[..., Any], error: HarnessError
) -> None:
    def refuses(devices: tuple[str, ...], _phases: tuple[str, ...]) -> None:
        if "virtio-blk" in devices:
            raise error

    doc, recorder, _ = judged(refuses)
    assert verdicts(doc) == {"ahci": WELL, "virtio-blk": UNDECIDED, "platform": WELL}
    (reason,) = {cause_text(cause) for cell in doc.cells for cause in cell.outcome.causes}
    assert str(error) in reason
    assert [devices for devices, _ in recorder.asked] == [
        ("ahci", "virtio-blk"),
        (),
        ("ahci",),
        ("virtio-blk",),
        ("ahci",),
    ]


def test_one_of_many_that_kills_qemu_is_found_by_halving(judged: Callable[..., Any]) -> None:
    many = tuple(replace(_profiles("virtio-blk")[0], name=f"blk{n}", takes=frozenset()) for n in range(16))

    def refuses(devices: tuple[str, ...], phases: tuple[str, ...]) -> None:
        if "blk11" in devices and "kernel" in phases:
            raise CutShort("QEMU ended", phase="kernel", kept=("firmware",))

    names = tuple(device.name for device in many)
    doc, recorder, _ = judged(refuses, devices=names, profiles=many, schedules=(Schedule.SAME,))
    well = {"kernel/same": "ok", "bound/same": "ok"}
    assert verdicts(doc) == {name: well if name != "blk11" else dict.fromkeys(well, "harness-error") for name in names}
    # all, none, four halves, the one alone, the rest; no half goes further than to where it was lost
    assert [len(devices) for devices, _ in recorder.asked] == [16, 0, 8, 4, 2, 1, 1, 15]
    assert {phases for _, phases in recorder.asked[1:6]} == {("firmware", "kernel")}
    # it is told once, with who did it; that this one is lost alone as well needs no second line
    (lost,) = doc.lost
    assert (lost.devices, lost.phase, lost.by, lost.alone) == (names, "kernel", "blk11", True)
    assert "a guest of 16 devices was lost on its way to phase kernel. blk11 did it: it is recorded alone" in lost_text(
        lost
    )


def test_how_far_a_device_came_is_known_beside_one_that_kills_qemu(judged: Callable[..., Any]) -> None:
    def refuses(devices: tuple[str, ...], phases: tuple[str, ...]) -> None:
        if "virtio-blk" in devices:
            raise HarnessError("QEMU died")
        if "ahci" in devices and "bound" in phases:
            raise CutShort("bind: it did not end", phase="bound", device="ahci", kept=("firmware", "kernel"))

    doc, _, _ = judged(refuses)
    early = {"kernel/same": "ok", "bound/same": "harness-error", "kernel+bound/walk": "harness-error"}
    assert verdicts(doc) == {"ahci": early, "virtio-blk": UNDECIDED, "platform": WELL}


def test_the_platform_is_judged_without_the_only_device(judged: Callable[..., Any]) -> None:
    def refuses(devices: tuple[str, ...], _phases: tuple[str, ...]) -> None:
        if devices:
            raise HarnessError("QEMU died")

    doc, recorder, _ = judged(refuses, devices=("ahci", "platform"), profiles=_profiles("ahci", "platform"))
    assert verdicts(doc) == {"ahci": UNDECIDED, "platform": WELL}
    assert [devices for devices, _ in recorder.asked] == [("ahci",), (), ()]


def test_devices_that_do_not_get_on_with_each_other_are_judged_apart(judged: Callable[..., Any]) -> None:
    def refuses(devices: tuple[str, ...], _phases: tuple[str, ...]) -> None:
        if len(devices) > 1:
            raise HarnessError("QEMU died")

    doc, _, said = judged(refuses)
    assert verdicts(doc) == {"ahci": WELL, "virtio-blk": WELL, "platform": WELL}
    assert said == []
    (lost,) = doc.lost
    assert not lost.alone
    assert "beside the others, and is well alone" in lost_text(lost)


def test_a_machine_that_cannot_be_recorded_at_all_gives_up(judged: Callable[..., Any]) -> None:
    def refuses(_devices: tuple[str, ...], _phases: tuple[str, ...]) -> None:
        raise HarnessError("QEMU died")

    doc, recorder, said = judged(refuses)
    assert verdicts(doc) == {"ahci": UNDECIDED, "virtio-blk": UNDECIDED, "platform": UNDECIDED}
    assert [devices for devices, _ in recorder.asked] == [("ahci", "virtio-blk"), ()]
    assert len(said) == 1


def _profiles(*names: str) -> tuple[Any, ...]:
    return tuple(load_recipes().devices[name] for name in names)


@pytest.mark.parametrize(
    ("saving", "where"),
    [
        (True, "while the machine was saved in phase bound: "),
        (False, "while the guest ran on its way to phase bound, before anything was loaded: "),
    ],
)
def test_a_qemu_that_dies_while_a_device_is_recorded_has_crashed(
    judged: Callable[..., Any], saving: bool, where: str
) -> None:
    log = "qemu: ../hw/scsi/toy.c:12: toy_pre_save: Assertion `QTAILQ_EMPTY(&s->queue)' failed.\n"

    def refuses(devices: tuple[str, ...], phases: tuple[str, ...]) -> None:
        if "virtio-blk" in devices and "bound" in phases:
            died = Exit(status=-6, signal="SIGABRT")
            raise CutShort("gone", phase="bound", kept=("firmware", "kernel"), died=died, log=log, saving=saving)

    doc, _, _ = judged(refuses, schedules=(Schedule.SAME,))
    assert verdicts(doc)["virtio-blk"] == {"kernel/same": "ok", "bound/same": "crash"}
    (cell,) = [cell for cell in doc.cells if cell.verdict is Verdict.CRASH]
    (cause,) = cell.outcome.causes
    assert where_text(cause) == where
    assert "toy_pre_save" in cause_text(cause)


def test_a_device_that_does_not_let_itself_be_saved_once_the_guest_runs_is_unsupported(
    judged: Callable[..., Any],
) -> None:
    words = "migrate: failed: pre-save for toy failed: only one toy is supported for migration"

    def refuses(devices: tuple[str, ...], phases: tuple[str, ...]) -> None:
        if "virtio-blk" in devices and "bound" in phases:
            raise CutShort(words, phase="bound", kept=("firmware", "kernel"), refused=words)

    doc, _, _ = judged(refuses, schedules=(Schedule.SAME,))
    assert verdicts(doc)["virtio-blk"] == {"kernel/same": "ok", "bound/same": "unsupported"}
    (cell,) = [cell for cell in doc.cells if cell.verdict is Verdict.UNSUPPORTED]
    (cause,) = cell.outcome.causes
    assert cause_text(cause) == f"QEMU 7.2.22 does not migrate a machine that has it: {words}"
