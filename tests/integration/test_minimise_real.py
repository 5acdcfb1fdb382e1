# SPDX-License-Identifier: GPL-2.0-or-later
"""From a red cell to the smallest case: a crash, a rejected load, and made-up failures over a real recording."""

from __future__ import annotations

import json
import signal
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from made_cells import made_cell, symptom

from harness.colo.messages import Step
from harness.engines.buffers import Buffers, Selection
from harness.engines.colo import Session
from harness.engines.evidence import Break, Evidence
from harness.engines.probe import ColoAbility
from harness.engines.schedule import Checkpoint, LoadPlan
from harness.oracles.load import judge
from harness.packs.pack import StatePack
from harness.qemu.binary import QemuBinary
from harness.report.cases import told_case
from harness.results.cause import Cause, Ended, Leaked, Refused, Resource
from harness.results.document import Cell, Qemu
from harness.results.verdict import Verdict
from harness.state.recorder import Plan, record
from harness.state.transforms import GuestMode, label_of
from harness.stream.fields import Field, walk
from harness.stream.vmdesc import decode
from harness.triage.case import Case
from harness.triage.minimise import Attempt, Search
from harness.triage.reduced import Candidate, Reduced, connected, without_options
from harness.triage.reduction import Reduction, Result
from harness.triage.smallest import SmallestFound
from harness.triage.tries import Target, Tries

Run = Callable[..., subprocess.CompletedProcess[str]]
ICH9 = "0000:00:1f.0/ICH9LPC"
NET = "0000:00:05.0/virtio-net"
AHCI = "0000:00:03.0/ich9_ahci"


