# SPDX-License-Identifier: GPL-2.0-or-later
"""The cache: whole folders or none, whoever dies and whoever else builds."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from harness.cache import keep_answer, kept_answer, publish_dir
from harness.errors import HostError
from harness.files import sweep


@pytest.fixture(autouse=True)
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("POSTLOAD_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def fill(folder: Path) -> None:
    (folder / "file").write_text("whole")


def leftovers(root: Path) -> list[str]:
    return [path.name for path in root.rglob(".tmp-*")]


def test_built_once_then_kept(root: Path) -> None:
    calls: list[Path] = []

    def build(folder: Path) -> None:
        calls.append(folder)
        fill(folder)

    first, second = publish_dir("guests/a", build), publish_dir("guests/a", build)
    assert first == second == root / "guests" / "a"
    assert (first / "file").read_text() == "whole"
    assert len(calls) == 1
    assert leftovers(root) == []


def test_a_failed_build_leaves_nothing(root: Path) -> None:
    def build(folder: Path) -> None:
        fill(folder)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        publish_dir("guests/a", build)
    assert not (root / "guests" / "a").exists()
    assert leftovers(root) == []


def test_two_builders_at_once_get_one_folder(root: Path) -> None:
    both = threading.Barrier(2)
    got: list[Path] = []

    def build(folder: Path) -> None:
        fill(folder)
        both.wait(timeout=10)

    threads = [threading.Thread(target=lambda: got.append(publish_dir("k", build))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=20)
    assert got == [root / "k", root / "k"]
    assert (root / "k" / "file").read_text() == "whole"
    assert leftovers(root) == []


KILLED = """
import os, signal
from harness.cache import publish_dir, keep_answer, kept_answer
def build(folder):
    (folder / "half").write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
publish_dir("k", build)
"""


def test_a_killed_builder_leaves_nothing_that_looks_done_and_is_swept(root: Path) -> None:
    subprocess.run([sys.executable, "-c", KILLED], env=os.environ, timeout=30, check=False)
    assert leftovers(root) != []
    assert not (root / "k").exists()
    assert (publish_dir("k", fill) / "file").read_text() == "whole"
    assert leftovers(root) == []


def test_a_living_builder_is_not_swept(root: Path) -> None:
    def build(folder: Path) -> None:
        fill(folder)
        sweep(folder.parent)

    assert (publish_dir("k", build) / "file").exists()


@pytest.mark.parametrize(("code", "says"), [(errno.ENOSPC, "full"), (errno.EROFS, "cannot be written")])
def test_disk_errors_name_the_folder(root: Path, code: int, says: str) -> None:
    def build(folder: Path) -> None:
        raise OSError(code, os.strerror(code))

    with pytest.raises(HostError, match=says) as caught:
        publish_dir("k", build)
    assert str(root) in str(caught.value)


@pytest.mark.parametrize("key", ["", "/etc", "a/../b", "../a", ".tmp-x", "a//b"])
def test_keys_stay_inside(key: str) -> None:
    with pytest.raises(ValueError, match="cache key"):
        publish_dir(key, fill)


@pytest.mark.parametrize("answer", [{"a": [1]}, [], {}, False, 0, ""])
def test_an_answer_is_kept_also_an_empty_one(own_cache: Path, answer: object) -> None:
    assert kept_answer("probe/one.json") is None
    keep_answer("probe/one.json", answer)
    assert kept_answer("probe/one.json") == answer
    assert (own_cache / "probe" / "one.json").is_file()


@pytest.mark.parametrize("damage", [b"", b'{"a": ', b"\xff\xfe"])
def test_an_answer_that_cannot_be_read_is_asked_for_again(own_cache: Path, damage: bytes) -> None:
    keep_answer("probe/one.json", [1])
    (own_cache / "probe" / "one.json").write_bytes(damage)
    assert kept_answer("probe/one.json") is None
