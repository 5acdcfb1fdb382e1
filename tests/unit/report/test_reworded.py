# SPDX-License-Identifier: GPL-2.0-or-later
"""All sentences of reports are swapped for nonsense: signatures, known issues and smallest cases stay as they are."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml
from made_cells import ended, made_cell, refused, symptom
from made_claims import FINDINGS, claims_doc
from nonsense import NONSENSE, reword, texts

from harness.colo.messages import Step
from harness.colo.primary import ENABLE_COLO
from harness.engines.buffers import Buffers
from harness.engines.evidence import Break, Evidence, own_words
from harness.engines.probe import ColoAbility
from harness.experiments.guestlife import GuestLife
from harness.facts.compare import FactChange
from harness.guests.machine import DiskKind
from harness.oracles.guestfault import judge_life
from harness.oracles.load import judge
from harness.packs.pack import StatePack
from harness.qemu.binary import QemuBinary
from harness.qemu.process import Exit
from harness.qualify.answer import Leg
from harness.qualify.explained import FieldEvidence, SetAlike
from harness.qualify.model import QualifyDoc, Reason
from harness.qualify.run import Context, qualify_doc
from harness.qualify.static import Disagreement, StaticFinding, StaticNote, StaticState
from harness.report import reasons, sentences
from harness.report.cases import told_case
from harness.report.claims import told
from harness.report.qualify import _reasons as reasons_of
from harness.report.qualify import markdown
from harness.results.cause import Assertion, Broke, Cause, Drifted, DriftedField, Leaked, Resource
from harness.results.document import Cell, MachineResult, MatrixDoc, Qemu
from harness.results.key import CellKey
from harness.results.known import Issue, annotate
from harness.results.outcome import Isolation, IsolationWay, Repeats
from harness.results.signature import signature_of, signature_of_cell
from harness.results.verdict import Verdict
from harness.studies.model import ClaimsDoc, Question
from harness.triage.case import Case
from harness.triage.minimise import Search
from harness.triage.reduced import Candidate
from harness.triage.reduction import Reduction
from harness.triage.smallest import SmallestFound
from harness.triage.tries import Target, Tries

TABLE = yaml.safe_load((Path(__file__).parents[1] / "results/signatures.yaml").read_text(encoding="utf-8"))
LINE = "qemu-system-x86_64: ../../softmmu/memory.c:2610: f: Assertion `!s->container' failed."


def test_there_are_sentences_to_swap() -> None:
    wanted = {"cause_text", "text_of", "outcome_text", "controls_text", "isolation_text", "explained_text"}
    assert wanted | {"remedy_text", "finding_text", "markdown", "case_sentence"} <= {name for name, _ in texts()}


@pytest.fixture(params=["as they are", "reworded"])
def wording(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "reworded":
        reword(monkeypatch)
        assert sentences.text_of(made_cell(verdict=Verdict.CRASH)) == NONSENSE
        assert reasons.explained_text(FIELD) == NONSENSE
    return str(request.param)


def seen(log: str, exit: str | None = None) -> Evidence:
    numbers = {"SIGABRT": -6, "SIGSEGV": -11}
    ended_by = None
    if exit in numbers:
        ended_by = Exit(status=numbers[exit], signal=exit)
    elif exit:
        ended_by = Exit(status=int(exit.split()[-1]))
    broken = (
        None
        if "runtime error" in log
        else Break(step=Step.LOAD, kind="closed", symptom=symptom("x"), load=3, phase="bound")
    )
    acked = 5 if broken is None else 2
    log = own_words(log)
    return Evidence(loads_asked=5, loads_acked=acked, checkpoints_acked=2, broken=broken, exit=ended_by, log=log)


@pytest.mark.usefixtures("wording")
@pytest.mark.parametrize(
    "entry", [entry for entry in TABLE if "leaks" not in entry], ids=lambda entry: entry["name"][:60]
)
def test_signatures_of_real_logs_stay(entry: dict[str, Any]) -> None:
    for machine, log in entry["logs"]:
        outcome = judge(seen(log, entry.get("exit"))).outcome
        outcome = replace(outcome, sections=(entry["section"],)) if "section" in entry else outcome
        found = signature_of(outcome, machine=machine, device=entry.get("device", ""))
        assert found is not None
        assert found.name == entry["name"]


DRIFT = Drifted(section="timer", fields=(DriftedField(field="irr[3]", type="uint8", values=(1, 2)),), count=1, loads=50)
LEAK = Leaked(section="slirp", resource=Resource.THREADS, per_load=1, low=1, high=1, unit="threads", loads=9)
SELDOM = Repeats(seen=1, of=3, verdict=Verdict.HANG, others=(Verdict.OK,))
OTHERS: list[tuple[Verdict, Cause, dict[str, Any], str]] = [
    (Verdict.DRIFT, DRIFT, {"blamed": ("timer",)}, "drift:-:irr:timer:q35"),
    (Verdict.LEAK, LEAK, {"blamed": ("slirp",)}, "leak:-:threads:slirp:q35"),
    (Verdict.HANG, Broke(step=Step.FAILOVER, how="late"), {}, "hang:failover:-:-:q35"),
    (Verdict.FLAKY, Broke(step=Step.REQUEST, how="late"), {"repeats": SELDOM}, "hang:request:-:-:q35"),
    (Verdict.REJECT, refused("", how="closed"), {}, "reject:-:closed:-:q35"),
]


@pytest.mark.usefixtures("wording")
@pytest.mark.parametrize(("verdict", "cause", "more", "name"), OTHERS)
def test_signatures_of_cells_stay(verdict: Verdict, cause: Cause, more: dict[str, Any], name: str) -> None:
    found = signature_of_cell(made_cell(verdict=verdict, causes=(cause,), **more))
    assert found is not None
    assert found.name == name


KERNEL_LINES = [
    ("ata1.00: failed command: READ FPDMA QUEUED", "ata-command-failed"),
    ("ata1: hard resetting link", "ata-link-reset"),
    ("rcu: INFO: rcu_preempt detected stalls on CPUs/tasks:", "rcu-stall"),
    ("BUG: kernel NULL pointer dereference, address: 0000000000000008", "kernel-bug"),
]


@pytest.mark.usefixtures("wording")
@pytest.mark.parametrize(("line", "name"), KERNEL_LINES)
def test_signatures_of_a_guests_kernel_log_stay(line: str, name: str) -> None:
    life = GuestLife(
        phase="bound",
        devices=("platform",),
        kernel_names={},
        disks=DiskKind.PLAIN,
        loads_asked=1,
        loads_acked=1,
        kernel_log=(f"[  123.456789] {line}",),
    )
    opinion = judge_life(life)["platform"]
    cell = made_cell("pc-q35-7.2/platform/bound/guest", opinion.verdict, causes=opinion.causes)
    found = signature_of_cell(cell)
    assert found is not None
    assert found.name == f"guest-fault:-:kernel log: {name}:device platform:q35"


@pytest.mark.usefixtures("wording")
def test_known_issues_stay_known_and_others_unknown() -> None:
    cells = tuple(made_cell(verdict=verdict, causes=(cause,), **more) for verdict, cause, more, _ in OTHERS)
    doc = MatrixDoc(
        command=(), started="2026-01-01T00:00:00Z", seconds=1, complete=True, host={}, machines=(), cells=cells
    )
    issues = [Issue(signature=name, affected=("*",), link="https://x.org/1") for *_, name in OTHERS[:3]]
    held = annotate(doc, issues)
    assert [bool(cell.known) for cell in held.doc.cells] == [True, True, True, False, False]
    assert (held.exit_code, held.news) == (1, ())


class Secondary:
    """Crashes with the second load of i8259, when it was there from the beginning."""

    def __init__(self, candidate: Candidate) -> None:
        self._candidate = candidate

    def run(self) -> Evidence:
        candidate = self._candidate
        there = "i8259" in candidate.own and (candidate.start is None or "i8259" in candidate.start)
        if candidate.loads >= 2 and there:
            return replace(seen(LINE, "SIGABRT"), loads_acked=1)
        loads = candidate.loads
        return Evidence(loads_asked=loads, loads_acked=loads, checkpoints_acked=loads, broken=None, exit=None, log="")


def smallest(pack: StatePack, binary: QemuBinary) -> Case:
    cell = crashed(pack)
    target = Target(
        cell=cell,
        binary=binary,
        ability=ColoAbility(dialect=ENABLE_COLO, resets_before_load=False),
        buffers=Buffers(pack),
    )
    tries = Tries(target)
    search = Search(attempt=tries.attempt, key=lambda candidate: candidate.key)
    result = Reduction(target, search).run()
    return told_case(SmallestFound(target=target, result=result, search=search, evidence=tries.seen, leak={}))


def crashed(pack: StatePack) -> Cell:
    failed = Assertion(function="f", expression="!s->container", file="memory.c")
    cell = made_cell(
        "pc-i440fx-7.2/platform/bound/same",
        Verdict.CRASH,
        causes=(ended(LINE, load=3, phase="bound", assertion=failed),),
        blamed=("i8259",),
        sections=tuple(pack.sections_of("platform")),
        loads_asked=5,
        isolation=Isolation(way=IsolationWay.ALONE, loads=6),
    )
    assert cell.key == CellKey.parse("7.2.22/pc-i440fx-7.2/platform/bound/same")
    return cell


def test_the_smallest_case_stays(
    make_pack: Callable[..., Path], binary: QemuBinary, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Tries, "session", lambda _, candidate: Secondary(candidate))
    with StatePack(make_pack()) as pack:
        before = smallest(pack, binary)
        reword(monkeypatch)
        after = smallest(pack, binary)
    assert (before.sections, before.loads, before.expect.verdict) == (("i8259",), 2, "crash")
    assert before.signature is not None
    assert before.signature["name"] == "crash:f:!s->container:i8259:pc"
    spent = before.spent
    assert (before.sentence.startswith("2 loads of section i8259"), after.sentence) == (True, NONSENSE)
    assert replace(after, sentence=before.sentence, spent=spent) == before
    assert (after.spent.sessions, after.spent.loads) == (spent.sessions, spent.loads)


FIELD = FieldEvidence(
    section="slirp", field="len", said="no", recorded=1024, loading="256", setting=SetAlike.QUEUE_SIZE
)
OLD = Qemu(version="7.2.22", build="", path="/old", sha256="a" * 64)
NEW = Qemu(version="10.0.13", build="", path="/new", sha256="b" * 64)


class Witness:
    """Knows why each load failed, and what the static check says."""

    def explain(self, cell: Cell, reason: Reason) -> Reason:
        return replace(reason, explained=(FIELD,), field="len", phase="bound")

    def changes(self, _: Leg) -> list[FactChange]:
        return []

    def static(self, _: Leg) -> dict[str, tuple[StaticNote, ...]]:
        finding = StaticFinding(section="slirp", vmsd="slirp", state=StaticState.CLEAN)
        return {"virtio-net": (StaticNote(how=Disagreement.CLEAN_AND_FAILED, findings=(finding,)),)}


def qualified() -> QualifyDoc:
    """Rejected by migration and by COLO alike, at home too; another device is well."""
    ways: dict[str, Any] = {"record_qemu": OLD, "loads_asked": 1, "loads_acked": 1}
    bad: dict[str, Any] = {
        "verdict": Verdict.REJECT,
        "causes": (refused("", how="closed"),),
        "blamed": ("slirp",),
        "loads_acked": 0,
    }
    cells = [
        made_cell(f"pc-i440fx-7.2/{device}/bound/{lane}", load_qemu=loader, **{**ways, **more})
        for loader in (NEW, OLD)
        for lane in ("plain", "same")
        for device, more in (("virtio-net", bad), ("ahci", {}))
    ]
    machines = (
        MachineResult(machine="pc-i440fx-7.2", qemu=NEW, record_qemu=OLD),
        MachineResult(machine="pc-i440fx-7.2", qemu=OLD),
    )
    doc = MatrixDoc(
        command=(),
        started="2026-01-01T00:00:00Z",
        seconds=1,
        complete=True,
        host={},
        machines=machines,
        cells=tuple(cells),
    )
    return qualify_doc(doc, Context(binaries={}, witness=Witness()))  # type: ignore[arg-type]


def test_the_answer_of_qualify_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    before = qualified()
    page = markdown(before)
    reword(monkeypatch)
    after = qualified()
    assert after == before
    assert NONSENSE not in json.dumps(after.to_json())
    assert after.answer == "no-go"
    (net,) = [device for device in after.pairs[0].devices if device.answer == "no-go"]
    assert [(reason.use, reason.at_home, reason.explained) for reason in net.because] == [
        ("migration", True, (FIELD,)),
        ("colo", True, (FIELD,)),
    ]
    # two uses fell over the same field: that is one reason, whatever it is called
    assert page.count("\n- reject in migration and colo: virtio-net") == 1
    assert len(list(reasons_of(after.pairs[:1]))) == 1


class Lab:
    family = "pc"


LABS: Any = [Lab()]


def test_the_answers_of_claims_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    def document() -> ClaimsDoc:
        questions = [Question(number=found.question, ask=partial(lambda found, _: found, found)) for found in FINDINGS]
        answers = [replace(question.answer(LABS), seconds=0.0) for question in questions]
        return claims_doc(questions=tuple(answers))

    before = document()
    reword(monkeypatch)
    after = document()
    assert (after, after.to_json()) == (before, before.to_json())
    assert NONSENSE not in json.dumps(after.to_json())
    assert NONSENSE in told(after)[0].answer
