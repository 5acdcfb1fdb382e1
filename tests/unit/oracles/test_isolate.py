# SPDX-License-Identifier: GPL-2.0-or-later
"""The search for the section that breaks a secondary, with secondaries that are told by what they break."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from made_cells import symptom

from harness.colo.messages import Step
from harness.colo.primary import ENABLE_COLO, ChannelBroken
from harness.engines import colo as engine
from harness.engines.buffers import Buffers
from harness.errors import Stopped
from harness.oracles import isolate
from harness.oracles.isolate import Isolator, Suspect
from harness.oracles.load import Judgement
from harness.packs.pack import StatePack
from harness.qemu.binary import QemuBinary
from harness.qemu.process import Exit
from harness.qemu.scope import ProcessScope
from harness.results.cause import Assertion, Ended
from harness.results.outcome import IsolationWay
from harness.results.verdict import Verdict

if TYPE_CHECKING:
    from tests.unit.conftest import Handmade


class Fake:
    """A secondary that dies once a checkpoint held all sections of the bug as often as it takes."""

    bug: frozenset[bytes] = frozenset()
    takes = 1
    in_one_buffer = 1
    started: list[Fake] = []  # noqa: RUF012 - of all, on purpose
    dies_at_start = False
    refuses: bytes = b""
    #: In the incoming stream it makes every load break: the reset before it does.
    spoils_resets: bytes = b""
    #: Bytes of an incoming stream and what a secondary says that dies of them; the first in the stream does it.
    asserts: dict[bytes, str] = {}  # noqa: RUF012 - told by a test for all

    def __init__(self, *_: object, **__: object) -> None:
        self.vm = self.primary = self.process = self.monitor = self
        self.pid = 1
        self.dead = False
        self.checkpoints: list[bytes] = []
        self.hits = 0
        self.said = ""
        self.stream = b""
        type(self).started.append(self)

    def start(self, _head: bytes = b"", body: Sequence[bytes] = ()) -> None:
        self.stream = stream = b"".join(map(bytes, body))
        places = {stream.find(part): said for part, said in self.asserts.items() if part in stream}
        self.said = places[min(places)] if places else ""
        if self.dies_at_start or places or (self.refuses and self.refuses in stream):
            self._die(Step.INCOMING)

    def request(self) -> None:
        """Asked for a checkpoint."""

    def checkpoint(self, first: bytes, *ram: Sequence[bytes]) -> None:
        self.load(first, *ram)

    def load(self, first: bytes, ram: Sequence[bytes] = (), behind: Sequence[bytes] = (), **_: object) -> None:
        devices = b"".join([first, *behind])
        self.checkpoints.append(devices)
        self.hits += all(devices.count(section) >= self.in_one_buffer for section in self.bug)
        if (self.bug and self.hits >= self.takes) or (self.spoils_resets and self.spoils_resets in self.stream):
            self._die(Step.LOAD)

    def _die(self, step: Step) -> None:
        self.dead = True
        raise ChannelBroken(step, "closed", symptom("as told"))

    def ended(self, _within_s: float = 0.0) -> Exit | None:
        return Exit(status=-6, signal="SIGABRT") if self.dead else None

    printed_at_start = 0

    def stderr(self, _since: int = 0) -> str:
        return self.said

    def stderr_size(self) -> int:
        return 0

    def qmp(self, *_: object, **__: object) -> None:
        pass

    def drain_events(self) -> list[dict[str, Any]]:
        return []

    def __enter__(self) -> Fake:
        return self

    def __exit__(self, *_: object) -> None:
        pass


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> type[Fake]:
    kind = type("Secondary", (Fake,), {"started": []})
    monkeypatch.setattr(isolate, "Secondary", kind)
    monkeypatch.setattr(engine, "Secondary", kind)
    return kind


@pytest.fixture
def isolator(make_pack: Callable[..., Path], binary: QemuBinary) -> Iterator[Callable[..., Isolator]]:
    with StatePack(make_pack()) as pack:
        yield lambda **more: Isolator(
            binary=binary, dialect=ENABLE_COLO, buffers=Buffers(pack), **{"resets": False, **more}
        )


def suspect(section: str) -> Suspect:
    return Suspect(section=section, broke=Judgement(verdict=Verdict.CRASH))


def find(searcher: Isolator, load: int = 1, excluded: frozenset[str] = frozenset()) -> Any:
    return searcher.find("kernel", "bound", load, excluded, Judgement(verdict=Verdict.CRASH))


@pytest.mark.parametrize("number", [2, 3, 4, 5])
def test_a_section_that_does_it_alone_is_found_by_the_sweep(
    isolator: Callable[..., Isolator], fake: type[Fake], handmade: Handmade, number: int
) -> None:
    fake.bug = frozenset({handmade.full(number, 0x22)})
    searcher = isolator()
    blame = find(searcher)
    assert blame.sections == (handmade.sections[number],)
    assert blame.judgement.verdict is Verdict.CRASH
    assert (blame.how.way, blame.how.loads, blame.how.together) == (IsolationWay.ALONE, 1, False)
    # one process for the sweep, one to confirm; the culprit was confirmed alone
    assert len(fake.started) == 2
    assert fake.started[1].checkpoints == [handmade.full(number, 0x22)]
    assert searcher.suspects == [Suspect(section=handmade.sections[number], broke=blame.judgement)]


def test_what_breaks_only_twice_in_one_buffer_is_searched_so_where_it_stood_so(
    isolator: Callable[..., Isolator], fake: type[Fake], handmade: Handmade
) -> None:
    fake.bug, fake.in_one_buffer = frozenset({handmade.full(3, 0x22)}), 2
    assert find(isolator()) is None
    blame = find(isolator(repeated=True))
    assert blame.sections == (handmade.sections[3],)
    assert (blame.how.way, blame.how.together) == (IsolationWay.ALONE, True)
    assert fake.started[-1].checkpoints == [handmade.full(3, 0x22) * 2]


def test_a_known_suspect_is_tried_first(
    isolator: Callable[..., Isolator], fake: type[Fake], handmade: Handmade
) -> None:
    fake.bug = frozenset({handmade.full(3, 0x22)})
    assert find(isolator(suspects=[suspect("gone"), suspect("i8259#1")])).sections == ("i8259#1",)
    assert len(fake.started) == 1


def test_what_broke_in_another_way_is_no_first_suspect(
    isolator: Callable[..., Isolator], fake: type[Fake], handmade: Handmade
) -> None:
    fake.bug = frozenset({handmade.full(4, 0x22)})
    hung = Suspect(section="i8259", broke=Judgement(verdict=Verdict.HANG))
    assert find(isolator(suspects=[hung, suspect(handmade.ahci)])).sections == (handmade.ahci,)
    assert len(fake.started) == 1
    # it is the first in the sweep
    fake.bug = frozenset({handmade.full(2, 0x22)})
    assert find(isolator(suspects=[hung])).sections == ("i8259",)
    assert [len(one.checkpoints) for one in fake.started[1:]] == [1, 1]


def test_who_asserted_something_is_no_first_suspect_of_a_crash_without_an_assertion(
    isolator: Callable[..., Isolator], fake: type[Fake], handmade: Handmade
) -> None:
    fake.bug = frozenset({handmade.full(4, 0x22)})
    assertion = Assertion(function="set_offset", expression="mr->alias", file="cirrus.c")
    crash = Judgement(verdict=Verdict.CRASH, cause=Ended(step=Step.LOAD, assertion=assertion))
    asserted = Suspect(section="i8259", broke=crash)
    assert find(isolator(suspects=[asserted, suspect(handmade.ahci)])).sections == (handmade.ahci,)
    assert len(fake.started) == 1


def test_whom_qemu_names_is_tried_alone_and_no_other_one_is(
    isolator: Callable[..., Isolator], fake: type[Fake], handmade: Handmade
) -> None:
    refusal = Judgement(verdict=Verdict.CRASH, named="i8259#1")
    fake.bug = frozenset({handmade.full(3, 0x22)})
    blame = isolator().find("kernel", "bound", 99, frozenset(), refusal)
    assert blame is not None
    assert blame.sections == ("i8259#1",)
    assert len(fake.started) == 1
    # it does not come back: once alone, and once with all
    fake.bug = frozenset()
    assert isolator().find("kernel", "bound", 99, frozenset(), refusal) is None
    assert len(fake.started) == 3


def test_an_incoming_stream_that_was_taken_is_not_tried_again(
    isolator: Callable[..., Isolator], fake: type[Fake], handmade: Handmade
) -> None:
    fake.bug = frozenset({handmade.full(4, 0x22)})
    judgement, excluded = Judgement(verdict=Verdict.CRASH), frozenset({handmade.sections[5]})
    blame = isolator().find("kernel", "bound", 1, excluded, judgement, frozenset())
    assert blame is not None
    assert blame.sections == (handmade.ahci,)
    # one for the sweep, one to confirm
    assert len(fake.started) == 2


def test_what_takes_two_sections_is_found_by_leaving_out(
    isolator: Callable[..., Isolator], fake: type[Fake], handmade: Handmade
) -> None:
    fake.bug = frozenset({handmade.full(3, 0x22), handmade.full(5, 0x22)})
    blame = find(isolator())
    assert blame.sections == ("i8259#1", handmade.blk)
    assert blame.how.way is IsolationWay.SMALLEST_SET


@pytest.mark.parametrize("load", [2, 3, 30])
def test_what_takes_several_loads_is_loaded_several_times(
    isolator: Callable[..., Isolator], fake: type[Fake], handmade: Handmade, load: int
) -> None:
    fake.bug, fake.takes = frozenset({handmade.full(4, 0x22)}), load
    blame = find(isolator(), load)
    assert blame.sections == (handmade.ahci,)
    assert len(fake.started[-1].checkpoints) == load


def test_an_excluded_section_is_never_sent(
    isolator: Callable[..., Isolator], fake: type[Fake], handmade: Handmade
) -> None:
    fake.bug = frozenset({handmade.full(2, 0x22)})
    assert find(isolator(), excluded=frozenset({"i8259"})) is None
    assert not any(handmade.full(2, 0x22) in sent for one in fake.started for sent in one.checkpoints)


def test_nobody_is_blamed_when_nothing_breaks(isolator: Callable[..., Isolator], fake: type[Fake]) -> None:
    assert find(isolator()) is None


def test_nobody_is_blamed_for_another_kind_of_break(
    isolator: Callable[..., Isolator], fake: type[Fake], handmade: Handmade
) -> None:
    fake.bug = frozenset({handmade.full(4, 0x22)})
    assert isolator().find("kernel", "bound", 1, frozenset(), Judgement(verdict=Verdict.REJECT)) is None


def test_a_secondary_that_does_not_even_start_ends_the_search(
    isolator: Callable[..., Isolator], fake: type[Fake]
) -> None:
    fake.dies_at_start = True
    searcher = isolator()
    blame = find(searcher)
    assert blame is None or blame.judgement.verdict is Verdict.CRASH
    assert len(fake.started) < 20


def test_what_is_refused_is_left_out_of_the_incoming_stream_as_well(
    isolator: Callable[..., Isolator], fake: type[Fake], handmade: Handmade
) -> None:
    """The state of another QEMU: one section is refused, and another one breaks a load."""
    fake.bug = frozenset({handmade.full(4, 0x22)})
    fake.refuses = handmade.full(5, 0x11)[10:]
    blame = find(isolator(), excluded=frozenset({handmade.sections[5]}))
    assert blame is not None
    assert blame.sections == (handmade.ahci,)


def test_what_is_left_out_and_is_no_trouble_stays_in_the_incoming_stream(
    isolator: Callable[..., Isolator], fake: type[Fake], handmade: Handmade
) -> None:
    fake.bug = frozenset({handmade.full(4, 0x22)})
    blame = find(isolator(), excluded=frozenset({handmade.sections[5]}))
    assert blame.sections == (handmade.ahci,)
    # one to see that it begins, one for the sweep, one to confirm
    assert len(fake.started) == 3


def test_where_the_machine_is_reset_the_parked_cpu_comes_along(
    isolator: Callable[..., Isolator], fake: type[Fake], handmade: Handmade
) -> None:
    fake.bug = frozenset({handmade.full(4, 0x22)})
    assert find(isolator(resets=True)).sections == (handmade.ahci,)
    for one in fake.started:
        for sent in one.checkpoints:
            assert b"cpu_common" in sent
            assert b"\x03cpu" in sent


def test_again_means_twice_in_one_buffer(
    isolator: Callable[..., Isolator], fake: type[Fake], handmade: Handmade
) -> None:
    fake.bug = frozenset({handmade.full(4, 0x22) * 2})
    assert find(isolator()) is None
    blame = find(isolator(again=True))
    assert blame.sections == (handmade.ahci,)
    assert blame.how.together


def test_a_search_stops_when_it_is_told(isolator: Callable[..., Isolator], fake: type[Fake]) -> None:
    scope = ProcessScope()
    scope.stop()
    with pytest.raises(Stopped):
        find(isolator(scope=scope))


def test_who_breaks_the_incoming_stream_is_found_by_leaving_out(
    isolator: Callable[..., Isolator], fake: type[Fake], handmade: Handmade
) -> None:
    for number in (2, 3, 4, 5):
        fake.refuses = handmade.full(number, 0x22)
        blame = isolator().find_incoming("bound", frozenset(), Judgement(verdict=Verdict.CRASH))
        assert blame is not None
        assert (blame.sections, blame.judgement.verdict) == ((handmade.sections[number],), Verdict.CRASH)


def test_of_two_that_break_the_incoming_stream_the_one_with_its_assertion_is_to_blame(
    isolator: Callable[..., Isolator], fake: type[Fake], handmade: Handmade
) -> None:
    """Also where the other one was found before, and breaks it alone as well, in another way."""
    said = "qemu: ../../hw/%s.c:1: %s: Assertion `%s' failed."
    first, second = said % ("cirrus", "set_offset", "mr->alias"), said % ("xhci", "msix_unuse", "vector < n")
    fake.asserts = {handmade.full(3, 0x22): first, handmade.full(5, 0x22): second}
    searcher = isolator(suspects=[suspect(handmade.sections[5]), suspect(handmade.sections[3])])
    assertion = Assertion(function="set_offset", expression="mr->alias", file="cirrus.c")
    whole = Judgement(verdict=Verdict.CRASH, cause=Ended(step=Step.INCOMING, assertion=assertion))
    blame = searcher.find_incoming("bound", frozenset(), whole)
    assert blame is not None
    assert (blame.sections, blame.judgement.assertion) == ((handmade.sections[3],), assertion)


def test_nobody_is_to_blame_for_an_incoming_stream_that_breaks_for_all(
    isolator: Callable[..., Isolator], fake: type[Fake]
) -> None:
    fake.dies_at_start = True
    assert isolator().find_incoming("bound", frozenset(), Judgement(verdict=Verdict.CRASH)) is None


def test_whom_qemu_names_is_not_searched_for(
    isolator: Callable[..., Isolator], fake: type[Fake], handmade: Handmade
) -> None:
    judgement = Judgement(verdict=Verdict.REJECT, named=handmade.sections[3])
    blame = isolator().find_incoming("bound", frozenset(), judgement)
    assert blame is not None
    assert (blame.sections, fake.started) == ((handmade.sections[3],), [])


def test_a_suspect_of_the_incoming_stream_is_tried_first(
    isolator: Callable[..., Isolator], fake: type[Fake], handmade: Handmade
) -> None:
    fake.refuses = handmade.full(5, 0x22)
    blame = isolator(suspects=[suspect("gone"), suspect(handmade.sections[5])]).find_incoming(
        "bound", frozenset(), Judgement(verdict=Verdict.CRASH)
    )
    assert blame is not None
    # without it, and with it alone
    assert (blame.sections, len(fake.started)) == ((handmade.sections[5],), 2)


def test_who_makes_a_machine_die_in_its_reset_is_found_by_leaving_out(
    isolator: Callable[..., Isolator], fake: type[Fake], handmade: Handmade, monkeypatch: pytest.MonkeyPatch
) -> None:
    def reset(vm: Fake, _timeout_s: float) -> None:
        if culprit in vm.stream:
            vm._die(Step.REQUEST)

    monkeypatch.setattr(engine, "reset_machine", reset)
    searcher = isolator(reset_first=True)
    for number in (3, 5):
        culprit = handmade.full(number, 0x22)
        blame = searcher.find_at_reset("bound", frozenset(), Judgement(verdict=Verdict.CRASH))
        assert blame is not None
        assert blame.sections == (handmade.sections[number],)
    culprit = b""  # dies whatever was loaded
    assert searcher.find_at_reset("bound", frozenset(), Judgement(verdict=Verdict.CRASH)) is None


@pytest.mark.parametrize("number", [2, 4, 5])
def test_where_the_reset_before_a_load_breaks_what_is_there_is_to_blame_and_nothing_that_is_loaded(
    isolator: Callable[..., Isolator], fake: type[Fake], handmade: Handmade, number: int
) -> None:
    fake.spoils_resets = handmade.full(number, 0x11)
    blame = find(isolator(resets=True))
    assert (blame.sections, blame.phase) == ((handmade.sections[number],), "kernel")


def test_where_the_reset_breaks_for_what_is_not_there_nobody_is_to_blame(
    isolator: Callable[..., Isolator], fake: type[Fake], handmade: Handmade
) -> None:
    """Such as a bus that counts the interrupts of a device which was left out of the incoming stream."""
    fake.spoils_resets = handmade.full(2, 0x11)
    absent = frozenset({handmade.sections[5]})
    assert isolator(resets=True).find("kernel", "bound", 1, absent, Judgement(verdict=Verdict.CRASH), absent) is None
