# SPDX-License-Identifier: GPL-2.0-or-later
"""Names of failures: the table of real logs, and what must not make a difference."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from made_cells import symptom

from harness.colo.messages import Step
from harness.engines.evidence import Break, Evidence, own_words
from harness.experiments.interview import After
from harness.guests.lack import Lack, Lacks
from harness.oracles.load import judge
from harness.qemu.process import Exit
from harness.qemu.threads import THREADS
from harness.results.cause import (
    Broke,
    Check,
    Drifted,
    DriftedField,
    During,
    Ended,
    FailedCheck,
    GuestFaulted,
    KernelComplaint,
    Leaked,
    Refused,
    Resource,
    Side,
    Unsupported,
    located,
)
from harness.results.outcome import Outcome, Repeats
from harness.results.signature import Signature, family_of, normal, plain_section, plain_sections, signature_of
from harness.results.verdict import Verdict

TABLE: list[dict[str, Any]] = yaml.safe_load(Path(__file__).with_name("signatures.yaml").read_text(encoding="utf-8"))
SIGNALS = {"SIGABRT": 6, "SIGSEGV": 11}
#: The same words say the same wherever they come: which load, which engine, which phase.
PLACES = (
    Break(step=Step.LOAD, kind="closed", symptom=symptom("x"), load=6, phase="bound"),
    Break(step=Step.INCOMING, kind="closed", symptom=symptom("another"), load=1, phase="busy"),
    Break(step=Step.INCOMING, kind="closed", symptom=symptom(""), load=0, phase="kernel"),
)
CASES = [
    pytest.param(entry, machine, log, at, id=f"{entry['name'][:60]}-{machine}-{number}-{at.load}")
    for entry in TABLE
    if "leaks" not in entry
    for number, (machine, log) in enumerate(entry["logs"])
    for at in PLACES
]
#: Entries of a QEMU that went on, or that ended without a word of it.
UNBROKEN = ("runtime error",)


def ended(name: str | None) -> Exit | None:
    if name is None:
        return None
    return Exit(status=-SIGNALS[name], signal=name) if name in SIGNALS else Exit(status=int(name.split()[-1]))


def outcome_of(entry: Mapping[str, Any], log: str, at: Break) -> Outcome:
    """What the oracle makes of a log."""
    unbroken = any(words in log for words in UNBROKEN)
    evidence = Evidence(
        loads_asked=6,
        loads_acked=6 if unbroken else max(0, at.load - 1),
        checkpoints_acked=0,
        broken=None if unbroken else at,
        exit=ended(entry.get("exit")),
        log=own_words(log),
    )
    judged = judge(evidence)
    wanted = "host" if entry["name"].startswith("host:") else entry["verdict"]
    assert judged.verdict == wanted
    sections = (entry["section"],) if "section" in entry else judged.outcome.sections
    return replace(judged.outcome, sections=sections)


def name(
    log: str = "", *, at: Break = PLACES[0], exit: str | None = None, section: str | None = None, **more: Any
) -> str:
    found = signature_of(
        outcome_of(
            {
                "name": "",
                "verdict": more.pop("verdict", "crash"),
                "exit": exit,
                **({"section": section} if section else {}),
            },
            log,
            at,
        ),
        machine="pc-q35-7.2",
        **more,
    )
    assert found is not None
    return found.name


def named(verdict: Verdict, *causes: Any, sections: tuple[str, ...] = (), **more: Any) -> str:
    found = signature_of(Outcome(verdict=verdict, causes=causes, sections=sections), machine="pc-q35-7.2", **more)
    assert found is not None
    return found.name


@pytest.mark.parametrize(("entry", "machine", "log", "at"), CASES)
def test_a_real_log_gets_its_name(entry: dict[str, Any], machine: str, log: str, at: Break) -> None:
    outcome = outcome_of(entry, log, at)
    found = signature_of(outcome, machine=machine, device=entry.get("device", ""))
    assert found is not None
    assert found.name == entry["name"]


@pytest.mark.parametrize("entry", [entry for entry in TABLE if "leaks" in entry])
def test_a_leak_gets_its_name_whatever_it_comes_to(entry: dict[str, Any]) -> None:
    for resource, per_load in entry["leaks"]:
        outcome = Outcome(
            verdict=Verdict.LEAK, causes=(leaked(Resource(resource), per_load),), sections=(entry["section"],)
        )
        for machine, _ in entry["logs"]:
            found = signature_of(outcome, machine=machine)
            assert found is not None
            assert found.name == entry["name"]


def leaked(resource: Resource, per_load: float = 33.5) -> Leaked:
    return Leaked(
        section="slirp", resource=resource, per_load=per_load, low=per_load - 1, high=per_load + 1, unit="bytes",
        loads=23520,
    )  # fmt: skip


def test_no_two_entries_of_the_table_have_one_name() -> None:
    names = [entry["name"] for entry in TABLE]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize(
    ("machine", "family"),
    [
        ("pc-q35-7.2", "q35"),
        ("pc-i440fx-11.1", "pc"),
        ("q35", "q35"),
        ("pc", "pc"),
        ("pc-q35-rhel9.2.0", "q35"),
        ("virt-9.0", "virt"),
        ("pseries-rhel8.6.0", "pseries"),
        ("s390-ccw-virtio-8.2", "s390-ccw-virtio"),
        ("microvm", "microvm"),
    ],
)
def test_family(machine: str, family: str) -> None:
    assert family_of(machine) == family


@pytest.mark.parametrize(
    ("label", "plain"),
    [
        ("0000:00:1f.0/ICH9LPC", "ICH9LPC"),
        ("0000:00:02.0:00.0/virtio-net", "virtio-net"),
        ("0000:00:01.2/1/usb-ptr", "usb-ptr"),
        ("0000:00:05.0/0:0:1/scsi-disk", "scsi-disk"),
        ("i8259#1", "i8259"),
        ("mc146818rtc", "mc146818rtc"),
        ("fdc", "fdc"),
        ("cafe/fdc", "cafe/fdc"),
    ],
)
def test_section_without_its_place(label: str, plain: str) -> None:
    assert plain_section(label) == plain


def test_several_sections_are_sorted_and_each_once() -> None:
    assert plain_sections(("i8259#1", "0000:00:1f.0/ICH9LPC", "i8259")) == "ICH9LPC+i8259"


def test_numbers_paths_and_versions_do_not_tell_lines_apart() -> None:
    one = normal("qemu-system-x86_64: VQ 0 size 0x100 Guest index 0x1a2 inconsistent with Host index 0x0: delta 0x1a2")
    two = normal("/opt/qemu-system-x86_64: VQ 1 size 0x80 Guest index 0x2 inconsistent with Host index 0x7: delta 0x5")
    assert one == two == "VQ # size # Guest index # inconsistent with Host index #: delta #"
    assert normal("type is 'pc-q35-7.2' and local is 'pc-i440fx-10.0'") == "type is 'q35' and local is 'pc'"
    assert normal("'virt-10.0' and virt_acpi_build, virt-io") == "'virt' and virt_acpi_build, virt-io"
    assert normal("cannot open /var/lib/x/disk.img") == "cannot open disk.img"


def test_numbers_that_are_part_of_a_name_stay() -> None:
    assert normal("i8259 and mc146818rtc and virtio-9p") == "i8259 and mc146818rtc and virtio-9p"


def test_features_are_told_by_the_bits_that_are_missing() -> None:
    def rejected(asked: int, allowed: int) -> str:
        log = (
            f"qemu-system-x86_64: Features 0x{asked:x} unsupported. Allowed features: 0x{allowed:x}\n"
            "qemu-system-x86_64: Failed to load virtio-net:virtio\n"
            "qemu-system-x86_64: error while loading state for instance 0x0 of device '0000:00:05.0/virtio-net'\n"
        )
        return name(log, verdict="reject")

    assert rejected(0x130AFFFA7, 0x179BFFFE7) == rejected(0x100AFFFA7, 0x179BFFFE7)
    assert "unsupported feature bits 26:virtio-net" in rejected(0x1 << 26 | 1, 1)
    assert rejected(0x1 << 26 | 1, 1) != rejected(0x1 << 27 | 1, 1)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("free(): invalid pointer", "free(): invalid pointer"),
        ("double free or corruption (out)", "double free or corruption (out)"),
        ("*** stack smashing detected ***: terminated", "stack smashing detected ***: terminated"),
        (
            "(process:4711): GLib-ERROR **: 12:34:56.789: ../../glib/gmem.c:106: failed to allocate 8589934592 bytes",
            "GLib-ERROR **: gmem.c: failed to allocate # bytes",
        ),
        ("qemu: hardware error: intel_iommu: bad", "hardware error: intel_iommu: bad"),
    ],
)
def test_last_words_of_libraries(line: str, words: str) -> None:
    assert name(line, exit="SIGABRT", section="x") == f"crash:-:{words}:x:q35"


def test_error_abort_is_named_by_its_function_and_message() -> None:
    log = (
        "Unexpected error in object_property_find_err() at ../qom/object.c:1304:\n"
        "qemu-system-x86_64: Property 'q35-pcihost.x' not found\nAborted"
    )
    found = name(log, exit="SIGABRT", section="x")
    assert found == "crash:object_property_find_err:Property 'q35-pcihost.x' not found:x:q35"


def test_a_plain_signal_is_told_by_section_function_and_device() -> None:
    assert name(exit="SIGSEGV", section="0000:00:04.0/virtio-blk") == "crash:-:SIGSEGV:virtio-blk:q35"
    assert name(exit="SIGSEGV", section="cpu", function="cpu_post_load.part.0") == "crash:cpu_post_load:SIGSEGV:cpu:q35"
    assert name(exit="SIGSEGV", device="ahci") == "crash:-:SIGSEGV:device ahci:q35"


def test_warnings_before_a_segfault_are_not_its_reason() -> None:
    log = "qemu-system-x86_64: warning: host doesn't support requested feature"
    assert name(log, exit="SIGABRT", section="x") == "crash:-:SIGABRT:x:q35"
    told = "qemu-system-x86_64: Slirp: something was odd"
    assert name(told, exit="SIGSEGV", section="x") == "crash:-:SIGSEGV:x:q35"


@pytest.mark.parametrize("step", [Step.LOAD, Step.REQUEST, Step.INCOMING, Step.RESUME, Step.MAIN_LOOP, Step.FAILOVER])
def test_a_hang_is_told_by_its_step(step: Step) -> None:
    for said in ("no answer for 20 s", "colo-lost-heartbeat"):
        broke = Broke(step=step, load=3, how="late", symptom=symptom(said))
        found = named(Verdict.HANG, broke, sections=("0000:00:1f.0/ICH9LPC",))
        assert found == f"hang:{step.value}:-:ICH9LPC:q35"


def test_the_stacks_of_a_qemu_that_hung_are_not_its_words() -> None:
    log = (
        f"qemu-system-x86_64: Failed to load device state: -22\n{THREADS}\n  12 qemu: running\n#0  0x00007f in ppoll ()"
    )
    assert name(log, verdict="reject", section="x") == "reject:-:error EINVAL:x:q35"


def drifted(*fields: str, section: str = "0000:00:1f.0/ICH9LPC", loads: int = 50) -> Drifted:
    return Drifted(
        section=section,
        fields=tuple(DriftedField(field=field, type="uint8", values=(1, loads)) for field in fields),
        count=len(fields),
        loads=loads,
    )


def test_drift_is_told_by_its_fields() -> None:
    def told(*fields: str, loads: int = 50) -> str:
        cause = drifted(*fields, loads=loads)
        return named(Verdict.DRIFT, cause, sections=(cause.section,))

    found = told("irr[3]", "irr[4]", "parent_obj.config[64]", "tail")
    assert found == "drift:-:irr, parent_obj.config[64]:ICH9LPC:q35"
    assert told("irr[3]", "irr[6]", "parent_obj.config[64]", "other", loads=49) == found
    assert told("isr[3]", "isr[4]", "parent_obj.config[64]") != found


def test_drift_of_several_sections_is_told_by_the_first_fields_of_all() -> None:
    causes = drifted("a", section="x"), drifted("b", "c", "d", section="y")
    assert named(Verdict.DRIFT, *causes, sections=("x", "y")) == "drift:-:a, b, c:x+y:q35"


def test_a_leak_of_descriptors_is_another_than_one_of_memory() -> None:
    memory = named(Verdict.LEAK, leaked(Resource.MEMORY), sections=("slirp",))
    both = leaked(Resource.MEMORY, 90), leaked(Resource.DESCRIPTORS, 1)
    assert memory == "leak:-:memory:slirp:q35"
    assert named(Verdict.LEAK, *both, sections=("slirp",)) == "leak:-:descriptors:slirp:q35"
    assert named(Verdict.LEAK, leaked(Resource.PAGES), sections=("slirp",)) == memory


def faulted(*checks: FailedCheck) -> GuestFaulted:
    return GuestFaulted(step=Step.AFTER, phase="bound", checks=checks, after=After.FAILOVER)


def test_a_fault_of_the_guest_is_told_by_its_device_and_kind() -> None:
    def fault(check: FailedCheck, *more: FailedCheck, device: str = "ahci") -> str:
        return named(Verdict.GUEST_FAULT, faulted(check, *more), device=device)

    ran = {"check": Check.KERNEL_LOG, "complaint": KernelComplaint.ATA_EXCEPTION}
    one = FailedCheck(said="ata3.00: exception Emask 0x0 SAct 0x7000 SErr 0x0 action 0x6 frozen", **ran)  # type: ignore[arg-type]
    two = FailedCheck(said="ata1.00: exception Emask 0x0 SAct 0x1 SErr 0x0 action 0x6 frozen", **ran)  # type: ignore[arg-type]
    other = FailedCheck(check=Check.DEVICE, said="x", status=1)
    assert fault(one, other) == fault(two) == "guest-fault:-:kernel log: ata-exception:device ahci:q35"
    assert fault(one, device="virtio-blk") != fault(one)
    beats = [FailedCheck(check=Check.HEARTBEAT, figures={"beats": beats, "passed_s": 3.1}) for beats in (0, 1)]
    assert fault(beats[0]) == fault(beats[1]) == "guest-fault:-:the heartbeat went on by # in # s:device ahci:q35"
    assert fault(other) == "guest-fault:-:x (status #):device ahci:q35"


def test_words_of_this_program_name_nothing() -> None:
    stuck = [
        FailedCheck(check=Check.CONSOLE, symptom=symptom(said))
        for said in ("no prompt for 30 s", "the console is gone")
    ]
    assert len({named(Verdict.GUEST_FAULT, faulted(each), device="platform") for each in stuck}) == 1


def test_where_it_happened_names_nothing() -> None:
    cause = Ended(step=Step.LOAD, load=1, signal="SIGSEGV")
    elsewhere = located(replace(cause, load=7), phase="busy", during=During.FAILING_DISK)
    assert elsewhere != cause
    assert named(Verdict.CRASH, elsewhere, sections=("x",)) == named(Verdict.CRASH, cause, sections=("x",))


def test_a_refusal_without_a_word_is_told_by_how_the_channel_ended() -> None:
    refused = Refused(step=Step.LOAD, load=1, how="closed", symptom=symptom("the secondary closed the channel"))
    assert named(Verdict.REJECT, refused, sections=("x",)) == "reject:-:closed:x:q35"
    assert named(Verdict.REJECT, replace(refused, how="", status=1)) == "reject:-:QEMU printed no reason:-:q35"


def test_a_failure_that_comes_now_and_then_has_the_name_of_what_it_is() -> None:
    cause = Broke(step=Step.LOAD, load=1, how="late")
    seldom = Repeats(seen=2, of=3, verdict=Verdict.HANG, others=(Verdict.OK,))
    flaky = signature_of(Outcome(verdict=Verdict.FLAKY, causes=(cause,), repeats=seldom), machine="q35")
    assert flaky == signature_of(Outcome(verdict=Verdict.HANG, causes=(cause,)), machine="q35")


@pytest.mark.parametrize("verdict", [Verdict.OK, Verdict.UNSUPPORTED, Verdict.HARNESS_ERROR])
def test_what_is_no_finding_has_no_name(verdict: Verdict) -> None:
    cause = Unsupported(side=Side.LOADER, lack=Lack(what=Lacks.TYPES, names=("x",)))
    assert signature_of(Outcome(verdict=verdict, causes=(cause,)), machine="q35") is None


def test_the_name_stands_in_json_too() -> None:
    found = Signature(kind="crash", function="f", assertion="a:b", file="x.c", section="s", family="pc")
    assert found.to_json()["name"] == "crash:f:a:b:s:pc"
