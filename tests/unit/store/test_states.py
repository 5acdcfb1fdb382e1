# SPDX-License-Identifier: GPL-2.0-or-later
"""The rules of ``rules.yaml``: facts to states, rates, and files of rules with mistakes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from harness.errors import ConfigError
from harness.store.states import (
    SHIPPED,
    CellFacts,
    CellState,
    Look,
    Reproduced,
    SeenBefore,
    SignatureFacts,
    SignatureState,
    fail_rate,
    read_rules,
)

RULES = read_rules()


@pytest.mark.parametrize(
    ("state", "facts"),
    [
        # it is there
        ("new", {"now": "fails", "was": "ok"}),
        ("new", {"now": "fails", "was": "other"}),
        ("new", {"now": "fails", "was": "never"}),
        ("new", {"now": "fails", "was": "ok", "seen": "elsewhere"}),
        ("still", {"now": "fails", "was": "never", "seen": "elsewhere"}),
        ("still", {"now": "fails", "was": "fails", "seen": "here"}),
        ("still", {"now": "fails", "was": "ok", "known": True}),
        ("back", {"now": "fails", "was": "ok", "seen": "here"}),
        ("flaky", {"now": "fails", "was": "ok", "seen": "here", "flaky": True}),
        # it is not
        ("unseen", {"now": "ok", "was": "fails"}),
        ("unseen", {"now": "other", "was": "fails"}),
        ("unseen", {"now": "ok", "was": "fails", "reproducer": "undecided"}),
        ("fixed", {"now": "ok", "was": "fails", "reproducer": "gone"}),
        ("still", {"now": "ok", "was": "fails", "reproducer": "still"}),
        ("flaky", {"now": "ok", "was": "fails", "flaky": True}),
        ("passed", {"now": "ok", "was": "ok"}),
        ("passed", {"now": "unsupported", "was": "ok"}),
        # nobody knows
        ("not-run", {"now": "unjudged", "was": "fails"}),
        ("not-run", {"now": "absent", "was": "fails", "reproducer": "gone"}),
        ("unknown", {"now": "undecided", "was": "fails"}),
        ("unknown", {"now": "undecided", "was": "ok"}),
    ],
)
def test_a_finding_in_a_cell_has_one_state(state: str, facts: dict[str, Any]) -> None:
    enums = {"now": Look, "was": Look, "seen": SeenBefore, "reproducer": Reproduced}
    given: dict[str, Any] = {name: enums[name](value) if name in enums else value for name, value in facts.items()}
    assert RULES.cell_state(CellFacts(**given)) is CellState(state)


@pytest.mark.parametrize(
    ("state", "facts"),
    [
        ("open", SignatureFacts()),
        ("open", SignatureFacts(reproducer=Reproduced.STILL, seen_since=True)),
        ("open", SignatureFacts(reproducer=Reproduced.UNDECIDED)),
        ("known", SignatureFacts(known=True)),
        ("fixed-in", SignatureFacts(reproducer=Reproduced.GONE)),
        ("fixed-in", SignatureFacts(reproducer=Reproduced.GONE, known=True)),
        ("back", SignatureFacts(reproducer=Reproduced.GONE, seen_since=True)),
        ("back", SignatureFacts(reproducer=Reproduced.GONE, seen_since=True, known=True)),
    ],
)
def test_a_signature_has_one_state(state: str, facts: SignatureFacts) -> None:
    assert RULES.signature_state(facts) is SignatureState(state)


def nights(text: str) -> list[bool]:
    """``F`` failed, anything else passed."""
    return [letter == "F" for letter in text]


@pytest.mark.parametrize(
    ("text", "flaky"),
    [
        ("....F", False),  # it broke
        ("....FFFF", False),
        ("....FFFF....", False),  # and was mended
        ("....F.", False),  # one flip says nothing
        ("FFFF.", False),
        ("....FF..FF", True),
        (".F.F.", True),
        ("F.F", False),  # too few
        ("." * 19 + "F", False),
    ],
)
def test_a_hang_is_flaky_by_its_rate_and_not_by_one_flip(text: str, flaky: bool) -> None:
    assert RULES.flaky.fits("hang", fail_rate(nights(text))) is flaky


@pytest.mark.parametrize("kind", ["hang", "drift", "leak", "guest-fault", "crash", "reject"])
def test_what_counts_at_its_first_showing_is_never_flaky(kind: str) -> None:
    flaky = RULES.flaky.fits(kind, fail_rate(nights(".F.F.F.F")))
    assert flaky is (kind not in ("crash", "reject"))


def test_a_rate_has_its_interval() -> None:
    rate = fail_rate(nights("...F.F...."))
    assert (rate.failed, rate.judged, rate.changes, rate.share) == (2, 10, 4, 0.2)
    # by hand: (0.2 + 6.635/20) / 1.6635 = 0.3197, give or take 2.5758 sqrt(0.2 * 0.8/10 + 6.635/400) / 1.6635 = 0.2795
    assert (rate.low, rate.high) == pytest.approx((0.0402, 0.5992), abs=0.0005)
    assert (fail_rate([]).low, fail_rate([]).high) == (0.0, 1.0)
    assert fail_rate(nights("FFFF")).high == 1.0
    assert fail_rate(nights("....")).low == 0.0


def changed(tmp_path: Path, old: str, new: str) -> Path:
    text = SHIPPED.read_text()
    assert old in text
    path = tmp_path / "rules.yaml"
    path.write_text(text.replace(old, new, 1))
    return path


def test_rules_are_data(tmp_path: Path) -> None:
    rules = read_rules(changed(tmp_path, "least_changes: 3", "least_changes: 1"))
    assert rules.flaky.fits("hang", fail_rate(nights("....F")))


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("{is: fails, known: true}", "{is: broken, known: true}", "broken"),
        ("{is: fails, known: true}", "{is: fails, knwon: true}", "knwon"),
        ("  - {state: passed, when: {}}", "", "without conditions"),
        ("state: still", "state: better", "better"),
    ],
)
def test_a_mistake_is_told_with_its_line(tmp_path: Path, old: str, new: str, words: str) -> None:
    path = changed(tmp_path, old, new)
    with pytest.raises(ConfigError, match=rf"{path}:\d+:\d+: .*"):
        read_rules(path)
    with pytest.raises(ConfigError) as told:
        read_rules(path)
    assert words in str(told.value) or "expected" in str(told.value)
