# SPDX-License-Identifier: GPL-2.0-or-later
"""Virtio sections that a real QEMU writes: every byte is named, and the names agree with each other."""

from __future__ import annotations

import contextlib
import ctypes
import json
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from harness.packs.pack import StatePack
from harness.qemu.binary import QemuBinary
from harness.stream.fields import Field, find, walk
from harness.stream.reader import open_stream
from harness.stream.virtio import decode_virtio, feature_names

_TIMEOUT_S = 180.0
_PR_SET_PDEATHSIG = 1
_DRIVER_OK = 4
_MODERN = "virtio/extra_state/virtio_pci/modern_state/"
_DEVICES = """
    -device pcie-root-port,id=rp,chassis=1 -device virtio-serial-pci,bus=rp,vectors=3
    -chardev null,id=c0 -device virtserialport,chardev=c0 -chardev null,id=c1 -device virtconsole,chardev=c1
    -device virtio-scsi-pci -device virtio-rng-pci,packed=on -device virtio-keyboard-pci
    -object iothread,id=io -device virtio-balloon-pci,iothread=io,free-page-hint=on,page-poison=on
    -blockdev null-co,node-name=d0,size=1048576 -device virtio-blk-pci,drive=d0,num-queues=4,packed=on
    -device virtio-net-pci,disable-modern=on,vectors=0
"""


def check_cover(fields: list[Field] | tuple[Field, ...], start: int, stop: int) -> None:
    for field in fields:
        assert field.offset == start, field.path
        start += field.size
        if field.children:
            header = 6 + len(field.name) if field.type == "subsection" else 0
            check_cover(field.children, field.offset + header, field.offset + field.size)
    assert start == stop


def decoded(payload: bytes, kind: str) -> list[Field]:
    fields = decode_virtio(payload, kind)
    check_cover(fields, 0, len(payload))
    assert not [field.path for field in walk(fields) if field.type == "raw"], kind
    return fields


def number(fields: list[Field], path: str) -> int:
    value = find(fields, path).value
    assert isinstance(value, int), path
    return value


def sections(pack: StatePack) -> Iterator[tuple[str, str, list[Field]]]:
    """Phase, kind and fields of every virtio section of a pack."""
    for phase, recording in pack.recordings.items():
        for section in recording.sections:
            desc = section.desc
            assert desc is not None
            if desc.vmsd_name.startswith("virtio-"):
                yield phase, desc.vmsd_name, decoded(bytes(section.payload), desc.vmsd_name)


@pytest.fixture(params=["pc_pack", "q35_pack"])
def pack(request: pytest.FixtureRequest) -> StatePack:
    found = request.getfixturevalue(request.param)
    assert isinstance(found, StatePack)
    return found


def test_every_recording(pack: StatePack) -> None:
    seen = set()
    for phase, kind, fields in sections(pack):
        seen.add((phase, kind))
        assert number(fields, "pci.config.vendor_id") == 0x1AF4
        assert number(fields, "queue_count") == len(find(fields, "vq").children) == (3 if kind == "virtio-net" else 1)
        features = number(fields, "virtio/64bit_features/guest_features")
        assert features & 0xFFFFFFFF == number(fields, "guest_features_lo")
        if phase in ("bound", "busy", "rebound"):
            check_driven(fields, kind, features)
        elif phase == "unbound":
            assert number(fields, "status") & _DRIVER_OK == 0
    assert {(phase, kind) for phase in pack.phases for kind in ("virtio-net", "virtio-blk")} <= seen


