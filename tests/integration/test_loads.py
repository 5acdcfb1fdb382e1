# SPDX-License-Identifier: GPL-2.0-or-later
"""Loads into a real secondary: they are real, they are refused when they should be, and RAM moves with them."""

from __future__ import annotations

import struct
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from made_cells import words

from harness.engines.buffers import Buffers, Selection
from harness.engines.colo import Session
from harness.engines.evidence import Evidence
from harness.engines.probe import ColoAbility
from harness.engines.schedule import Checkpoint, LoadPlan
from harness.engines.secondary import Secondary
from harness.oracles.load import judge
from harness.packs.pack import Recording, StatePack, incoming_body
from harness.qemu.binary import QemuBinary
from harness.qemu.scope import ProcessScope
from harness.qemu.vm import Vm
from harness.results.verdict import Verdict
from harness.state.transforms import GuestMode, encode, label_of, only, sections_for
from harness.stream.fields import find, patch
from harness.stream.model import Section
from harness.stream.vmdesc import decode

ANSWER_TIMEOUT_S = 20.0
PAGE = 4096
#: Below 1 MiB the chipset maps ROM over RAM; a read by address sees the ROM.
HOLE = range(0xA0000 // PAGE, 0x100000 // PAGE)

Open = Callable[..., AbstractContextManager[Secondary]]


@pytest.fixture
def secondary(binary: QemuBinary, ability: ColoAbility, pc_pack: StatePack) -> Open:
    """Opens a secondary that holds one phase of the pc pack."""

    @contextmanager
    def start(phase: str, mode: GuestMode) -> Iterator[Secondary]:
        recording = pc_pack.recordings[phase]
        devices = encode(sections_for(recording, mode))
        with Secondary(
            binary, pc_pack.machine, ability.dialect, timeout_s=ANSWER_TIMEOUT_S, scope=ProcessScope()
        ) as opened:
            opened.start(recording.head, incoming_body(recording, pc_pack.ram_whole(phase), devices))
            yield opened

    return start


def saved_section(vm: Vm, recording: Recording, label: str) -> Section:
    """One section of a secondary at this moment, read out by QEMU itself; the machine stays stopped.

    It is found by its header. The recording's vmdesc does not fit the whole of another moment: the serial port, for
    one, has its subsections at some times only. Good for sections of a fixed size.
    """
    path = vm.workdir / "saved.state"
    vm.qmp("stop")
    # live=False: else a machine that is stopped already has its disks inactivated, which cannot be done twice
    vm.qmp("xen-save-devices-state", filename=str(path), live=False)
    data = path.read_bytes()
    (known,) = only(recording.sections, frozenset({label}))
    head = known.encode()[: known.header_size]
    footer = b"\x7e" + struct.pack(">I", known.section_id)
    assert data.count(head) == 1, label
    start = data.index(head) + len(head)
    end = start + len(known.payload)
    assert data[end : end + len(footer)] == footer, f"{label} has another size than when it was recorded"
    return replace(known, payload=data[start:end])


def field_value(section: Section, path: str) -> object:
    desc = section.desc
    assert desc is not None
    return find(decode(section.payload, desc), path).value


def with_field(section: Section, path: str, value: int) -> Section:
    desc = section.desc
    assert desc is not None
    field = find(decode(section.payload, desc), path)
    return replace(section, payload=patch(section.payload, field, value))


# --- A load is real ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("label", "path", "value"), [("i8259#1", "imr", 0xA5), ("i8254", "channels[2].count", 0x1234)])
def test_what_is_loaded_can_be_read_back(
    secondary: Open, pc_pack: StatePack, label: str, path: str, value: int
) -> None:
    recording = pc_pack.recordings["bound"]
    sections = sections_for(recording, GuestMode.PARKED)
    (section,) = only(sections, frozenset({label}))
    original = field_value(section, path)
    assert original != value
    changed = [with_field(s, path, value) if label_of(s) == label else s for s in sections]
    with secondary("bound", GuestMode.PARKED) as opened:
        assert field_value(saved_section(opened.vm, recording, label), path) == original
        opened.primary.checkpoint(encode(changed))
        assert field_value(saved_section(opened.vm, recording, label), path) == value
        opened.primary.checkpoint(encode(sections))
        assert field_value(saved_section(opened.vm, recording, label), path) == original


def test_the_last_of_several_loads_in_one_buffer_wins(
    secondary: Open, pc_pack: StatePack, ability: ColoAbility
) -> None:
    recording = pc_pack.recordings["bound"]
    sections = sections_for(recording, GuestMode.PARKED)
    (section,) = only(sections, frozenset({"i8259#1"}))
    rising = [with_field(section, "imr", value) for value in range(1, 101)]
    with secondary("bound", GuestMode.PARKED) as opened:
        opened.primary.checkpoint(encode([*sections, *rising]))
        assert field_value(saved_section(opened.vm, recording, "i8259#1"), "imr") == 100


def test_sections_that_are_left_out_stay_as_they_are(secondary: Open, pc_pack: StatePack, ability: ColoAbility) -> None:
    if ability.resets_before_load:
        pytest.skip("this QEMU resets the machine before each load: what is left out is in reset state")
    recording = pc_pack.recordings["bound"]
    sections = sections_for(recording, GuestMode.PARKED)
    (pic,) = only(sections, frozenset({"i8259#1"}))
    ahci = only(sections, frozenset(pc_pack.sections_of("ahci")))
    assert ahci
    with secondary("bound", GuestMode.PARKED) as opened:
        opened.primary.checkpoint(encode([with_field(pic, "imr", 0xA5)]))
        for _ in range(5):
            opened.primary.checkpoint(encode(ahci))
        assert field_value(saved_section(opened.vm, recording, "i8259#1"), "imr") == 0xA5
        assert opened.primary.checkpoints == 6


# --- Parked and running ------------------------------------------------------------------------------------


def _cpu(opened: Secondary, recording: Recording) -> bytes:
    return saved_section(opened.vm, recording, "cpu").payload


def _cpu_later(opened: Secondary, recording: Recording) -> bytes:
    opened.vm.qmp("cont")
    time.sleep(0.2)
    return _cpu(opened, recording)


def test_a_parked_guest_does_not_run(secondary: Open, pc_pack: StatePack, ability: ColoAbility) -> None:
    recording = pc_pack.recordings["busy"]
    sections = sections_for(recording, GuestMode.PARKED)
    own = frozenset(pc_pack.sections_of("ahci"))
    chosen = sections if ability.resets_before_load else only(sections, own)
    with secondary("busy", GuestMode.PARKED) as opened:
        for _ in range(10):
            opened.primary.checkpoint(encode(chosen))
        first = _cpu(opened, recording)
        assert _cpu_later(opened, recording) == first


def test_a_running_guest_does(secondary: Open, pc_pack: StatePack, eventually: Callable[..., None]) -> None:
    recording = pc_pack.recordings["busy"]
    with secondary("busy", GuestMode.RUNNING) as opened:
        opened.primary.checkpoint(encode(recording.sections))
        first = _cpu(opened, recording)
        eventually(lambda: _cpu_later(opened, recording) != first, "its registers move")


# --- RAM ---------------------------------------------------------------------------------------------------


def _ram_pages(vm: Vm, size_bytes: int) -> list[bytes]:
    path = vm.workdir / "ram.bin"
    vm.qmp("stop")
    vm.qmp("pmemsave", val=0, size=size_bytes, filename=str(path))
    data = path.read_bytes()
    path.unlink()
    return [data[start : start + PAGE] for start in range(0, len(data), PAGE)]


def _recorded_page(pack: StatePack, recording: Recording, number: int) -> bytes:
    page = pack.page(recording.index[number])
    return bytes(PAGE) if page is None else bytes(page)


def test_ram_moves_from_phase_to_phase(secondary: Open, pc_pack: StatePack) -> None:
    main = pc_pack.manifest.blocks[0]
    assert main.name == "pc.ram"
    numbers = [n for n in range(main.size_bytes // PAGE) if n not in HOLE]
    # both idle: of a busy guest, a disk's request that is resent after the load writes into memory as it should
    bound, unbound = pc_pack.recordings["bound"], pc_pack.recordings["unbound"]
    assert [n for n in numbers if _recorded_page(pc_pack, bound, n) != _recorded_page(pc_pack, unbound, n)]
    with secondary("bound", GuestMode.PARKED) as opened:
        before = bound
        for recording in (unbound, bound, unbound):
            devices = encode(sections_for(recording, GuestMode.PARKED))
            opened.primary.checkpoint(devices, pc_pack.ram_difference(recording.name, before.name))
            pages = _ram_pages(opened.vm, main.size_bytes)
            wrong = [hex(n * PAGE) for n in numbers if pages[n] != _recorded_page(pc_pack, recording, n)]
            assert wrong == [], f"pages that are not those of {recording.name}"
            before = recording


# --- Refused -----------------------------------------------------------------------------------------------

Change = Callable[[Section], Section]


def _strange_version(section: Section) -> Section:
    return replace(section, version_id=99)


def _all_ones(section: Section) -> Section:
    return replace(section, payload=b"\xff" * len(section.payload))


def _shorter(section: Section) -> Section:
    return replace(section, payload=section.payload[:-7])


@pytest.fixture
def load_changed(binary: QemuBinary, ability: ColoAbility, pc_pack: StatePack) -> Callable[..., Evidence]:
    """A session over the bound phase whose third load has other sections."""

    def run(sections: Iterable[Section]) -> Evidence:
        with StatePack(pc_pack.path) as pack:
            bound = pack.recordings["bound"]
            pack.recordings["changed"] = replace(bound, name="changed", sections=tuple(sections))
            phases = ("bound", "bound", "changed", "bound")
            return Session(
                binary=binary,
                dialect=ability.dialect,
                buffers=Buffers(pack),
                plan=LoadPlan(incoming="bound", checkpoints=tuple(Checkpoint(phase=phase) for phase in phases)),
                selection=Selection(own=frozenset({"i8254"})),
                mode=GuestMode.PARKED,
                timeout_s=ANSWER_TIMEOUT_S,
            ).run()

    return run


@pytest.mark.parametrize(
    ("device", "suffix", "change"),
    [
        ("platform", "i8254", _strange_version),
        ("virtio-net", "/virtio-net", _strange_version),
        ("virtio-net", "/virtio-net", _all_ones),
        ("virtio-blk", "/virtio-blk", _all_ones),
        ("virtio-blk", "/virtio-blk", _shorter),
    ],
)
def test_a_load_that_is_refused_names_its_section(
    load_changed: Callable[..., Evidence], pc_pack: StatePack, device: str, suffix: str, change: Change
) -> None:
    label = next(name for name in pc_pack.sections_of(device) if name.endswith(suffix))
    sections = pc_pack.recordings["bound"].sections
    evidence = load_changed(change(s) if label_of(s) == label else s for s in sections)
    _assert_refused(evidence, label)


def test_a_section_that_nobody_has_is_refused(load_changed: Callable[..., Evidence], pc_pack: StatePack) -> None:
    sections = pc_pack.recordings["bound"].sections
    stranger = replace(sections[-1], idstr="no-such-device", section_id=9999)
    _assert_refused(load_changed([*sections, stranger]), "no-such-device")


def _assert_refused(evidence: Evidence, label: str) -> None:
    assert evidence.broken is not None
    # and not `late`: nobody waits for the deadline of a secondary that said no
    assert evidence.broken.kind == "refused", evidence
    assert (evidence.broken.load, evidence.broken.phase) == (3, "changed")
    assert evidence.loads_acked == 2
    judgement = judge(evidence)
    assert judgement.verdict is Verdict.REJECT
    assert judgement.named == label, judgement.log
    assert label in words(judgement)


def test_an_incoming_stream_that_is_refused_is_no_load(
    binary: QemuBinary, ability: ColoAbility, pc_pack: StatePack
) -> None:
    with StatePack(pc_pack.path) as pack:
        bound = pack.recordings["bound"]
        pack.recordings["bound"] = replace(bound, sections=tuple(_strange_version(s) for s in bound.sections))
        evidence = Session(
            binary=binary,
            dialect=ability.dialect,
            buffers=Buffers(pack),
            plan=LoadPlan(incoming="bound", checkpoints=(Checkpoint(phase="bound"),)),
            selection=Selection(own=frozenset({"i8254"})),
            mode=GuestMode.PARKED,
            timeout_s=ANSWER_TIMEOUT_S,
        ).run()
    assert evidence.loads_acked == 0
    assert evidence.broken is not None
    assert evidence.broken.load == 0
    assert judge(evidence).verdict is Verdict.REJECT


def test_no_folder_of_a_secondary_is_left(secondary: Open) -> None:
    with secondary("bound", GuestMode.PARKED) as opened:
        folder: Path = opened.vm.workdir
        assert folder.is_dir()
    assert not folder.exists()
