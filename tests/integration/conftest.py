# SPDX-License-Identifier: GPL-2.0-or-later
"""Everything in this folder has the marker ``integration`` and needs a real QEMU.

The fixtures are a ladder: QEMU, guest, state packs. A pack is recorded once and kept in the normal cache under the
name by which ``postload matrix`` looks for it, so that the commands under test find it there.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from harness.arch import AARCH64, X86_64
from harness.arch.accel import choose_accel
from harness.devices.device import device_types
from harness.devices.recipe import load_recipes
from harness.engines.probe import ColoAbility, probe_colo
from harness.errors import HostError, MissingError
from harness.guests.build import Guest, build_guest
from harness.guests.recipe import load_recipe
from harness.names import USUAL_PHASES
from harness.packs.pack import StatePack
from harness.qemu.binary import QemuBinary, find_binary, host_binary, probe_binary
from harness.state.recorder import Plan
from harness.state.recordings import Recordings, missing, planned_guests, recording_plan

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
#: For the whole of a command that boots a guest, and for a step of it, on a machine that has others to serve.
COMMAND_TIMEOUT_S = 900.0
STEP_TIMEOUT_S = 180.0

Done = subprocess.CompletedProcess[str]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    # pytest hands all items of the session to this hook, not only those of this folder.
    for item in items:
        if item.path.is_relative_to(HERE):
            item.add_marker(pytest.mark.integration)


@pytest.fixture(scope="session", autouse=True)
def qemu_path() -> Path:
    """The QEMU of the integration tests. Without one they are skipped; under CI they fail."""
    try:
        return host_binary(X86_64.program)
    except MissingError as error:
        if os.environ.get("CI", "").lower() not in ("", "0", "false"):
            pytest.fail(f"CI has to have a QEMU: {error}", pytrace=False)
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def probed() -> Callable[[str | Path], QemuBinary]:
    """Probes a binary as the command does: asked for every device type that a recipe attaches."""

    def probe(path: str | Path) -> QemuBinary:
        types = device_types(load_recipes().devices.values())
        return probe_binary(find_binary(str(path)), types)

    return probe


@pytest.fixture(scope="session")
def binary(qemu_path: Path, probed: Callable[[str | Path], QemuBinary]) -> QemuBinary:
    """The host's QEMU."""
    return probed(qemu_path)


@pytest.fixture(scope="session")
def aarch64_qemu() -> Path:
    """Without it the tests are skipped; under CI they fail."""
    try:
        return host_binary(AARCH64.program)
    except MissingError as error:
        if os.environ.get("CI", "").lower() not in ("", "0", "false"):
            pytest.fail(f"CI has to have it: {error}", pytrace=False)
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def installed_qemu(postload: Callable[..., Done]) -> Callable[[str], Path]:
    """The launcher of a version of Debian's, installed into the normal cache when it is not there. Without a network
    its tests are skipped; under CI they fail."""

    def launcher(name: str) -> Path:
        done = postload("qemu", "install", name, timeout_s=900.0)
        if done.returncode == HostError.exit_code and os.environ.get("CI", "").lower() in ("", "0", "false"):
            pytest.skip(done.stderr)
        assert done.returncode == 0, done.stderr
        return find_binary(name)

    return launcher


@pytest.fixture(scope="session")
def qemu_7_2(
    binary: QemuBinary, probed: Callable[[str | Path], QemuBinary], installed_qemu: Callable[[str], Path]
) -> QemuBinary:
    """QEMU 7.2, for what only it is known to do: the host's, or Debian 12's beside it."""
    return binary if binary.version.startswith("7.2.") else probed(installed_qemu("7.2"))


@pytest.fixture(scope="session")
def ability(binary: QemuBinary) -> ColoAbility:
    """How the host's QEMU does COLO."""
    return probe_colo(binary)


@pytest.fixture(scope="session")
def built_guest() -> Guest:
    """The default guest."""
    return build_guest(load_recipe())


