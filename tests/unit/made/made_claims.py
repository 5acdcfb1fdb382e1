# SPDX-License-Identifier: GPL-2.0-or-later
"""Findings of ``postload claims`` as its questions give them, one of each kind, made by hand."""

from __future__ import annotations

from typing import Any

from harness.colo.messages import Step
from harness.results.cause import Ended
from harness.results.document import Qemu
from harness.results.outcome import Isolation, IsolationWay
from harness.results.verdict import Verdict
from harness.studies import framing, half, loads
from harness.studies.findings import (
    Described,
    FrameCase,
    Framed,
    FrameFinding,
    Half,
    HalfCase,
    HalfFinding,
    HalfPlace,
    How,
    IntervalCase,
    IntervalFigures,
    IntervalFinding,
    LoadCase,
    LoadFinding,
    LostAt,
    PairFault,
    PrimaryCase,
    StudyFinding,
    Takeover,
)
from harness.studies.model import ClaimsDoc, MachineFailure, MachineFinding, StudyAnswer

QEMU = Qemu(version="7.2.22", build="Debian", path="/usr/bin/q", sha256="a" * 64)
HOSTILE = "<script>alert(1)</script> [link](x) |pipe| [bold]"


def load_case(name: str = "bound", acked: int = 10, verdict: Verdict = Verdict.OK, **more: Any) -> LoadCase:
    return LoadCase(**{"name": name, "asked": 10, "acked": acked, "verdict": verdict, **more})


def half_case(kind: Half, **more: Any) -> HalfCase:
    """Refused, taken over, and its guest is silent with the memory of N+1."""
    known: dict[str, Any] = {
        "half": kind, "how": How.REFUSED, "messages": ("VMSTATE_RECEIVED",), "colo_exit": "error", "said": "x",
        "further_checkpoint": False, "ram_share_of_next": 1.0, "ram_of_next": True,
        "takeover": Takeover(status="running", alive=False),
    }  # fmt: skip
    return HalfCase(**{**known, **more})


def primary_case(**more: Any) -> PrimaryCase:
    """Noticed, and alive when it was told."""
    known: dict[str, Any] = {
        "fault": PairFault.KILLED, "noticed": True, "colo_exit": "error", "status_told": "running", "alive_told": True,
    }  # fmt: skip
    return PrimaryCase(**{**known, **more})


def frame_case(section: str, **more: Any) -> FrameCase:
    """Stops at its footer."""
    known: dict[str, Any] = {
        "section": section, "size_bytes": 4, "described": Described.FIELDS, "vmdesc_bytes": 4, "lengths": (4,),
        "exact": Framed(how=How.LOADED), "more": Framed(how=How.REFUSED, said="no"), "less": Framed(how=How.REFUSED),
    }  # fmt: skip
    return FrameCase(**{**known, **more})


def loads_of(*cases: LoadCase) -> LoadFinding:
    return LoadFinding(figures=loads.figures_of(cases), cases=cases)


def half_of(*cases: HalfCase, primary: tuple[PrimaryCase, ...] = ()) -> HalfFinding:
    return HalfFinding(figures=half.figures_of(cases, primary, 1.5), cases=cases, primary=primary)


def framing_of(*cases: FrameCase) -> FrameFinding:
    return FrameFinding(figures=framing.figures_of(cases), cases=cases)


def intervals_of(*cases: IntervalCase) -> IntervalFinding:
    figures = IntervalFigures(asked=sum(c.asked for c in cases), survived=sum(c.survived for c in cases))
    return IntervalFinding(figures=figures, cases=cases)


CRASHED = load_case(
    "bound", 3, Verdict.CRASH, line=HOSTILE, causes=(Ended(step=Step.LOAD, load=4, phase="bound", signal="SIGABRT"),),
    log="qemu: no", sections=("dev/X",), isolation=Isolation(way=IsolationWay.ALONE),
)  # fmt: skip
SLOW = IntervalCase(
    interval_ms=5.0, asked=101, survived=100, seconds=1.0, mean_ms=4.0, p95_ms=4.0, load_mean_ms=2.0,
    stopped_share=0.4, loading_share=0.2, broken="gone",
)  # fmt: skip
FINDINGS: tuple[StudyFinding, ...] = (
    loads_of(CRASHED, load_case(left_out=("dev/X",))),
    half_of(
        half_case(Half.WHOLE, how=How.LOADED, messages=("VMSTATE_LOADED",), incomplete=False),
        half_case(Half.CUT_INSIDE, place=HalfPlace(section="dev/X", byte=3, of=9)),
        half_case(Half.SILENT, place=HalfPlace(lost_at=LostAt.IN_RAM), takeover=Takeover(status="no-answer")),
        primary=(primary_case(), PrimaryCase(fault=PairFault.SILENT, undecided="hung")),
    ),
    framing_of(frame_case("a"), frame_case("b", described=Described.OPEN_CODED, less=None, lengths=(4, 8))),
    intervals_of(SLOW),
)


def claims_doc(**more: Any) -> ClaimsDoc:
    """All four questions on ``pc``; the first one was asked ``q35`` too, in vain."""
    answers = [
        StudyAnswer(number=n, machines=(MachineFinding(machine="pc", found=found),), seconds=1.5)
        for n, found in enumerate(FINDINGS, start=1)
    ]
    failed = MachineFailure(machine="q35", said="no pair " * 20)
    answers[0] = StudyAnswer(number=1, machines=answers[0].machines, failed=(failed,), seconds=2.0)
    known: dict[str, Any] = {
        "qemu": QEMU, "created": "2026-01-01T00:00:00+00:00", "command": ("postload", "claims"), "seconds": 6.5,
        "complete": False, "questions": tuple(answers),
    }  # fmt: skip
    return ClaimsDoc(**{**known, **more})