@pytest.fixture(scope="module")
def crashed(postload: Run, q35_pack: StatePack, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The q35 crash as a matrix finds it."""
    out = tmp_path_factory.mktemp("q35") / "run"
    words = ["--machine", "q35", "--phase", "bound", "--device", "platform", "--schedule", "same", "--quick"]
    done = postload("matrix", *words, "--out", out)
    document = json.loads((out / "matrix.json").read_text())
    if document["cells"][0]["outcome"]["verdict"] != "crash":
        pytest.skip(f"this QEMU does not crash: {done.stdout[-500:]}")
    return out


def test_the_q35_crash_ends_in_one_bit_of_one_register(postload: Run, crashed: Path, tmp_path: Path) -> None:
    folder = tmp_path / "case"
    done = postload("minimise", "platform/bound/same", "--run", crashed, "--out", folder)
    assert done.returncode == 0, done.stderr
    wanted = f"one load of section {ICH9} in phase bound; RCBA enabled (rcba bit 0 = 1) is needed"
    assert done.stdout.splitlines()[0] == wanted
    case = Case.load(folder)
    assert case.sentence == wanted
    assert (case.loads, case.sections, case.ram_pages, case.guest_mode) == (1, (ICH9,), 0, "parked")
    assert [(f.register, f.bit, f.value, f.healthy) for f in case.fields] == [("RCBA enabled", 0, 1, 0)]
    assert case.rate.failed == case.rate.tried
    assert {option.name for option in case.options} == {"m", "smp"}
    assert case.signature is not None
    assert case.signature["name"].startswith("crash:memory_region_add_subregion_common:")
    assert sum(path.stat().st_size for path in folder.iterdir()) < 200_000
    assert [path.name for path in tmp_path.iterdir()] == ["case"]


def test_an_interrupted_search_is_gone_on_with(
    postload: Run,
    crashed: Path,
    tmp_path: Path,
    started: Callable[..., subprocess.Popen[str]],
    strays: Callable[[], list[int]],
    eventually: Callable[..., None],
) -> None:
    folder, journal = tmp_path / "case", tmp_path / ".case.journal.jsonl"
    process = started("minimise", "platform/bound/same", "--run", crashed, "--out", folder)
    eventually(lambda: journal.exists() and len(journal.read_text().splitlines()) >= 4, "three tries")
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=180)
    assert process.returncode == 3
    assert not folder.exists()
    assert strays() == []
    done = postload("minimise", "platform/bound/same", "--run", crashed, "--out", folder)
    assert done.returncode == 0, done.stderr
    assert "going on after" in done.stderr
    assert "RCBA enabled" in done.stdout
    assert not journal.exists()


def test_what_does_not_fail_any_more_is_said(postload: Run, crashed: Path, tmp_path: Path) -> None:
    """The same crash is there, and it is not the failure that the cell speaks of."""
    document = json.loads((crashed / "matrix.json").read_text())
    (cause,) = document["cells"][0]["outcome"]["causes"]
    cause["assertion"] = {"function": "other_function", "expression": "other", "file": "x.c"}
    (tmp_path / "matrix.json").write_text(json.dumps(document))
    for _ in range(2):
        done = postload("minimise", "platform/bound/same", "--run", tmp_path, "--out", tmp_path / "case")
        assert done.returncode == 3
        assert "does not reproduce: 0 of 5" in done.stderr
        # the second time it is tried again, and not believed from a journal
        assert "going on after" not in done.stderr
    assert not (tmp_path / "case").exists()


def test_a_cell_without_a_finding_is_bad_usage(postload: Run, crashed: Path, tmp_path: Path) -> None:
    done = postload("minimise", "platform/bound/same+rest", "--run", crashed, "--out", tmp_path / "case")
    assert done.returncode == 2
    assert "nothing to minimise" in done.stderr


# --- failures that are made up, over a real recording ----------------------------------------------------------------


def cell_of(pack: StatePack, binary: QemuBinary, verdict: Verdict, *causes: Cause, **more: Any) -> Cell:
    qemu = Qemu(**binary.identity(), label=binary.version)
    device = "virtio-net"
    given = {"sections": tuple(pack.sections_of(device)), "loads_asked": 20, "accel": pack.manifest.accel}
    given |= {"record_qemu": qemu, "load_qemu": qemu, "causes": causes, "pack": str(pack.path)}
    return made_cell(f"{pack.manifest.machine}/{device}/bound/same", verdict, **{**given, **more})


def segfault(load: int, phase: str = "bound") -> Cause:
    return Ended(step=Step.LOAD, load=load, phase=phase, signal="SIGSEGV")


def unknown_section() -> Cause:
    return Refused(step=Step.INCOMING, load=1, phase="bound", reason="unknown section", line="Unknown section 'x'")


def reduce_made_up(target: Target, fails: Callable[[Candidate], bool]) -> tuple[Result, Case]:
    search: Search[Candidate] = Search(attempt=lambda c: Attempt(hit=fails(c), loads=c.loads), key=lambda c: c.key)
    result = Reduction(target, search).run()
    found = SmallestFound(target=target, result=result, search=search, evidence=None, leak={})
    return result, told_case(found)


def target_of(cell: Cell, pack: StatePack, binary: QemuBinary, ability: ColoAbility) -> Target:
    return Target(cell=cell, binary=binary, ability=ability, buffers=Buffers(pack))


def test_a_few_pages_of_memory_are_found(pc_pack: StatePack, binary: QemuBinary, ability: ColoAbility) -> None:
    """It needs one section, two loads, and two pages."""
    cell = cell_of(pc_pack, binary, Verdict.CRASH, segfault(2, "bound"), blamed=(NET,))
    index = pc_pack.recordings["bound"].index
    pages = [n for n in range(pc_pack.manifest.blocks[0].size_bytes // 4096) if index[n]][40:4000:2500]

    def fails(candidate: Candidate) -> bool:
        sent = candidate.ram is None or all(
            any(part.block == 0 and part.first <= page < part.stop for part in candidate.ram) for page in pages
        )
        return sent and NET in candidate.sections and candidate.loads >= 2

    result, case = reduce_made_up(target_of(cell, pc_pack, binary, ability), fails)
    assert result.candidate.mode is GuestMode.PARKED
    assert result.candidate.sections - {label for label in result.candidate.sections if "cpu" in label} == {NET}
    assert (case.loads, case.ram_pages) == (2, len(pages))
    assert "2 loads of section" in case.sentence
    assert "2 pages of guest memory are needed" in case.sentence
    assert not any(option.name in ("kernel", "initrd", "append") for option in case.options)


def test_what_only_a_running_guest_shows_stays_running(
    pc_pack: StatePack, binary: QemuBinary, ability: ColoAbility, tmp_path: Path
) -> None:
    """The case then holds what the guest runs on: all of its state and memory, its kernel and its initramfs."""
    cell = cell_of(pc_pack, binary, Verdict.CRASH, segfault(7, "bound"), blamed=())
    result, case = reduce_made_up(
        target_of(cell, pc_pack, binary, ability),
        lambda c: c.mode is GuestMode.RUNNING and c.loads >= 3 and c.ram is None and {NET, "hpet"} <= c.sections,
    )
    assert result.candidate.loads == 3
    assert {label for label in result.candidate.sections if "cpu" not in label} == {NET, "hpet"}
    assert case.guest_mode == "running"
    assert case.run_s > 0
    assert case.ram_pages > 100
    assert case.checkpoints[0].times == 3
    assert "with the guest running" in case.sentence
    loaded = Case.load(case.save(tmp_path / "case"))
    assert set(loaded.files) == {"kernel", "initrd"}
    assert {o.first for o in loaded.options if o.name == "kernel"} == {"{case}/kernel"}


def test_a_migration_that_is_refused_needs_its_section_and_no_checkpoint(
    pc_pack: StatePack, binary: QemuBinary, ability: ColoAbility, tmp_path: Path
) -> None:
    """One cell over several phases; another section is refused as well, and so is never sent."""
    cell = cell_of(
        pc_pack, binary, Verdict.REJECT, unknown_section(), blamed=(NET,), lane="plain",
        phases=("kernel", "bound", "busy"), excluded=(AHCI,), loads_asked=3,
    )  # fmt: skip

    def fails(candidate: Candidate) -> bool:
        assert candidate.start is not None
        assert AHCI not in candidate.start
        return candidate.incoming == "bound" and NET in candidate.start

    _, case = reduce_made_up(target_of(cell, pc_pack, binary, ability), fails)
    assert (case.loads, case.checkpoints, case.sections) == (0, (), (NET,))
    assert f"the incoming stream alone, with section {NET}, in phase bound" in case.sentence
    assert Case.load(case.save(tmp_path / "case")).loads == 0


def test_a_section_that_is_refused_in_a_checkpoint_is_not_the_migration_that_was(
    pc_pack: StatePack, binary: QemuBinary, ability: ColoAbility, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same words of another experiment do not count."""
    cell = cell_of(pc_pack, binary, Verdict.REJECT, unknown_section(), blamed=(NET,), lane="plain")
    target = target_of(cell, pc_pack, binary, ability)
    candidate = Reduction(target, Search(attempt=lambda c: Attempt(hit=True), key=lambda c: c.key)).start()
    tries = Tries(target)

    gave_up = f"qemu: error while loading state for instance 0x0 of device '{NET}'"

    def evidence(load: int) -> Evidence:
        broken = Break(step=Step.LOAD, kind="refused", symptom=symptom("x"), load=load, phase="bound")
        log = f"qemu: VQ 0 vring.num 2 exceeds allocated max 1\n{gave_up}"
        return Evidence(loads_asked=1, loads_acked=0, checkpoints_acked=0, broken=broken, exit=None, log=log)

    for load in (0, 1):
        seen = evidence(load)
        tries.wanted = tries.signature(seen)
        monkeypatch.setattr(Session, "run", lambda *_, seen=seen: seen)
        assert tries.attempt(candidate).hit is (load == 0)


def test_a_mixed_schedule_is_cut_to_the_steps_that_matter(
    pc_pack: StatePack, binary: QemuBinary, ability: ColoAbility
) -> None:
    phases = ("kernel", "bound", "busy")
    cell = cell_of(pc_pack, binary, Verdict.CRASH, segfault(11, "busy"), blamed=(NET,), phases=phases, lane="alternate")

    def fails(candidate: Candidate) -> bool:
        order = [step.phase for step in candidate.steps]
        return "kernel" in order and "busy" in order[order.index("kernel") :] and NET in candidate.sections

    result, case = reduce_made_up(target_of(cell, pc_pack, binary, ability), fails)
    assert [step.phase for step in result.candidate.steps] == ["kernel", "busy"]
    assert "in phases kernel and busy" in case.sentence


def test_loads_in_one_buffer_are_counted_down(pc_pack: StatePack, binary: QemuBinary, ability: ColoAbility) -> None:
    cell = cell_of(
        pc_pack, binary, Verdict.CRASH, segfault(90, "bound"), blamed=(NET,), lane="back-to-back", loads_asked=200
    )
    result, case = reduce_made_up(
        target_of(cell, pc_pack, binary, ability),
        lambda c: NET in c.own and max(step.repeat for step in c.steps) >= 17,
    )
    assert [step.repeat for step in result.candidate.steps] == [17]
    assert case.back_to_back
    assert case.checkpoints[0].devices.count(b"\x04") >= 17


def test_a_field_is_found_by_what_another_phase_has(
    pc_pack: StatePack, binary: QemuBinary, ability: ColoAbility
) -> None:
    """A made-up failure that needs the driver's DRIVER_OK; before the driver is bound the device does not have it."""
    cell = cell_of(pc_pack, binary, Verdict.CRASH, segfault(1, "bound"), blamed=(NET,))
    target = target_of(cell, pc_pack, binary, ability)

    def fails(candidate: Candidate) -> bool:
        if NET not in candidate.sections:
            return False
        recording = Reduced(target.buffers, replace(candidate, start=None)).pack.recordings["bound"]
        (section,) = [s for s in recording.sections if label_of(s) == NET]
        status = next(
            f for f in target_fields(pc_pack) if f.path.endswith("status") and f.size == 1 and "pci" not in f.path
        )
        return bool(section.payload[status.offset] & 4)

    result, case = reduce_made_up(target, fails)
    assert len(result.needed) == 1
    assert "device status DRIVER_OK (device status bit 2 = 1) is needed" in case.sentence
    assert case.fields[0].bit == 2


def target_fields(pack: StatePack) -> list[Field]:
    recording = pack.recordings["bound"]
    (section,) = [s for s in recording.sections if label_of(s) == NET]
    desc = section.desc
    assert desc is not None
    return list(walk(decode(section.payload, desc)))


def test_a_rejected_incoming_stream_ends_in_its_section(
    pc_pack: StatePack, binary: QemuBinary, ability: ColoAbility
) -> None:
    """The loading machine has no AHCI controller: QEMU refuses its section by name."""
    options = pc_pack.machine.options
    (group,) = [g for g in connected(options) if any(options[n].first == "ich9-ahci" for n in g)]
    gone = sorted(group)
    buffers = Buffers(pc_pack, without_options(pc_pack.machine, gone))
    evidence = Session(
        binary=binary,
        dialect=ability.dialect,
        buffers=buffers,
        plan=LoadPlan(incoming="bound", checkpoints=(Checkpoint(phase="bound"),)),
        selection=Selection(own=frozenset(pc_pack.sections_of("ahci"))),
        mode=GuestMode.RUNNING,
    ).run()
    told = judge(evidence)
    assert (told.verdict, told.named) == (Verdict.REJECT, AHCI)
    assert told.cause is not None
    target = Target(
        cell=cell_of(pc_pack, binary, Verdict.REJECT, told.cause, blamed=(AHCI,), log=told.log),
        binary=binary,
        ability=ability,
        buffers=buffers,
    )
    tries = Tries(target)
    search = Search(attempt=tries.attempt, key=lambda c: c.key)
    result = Reduction(target, search).run()
    case = told_case(SmallestFound(target=target, result=result, search=search, evidence=tries.seen, leak={}))
    assert case.sections == (AHCI,)
    assert case.ram_pages == 0
    assert case.sentence.startswith(f"the incoming stream alone, with section {AHCI}, in phase bound")
    assert case.expect.verdict == "reject"


@pytest.fixture(scope="module")
def io_pack(
    plan_of: Callable[[QemuBinary, str], Plan], binary: QemuBinary, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[StatePack]:
    plan = replace(plan_of(binary, "pc"), phases=("busy", "io-error"))
    with StatePack(record(plan, tmp_path_factory.mktemp("io") / "pack")) as pack:
        yield pack


def test_a_leak_is_told_from_no_leak_in_a_second(io_pack: StatePack, binary: QemuBinary, ability: ColoAbility) -> None:
    """A command that a failing disk holds back has its scatter-gather list made anew by every load."""
    leaked = Leaked(
        section=AHCI, resource=Resource.MEMORY, per_load=33.0, low=31.0, high=35.0, unit="bytes", loads=1000
    )
    cell = cell_of(
        io_pack, binary, Verdict.LEAK, leaked, phases=("io-error",), lane="leak", blamed=(AHCI,), device="ahci"
    )
    target = target_of(cell, io_pack, binary, ability)
    tries = Tries(target)
    start = Reduction(target, Search(attempt=tries.attempt, key=lambda c: c.key)).start()
    if not tries.attempt(start).hit:
        pytest.skip("this QEMU does not leak here")
    told = tries.attempt(replace(start, incoming="busy", steps=(Checkpoint(phase="busy"),)))
    assert (told.hit, told.loads > 0) == (False, True)
    nothing = tries.attempt(replace(start, ram=(), start=frozenset({"port92"}) | target.cpu))
    assert (nothing.hit, nothing.loads) == (False, 0)
