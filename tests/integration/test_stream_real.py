# SPDX-License-Identifier: GPL-2.0-or-later
"""Streams that a real QEMU writes: each is read, named to its last byte, and written back the same."""

from __future__ import annotations

import contextlib
import ctypes
import json
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from harness.stream.fields import find, walk
from harness.stream.ram import RamImage
from harness.stream.reader import open_stream, read_devices, read_stream
from harness.stream.vmdesc import decode

pytestmark = pytest.mark.integration

_QEMU = shutil.which("qemu-system-x86_64")
_TIMEOUT_S = 180.0
_PR_SET_PDEATHSIG = 1
_DEVICES = """
    -netdev user,id=n0 -device virtio-net-pci,netdev=n0
    -blockdev null-co,node-name=d0,size=1048576 -device ich9-ahci,id=a0 -device ide-hd,bus=a0.0,drive=d0
    -blockdev null-co,node-name=d1,size=1048576 -device virtio-blk-pci,drive=d1
    -serial null -device qemu-xhci,id=x -device usb-kbd,bus=x.0 -device e1000
"""


class Qmp:
    """Just enough of QMP for these tests; every wait ends with the socket's time-out."""

    def __init__(self, path: Path, process: subprocess.Popen[bytes]) -> None:
        self.socket = _connect(path, process)
        self.file = self.socket.makefile("rwb", buffering=0)
        self.file.readline()
        self.run("qmp_capabilities")

    def run(self, command: str, **arguments: Any) -> Any:
        self.file.write(json.dumps({"execute": command, "arguments": arguments}).encode() + b"\n")
        while True:
            line = self.file.readline()
            assert line, f"QEMU died during {command}"
            answer = json.loads(line)
            if "event" not in answer:
                assert "return" in answer, answer
                return answer["return"]

    def migrate(self, path: Path) -> None:
        self.run("migrate", uri=f"exec:cat > {path}")
        deadline = time.monotonic() + _TIMEOUT_S
        while (status := self.run("query-migrate").get("status")) != "completed":
            assert status != "failed"
            assert time.monotonic() < deadline, f"migration is {status}"
            time.sleep(0.02)

    def close(self) -> None:
        self.file.close()
        self.socket.close()


def _connect(path: Path, process: subprocess.Popen[bytes]) -> socket.socket:
    deadline = time.monotonic() + _TIMEOUT_S
    while True:
        attempt = socket.socket(socket.AF_UNIX)
        attempt.settimeout(_TIMEOUT_S)
        try:
            attempt.connect(str(path))
        except OSError:
            attempt.close()
            assert process.poll() is None, "QEMU did not start"
            assert time.monotonic() < deadline, "QEMU opened no monitor"
            time.sleep(0.02)
        else:
            return attempt


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


@contextlib.contextmanager
def _qemu(machine: str, folder: Path) -> Iterator[Qmp]:
    monitor = folder / "qmp"
    options = f"-M {machine} -accel tcg -m 64 -smp 2 -nodefaults -display none -S".split()
    options += ["-qmp", f"unix:{monitor},server=on,wait=off"]
    assert _QEMU
    with (folder / "stderr").open("wb") as log:
        process = subprocess.Popen(
            [_QEMU, *options, *_DEVICES.split()],
            stdin=subprocess.DEVNULL,
            stderr=log,
            preexec_fn=_die_with_parent,
        )
    try:
        qmp = Qmp(monitor, process)
        try:
            yield qmp
        finally:
            qmp.close()
    finally:
        process.kill()
        process.wait(_TIMEOUT_S)


@pytest.fixture(scope="module", params=["pc", "q35"])
def recorded(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a stream, and the device state of the same machine at the same moment."""
    if _QEMU is None:
        pytest.skip("no qemu-system-x86_64")
    folder = tmp_path_factory.mktemp(request.param)
    with _qemu(request.param, folder) as qmp:
        qmp.run("xen-save-devices-state", filename=str(folder / "xen"), live=False)
        qmp.migrate(folder / "stream")
    return folder


def test_round_trip(recorded: Path) -> None:
    with open_stream(recorded / "stream") as stream:
        assert b"".join(stream.encode()) == (recorded / "stream").read_bytes()
        assert stream.machine.startswith("pc-")
        assert stream.own_vmdesc


def test_every_byte_of_every_section_is_named(recorded: Path) -> None:
    with open_stream(recorded / "stream") as stream:
        assert stream.vmdesc is not None
        assert {"timer", "slirp", "cpu", "globalstate"} <= {s.idstr for s in stream.devices}
        for section in stream.devices:
            desc = section.desc
            assert desc is not None
            fields = decode(section.payload, desc)
            assert sum(field.size for field in fields) == len(section.payload), section.idstr
            assert not [f for f in walk(fields) if f.type == "raw"], section.idstr
            for parent in walk(fields):
                if parent.children:
                    inside = sum(child.size for child in parent.children)
                    header = 6 + len(parent.name) if parent.type == "subsection" else 0
                    assert inside + header == parent.size, parent.path


def test_known_values(recorded: Path) -> None:
    with open_stream(recorded / "stream") as stream:
        assert stream.vmdesc is not None
        cpu = stream.section("cpu")
        assert cpu is not None
        assert cpu.desc is not None
        fields = decode(cpu.payload, cpu.desc)
        assert find(fields, "env.eip").value == 0xFFF0
        assert find(fields, "env.eflags").value == 0x2
        opaque = {d.vmsd_name or d.name for d in stream.vmdesc.devices if d.open_coded}
        assert {"slirp", "virtio-net", "virtio-blk"} <= opaque


def test_ram_is_the_guests(recorded: Path) -> None:
    with open_stream(recorded / "stream") as stream:
        assert stream.ram_blocks[0].size_bytes == 64 << 20
        image = RamImage.from_stream(stream)
        names = [block.name for block in image.blocks]
        bios = names.index("pc.bios")
        last = image.page(bios, len(image.pages[bios]) - 1)
        assert last is not None
        assert last[-16] == 0xEA  # the far jump at the reset vector
        sent = sum(len(section) for section in stream.ram)
        assert sent >= sum(len(pages) for pages in image.pages)


def test_device_state_without_vmdesc(recorded: Path) -> None:
    with open_stream(recorded / "stream") as stream:
        vmdesc, keys = stream.vmdesc, [s.key for s in stream.devices]
    assert vmdesc is not None
    raw = (recorded / "xen").read_bytes()
    alone = read_stream(raw, vmdesc=vmdesc)
    assert [s.key for s in alone.devices] == keys
    assert b"".join(alone.encode()) == raw
    assert [s.key for s in read_devices(raw, vmdesc=vmdesc, start=8)] == keys
