# SPDX-License-Identifier: GPL-2.0-or-later
"""Domains become what the libvirt of this host makes of them, not only what one made of them once."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from made_libvirt import DOMAINS, STARTED, Refused, lacks, told, translated

from harness.adopt.commandline import read_command_line
from harness.adopt.domain import read_domain


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    if why := lacks():
        pytest.skip(why)
    with tempfile.TemporaryDirectory(prefix="v", dir="/tmp") as name:
        yield Path(name)


@pytest.mark.parametrize("path", sorted(DOMAINS.glob("*.xml")), ids=lambda path: path.stem)
def test_a_domain_is_what_this_libvirt_makes_of_it(path: Path, folder: Path) -> None:
    interfaces = path.stem in STARTED
    try:
        text = translated(path, folder)
    except Refused as why:
        pytest.skip(str(why))
    ours = told(read_domain(path.read_text(), path.name), interfaces=interfaces)
    libvirts = told(read_command_line(text, "libvirt"), interfaces=interfaces)
    assert ours - libvirts == {}
    assert libvirts - ours == {}
