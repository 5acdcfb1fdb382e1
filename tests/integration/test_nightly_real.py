# SPDX-License-Identifier: GPL-2.0-or-later
"""``postload nightly`` on a real QEMU: a planted regression is found, named and told as fixed; a kill loses nothing."""

from __future__ import annotations

import json
import signal
import subprocess
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from harness.nights.folder import NIGHT
from harness.results.events import EVENTS_NAME, Judged, RunEnded, Started, read_events
from harness.store.read import open_history

Done = subprocess.CompletedProcess[str]

#: A build with a fault: what comes in meets another card than it left.
BROKEN = """#!/bin/sh
case " $* " in *" -incoming "*) set -- "$@" -global virtio-net-pci.disable-legacy=on ;; esac
exec {qemu} "$@"
"""
REJECT = "reject:get_pci_config_device:"


def put_build(path: Path, qemu: Path, text: str = '#!/bin/sh\nexec {qemu} "$@"\n') -> None:
    path.write_text(text.format(qemu=qemu))
    path.chmod(0o755)


def document(done: Done, code: int) -> dict[str, Any]:
    assert done.returncode == code, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    assert found["exit_code"] == code
    return found


def test_a_planted_regression_is_found_named_and_told_as_fixed(
    qemu_path: Path, postload: Callable[..., Done], scratch: Path
) -> None:
    config, head = scratch / "nightly.yaml", scratch / "head"
    config.write_text(
        "qemus: [{name: head, path: head}]\nmachines: [pc]\ndevices: [virtio-net]\nphases: [firmware]\n"
        "schedules: [same]\nloads: 5\nquick: true\nbudget_minutes: 20\n"
    )

    def night() -> Done:
        return postload("nightly", "--config", config, "--json")

    head.symlink_to(qemu_path)
    first = document(night(), 0)
    assert (first["first"], first["counts"], first["planned"], first["missing"]) == (True, True, 1, [])
    (canary,) = first["canaries"]
    assert (canary["verdict"], canary["red"]) == ("reject", True)

    head.unlink()
    put_build(head, qemu_path, BROKEN)
    second = document(night(), 1)
    (new,) = second["compared"]["new"]
    assert (new["cell"].split("/")[2:], new["was"], new["is"]) == (["virtio-net", "firmware", "same"], "ok", "reject")
    assert new["signature"].startswith(REJECT)

    put_build(head, qemu_path)
    third = document(night(), 0)
    assert [(each["signature"], each["answer"]) for each in third["reproduced"]] == [(new["signature"], "gone")]
    assert [change["signature"] for change in third["compared"]["fixed"]] == [new["signature"]]


def test_a_night_without_time_and_without_a_qemu_is_red_and_tells_so(
    qemu_path: Path, postload: Callable[..., Done], scratch: Path
) -> None:
    (scratch / "nightly.yaml").write_text(
        f"qemus: ['{qemu_path}', {{name: head, tree: build}}]\nmachines: [pc]\ndevices: [ahci]\nquick: true\n"
        f"budget_minutes: 0.0001\nnotify: cp {{document}} {scratch}/told.json\n"
    )
    doc = document(postload("nightly", "--config", scratch / "nightly.yaml", "--json"), 3)
    assert (doc["counts"], doc["whole"], doc["budget_over"], doc["canaries"]) == (False, False, True, [])
    assert len(doc["missing"]) == doc["planned"] > 10
    assert [each["name"] for each in doc["absent"]] == ["head"]
    assert "nothing was built there: expected qemu-system-x86_64" in doc["absent"][0]["said"]
    assert json.loads((scratch / "told.json").read_text()) == doc
    (folder,) = scratch.glob("nights/*/night.txt")
    assert "left out, because the budget of 0.0 s was over" in folder.read_text()
    # none of the QEMUs is no night at all
    (scratch / "nightly.yaml").write_text("qemus: [{name: head, path: gone}]\n")
    assert postload("nightly", "--config", scratch / "nightly.yaml").returncode == 3
    (scratch / "nightly.yaml").write_text("qemus: [7.2]\ndevice: [ahci]\n")
    done = postload("nightly", "--config", scratch / "nightly.yaml")
    assert done.returncode == 2
    assert "nightly.yaml:2:1: unknown key 'device'; did you mean 'devices'?" in done.stderr


def test_a_night_that_is_killed_goes_on_and_nothing_is_lost_or_judged_twice(
    qemu_path: Path,
    postload: Callable[..., Done],
    started: Callable[..., subprocess.Popen[str]],
    scratch: Path,
    strays: Callable[[], list[int]],
    eventually: Callable[..., None],
) -> None:
    config = scratch / "nightly.yaml"
    config.write_text(
        f"qemus: ['{qemu_path}']\nmachines: [pc]\ndevices: [ahci]\nphases: [firmware, bound]\nloads: 40\nquick: true\n"
        "jobs: 1\n"
    )

    def events() -> list[Any]:
        (path,) = scratch.glob(f"nights/*/{EVENTS_NAME}")
        return list(read_events(path))

    def judged() -> list[str]:
        return [event.cell.id for event in events() if isinstance(event, Judged)]

    for wanted in (0, 1, 3):  # of six: some are left when it is looked at
        running = started("nightly", "--config", config)
        eventually(lambda: list(scratch.glob(f"nights/*/{EVENTS_NAME}")), "the night begins")
        eventually(lambda wanted=wanted: len(judged()) >= wanted, "cells are judged")
        running.send_signal(signal.SIGKILL)
        running.communicate(timeout=60)
        eventually(lambda: not strays(), "its QEMUs go with it")

    doc = document(postload("nightly", "--config", config, "--json"), 0)
    assert (doc["resumed"], doc["missing"]) == (True, [])
    names = judged()
    assert set(Counter(names).values()) == {1}
    assert len(names) == doc["planned"]
    assert len([event for event in events() if isinstance(event, Started)]) == 1
    assert [event.complete for event in events() if isinstance(event, RunEnded)] == [True]
    assert len(list(scratch.glob(f"nights/*/{NIGHT}"))) == 1
    with open_history(str(scratch / "history.db")) as history:
        (run,) = history.runs()
        cells = history.cells(run)
    assert run.state == "ended"
    assert sorted(cell.cell for cell in cells if cell.verdict) == sorted(names)
