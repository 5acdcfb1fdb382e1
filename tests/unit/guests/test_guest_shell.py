# SPDX-License-Identifier: GPL-2.0-or-later
"""Functions of the guest's shell say what failed: it stands in the cell of the device."""

from __future__ import annotations

import re
import subprocess

import pytest

from harness.guests.recipe import guests_folder

#: Programs of the guest that do as they are told, and its clock: 40 s pass between two looks.
FAKES = """
passed=0
read() { now=$passed.5; passed=$((passed + 40)); }
cat() { echo down; }
sleep() { :; }
ip() { test "$1" != "$FAILS"; }
ping() { test "$FAILS" != ping; }
"""


def function(name: str) -> str:
    """The text of a function, in whichever file of the guests it stands."""
    texts = [path.read_text() for path in sorted(guests_folder().rglob("*.sh"))]
    (found,) = [match[0] for text in texts for match in re.finditer(rf"^{name}\(\) {{$.*?^}}$", text, re.M | re.S)]
    return found


@pytest.mark.parametrize(
    ("fails", "said"),
    [
        ("link", "net_up: eth0 cannot be set up"),
        ("addr", "net_up: eth0 takes no address"),
        ("ping", "net_up: no answer of 10.0.2.2 within 30 s; link of eth0: down"),
        ("nothing", ""),
    ],
)
def test_net_up_says_what_failed(fails: str, said: str) -> None:
    script = f"{FAKES}\n{function('net_up')}\nnet_up"
    done = subprocess.run(
        ["sh", "-c", script], env={"FAILS": fails}, capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout, done.stderr.strip()) == (int(bool(said)), "", said)
