# SPDX-License-Identifier: GPL-2.0-or-later
"""Recipes of a user's own folder on a real QEMU: all oracles hear of them, and a pack carries them along."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from harness.files import data_dir

Postload = Callable[..., subprocess.CompletedProcess[str]]

#: It has no ``life``, and a disk that fails.
SCSI = """\
name: scsi
about: a disk on virtio-scsi
attach:
  - {type: virtio-scsi-pci, name: hba}
  - {type: scsi-hd, name: hd, on: hba.0, backends: {drive: disk}}
backends:
  disk: {kind: disk, size: 64M, pattern: sda, fails_at: 98304}
drivers: [virtio_pci, virtio_scsi, sd_mod]
takes: [sda]
kernel_names: ["sd[a-z]", scsi, virtio_scsi]
guest:
  bind: load virtio_pci virtio_scsi sd_mod && bind_wait /dev/sda 10 && pattern_write sda
  fail: disk_fail sda 98304
  failed: disk_failed sda
"""
#: On a root port of its own where the machine has one, with sectors of 4096 bytes.
PORT = """\
name: port
about: a disk of 4096-byte sectors behind a root port
attach:
  - {type: virtio-blk-pci, on: pcie-port, backends: {drive: disk}}
backends:
  disk: {kind: disk, size: 64M, sector_bytes: 4096, pattern: vda}
drivers: [virtio_pci, virtio_blk]
takes: [vda]
guest:
  bind: >-
    load virtio_pci virtio_blk && bind_wait /dev/vda 10 && pattern_write vda &&
    [ "$(cat /sys/block/vda/queue/logical_block_size)" = 4096 ]
  life: disk_life vda
  unbind: pci_unbind {slot}
  rebind: pci_bind {slot} virtio-pci && bind_wait /dev/vda 10
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "devices"
    made.mkdir()
    (made / "platform.yaml").write_text((data_dir("devices") / "platform.yaml").read_text())
    return made


def cells(done: subprocess.CompletedProcess[str]) -> dict[str, dict[str, Any]]:
    found = json.loads(done.stdout)["cells"]
    return {"+".join(cell["key"]["phases"]) + "/" + cell["key"]["lane"]: cell["outcome"] for cell in found}


def test_all_oracles_hear_of_a_recipe_and_so_does_a_replay_of_its_pack(
    postload: Postload, folder: Path, own_cache: Path, tmp_path: Path
) -> None:
    (folder / "scsi.yaml").write_text(SCSI)
    env = {"POSTLOAD_CACHE": str(own_cache)}
    pack = tmp_path / "scsi.pack"
    given = ["--device", "scsi", "--phase", "bound", "--phase", "io-error"]
    made = postload("record", "--machine", "pc", "--profiles", folder, *given, "--out", pack, env=env)
    assert made.returncode == 0, made.stderr
    # nothing of the folder is left when it is replayed
    (folder / "scsi.yaml").unlink()
    more = ["--schedule", "same", "--loads", 2, "--json", "--out", tmp_path / "out"]
    done = postload("replay", pack, *given, *more, env=env)
    found = cells(done)
    assert found["bound/guest"]["verdict"] == "ok", found["bound/guest"]
    assert found["io-error/io-error"]["verdict"] == "ok", found["io-error/io-error"]


def test_a_root_port_and_sectors_of_4096_bytes(
    postload: Postload, folder: Path, own_cache: Path, tmp_path: Path
) -> None:
    (folder / "port.yaml").write_text(PORT)
    given = ["--machine", "q35", "--device", "port", "--phase", "bound", "--phase", "rebound", "--schedule", "same"]
    done = postload(
        *("matrix", "--profiles", folder, *given, "--loads", 3, "--json", "--out", tmp_path / "out"),
        env={"POSTLOAD_CACHE": str(own_cache)},
    )
    found = cells(done)
    assert {name: outcome["verdict"] for name, outcome in found.items()} == {
        "bound/same": "ok", "rebound/same": "ok", "bound/leak": "ok", "bound/guest": "ok",
        "bound/drift": "ok", "rebound/drift": "ok",
    }, found  # fmt: skip
