# SPDX-License-Identifier: GPL-2.0-or-later
"""A pack is recorded here, and replayed where nothing of here is left: no guest, no cache, another place."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from harness.cache import CACHE_VARIABLE
from harness.errors import UsageError
from harness.packs.export import export_pack
from harness.packs.pack import StatePack
from harness.qemu.binary import QemuBinary
from harness.state.recorder import Plan, record

Done = subprocess.CompletedProcess[str]
Postload = Callable[..., Done]

PHASES = ("firmware", "kernel")
LOADS = 5
#: All that these phases take is the guest's kernel, some 13 MiB of it.
MOST_BYTES = 40 << 20


@pytest.fixture(scope="module")
def plan(plan_of: Callable[[QemuBinary, str], Plan], binary: QemuBinary) -> Plan:
    return replace(plan_of(binary, "pc"), phases=PHASES)


@pytest.fixture(scope="module")
def travelled(plan: Plan, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One file, recorded and carried to another folder."""
    here = tmp_path_factory.mktemp("here") / "old-host.pack"
    record(plan, here, host={"kernel": "6.1"})
    assert [path.name for path in here.parent.iterdir()] == [here.name]
    return Path(shutil.move(here, tmp_path_factory.mktemp("there") / "brought.pack"))


@pytest.fixture(autouse=True)
def there(travelled: Path, scratch: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, for this process and for those that it starts, and nobody's home."""
    monkeypatch.setenv(CACHE_VARIABLE, str(scratch / "cache"))
    monkeypatch.setenv("HOME", str(scratch))
    monkeypatch.setenv("XDG_CACHE_HOME", str(scratch / "xdg"))
    return scratch / "cache"


def test_one_file_is_replayed_without_the_cache_it_was_recorded_with(
    travelled: Path, postload: Postload, scratch: Path, there: Path
) -> None:
    words = ["--quick", "--loads", LOADS, "--device", "platform", "--phase", "kernel", "--schedule", "same"]
    done = postload("replay", travelled, *words, "--out", scratch / "out", "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    (cell,) = json.loads(done.stdout)["cells"]
    assert (cell["outcome"]["verdict"], cell["outcome"]["loads_acked"]) == ("ok", LOADS)
    (folder,) = (there / "packs").iterdir()
    assert folder.name.startswith("imported-")
    assert not (there / "guests").exists()
    # and a second time from what is there
    before = folder.stat().st_ino
    shown = postload("inspect", travelled, "--json", "--section", "timer")
    assert shown.returncode == 0, shown.stderr
    assert folder.stat().st_ino == before


def test_the_file_knows_nothing_of_the_host_but_what_it_was_told(plan: Plan, travelled: Path) -> None:
    with StatePack(travelled) as pack:
        assert str(plan.guest.kernel.parent) not in pack.manifest.text()
        assert pack.manifest.host == {"kernel": "6.1"}
        assert {"pc.bios", "pc.rom"} <= set(pack.manifest.roms)
        files = [o.first for o in pack.machine.options if o.name in ("kernel", "initrd")]
        assert files == [str(pack.path / "guest/kernel"), str(pack.path / "guest/initramfs")]


def test_inspect_says_what_each_phase_takes(travelled: Path, postload: Postload) -> None:
    document = json.loads(postload("inspect", travelled, "--json").stdout)
    size = travelled.stat().st_size
    assert document["packed_bytes"] == size < MOST_BYTES
    parts = [entry["packed_bytes"] for entry in document["sizes"]]
    assert [entry["phase"] for entry in document["sizes"]] == list(PHASES)
    assert all(0 < part < entry["folder_bytes"] for part, entry in zip(parts, document["sizes"], strict=True))
    assert size * 0.99 < sum(parts) + document["guest_packed_bytes"] < size
    assert "in the file" in postload("inspect", travelled).stdout


def test_an_export_of_what_was_brought_is_the_same_file(travelled: Path, tmp_path: Path) -> None:
    with StatePack(travelled) as pack:
        export_pack(pack, tmp_path / "again.pack")
    assert (tmp_path / "again.pack").read_bytes() == travelled.read_bytes()


def test_a_damaged_file_is_the_users_to_mend(travelled: Path, postload: Postload, scratch: Path, there: Path) -> None:
    damaged = scratch / "damaged.pack"
    data = bytearray(travelled.read_bytes())
    data[len(data) // 2] ^= 1
    for content, said in ((bytes(data), "offset"), (bytes(data[:-7]), "expected"), (b"no pack", "not a state pack")):
        damaged.write_bytes(content)
        done = postload("replay", damaged, "--out", scratch / "out")
        assert done.returncode == 2, done.stderr
        assert str(damaged) in done.stderr
        assert said in done.stderr
        assert not list(there.rglob("*imported*"))


def test_a_file_that_is_there_is_not_recorded_over(plan: Plan, tmp_path: Path) -> None:
    (tmp_path / "a.pack").write_text("precious")
    with pytest.raises(UsageError, match=r"a\.pack: it exists already"):
        record(plan, tmp_path / "a.pack")
    assert (tmp_path / "a.pack").read_text() == "precious"
