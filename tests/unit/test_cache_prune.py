# SPDX-License-Identifier: GPL-2.0-or-later
"""``postload cache prune``: what goes and what stays."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from harness.cache import GRACE_S, KeptFolder, cache_root, hold, prunable, to_prune
from harness.commands.cache import size_of
from harness.commands.declared import cache
from harness.errors import UsageError

NOW_S = 1_800_000_000.0


def kept(name: str, *, days: float, size_bytes: int = 100, in_use: bool = False) -> KeptFolder:
    """A folder that was used so long ago."""
    return KeptFolder(path=Path(name), size_bytes=size_bytes, used_s=NOW_S - days * 86400, in_use=in_use)


OLD, BUSY, YOUNG, NEW = (
    kept("old", days=9),
    kept("busy", days=8, in_use=True),
    kept("young", days=2),
    kept("new", days=0),
)


@pytest.mark.parametrize(
    ("keep_bytes", "older_s", "gone"),
    [
        (None, 7 * 86400.0, [OLD]),
        (None, 86400.0, [OLD, YOUNG]),
        (300, None, [OLD]),
        (399, None, [OLD]),
        (400, None, []),
        (0, None, [OLD, YOUNG]),
        (200, 7 * 86400.0, [OLD, YOUNG]),
        (300, 7 * 86400.0, [OLD]),
    ],
)
def test_what_was_used_longest_ago_goes_first(
    keep_bytes: int | None, older_s: float | None, gone: list[KeptFolder]
) -> None:
    assert to_prune([OLD, BUSY, YOUNG, NEW], NOW_S, keep_bytes=keep_bytes, older_s=older_s) == gone


@pytest.mark.parametrize(
    ("text", "wanted"), [("2G", 2 << 30), ("500M", 500 << 20), ("1.5g", 3 << 29), ("7", 7), ("1GiB", 1 << 30)]
)
def test_sizes_as_people_write_them(text: str, wanted: int) -> None:
    assert size_of(text) == wanted


@pytest.mark.parametrize("text", ["", "G", "-1", "2X", "2 G B"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="expected a size"):
        size_of(text)


@pytest.fixture
def recordings(own_cache: Path) -> Iterator[tuple[Path, Path]]:
    """Two recordings that were used long ago; the second is held."""
    free, held = (cache_root() / "packs" / name for name in ("free", "held"))
    for path in (free, held):
        path.mkdir(parents=True)
        (path / "ram").write_bytes(bytes(10000))
    handle = hold(held)
    assert handle is not None
    for path in (free, held):
        os.utime(path, (0, 0))
    yield free, held
    os.close(handle)


def prune(*arguments: str) -> str:
    """What the command prints on stdout."""
    done = CliRunner().invoke(cache, ["prune", *arguments], standalone_mode=False, catch_exceptions=False)
    assert done.return_value == 0
    return done.stdout


def test_a_recording_in_use_stays_and_the_other_goes_whole(recordings: tuple[Path, Path]) -> None:
    free, held = recordings
    assert "would be removed: 1 folder," in prune("--older", "1", "--dry-run")
    assert free.exists()
    assert "removed: 1 folder," in prune("--older", "1")
    assert [path.name for path in (cache_root() / "packs").iterdir()] == ["held"]
    assert (held / "ram").stat().st_size == 10000
    assert "removed: 0 folders," in prune("--keep", "0")


def test_what_is_opened_counts_as_used_now(recordings: tuple[Path, Path]) -> None:
    free, held = recordings
    assert {each.path: each.in_use for each in prunable()} == {free: False, held: True}
    handle = hold(free)
    assert handle is not None
    os.close(handle)
    assert "removed: 0 folders," in prune("--older", str(GRACE_S / 2 / 86400))
    assert free.exists()


def test_nothing_is_held_outside_of_the_cache(own_cache: Path, tmp_path: Path) -> None:
    assert hold(tmp_path) is None


def test_nothing_is_pruned_without_a_measure(own_cache: Path) -> None:
    with pytest.raises(UsageError, match="--keep SIZE or --older DAYS"):
        prune()
