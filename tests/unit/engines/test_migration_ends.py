# SPDX-License-Identifier: GPL-2.0-or-later
"""Whose fault the end of a migration between two processes is, from what both say and from who is still there."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from harness.colo.messages import Step
from harness.colo.primary import ChannelBroken
from harness.colo.symptom import Doing
from harness.deadline import Deadline, Lost
from harness.engines import migration, pair
from harness.engines import postcopy as postcopy_engine
from harness.engines.incoming import Incoming, ended_in_postcopy
from harness.engines.migration import RealMigration
from harness.errors import DeadlineError, QemuError
from harness.qemu.process import Exit
from harness.qemu.vm import Vm

REFUSED = "qemu: error while loading state for instance 0x0 of device '0000:00:04.0/virtio-blk'\n"
SILENT = "silent"
GONE = "gone"
SEGFAULT = Exit(status=-11, signal="SIGSEGV")


class FakeVm:
    """Says a status, or nothing when its main loop stands still, or is gone."""

    def __init__(self, status: str | None, *, end: Exit | None = None, log: str = "") -> None:
        self._status = status
        self._end = end
        self.process = SimpleNamespace(stderr=lambda: log, clock=SimpleNamespace(lost=Lost))
        self.monitor = self
        self.deadline = Deadline

    def qmp(self, command: str, *_: object, **__: object) -> dict[str, Any]:
        assert command == "query-migrate"
        if self._end is not None or self._status == GONE:
            raise QemuError("closed")
        if self._status == SILENT:
            raise DeadlineError("no answer")
        return {} if self._status is None else {"status": self._status}

    def poll_until(self, command: str, done: Any, *, timeout_s: float) -> dict[str, Any]:
        info = self.qmp(command)
        if not done(info):
            raise DeadlineError(f"still {info} after {timeout_s:g} s")
        return info

    def ended(self, _within_s: float = 0.0) -> Exit | None:
        return self._end


def check(source: FakeVm, destination: FakeVm, *, timeout_s: float = 30.0) -> None:
    owner = cast(RealMigration, SimpleNamespace(timeout_s=timeout_s))
    migration._Move(owner, cast(Vm, source), cast(Vm, destination))._check()


def broken(source: FakeVm, destination: FakeVm, *, timeout_s: float = 30.0) -> str:
    with pytest.raises(ChannelBroken) as caught:
        check(source, destination, timeout_s=timeout_s)
    assert caught.value.step is Step.INCOMING
    return caught.value.kind


@pytest.mark.parametrize(
    "status",
    [
        "setup", "wait-unplug", "active", "pre-switchover", "device", "postcopy-device", "postcopy-active",
        "postcopy-recover-setup", "postcopy-recover", "completed", SILENT,
    ],
)  # fmt: skip
def test_while_it_goes_on_nobody_is_to_blame(status: str) -> None:
    check(FakeVm(status), FakeVm("active"))
    check(FakeVm("active"), FakeVm(status))
    assert broken(FakeVm(status), FakeVm("active"), timeout_s=-1.0) == "late"


@pytest.mark.parametrize("status", ["failed", "failing", "cancelled", "cancelling", "postcopy-paused"])
def test_a_destination_that_will_not_complete_refuses(status: str) -> None:
    assert broken(FakeVm("postcopy-active"), FakeVm(status)) == "refused"
    assert broken(FakeVm("postcopy-paused"), FakeVm(status)) == "refused"


@pytest.mark.parametrize("status", ["failed", "failing", "cancelled", "cancelling", "postcopy-paused"])
def test_of_a_source_that_will_not_complete_the_destination_tells_whose_fault_it_is(status: str) -> None:
    assert broken(FakeVm(status), FakeVm(SILENT)) == "refused"
    assert broken(FakeVm(status), FakeVm("active", end=Exit(status=1, signal=None))) == "closed"
    with pytest.raises(migration._SourceFailed):
        check(FakeVm(status), FakeVm("postcopy-active"))


def test_a_source_that_is_gone_leaves_a_destination_that_is_well_without_blame() -> None:
    with pytest.raises(migration._SourceFailed):
        check(FakeVm("active", end=SEGFAULT), FakeVm("active"))


@pytest.mark.parametrize(
    ("end", "log", "kind"),
    [
        (SEGFAULT, REFUSED, "died"),
        (SEGFAULT, "qemu: loadvm failed during postcopy: -22: no\n", "died"),
        (SEGFAULT, "qemu: warning: no\n", "closed"),
        (Exit(status=1, signal=None), REFUSED, "closed"),
    ],
)
def test_a_destination_that_dies_of_cleaning_up_had_refused(end: Exit, log: str, kind: str) -> None:
    vm = FakeVm("active", end=end, log=log)
    assert ended_in_postcopy(Step.LOAD, cast(Vm, vm)).kind == kind
    assert broken(FakeVm("postcopy-paused"), vm) == kind


@pytest.mark.parametrize("status", ["failed", "cancelled", "postcopy-paused"])
def test_an_incoming_stream_that_ended_badly_is_refused_with_its_status(status: str) -> None:
    there = cast(Incoming, SimpleNamespace(vm=FakeVm(status), _timeout_s=1.0))
    with pytest.raises(ChannelBroken, match=status) as caught:
        Incoming._wait_loaded(there)
    assert caught.value.kind == "refused"


@pytest.mark.parametrize("status", ["failing", "cancelling", "active", "device", "colo", None])
def test_an_incoming_stream_is_waited_for_while_its_end_or_its_reason_is_open(status: str | None) -> None:
    there = cast(Incoming, SimpleNamespace(vm=FakeVm(status), _timeout_s=1.0))
    with pytest.raises(ChannelBroken) as caught:
        Incoming._wait_loaded(there)
    assert caught.value.kind == "late"


class FakeSource:
    """A return path on which nothing comes any more."""

    def __init__(self, *, shut: int | None = None, gone: str | None = None) -> None:
        self.shut = shut
        self.gone = gone

    def wait(self, done: Any, _within_s: float) -> bool:
        return bool(done())


@pytest.mark.parametrize(
    ("vm", "source", "kind"),
    [
        (FakeVm("failing"), FakeSource(), "refused"),
        (FakeVm("failed"), FakeSource(), "refused"),
        (FakeVm("postcopy-paused"), FakeSource(), "refused"),
        (FakeVm("postcopy-device"), FakeSource(), "late"),
        (FakeVm("postcopy-active"), FakeSource(), "late"),
        (FakeVm(SILENT), FakeSource(), "late"),
        (FakeVm(SILENT), FakeSource(shut=1), "refused"),
        (FakeVm(SILENT), FakeSource(gone="closed"), "refused"),
        (FakeVm("active", end=SEGFAULT, log=REFUSED), FakeSource(shut=1), "died"),
        (FakeVm("active", end=SEGFAULT), FakeSource(gone="closed"), "closed"),
        (FakeVm(GONE), FakeSource(), "late"),
    ],
)
def test_a_postcopy_destination_that_gave_up_is_not_called_late(vm: FakeVm, source: FakeSource, kind: str) -> None:
    load = cast(Any, SimpleNamespace(_vm=vm, source=source, _timeout_s=-1.0))
    load._info = lambda step: postcopy_engine._Load._info(load, step)
    load._given_up = lambda step, what: postcopy_engine._Load._given_up(load, step, what)
    with pytest.raises(ChannelBroken) as caught:
        postcopy_engine._Load._until(load, Step.LOAD, lambda: False, Doing.PACKAGE)
    assert caught.value.kind == kind


@pytest.mark.parametrize(
    ("status", "given_up"),
    [
        ("failing", True),
        ("failed", True),
        ("cancelling", True),
        ("cancelled", True),
        ("colo", False),
        ("device", False),
    ],
)
def test_a_primary_gives_up_when_its_migration_does(status: str, given_up: bool) -> None:
    assert pair._gave_up([{"event": "MIGRATION", "data": {"status": status}}]) is given_up
