# SPDX-License-Identifier: GPL-2.0-or-later
"""The script of a case is a program of its own; it must read what QEMU says as the engine does.

It shares no code with the engine, so that it runs where this program is not. Here the same logs are given to both.
"""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from made_cells import ended, made_cell, refused

from harness.engines.evidence import own_words
from harness.oracles import words
from harness.oracles.load import crash_line, error_line
from harness.report.bundle import shell_line
from harness.results.verdict import Verdict
from harness.triage import bundle, reproduce
from harness.triage.smallest import line_of, reason_of

SIGNATURES = Path(__file__).parents[1] / "results" / "signatures.yaml"
PACKAGE = Path(reproduce.__file__).parents[1]


def _logs() -> Iterator[tuple[str, str, str]]:
    for entry in yaml.safe_load(SIGNATURES.read_text(encoding="utf-8")):
        for machine, log in entry["logs"]:
            yield entry["verdict"], machine, log


@pytest.mark.parametrize(
    "log",
    [
        "qemu-system-x86_64: warning: a\nERROR: (subsys/subsys_ven) differqemu-system-x86_64: load failed: b",
        "qemu-kvm: a (b)qemu-kvm: cqemu-kvm: d\n",
        "it is done.qemu-system-aarch64: Failed to load x",
    ],
)
def test_both_end_the_messages_that_qemu_does_not(log: str) -> None:
    lines = re.split("(?<=[^\n])(?=qemu-)|\n", log.strip())
    assert reproduce.own_lines(log).split("\n") == [*filter(None, lines), *([""] if log.endswith("\n") else [])]
    assert own_words(log).splitlines() == reproduce.own_lines(log).splitlines()


@pytest.mark.parametrize(
    "log",
    [
        "/usr/bin/qemu-system-x86_64: error: a",
        "a: see /opt/qemu-system-x86_64: b",
        "2026-01-01T00:00:00.1Z qemu-kvm: a",
        "my-qemu-system-x86_64: a",
        "a (qemu-kvm: b)",
    ],
)
def test_both_leave_the_name_of_a_program_within_a_message(log: str) -> None:
    assert reproduce.own_lines(log) == own_words(log) == log


LOGS = [(verdict, own_words(log)) for verdict, _, log in _logs() if log]


@pytest.mark.parametrize(("verdict", "log"), LOGS)
def test_both_find_the_same_line(verdict: str, log: str) -> None:
    assert reproduce.crash_line(log) == crash_line(log)
    assert reproduce.error_line(log) == error_line(log)


@pytest.mark.parametrize(("verdict", "log"), LOGS)
def test_both_name_the_same_section(verdict: str, log: str) -> None:
    label = words.named_section(log)
    assert reproduce.named(log) == (label and re.sub(r"#\d+$", "", label))


@pytest.mark.parametrize("log", [log for verdict, log in LOGS if verdict == "reject"])
def test_both_hear_the_same_complaint(log: str) -> None:
    assert reproduce.complaint(log) == words.last_complaint(log)


@pytest.mark.parametrize("log", [log for verdict, log in LOGS if verdict == "crash"])
def test_both_know_the_assertion(log: str) -> None:
    found = words.failed_assertion(log)
    ours = (found.function, reproduce.bare(found.expression)) if found else ("", "")
    function, what = reproduce.assertion(log)
    assert (function, reproduce.bare(what)) == ours


