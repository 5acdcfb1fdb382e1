# SPDX-License-Identifier: GPL-2.0-or-later
"""Which kept recordings are used again."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from harness.packs.pack import StatePack
from harness.state import recordings as module
from harness.state.recordings import Recordings


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
