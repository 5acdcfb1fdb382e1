# SPDX-License-Identifier: GPL-2.0-or-later
"""How long a stream of 100 MB takes to read: no limit is asserted, ``--benchmark-only`` shows figures."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from harness.stream.ram import RamImage
from harness.stream.reader import open_stream

from . import build

_PAGES = 25_000


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bench") / "stream"
    noise = random.Random(1).randbytes(4096)
    with path.open("wb") as file:
        file.write(build.head() + build.ram_start((("pc.ram", _PAGES * 2 * 4096),)))
        for first in range(0, _PAGES, 1000):
            records = [build.zero((_PAGES + first) * 4096, b"pc.ram")]
            for number in range(first, first + 1000):
                records += (build.page(number * 4096, noise), build.zero((_PAGES + number) * 4096))
            file.write(build.ram_more(2, b"".join(records)))
        file.write(build.toy_section() + b"\x00" + build.vmdesc(build.TOY))
    return path


def test_read_100_mb(benchmark: BenchmarkFixture, large: Path) -> None:
    def read() -> int:
        with open_stream(large) as stream:
            return sum(len(section) for section in stream.ram)

    assert benchmark(read) == _PAGES * 2 + _PAGES // 1000


def test_image_of_100_mb(benchmark: BenchmarkFixture, large: Path) -> None:
    with open_stream(large) as stream:
        image = benchmark(RamImage.from_stream, stream)
        assert sum(offset >= 0 for offset in image.pages[0]) == _PAGES
