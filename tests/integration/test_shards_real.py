# SPDX-License-Identifier: GPL-2.0-or-later
"""Three shards on a real QEMU, each a run of its own, put together: the document of one run."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

from harness.packs.pack import StatePack

ASKED = (
    "matrix", "--machine", "q35", "--device", "platform", "--phase", "kernel,bound,busy", "--schedule",
    "same,back-to-back", "--loads", "5", "--quick",
)  # fmt: skip
#: Times, rates, paths, and what a process says of itself.
OTHERWISE = ("seconds", "loads_per_second", "started", "command", "path", "pack", "log", "host")


def plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: plain(each) for key, each in value.items() if key not in OTHERWISE}
    return [plain(each) for each in value] if isinstance(value, list) else value


def document(folder: Path) -> Any:
    doc = plain(json.loads((folder / "matrix.json").read_text()))
    doc["coverage"].sort(key=lambda each: each["row"])
    return doc


def test_three_shards_give_the_document_of_one_run(
    postload: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path, q35_pack: StatePack
) -> None:
    whole = postload(*ASKED, "--out", tmp_path / "whole")
    shards = [tmp_path / f"shard{number}" for number in (1, 2, 3)]
    done = [postload(*ASKED, "--shard", f"{at}/3", "--out", out) for at, out in enumerate(shards, 1)]
    assert all(len(document(shard)["cells"]) for shard in shards), "each has something to do"
    merged = postload("merge", *shards[::-1], "--out", tmp_path / "merged")
    assert document(tmp_path / "merged") == document(tmp_path / "whole")
    assert merged.returncode == whole.returncode == max(each.returncode for each in done)
    empty = postload(*ASKED, "--shard", "9/9", "--out", tmp_path / "empty", "--json")
    assert (empty.returncode, json.loads(empty.stdout)["cells"]) == (0, [])
    assert "shard 9/9 has no cells" in empty.stderr
    cut = postload("merge", shards[0], shards[2], "--out", tmp_path / "cut")
    assert cut.returncode == 3
    assert "shard 2/3 is missing" in cut.stderr
