# SPDX-License-Identifier: GPL-2.0-or-later
"""What the tests of the matrix share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from harness.colo.primary import ENABLE_COLO
from harness.engines.buffers import Buffers
from harness.engines.colo import Pace
from harness.engines.probe import ColoAbility
from harness.lanes.judge import Bench
from harness.packs.pack import StatePack
from harness.qemu.binary import QemuBinary
from harness.qemu.scope import ProcessScope


@pytest.fixture
def bench(make_pack: Callable[..., Path], binary: QemuBinary) -> Iterator[Bench]:
    """A handmade pack under a QEMU on paper that does not reset before a load."""
    with StatePack(make_pack()) as pack:
        yield Bench(
            binary=binary,
            ability=ColoAbility(dialect=ENABLE_COLO, resets_before_load=False),
            buffers=Buffers(pack),
            pace=Pace(),
            scope=ProcessScope(),
        )
