# SPDX-License-Identifier: GPL-2.0-or-later
"""The known crash of q35, found and minimised on a real QEMU twice: with the sentences of the reports as they are, and
with nonsense in the place of each."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from nonsense import NONSENSE, reword

from harness.cli import cli
from harness.qemu.binary import QemuBinary
from harness.triage.case import Case

SIGNATURE = "crash:memory_region_add_subregion_common:!subregion->container:ICH9LPC:q35"
KNOWN = f"""\
issues:
  - signature: "{SIGNATURE}"
    affected: ["7.2"]
    link: https://example.org/issues/1
"""


@pytest.mark.usefixtures("q35_pack_7_2")
def test_a_real_crash_keeps_its_name_its_issue_and_its_case(
    qemu_7_2: QemuBinary, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = tmp_path / "known.yaml"
    known.write_text(KNOWN)
    before = found(qemu_7_2, known, tmp_path / "plain")
    assert reword(monkeypatch) > 100
    after = found(qemu_7_2, known, tmp_path / "reworded")

    code, cell, case = before
    # only what is known failed
    assert (code, cell["signature"], cell["known"]) == (0, SIGNATURE, "https://example.org/issues/1")
    assert (case.sections, case.loads, len(case.fields)) == (("0000:00:1f.0/ICH9LPC",), 1, 1)
    assert NONSENSE not in case.sentence
    assert after[:2] == before[:2]
    reworded = after[2]
    assert reworded.sentence == NONSENSE
    assert (reworded.spent.sessions, reworded.spent.loads) == (case.spent.sessions, case.spent.loads)
    assert replace(reworded, sentence=case.sentence, spent=case.spent) == case
    assert NONSENSE in (tmp_path / "reworded" / "matrix.md").read_text()


def found(qemu: QemuBinary, known: Path, out: Path) -> tuple[int, dict[str, Any], Case]:
    """Exit code and the cell of a matrix of one device, without times and figures of its log, and its case."""
    words = ["--qemu", qemu.path, "--machine", "q35", "--phase", "bound", "--device", "platform", "--schedule", "same"]
    code = run("matrix", *words, "--loads", "3", "--quick", "--jobs", "1", "--known", known, "--out", out)
    # the finding, and the row without the section that broke
    cell = json.loads((out / "matrix.json").read_text())["cells"][0]
    assert run("minimise", cell["id"], "--run", out, "--out", out / "case") == 0
    return code, without_run(cell), Case.load(out / "case")


def run(*words: object) -> int:
    code = cli.main([str(word) for word in words], standalone_mode=False)
    assert isinstance(code, int)
    return code


def without_run(cell: dict[str, Any]) -> dict[str, Any]:
    """Without times, rates, and the log with its paths and process ids."""
    outcome = {name: value for name, value in cell["outcome"].items() if name != "log"}
    return {**cell, "seconds": 0, "loads_per_second": 0, "outcome": outcome}