def check_driven(fields: list[Field], kind: str, features: int) -> None:
    """A modern driver works with the device: what it wrote is in several places, and agrees."""
    assert number(fields, "status") & _DRIVER_OK
    assert "VIRTIO_F_VERSION_1" in feature_names(kind, features)
    assert not [name for name in feature_names(kind, features) if name.startswith("bit ")]
    proxy = [number(fields, f"{_MODERN}guest_features[{half}]") for half in range(2)]
    assert proxy[0] | proxy[1] << 32 == features
    for index in range(number(fields, "queue_count")):
        ring = [number(fields, f"vq[{index}].vring.desc")]
        ring += [number(fields, f"virtio/virtqueues/vq[{index}].vring.{part}") for part in ("avail", "used")]
        proxied = [
            number(fields, f"{_MODERN}vqs[{index}].{part}[0]")
            | number(fields, f"{_MODERN}vqs[{index}].{part}[1]") << 32
            for part in ("desc", "avail", "used")
        ]
        assert ring == proxied
    if kind == "virtio-net":
        assert find(fields, "config.mac").value == find(fields, "net.mac").value
    else:
        assert number(fields, "config.capacity") > 0
        assert number(fields, "config.blk_size") == 512


def test_inspect(pc_pack: StatePack, postload: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    done = postload("inspect", pc_pack.path, "--section", "virtio-net", "--phase", "busy")
    assert done.returncode == 0, done.stderr
    lines = [line.strip() for line in done.stdout.splitlines()]
    assert any(line.startswith("guest_features: uint64 = ") and " VERSION_1" in line for line in lines)
    assert any(line.startswith("last_avail_idx: uint16 = ") for line in lines)


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


@contextlib.contextmanager
def stopped_qemu(binary: QemuBinary, folder: Path) -> Iterator[Callable[..., Any]]:
    """A QEMU with every kind of virtio device."""
    ours, its = socket.socketpair()
    ours.settimeout(_TIMEOUT_S)
    options = f"-M q35 -accel tcg -m 32 -nodefaults -display none -S {_DEVICES}".split()
    with its, ours, (folder / "stderr").open("wb") as log:
        monitor = ["-chardev", f"socket,id=m,fd={its.fileno()}", "-mon", "chardev=m,mode=control"]
        process = subprocess.Popen(
            [binary.path, *options, *monitor],
            stdin=subprocess.DEVNULL,
            stderr=log,
            pass_fds=[its.fileno()],
            preexec_fn=_die_with_parent,
        )
        its.close()
        with ours.makefile("rwb", buffering=0) as file:

            def run(command: str, **arguments: Any) -> Any:
                file.write(json.dumps({"execute": command, "arguments": arguments}).encode() + b"\n")
                while line := file.readline():
                    answer = json.loads(line)
                    if "return" in answer or "error" in answer:
                        return answer["return"]
                raise AssertionError((folder / "stderr").read_text())

            try:
                run("qmp_capabilities")
                yield run
            finally:
                process.kill()
                process.wait(_TIMEOUT_S)


def test_devices_without_a_driver(binary: QemuBinary, tmp_path: Path) -> None:
    path = tmp_path / "stream"
    with stopped_qemu(binary, tmp_path) as run:
        run("migrate", uri=f"exec:cat > {path}")
        deadline = time.monotonic() + _TIMEOUT_S
        while (status := run("query-migrate").get("status")) != "completed":
            assert status != "failed"
            assert time.monotonic() < deadline
            time.sleep(0.05)
    found = {}
    with open_stream(path) as stream:
        assert stream.vmdesc is not None
        for section in stream.devices:
            desc = section.desc
            assert desc is not None
            if desc.open_coded and desc.fields[0].type == "virtio":
                found[desc.vmsd_name] = decoded(bytes(section.payload), desc.vmsd_name)
    assert set(found) == {f"virtio-{kind}" for kind in ["console", "scsi", "rng", "input", "balloon", "blk", "net"]}
    assert find(found["virtio-console"], "pci.config").size == 4096
    assert len(find(found["virtio-console"], "pci.msix_table").children) == 3
    assert number(found["virtio-console"], "serial.nr_active_ports") == 2
    assert number(found["virtio-blk"], "queue_count") == 4
    assert number(found["virtio-blk"], "virtio/packed_virtqueues/vq[3].used_wrap_counter") == 1
    assert "pci.msix_table" not in {field.path for field in walk(found["virtio-net"])}
