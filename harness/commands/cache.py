# SPDX-License-Identifier: GPL-2.0-or-later
"""``postload cache``: what the cache holds, and less of it."""

from __future__ import annotations

import re
import time
from datetime import UTC, datetime

from rich.markup import escape

from harness.cache import GRACE_S, PRUNABLE, cache_root, folder_bytes, prunable, remove_kept, to_prune
from harness.commands.output import err, print_json
from harness.errors import UsageError
from harness.report.console import SafeConsole
from harness.report.text import plural

_UNITS = {"": 0, "K": 10, "M": 20, "G": 30, "T": 40}
_DAY_S = 86400.0
_WHAT = {
    "packs": "recordings of guests",
    "imported": "guests of packs from elsewhere",
    "made": "marks of cases that were made here",
    "guests": "kernels and initramfs of guests",
    "qemus": "QEMUs installed by name",
    "debs": "downloaded Debian packages",
    "apt": "lists of Debian packages",
}


def show(as_json: bool) -> int:
    """Print sizes by kind; returns the exit code."""
    root = cache_root()
    sizes = {path.name: folder_bytes(path) for path in sorted(root.glob("*")) if path.is_dir()}
    if as_json:
        print_json({"schema": "postload.cache/1", "folder": str(root), "size_bytes": sizes, "prunable": list(PRUNABLE)})
        return 0
    console = SafeConsole()
    console.print(f"{escape(str(root))}: {_size(sum(sizes.values()))}", soft_wrap=True)
    for name, count in sorted(sizes.items(), key=lambda each: -each[1]):
        more = ", can be pruned" if name in PRUNABLE else ""
        console.print(f"  {_size(count):>9}  {name}: {_WHAT.get(name, 'answers that are kept')}{more}", soft_wrap=True)
    return 0


def prune(*, keep: str | None, older: float | None, dry_run: bool) -> int:
    """Remove what was not used lately; returns the exit code.

    :raises UsageError: nothing says how much
    """
    if keep is None and older is None:
        raise UsageError("expected --keep SIZE or --older DAYS, such as --keep 2G")
    folders = prunable()
    going = to_prune(
        folders,
        time.time(),
        keep_bytes=None if keep is None else size_of(keep),
        older_s=None if older is None else older * _DAY_S,
    )
    gone = [each for each in going if dry_run or remove_kept(each)]
    for each in gone:
        used = datetime.fromtimestamp(each.used_s, UTC).strftime("%Y-%m-%d %H:%M UTC")
        err.print(f"  {_size(each.size_bytes):>9}  {escape(str(each.path))}, used last {used}", soft_wrap=True)
    freed = sum(each.size_bytes for each in gone)
    left = sum(each.size_bytes for each in folders) - freed
    verb = "would be removed" if dry_run else "removed"
    console = SafeConsole()
    console.print(f"{verb}: {plural(len(gone), 'folder')}, {_size(freed)}; left: {_size(left)}", soft_wrap=True)
    if keep is not None and left > size_of(keep):
        console.print(f"more stays because it is in use, or was in the last {GRACE_S / 60:.0f} minutes", soft_wrap=True)
    return 0


def size_of(text: str) -> int:
    """``2G`` or ``500M`` in bytes.

    :raises UsageError: it is no size
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([KMGT]?)(?:i?B)?", text.strip(), re.IGNORECASE)
    if match is None:
        raise UsageError(f"--keep {text}: expected a size such as 2G or 500M")
    return int(float(match[1]) * (1 << _UNITS[match[2].upper()]))


def _size(size_bytes: int) -> str:
    return f"{size_bytes / (1 << 30):.1f} GiB" if size_bytes >= 1 << 30 else f"{size_bytes / (1 << 20):.1f} MiB"
