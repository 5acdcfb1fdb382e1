# SPDX-License-Identifier: GPL-2.0-or-later
"""What is kept of a pack's encoded state: as much as fits, the last used longest."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from harness.engines import buffers as module
from harness.engines.buffers import Buffers
from harness.packs.pack import StatePack
from harness.state.transforms import GuestMode


def test_what_is_kept_has_a_bound_in_bytes(make_pack: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    with StatePack(make_pack()) as pack:
        buffers = Buffers(pack)
        first, second, *_ = pack.phases

        def state(phase: str) -> bytes:
            return buffers.whole_state(phase, GuestMode.RUNNING)

        one, other = state(first), state(second)
        assert state(first) is one
        assert state(second) is other
        monkeypatch.setattr(module, "_KEPT_BYTES", len(one) + len(other) - 1)
        buffers = Buffers(pack)
        one, other = state(first), state(second)
        assert state(second) is other
        assert state(first) is not one
        # what never fits is made each time, and pushes nothing out
        monkeypatch.setattr(module, "_KEPT_BYTES", 1)
        assert state(second) == other
