# SPDX-License-Identifier: GPL-2.0-or-later
"""The leak oracle on a real QEMU: it sees what is leaked on purpose, and finds nothing where nothing leaks."""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import replace
from itertools import count

import pytest

from harness.colo.messages import Step
from harness.engines.buffers import Buffers
from harness.engines.probe import ColoAbility
from harness.engines.setting import Setting
from harness.experiments.leak import LeakBudget, LeakResult, find_leaks
from harness.oracles.leak import Suspects, judge_leaks, run_details
from harness.oracles.oracle import Opinion
from harness.packs.pack import StatePack
from harness.qemu.binary import QemuBinary
from harness.qemu.scope import ProcessScope
from harness.qemu.vm import Vm
from harness.results.verdict import Verdict
from harness.state.transforms import label_of
from harness.stream.model import Section

PHASE = "bound"
LEAKY, HEALTHY = "i8254", "i8259"
WANTED_BYTES = 100
#: Quick, for tests: a leak of 100 bytes a load is still 15 KB in a batch.
BUDGET = LeakBudget(section_s=0.1, min_loads=1000, max_loads=3000)

Find = Callable[..., LeakResult]


@pytest.fixture(scope="module")
def find(binary: QemuBinary, ability: ColoAbility, pc_pack: StatePack) -> Find:
    """Looks for leaks in the parked guest; takes another pack's sections, labels, a budget and a disturbance."""

    def run(pack: StatePack | None = None, excluded: frozenset[str] = frozenset(), **more: object) -> LeakResult:
        arguments: dict[str, object] = {"budget": BUDGET, **more}
        setting = Setting(
            binary=binary,
            dialect=ability.dialect,
            resets=bool(ability.resets_before_load),
            buffers=Buffers(pack or pc_pack),
            phase=PHASE,
            scope=ProcessScope(),
            excluded=excluded,
        )
        return find_leaks(
            setting,
            suspects=Suspects(),
            **arguments,  # type: ignore[arg-type]
        )

    return run


class Hoard:
    """Objects that are made and never removed, while one section is loaded."""

    def __init__(self, per_load: float) -> None:
        self._per_load = per_load
        self._names = count()
        self.made = 0

    def __call__(self, vm: Vm, label: str, loads: int, checkpoints: int) -> None:
        for _ in range(round(self._per_load * loads) if label == LEAKY else 0):
            vm.qmp("object-add", qom_type="secret", id=f"hoard{next(self._names)}", data="x")
            self.made += 1


def memory(judgement: Opinion) -> dict[str, float]:
    found: dict[str, float] = judgement.details["memory_bytes_per_load"]
    return found


# --- It sees a leak ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def object_bytes(find: Find) -> float:
    """What one such object costs, by a rate that nobody could miss."""
    result = find(labels=[LEAKY], between=Hoard(0.2))
    return memory(judge_leaks(result)[LEAKY])["estimate"] / 0.2


def test_a_leak_of_100_bytes_a_load_is_seen_and_blamed_on_the_section_that_has_it(
    find: Find, object_bytes: float
) -> None:
    assert object_bytes > WANTED_BYTES
    hoard = Hoard(WANTED_BYTES / object_bytes)
    judged = judge_leaks(find(labels=[LEAKY, HEALTHY], between=hoard))
    assert hoard.made > 0
    assert judged[LEAKY].verdict is Verdict.LEAK, judged[LEAKY]
    assert judged[LEAKY].details["confirmed"] is True
    assert 0.8 * WANTED_BYTES < memory(judged[LEAKY])["estimate"] < 1.2 * WANTED_BYTES
    assert judged[HEALTHY].verdict is Verdict.OK, judged[HEALTHY]


def test_a_leak_of_100_bytes_a_load_is_seen_by_the_page_too(find: Find, object_bytes: float) -> None:
    budget = LeakBudget(section_s=0.3, min_loads=3000, max_loads=6000, exact=False)
    judged = judge_leaks(find(labels=[LEAKY, HEALTHY], between=Hoard(WANTED_BYTES / object_bytes), budget=budget))
    assert judged[LEAKY].details["measured"] == "pages"
    assert judged[LEAKY].verdict is Verdict.LEAK, judged[LEAKY]
    assert judged[HEALTHY].verdict is Verdict.OK, judged[HEALTHY]


#: ``vmstate_virtio_net_rss`` (``hw/net/virtio-net.c``), and its table of u16 that every load allocates anew
#: (``VMSTATE_VARRAY_UINT16_ALLOC``; ``vmstate_handle_alloc`` in ``migration/vmstate.c`` frees no older one).
_RSS = b"virtio-net-device/rss"
#: A power of two, as later builds insist; 64 bytes of table are a chunk of 80.
_RSS_ENTRIES, _RSS_CHUNK_BYTES = 32, 80


