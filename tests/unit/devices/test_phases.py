# SPDX-License-Identifier: GPL-2.0-or-later
"""How far a device comes."""

from __future__ import annotations

from harness.devices.phases import Missed, MissedPhases, Unreached, unreached_in


def lack(phase: str, step: str = "bind", how: Missed = Missed.FAILED) -> Unreached:
    return Unreached(phase=phase, how=how, step=step, said="alas")


def test_what_stands_on_a_phase_is_not_reached_without_it() -> None:
    lacks = MissedPhases()
    lacks.ends("nic", lack("bound"))
    reached = [phase for phase in ("busy", "unbound", "rebound", "io-error") if lacks.goes_on("nic", phase)]
    assert reached == []
    assert {phase: each.step for phase, each in lacks.of("nic").items()} == dict.fromkeys(
        ("bound", "busy", "unbound", "rebound", "io-error"), "bind"
    )
    assert all(lacks.goes_on("disk", phase) for phase in ("busy", "unbound"))


def test_a_device_that_nothing_moves_is_unbound_all_the_same() -> None:
    lacks = MissedPhases()
    lacks.ends("fan", lack("busy", "busy", Missed.NOTHING_TO_DO))
    assert lacks.goes_on("fan", "unbound")
    assert lacks.goes_on("fan", "rebound")
    assert not lacks.goes_on("fan", "busy")


def test_the_first_reason_stays() -> None:
    lacks = MissedPhases()
    lacks.ends("nic", lack("unbound", "idle"))
    lacks.ends("nic", lack("unbound", "unbind"))
    assert lacks.of("nic")["unbound"].step == "idle"


def test_phases_are_out_of_reach_when_none_of_them_was_reached() -> None:
    lacks = {"bound": lack("bound"), "busy": lack("busy")}
    assert unreached_in(lacks, ("bound",)) == [lacks["bound"]]
    assert unreached_in(lacks, ("bound", "busy")) == list(lacks.values())
    assert unreached_in(lacks, ("kernel", "bound")) == []
    assert unreached_in({}, ()) == []
