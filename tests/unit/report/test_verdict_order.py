# SPDX-License-Identifier: GPL-2.0-or-later
"""The order of verdicts and the exit codes that come of them."""

from __future__ import annotations

import pytest

from harness.report.sentences import class_meaning, verdict_meaning
from harness.results.verdict import FailureClass, Verdict, exit_code, worst

ORDER = [
    "crash",
    "hang",
    "reject",
    "guest-fault",
    "drift",
    "leak",
    "flaky",
    "ok",
    "unsupported",
    "host",
    "harness-error",
]


def test_order_is_the_documented_one() -> None:
    assert [verdict.value for verdict in Verdict] == ORDER


@pytest.mark.parametrize("position", range(len(ORDER) - 1))
def test_worst_takes_the_earlier_one(position: int) -> None:
    better_first = [Verdict(name) for name in reversed(ORDER[position:])]
    assert worst(better_first) is Verdict(ORDER[position])


def test_worst_of_nothing_is_an_error() -> None:
    with pytest.raises(ValueError, match="empty"):
        worst([])


@pytest.mark.parametrize("word", [*Verdict, *FailureClass])
def test_each_has_a_meaning_of_one_line(word: Verdict | FailureClass) -> None:
    meaning = verdict_meaning(word) if isinstance(word, Verdict) else class_meaning(word)
    assert meaning
    assert "\n" not in meaning


@pytest.mark.parametrize(
    ("verdicts", "code"),
    [
        ("ok", 0),
        ("ok unsupported", 0),
        ("ok crash host harness-error", 1),
        *((f"ok {finding}", 1) for finding in ORDER[:7]),
        ("ok host", 3),
        ("ok harness-error unsupported", 3),
        ("unsupported host", 3),
        ("unsupported", 4),
        ("", 4),
    ],
)
def test_exit_code(verdicts: str, code: int) -> None:
    assert exit_code(Verdict(name) for name in verdicts.split()) == code
