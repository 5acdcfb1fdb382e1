# SPDX-License-Identifier: GPL-2.0-or-later
"""Files appear whole or not at all."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from harness import files
from harness.errors import HostError
from harness.files import sha256_file, swap_folder, write_atomically, write_together

EMPTY = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
ABC = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


@pytest.mark.parametrize(("data", "digest"), [(b"", EMPTY), (b"abc", ABC)])
def test_a_hash_is_of_the_whole_content(tmp_path: Path, data: bytes, digest: str) -> None:
    (tmp_path / "file").write_bytes(data)
    assert sha256_file(tmp_path / "file") == digest


def test_a_file_is_made_with_its_folders_and_replaced(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "file"
    for data in (b"first", b"", b"second"):
        write_atomically(path, data)
        assert path.read_bytes() == data
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("blocked", ["folder", "file"])
def test_what_cannot_be_written_is_the_hosts_fault_and_leaves_nothing(tmp_path: Path, blocked: str) -> None:
    if blocked == "folder":
        (tmp_path / "in-the-way").write_text("")
        path = tmp_path / "in-the-way" / "file"
    else:
        path = tmp_path / "file"
        path.mkdir()
    with pytest.raises(HostError, match="cannot write"):
        write_atomically(path, b"data")
    assert len(list(tmp_path.rglob("*"))) == 1


def test_an_interrupted_write_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    write_atomically(path, b"old")

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_files_that_belong_together_are_replaced_when_all_of_them_can_be(tmp_path: Path) -> None:
    write_together(tmp_path, {"a": b"old", "b": b"old"})
    with pytest.raises(HostError, match="cannot write"):
        write_together(tmp_path, {"a": b"new", "no-such-folder/b": b"new"})
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"a": b"old", "b": b"old"}


def test_a_file_that_is_there_keeps_its_mode_and_a_new_one_has_the_usual(tmp_path: Path) -> None:
    path = tmp_path / "file"
    before = os.umask(0o027)
    try:
        write_atomically(path, b"new")
    finally:
        os.umask(before)
    assert path.stat().st_mode & 0o777 == 0o640
    path.chmod(0o751)
    write_atomically(path, b"newer")
    assert path.stat().st_mode & 0o777 == 0o751


KILLED = """
import os, signal, sys
from pathlib import Path
from harness.files import write_atomically
Path.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
write_atomically(Path(sys.argv[1]), b"half")
"""


def test_what_a_killed_writer_left_goes_with_the_next_one(tmp_path: Path) -> None:
    path = tmp_path / "file"
    subprocess.run([sys.executable, "-c", KILLED, path], timeout=30, check=False)
    assert list(tmp_path.glob(".tmp-*")) != []
    assert not path.exists()
    write_atomically(path, b"whole")
    assert [each.name for each in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("can_exchange", [True, False])
def test_a_folder_takes_the_place_of_another_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, can_exchange: bool
) -> None:
    if not can_exchange:
        monkeypatch.setattr(files, "_exchange", lambda *_: False)
    for name in ("new", "place"):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).touch()
    swap_folder(tmp_path / "new", tmp_path / "place")
    assert [each.name for each in (tmp_path / "place").iterdir()] == ["new"]
    assert [each.name for each in (tmp_path / "new").iterdir()] == ["place"]
    assert sorted(each.name for each in tmp_path.iterdir()) == ["new", "place"]


def test_whoever_reads_a_folder_while_it_is_replaced_finds_one_that_is_whole(tmp_path: Path) -> None:
    new, place = tmp_path / "new", tmp_path / "place"
    for folder in (new, place):
        folder.mkdir()
        (folder / "file").write_text(folder.name)
    reader = subprocess.Popen([sys.executable, "-c", READER, place], stdout=subprocess.PIPE, text=True)
    assert reader.stdout is not None
    assert reader.stdout.readline() == "reads\n"
    for _ in range(2_000):
        swap_folder(new, place)
    (tmp_path / "stop").touch()
    said, _ = reader.communicate(timeout=30)
    assert (reader.returncode, said.split()) == (0, ["new", "place"])


READER = """
import sys
from pathlib import Path
place, seen = Path(sys.argv[1]), set()
seen.add((place / "file").read_text())
print("reads", flush=True)
while not (place.parent / "stop").exists() or len(seen) < 2:
    seen.add((place / "file").read_text())
print(*sorted(seen))
"""


def test_a_folder_without_predecessor_gets_its_name(tmp_path: Path) -> None:
    (tmp_path / "new").mkdir()
    swap_folder(tmp_path / "new", tmp_path / "place")
    assert [each.name for each in tmp_path.iterdir()] == ["place"]


def test_a_folder_that_cannot_be_replaced_is_told(tmp_path: Path) -> None:
    (tmp_path / "place").mkdir()
    with pytest.raises(HostError, match=r"cannot replace .*place: No such file"):
        swap_folder(tmp_path / "new", tmp_path / "place")
    assert (tmp_path / "place").is_dir()
