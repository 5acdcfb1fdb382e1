# SPDX-License-Identifier: GPL-2.0-or-later
"""Which kept recordings are used again."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from harness.devices.recipe import load_recipes
from harness.errors import GuestError
from harness.packs.pack import StatePack
from harness.qemu.binary import QemuBinary
from harness.qemu.disturbance import Disturbance, Hindered, current_account
from harness.state import recorder as recorder_module
from harness.state import recordings as module
from harness.state.owners import Owners
from harness.state.recorder import CutShort, Plan, record
from harness.state.recordings import Recordings, further, planned_guests, recording_plan


@pytest.fixture
def made(
    own_cache: Path, make_pack: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> Callable[[dict[str, Any]], tuple[StatePack, list[str], list[str]]]:
    """Asks for a recording where one with such facts of its host is kept."""

    def make(host: dict[str, Any]) -> tuple[StatePack, list[str], list[str]]:
        kept = own_cache / "packs" / "key"
        kept.parent.mkdir(parents=True)
        fresh = make_pack("kept")
        manifest = fresh / "manifest.json"
        manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "host": host}))
        fresh.rename(kept)
        told: list[str] = []
        recorded: list[str] = []

        def anew(_self: Recordings, _plan: object, key: str) -> StatePack:
            recorded.append(key)
            return StatePack(kept)

        monkeypatch.setattr(module, "recording_key", lambda _: "key")
        monkeypatch.setattr(module, "further", lambda _: [])
        monkeypatch.setattr(Recordings, "_recorded", anew)
        keeper = Recordings(fresh=False, stage=lambda _: None, message=told.append)
        return keeper.pack(object()), told, recorded  # type: ignore[arg-type]

    return make


def test_a_kept_recording_is_used_again(made: Callable[..., Any]) -> None:
    pack, told, recorded = made({"schema": "postload.host/1"})
    assert (pack.manifest.host["schema"], told, recorded) == ("postload.host/1", [], [])


def test_one_without_the_facts_of_its_host_is_made_anew(made: Callable[..., Any]) -> None:
    _, told, recorded = made({})
    assert recorded == ["key"]
    assert "before recordings held the facts" in told[0]


def test_a_guest_that_the_host_disturbed_is_recorded_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tries: list[int] = []

    def boots(boot: Any) -> None:
        tries.append(1)
        if len(tries) == 1:
            boot.captured.append("kernel")
            current_account().ended(Hindered(how=Disturbance.ENDED, signal="SIGTERM"))
            raise CutShort("QEMU closed the session", phase="bound", device="ahci")
        raise GuestError("as it is when it is left alone")

    monkeypatch.setattr(recorder_module, "find_owners", lambda *_: Owners(sections={}))
    monkeypatch.setattr(recorder_module._Boot, "run", boots)
    plan: Any = SimpleNamespace(
        binary=None, accel="tcg", guest=None, planned=SimpleNamespace(devices=()), phases=("kernel", "bound")
    )
    with pytest.raises(GuestError, match="left alone"):
        record(plan, tmp_path / "pack")
    assert len(tries) == 2
    assert not list(tmp_path.iterdir())


def test_a_recording_that_goes_further_is_as_good(
    own_cache: Path, make_pack: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, binary: QemuBinary
) -> None:
    monkeypatch.setattr(module, "recording_key", lambda plan: "+".join(plan.phases))
    guest: Any = SimpleNamespace(
        identity={"kernel": {"sha256": "ab" * 32}, "initramfs": {"sha256": "cd" * 32}},
        cpus=1,
        memory_mib=16,
        cmdline="",
    )
    (planned,) = planned_guests("pc-i440fx-7.2", "pc", [load_recipes().devices["ahci"]]).guests

    def plan(*phases: str) -> Plan:
        return recording_plan(binary=binary, accel="tcg", guest=guest, planned=planned, phases=phases)

    long, short = plan("firmware", "kernel", "bound"), plan("firmware", "kernel")
    assert long in further(short)
    assert further(plan("kernel")) == []
    kept = own_cache / "packs" / "firmware+kernel+bound"
    kept.parent.mkdir(parents=True)
    fresh = make_pack("kept", "kernel", "bound")
    manifest = fresh / "manifest.json"
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "host": {"schema": "postload.host/1"}}))
    fresh.rename(kept)
    recorded: list[Plan] = []

    def anew(_self: Recordings, plan: Plan, _key: str) -> StatePack:
        recorded.append(plan)
        return StatePack(kept)

    monkeypatch.setattr(Recordings, "_recorded", anew)
    usual = Recordings(fresh=False, stage=lambda _: None, message=lambda _: None)
    assert usual.pack(short).path == kept
    assert recorded == []
    longer = plan("firmware", "kernel", "bound", "busy")
    usual.pack(longer)
    Recordings(fresh=True, stage=lambda _: None, message=lambda _: None).pack(short)
    assert recorded == [longer, short]