#: What QEMU says of a load that it refuses, in each of the ways that the engine knows.
REFUSALS = (
    "Unknown section 7\nqemu-system-x86_64: load of migration failed: Invalid argument",
    "Unknown savevm section 7",
    "Unknown savevm section type 9\nqemu-system-x86_64: load of migration failed: Invalid argument",
    "Unknown section or instance 'a/b' 3. Make sure that your current VM setup matches your saved VM setup",
    "Unknown savevm section or instance 'a/b' 0. Make sure",
    "savevm: unsupported version 3 for 'apic' v2",
    "unsupported version 3 for 'apic' v2",
    "Missing section footer for apic",
    "Mismatched section id in footer for apic, read 0x1 expected 0x2",
    "Section footer error, section_id: 5 section_type: 4",
    "error while loading state section id 5(ram)",
    "error while loading state for instance 0x1 of device 'a/b'",
    "error while loading state for instance 0x0 of device 'a/b': Invalid x",
    "VQ 0 size 0x80 < last_avail_idx 0x1\nqemu: Failed to load virtio-net:virtio\n"
    "qemu: error while loading state for instance 0x0 of device 'a/virtio-net'",
    "Failed to load element of type vmstate for foo: -22\n"
    "qemu: error while loading state for instance 0x0 of device 'a/b'",
    "Loading VM subsection 'a/sub' in 'a' failed: -22\nqemu: error while loading state for instance 0x0 of device 'b'",
    "Features 0x130 unsupported. Allowed features: 0x179bfffe7\nqemu: Failed to load virtio-net:virtio",
    "get_pci_config_device: Bad config data: i=0x10 read: a device: 0 cmask: ff\nqemu: Failed to load PCIDevice:config",
    "post load hook failed for: a, version_id: 1, minimum_version: 0, ret: -22",
    "pre load hook failed for: a, version_id: 1",
    "Failed to load vmstate version_id: -22",
    "Input validation failed: fw_cfg/x version_id: 2",
    "invalid parameter value: 5",
    "Failed to load vm state",
    "Failed to load device state: -22",
    "COLO: load device state failed",
    "loadvm failed during postcopy: -5",
    "warning: x\nqemu: load of migration failed: Operation not permitted",
    "terminating on signal 15 from pid 3",
)
#: And what ends a process, in each of the ways that the engine knows.
CRASHES = (
    "../hw/a.c:12: foo: Assertion `x == 1' failed.",
    'x.c:12: int *foo(bar *): Assertion "x" failed.',
    "x.c:12: : Assertion 'x' failed.",
    "Assertion failed: x == 1 (../hw/a.c: foo: 12)",
    "Assertion failed: (x == 1), function foo, file a.c, line 12.",
    "ERROR:../a.c:12:foo: assertion failed: (x == 1)",
    "ERROR:../a.c:12:foo: assertion failed (x == y): (1 == 2)",
    "ERROR:../a.c:12:foo: code should not be reached",
    "ERROR:../a.c:12:foo: 'x' should be NULL",
    "Unexpected error in foo() at ../a.c:12:\nqemu-system-x86_64: bad thing",
    "ERROR:../a.c:12:foo: assertion failed: (x == 1)\nqemu: b.c:1: bar: Assertion `y' failed.",
    "b.c:1: bar: Assertion `y' failed.\nERROR:../a.c:12:foo: assertion failed: (x == 1)",
    "==1==ERROR: AddressSanitizer: heap-use-after-free on address",
    "==1==WARNING: MemorySanitizer: use-of-uninitialized-value",
    "WARNING: ThreadSanitizer: data race (pid=1)",
    "SUMMARY: UndefinedBehaviorSanitizer: undefined",
    "../a.c:1:2: runtime error: shift exponent 32",
    "free(): invalid pointer",
    "hardware error: foo",
)


@pytest.mark.parametrize("said", REFUSALS)
def test_both_know_every_refusal(said: str) -> None:
    log = f"qemu-system-x86_64: {said}"
    test_both_find_the_same_line("reject", log)
    test_both_name_the_same_section("reject", log)
    test_both_hear_the_same_complaint(log)


@pytest.mark.parametrize("said", CRASHES)
def test_both_know_every_crash(said: str) -> None:
    log = f"qemu-system-x86_64: {said}"
    test_both_find_the_same_line("crash", log)
    test_both_know_the_assertion(log)


def test_the_answers_have_the_same_numbers() -> None:
    ours = (bundle.REPRODUCED, bundle.NOT_REPRODUCED, bundle.UNTRIED)
    assert ours == (reproduce.REPRODUCED, reproduce.NOT_REPRODUCED, reproduce.UNTRIED)


def test_the_command_line_in_a_bundle_is_that_of_its_script() -> None:
    document = {
        "machine": "pc-q35-7.2",
        "accel": "tcg",
        "options": [
            {"name": "m", "first": "128M"},
            {"name": "kernel", "first": "{case}/kernel"},
            {"name": "append", "first": "console=ttyS0,115200 x"},
            {"name": "blockdev", "first": None, "props": {"driver": "raw", "file.filename": "{workdir}/a,b.img"}},
            {"name": "device", "first": "virtio-blk-pci", "props": {"drive": "d0", "modern": True, "queues": 2}},
        ],
    }
    line = reproduce.command_line(document, "qemu-system-x86_64", "SCRATCH", "CASE")
    assert shlex.split(shell_line(document)) == [*line, "-qmp", "stdio"]


def test_nothing_imports_the_script() -> None:
    for file in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = [alias.name for alias in node.names] + [getattr(node, "module", None) or ""]
                assert "reproduce" not in {name.rpartition(".")[2] for name in names}, file


def test_a_case_of_a_refused_load_says_what_was_refused_and_why() -> None:
    line = "error while loading state for instance 0x0 of device 'a/net'"
    log = f"qemu-system-x86_64: VQ 0 is broken\nqemu-system-x86_64: {line}"
    cell = made_cell(verdict=Verdict.REJECT, causes=(refused(line),), log=log)
    assert line_of(cell) == line
    assert reason_of(cell) == "VQ 0 is broken"
    assert reproduce.named(line) == "a/net"
    crashed = made_cell(verdict=Verdict.CRASH, causes=(ended(),), log=log)
    assert (line_of(crashed), reason_of(crashed)) == (None, None)