def with_rss(section: Section) -> Section:
    """The state of a virtio-net whose guest uses receive-side scaling: one more subsection before virtio's own.

    ======  =====  ==============================================
    offset  width  field of the subsection
    ======  =====  ==============================================
    0       1      5, SUBSECTION
    1       1+n    length and name
            4      version 1
            3      bool enabled, redirect, populate_hash
            4      hash_types
            2      indirections_len
            2      default_queue
            40     key
            2n     indirections_table
    ======  =====  ==============================================
    """
    fields = struct.pack(">I???IHH40x", 1, False, False, False, 0, _RSS_ENTRIES, 0) + bytes(2 * _RSS_ENTRIES)
    state = section.payload
    at = next(i for i in range(len(state)) if state[i] == 5 and state[i + 2 : i + 9] == b"virtio/")
    return replace(section, payload=state[:at] + bytes([5, len(_RSS)]) + _RSS + fields + state[at:])


def test_a_real_leak_of_80_bytes_a_load_is_seen(find: Find, pc_pack: StatePack) -> None:
    label = next(name for name in pc_pack.sections_of("virtio-net") if name.endswith("/virtio-net"))
    with StatePack(pc_pack.path) as pack:
        recording = pack.recordings[PHASE]
        sections = tuple(with_rss(s) if label_of(s) == label else s for s in recording.sections)
        pack.recordings[PHASE] = replace(recording, sections=sections)
        result = find(pack, labels=[label, HEALTHY])
    judged = judge_leaks(result)
    assert result.broken is None
    assert judged[HEALTHY].verdict is Verdict.OK
    chunks = {item["bytes"]: item["per_load"] for item in judged[label].details["chunks"]}
    if judged[label].verdict is Verdict.OK and not chunks:
        pytest.skip("this QEMU frees the older table")
    assert judged[label].verdict is Verdict.LEAK
    if judged[label].details["measured"] == "bytes":
        assert memory(judged[label])["low"] <= _RSS_CHUNK_BYTES <= memory(judged[label])["high"]
        assert chunks[_RSS_CHUNK_BYTES] == pytest.approx(1.0, abs=0.15)


# --- It finds none where there is none ---------------------------------------------------------------------


def test_sections_that_do_not_leak_get_no_verdict(find: Find, pc_pack: StatePack) -> None:
    result = find()
    judged = judge_leaks(result)
    assert result.broken is None
    assert result.loads_acked == result.loads_asked
    assert set(judged) == {label_of(section) for section in pc_pack.recordings[PHASE].sections}
    assert len(judged) >= 30
    assert [label for label, judgement in judged.items() if judgement.verdict is not Verdict.OK] == []
    for judgement in judged.values():
        assert judgement.details["loads"] >= 1000
    assert run_details(result.first)["noise_floor_bytes_per_load"] < WANTED_BYTES


def test_the_framework_is_measured_apart(find: Find) -> None:
    """What every checkpoint leaves behind is the framework's, also when a section was loaded in it."""
    names = count()

    def every_checkpoint(vm: Vm, label: str, loads: int, checkpoints: int) -> None:
        for _ in range(checkpoints):
            vm.qmp("object-add", qom_type="secret", id=f"hoard{next(names)}", data="x")

    result = find(labels=[LEAKY, HEALTHY], between=every_checkpoint)
    assert run_details(result.first)["framework_bytes_per_checkpoint"]["low"] > 100
    assert {judgement.verdict for judgement in judge_leaks(result).values()} == {Verdict.OK}


# --- What breaks -------------------------------------------------------------------------------------------


def test_a_section_that_breaks_the_secondary_does_not_stop_the_others(find: Find, q35_pack: StatePack) -> None:
    # QEMU 7.2 dies of a second load of this one; where it does not, it is measured like any other
    labels = ["0000:00:1f.0/ICH9LPC", HEALTHY]
    result = find(q35_pack, labels=labels)
    judged = judge_leaks(result)
    assert set(judged) == set(labels)
    assert judged[HEALTHY].verdict is Verdict.OK
    if result.broken is None:
        assert judged[labels[0]].verdict is Verdict.OK
    else:
        assert judged[labels[0]].verdict is Verdict.CRASH, judged[labels[0]]


def test_an_incoming_stream_that_is_refused_is_blamed_on_no_section(find: Find, pc_pack: StatePack) -> None:
    with StatePack(pc_pack.path) as pack:
        recording = pack.recordings[PHASE]
        wrong = tuple(replace(s, version_id=99) if label_of(s) == LEAKY else s for s in recording.sections)
        pack.recordings[PHASE] = replace(recording, sections=wrong)
        result = find(pack, labels=[LEAKY, HEALTHY])
    assert result.broken is not None
    assert result.broken.step is Step.INCOMING
    assert judge_leaks(result) == {}
