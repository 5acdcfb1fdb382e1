# SPDX-License-Identifier: GPL-2.0-or-later
"""The walls around a QEMU that loads what came from elsewhere, in words."""

from __future__ import annotations

from harness.qemu.walls import Walls

_STANDS = {
    "sandbox": "QEMU's sandbox starts no program",
    "files": "no files but QEMU's own and scratch",
    "network": "no network",
    "user": "not root",
    "powerless": "no capabilities",
}
#: What it takes to have one that is missing.
_REMEDIES = {
    "sandbox": "a QEMU built with seccomp, as Debian's is",
    "files": "a kernel with Landlock (5.13 and later, in its list of security modules), and a short $TMPDIR",
    "network": "network or user namespaces, which a container may forbid, and a short $TMPDIR",
    "user": "start postload as another user, or use a QEMU that everybody may read",
    "powerless": "start postload as another user",
}


def walls_text(walls: Walls) -> str:
    """Those that stand, then those that do not."""
    standing = [text for name, text in _STANDS.items() if name in walls.names]
    missing = [name for name in _STANDS if name not in walls.names]
    text = ", ".join(standing) or "none stands"
    return f"{text}; missing: {', '.join(missing)}" if standing and missing else text


def walls_remedy(walls: Walls) -> str:
    """How to have those that are missing; empty when all stand."""
    return "; ".join(f"{name}: {_REMEDIES[name]}" for name in _STANDS if name not in walls.names)


def walls_warning(walls: Walls, *, root: bool) -> str | None:
    """What somebody must be told who is about to load what came from elsewhere."""
    if walls.names and not (root and walls.names == ["sandbox"]):
        return None
    who = "and this is root: use another user, or" if root else "so"
    return f"no wall of this host stands around QEMU, {who} load only packs of people whom you trust"
