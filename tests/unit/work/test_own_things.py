# SPDX-License-Identifier: GPL-2.0-or-later
"""What a worker makes of a task that came by its store: its own QEMU, and the recording that the store carries."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
from made_postgresql import Cluster

from harness.cache import cache_root
from harness.errors import HostError, PackError, UsageError
from harness.files import sha256_file
from harness.lanes.lane import Request
from harness.packs.export import export_pack
from harness.packs.pack import StatePack
from harness.results.key import CellKey
from harness.work.hosted import OwnThings
from harness.work.jobs import Jobs, open_jobs
from harness.work.task import QemuFile, RecordingFile, Task


@pytest.fixture
def jobs(postgresql: Cluster, own_cache: Path) -> Iterator[Jobs]:
    name = postgresql.create()
    with closing(open_jobs(postgresql.url(name))) as opened:
        yield opened
    postgresql.drop(name)


@pytest.fixture
def qemu(tmp_path: Path) -> Path:
    program = tmp_path / "qemu-system-x86_64"
    program.write_bytes(b"a program")
    return program


@pytest.fixture
def things(jobs: Jobs, qemu: Path) -> OwnThings:
    return OwnThings(jobs, {sha256_file(qemu): str(qemu)})


@pytest.fixture
def carried(jobs: Jobs, make_pack: Callable[..., Path], tmp_path: Path) -> str:
    """A recording in the store, by its content."""
    with StatePack(make_pack()) as pack:
        file = export_pack(pack, tmp_path / "one.pack")
        jobs.put_recording(pack.content, file, sha256_file(file))
        return pack.content


def task(content: str, sha256: str) -> Task:
    machine = "pc-i440fx-7.2"
    return Task(
        recording=RecordingFile(path="", content=content),
        loader=QemuFile(path="", sha256=sha256),
        request=Request(lane="same", machine=machine, phases=("bound",), devices=("ahci",), loads=3),
        answers=(CellKey.parse(f"7.2/{machine}/ahci/bound/same"),),
    )


def test_a_task_gets_this_hosts_files(jobs: Jobs, things: OwnThings, carried: str, qemu: Path) -> None:
    asked = task(carried, sha256_file(qemu))
    own = things.admitted(asked.to_json())
    assert own.loader.path == str(qemu)
    folder = Path(own.recording.path)
    assert folder.parent == cache_root() / "packs"
    with StatePack(folder) as pack:
        assert (pack.content, pack.foreign) == (carried, True)
    assert replace(own, loader=asked.loader, recording=asked.recording) == asked
    with jobs.connected() as connection:
        connection.execute("DELETE FROM recordings")
    assert things.admitted(asked.to_json()) == own, "it is here now"


def test_what_this_host_does_not_have_is_refused(things: OwnThings, carried: str, qemu: Path) -> None:
    with pytest.raises(UsageError, match="it has no QEMU with the hash abababab"):
        things.admitted(task(carried, "ab" * 32).to_json())
    with pytest.raises(HostError, match=r"the recording cdcdcdcd.* is not in postgresql"):
        things.admitted(task("cd" * 32, sha256_file(qemu)).to_json())
    with pytest.raises(UsageError, match="not a task"):
        things.admitted('{"request": "rm -rf /"}')


def test_a_qemu_that_was_replaced_is_not_started(things: OwnThings, carried: str, qemu: Path) -> None:
    sha256 = sha256_file(qemu)
    qemu.write_bytes(b"another program")
    with pytest.raises(HostError, match="another program than when the worker began"):
        things.admitted(task(carried, sha256).to_json())


def test_a_recording_that_is_not_what_it_is_called_is_refused(
    jobs: Jobs, things: OwnThings, carried: str, qemu: Path, tmp_path: Path
) -> None:
    file = tmp_path / "one.pack"
    jobs.put_recording("cd" * 32, file, sha256_file(file))
    with pytest.raises(PackError, match="is another one"):
        things.admitted(task("cd" * 32, sha256_file(qemu)).to_json())
    cut = tmp_path / "cut"
    cut.write_bytes(file.read_bytes()[:-100])
    jobs.put_recording("ef" * 32, cut, sha256_file(file))
    with pytest.raises(PackError, match="is damaged"):
        things.admitted(task("ef" * 32, sha256_file(qemu)).to_json())
    whole = hashlib.sha256(cut.read_bytes()).hexdigest()
    jobs.put_recording("ba" * 32, cut, whole)
    with pytest.raises(PackError, match="cut or changed"):
        things.admitted(task("ba" * 32, sha256_file(qemu)).to_json())
    assert not any((cache_root() / "contents").glob("*")), "nothing is remembered of them"