@pytest.fixture(scope="session")
def plan_of(built_guest: Guest) -> Callable[[QemuBinary, str], Plan]:
    """The plan that ``postload matrix`` records a machine by."""

    def plan(binary: QemuBinary, family: str) -> Plan:
        machine = binary.machine(family)
        assert machine is not None, f"{binary.path} has no machine {family}"
        devices = [device for device in load_recipes().devices.values() if device.default]
        able = [device for device in devices if missing(device, binary, family, family) is None]
        accel = choose_accel(binary, "auto").name
        guest = planned_guests(machine.name, family, able).guests[0]
        return recording_plan(binary=binary, accel=accel, guest=built_guest, planned=guest, phases=USUAL_PHASES)

    return plan


@pytest.fixture(scope="session")
def recorded(plan_of: Callable[[QemuBinary, str], Plan]) -> Iterator[Callable[[QemuBinary, str], StatePack]]:
    """The pack of a binary and a machine family, recorded when the cache does not hold it."""
    packs: dict[tuple[str, str], StatePack] = {}

    def pack(binary: QemuBinary, family: str) -> StatePack:
        key = (binary.path, family)
        if key not in packs:
            packs[key] = _kept_or_recorded(plan_of(binary, family))
        return packs[key]

    yield pack
    for opened in packs.values():
        opened.close()


def _kept_or_recorded(plan: Plan) -> StatePack:
    """As a command under test finds it or makes it: a recording that it would make anew must not be kept open here."""
    return Recordings(fresh=False, stage=lambda _: None, message=lambda _: None).pack(plan)


@pytest.fixture(scope="session")
def pc_pack(recorded: Callable[[QemuBinary, str], StatePack], binary: QemuBinary) -> StatePack:
    """The host's QEMU, machine ``pc``, all phases."""
    return recorded(binary, "pc")


@pytest.fixture(scope="session")
def q35_pack(recorded: Callable[[QemuBinary, str], StatePack], binary: QemuBinary) -> StatePack:
    """The host's QEMU, machine ``q35``, all phases."""
    return recorded(binary, "q35")


@pytest.fixture(scope="session")
def q35_pack_7_2(recorded: Callable[[QemuBinary, str], StatePack], qemu_7_2: QemuBinary) -> StatePack:
    """QEMU 7.2, machine ``q35``, all phases."""
    return recorded(qemu_7_2, "q35")


@pytest.fixture(scope="session")
def postload() -> Callable[..., Done]:
    """Runs the program to its end: ``postload("doctor", "--json", env={...})``."""

    def run(*words: object, env: dict[str, str] | None = None, timeout_s: float = COMMAND_TIMEOUT_S) -> Done:
        return subprocess.run(
            [sys.executable, "-m", "harness", *map(str, words)],
            cwd=ROOT,
            env={**os.environ, **(env or {})},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )

    return run


@pytest.fixture
def started(scratch: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts the program and leaves it running; its scratch folders are below ``scratch``."""
    running: list[subprocess.Popen[str]] = []

    def start(*words: object, env: dict[str, str] | None = None) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-m", "harness", *map(str, words)],
            cwd=ROOT,
            env={**os.environ, "TMPDIR": str(scratch), **(env or {})},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        running.append(process)
        return process

    yield start
    for process in running:
        process.kill()
        process.communicate(timeout=30)


@pytest.fixture
def scratch() -> Iterator[Path]:
    """A folder for $TMPDIR. Short, unlike pytest's own: a unix socket's path has 107 bytes."""
    folder = Path(tempfile.mkdtemp(prefix="plt-", dir="/tmp"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def strays(scratch: Path) -> Callable[[], list[int]]:
    """Processes that have the scratch folder in their command line, which every QEMU of the program has."""

    def look() -> list[int]:
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if any(str(scratch) in word for word in process.cmdline()) and process.pid != os.getpid():
                    found.append(process.pid)
        return found

    return look


@pytest.fixture(scope="session")
def eventually() -> Callable[..., None]:
    """Waits for something that another process brings about."""

    def wait(done: Callable[[], object], what: str, timeout_s: float = STEP_TIMEOUT_S) -> None:
        end = time.monotonic() + timeout_s
        while not done():
            assert time.monotonic() < end, f"not within {timeout_s:g} s: {what}"
            time.sleep(0.02)

    return wait


@pytest.fixture
def own_cache(scratch: Path, built_guest: Guest) -> Path:
    """A cache that holds the built guest and nothing else: no recordings, no answers of probes."""
    folder = scratch / "cache"
    folder.mkdir()
    (folder / "guests").symlink_to(built_guest.kernel.parents[1])
    return folder
