# SPDX-License-Identifier: GPL-2.0-or-later
"""Names of failures: the table of real logs, and what must not make a difference."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from harness.results.signature import Signature, family_of, normal, plain_section, plain_sections, signature_of
from harness.results.verdict import Verdict

TABLE: list[dict[str, Any]] = yaml.safe_load(Path(__file__).with_name("signatures.yaml").read_text(encoding="utf-8"))
CASES = [
    pytest.param(entry, machine, log, text, id=f"{entry['name'][:60]}-{machine}-{number}")
    for entry in TABLE
    for number, (machine, log) in enumerate(entry["logs"])
    for text in entry.get("texts", [entry.get("text", "load 1: see the log")])
]


def name(**given: Any) -> str:
    usual: dict[str, Any] = {"text": "", "log": "", "section": None, "machine": "pc-q35-7.2", "exit": None}
    found = signature_of(**{**usual, **given})
    assert found is not None
    return found.name


@pytest.mark.parametrize(("entry", "machine", "log", "text"), CASES)
def test_a_real_log_gets_its_name(entry: dict[str, Any], machine: str, log: str, text: str) -> None:
    found = name(
        verdict=Verdict(entry["verdict"]),
        text=text,
        log=log,
        section=entry.get("section"),
        machine=machine,
        exit=entry.get("exit"),
        oracle=entry.get("oracle", "load"),
        device=entry.get("device"),
    )
    assert found == entry["name"]


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
    assert plain_sections("i8259#1, 0000:00:1f.0/ICH9LPC, i8259") == "ICH9LPC+i8259"


def test_numbers_paths_and_versions_do_not_tell_lines_apart() -> None:
    one = normal("qemu-system-x86_64: VQ 0 size 0x100 Guest index 0x1a2 inconsistent with Host index 0x0: delta 0x1a2")
    two = normal("/opt/qemu-system-x86_64: VQ 1 size 0x80 Guest index 0x2 inconsistent with Host index 0x7: delta 0x5")
    assert one == two == "VQ # size # Guest index # inconsistent with Host index #: delta #"
    assert normal("type is 'pc-q35-7.2' and local is 'pc-i440fx-10.0'") == "type is 'q35' and local is 'pc'"
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
        return name(verdict=Verdict.REJECT, log=log)

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
    assert name(verdict=Verdict.CRASH, log=line, exit="SIGABRT", section="x") == f"crash:-:{words}:x:q35"


def test_error_abort_is_named_by_its_function_and_message() -> None:
    log = (
        "Unexpected error in object_property_find_err() at ../qom/object.c:1304:\n"
        "qemu-system-x86_64: Property 'q35-pcihost.x' not found\nAborted"
    )
    found = name(verdict=Verdict.CRASH, log=log, exit="SIGABRT", section="x")
    assert found == "crash:object_property_find_err:Property 'q35-pcihost.x' not found:x:q35"


def test_a_plain_signal_is_told_by_section_function_and_row() -> None:
    given = {"verdict": Verdict.CRASH, "text": "load 3: SIGSEGV: QEMU printed no reason", "exit": "SIGSEGV"}
    assert name(**given, section="0000:00:04.0/virtio-blk") == "crash:-:SIGSEGV:virtio-blk:q35"
    assert name(**given, section="cpu", function="cpu_post_load.part.0") == "crash:cpu_post_load:SIGSEGV:cpu:q35"
    assert name(**given, device="ahci") == "crash:-:SIGSEGV:device ahci:q35"


def test_warnings_before_a_segfault_are_not_its_reason() -> None:
    log = "qemu-system-x86_64: warning: host doesn't support requested feature"
    assert name(verdict=Verdict.CRASH, log=log, exit="SIGABRT", section="x") == "crash:-:SIGABRT:x:q35"
    told = "qemu-system-x86_64: Slirp: something was odd"
    assert name(verdict=Verdict.CRASH, log=told, exit="SIGSEGV", section="x") == "crash:-:SIGSEGV:x:q35"


@pytest.mark.parametrize(
    ("text", "step", "where"),
    [
        ("load 3: the secondary gave no answer for 20 s", "LOAD", "load"),
        ("load 3: the secondary gave no answer for 20 s", "REQUEST", "request"),
        ("load 3: the secondary gave no answer for 20 s", None, "load"),
        ("in the incoming stream, before any checkpoint: the secondary took no more data for 20 s", None, "incoming"),
        ("when the guest was started after load 1: the secondary gave no answer", None, "resume"),
        ("every load was acknowledged, and then QEMU's main loop did not answer", None, "main-loop"),
        ("the failover did not end: colo-lost-heartbeat", None, "failover"),
    ],
)
def test_a_hang_is_told_by_its_step(text: str, step: str | None, where: str) -> None:
    log = "threads of QEMU while it did not answer:\n  12 qemu: running\n#0  0x00007f in ppoll () from /lib/libc.so.6"
    found = name(verdict=Verdict.HANG, text=text, log=log, section="0000:00:1f.0/ICH9LPC", step=step)
    assert found == f"hang:{where}:-:ICH9LPC:q35"


def test_drift_is_told_by_its_fields() -> None:
    text = (
        "after 50 loads it is not what it was after one: irr[3] goes from 1 to 50, +1 per load; irr[4] is 1, then 2; "
        "parent_obj.config[64] is 1, then 3, and 7 more fields"
    )
    found = name(verdict=Verdict.DRIFT, text=text, section="0000:00:1f.0/ICH9LPC", oracle="drift")
    assert found == "drift:-:irr, parent_obj.config[64]:ICH9LPC:q35"
    again = text.replace("50", "49").replace("irr[4]", "irr[6]")
    assert name(verdict=Verdict.DRIFT, text=again, section="0000:00:1f.0/ICH9LPC", oracle="drift") == found
    other = text.replace("irr", "isr")
    assert name(verdict=Verdict.DRIFT, text=other, section="0000:00:1f.0/ICH9LPC", oracle="drift") != found


def test_a_leak_of_descriptors_is_another_than_one_of_memory() -> None:
    memory = name(verdict=Verdict.LEAK, text="each load leaves behind 33 [31, 35] bytes of memory", section="slirp")
    both = "each load leaves behind 90 [80, 99] bytes of memory, 1 [1, 1] descriptors; over 100 loads"
    assert memory == "leak:-:memory:slirp:q35"
    assert name(verdict=Verdict.LEAK, text=both, section="slirp") == "leak:-:descriptors:slirp:q35"


def test_a_fault_of_the_guest_is_told_by_its_row_and_kind() -> None:
    def fault(text: str, device: str = "ahci") -> str:
        return name(verdict=Verdict.GUEST_FAULT, text=text, device=device, oracle="guest")

    one = fault("kernel log: ata3.00: exception Emask 0x0 SAct 0x7000 SErr 0x0 action 0x6 frozen; kernel log: ata3: x")
    two = fault("kernel log: ata1.00: exception Emask 0x0 SAct 0x1 SErr 0x0 action 0x6 frozen")
    assert one == two == "guest-fault:-:kernel log: libata's error handler ran:device ahci:q35"
    assert fault("kernel log: ata3.00: exception Emask 0x0", "virtio-blk") != one
    assert fault("the heartbeat went on by 0 in 3.1 s") == fault("the heartbeat went on by 1 in 2.9 s")


def test_a_flaky_failure_has_the_name_of_what_it_does_when_it_fails() -> None:
    log = "qemu-system-x86_64: ../hw/x.c:1: f: Assertion `a' failed."
    steady = name(verdict=Verdict.CRASH, text="load 1: SIGABRT: f", log=log, exit="SIGABRT", section="x")
    text = "crash in 2 of 3 runs, ok in the others: load 1: SIGABRT: f"
    assert name(verdict=Verdict.FLAKY, text=text, log=log, exit="SIGABRT", section="x") == steady


@pytest.mark.parametrize("verdict", [Verdict.OK, Verdict.UNSUPPORTED, Verdict.HARNESS_ERROR])
def test_what_is_no_finding_has_no_name(verdict: Verdict) -> None:
    assert signature_of(verdict=verdict, text="x", log="", section=None, machine="q35") is None


def test_json_and_back() -> None:
    found = Signature(kind="crash", function="f", assertion="a:b", file="x.c", section="s", family="pc")
    assert Signature.from_json(found.to_json()) == found
    assert found.to_json()["name"] == "crash:f:a:b:s:pc"
