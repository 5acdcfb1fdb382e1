# SPDX-License-Identifier: GPL-2.0-or-later
"""Domains that nobody would write are read or refused, and nothing else: no other error, and no long wait."""

from __future__ import annotations

import re

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from made_libvirt import DOMAINS

from harness.adopt.domain import read_domain
from harness.errors import UsageError

TEXTS = [path.read_text() for path in sorted(DOMAINS.glob("*.xml"))]
VALUE = re.compile(r"(?<==\")[^\"]*(?=\")")
ELEMENT = re.compile(r"<(\w+)[^<>]*/>|<(\w+)[^<>]*>[^<>]*</\2>")
WHERE = re.compile(r"odd\.xml:\d+: ")
NUMBERS = st.sampled_from(
    ["0", "-1", "1", "255", "4096", "4000000000", "18446744073709551616", "0x", "1e9", "\u0663", "007"]
)
ODD = st.text(st.characters(exclude_characters='"<&', exclude_categories=["Cs", "Cc"]), max_size=8)


def _one(draw: st.DrawFn, pattern: re.Pattern[str], text: str) -> re.Match[str] | None:
    matches = list(pattern.finditer(text))
    return matches[draw(st.integers(0, len(matches) - 1))] if matches else None


@st.composite
def domains(draw: st.DrawFn) -> str:
    """A domain of ours with some values changed, and some elements gone, doubled or moved."""
    text = draw(st.sampled_from(TEXTS))
    for _ in range(draw(st.integers(1, 4))):
        if value := _one(draw, VALUE, text):
            text = text[: value.start()] + draw(NUMBERS | ODD) + text[value.end() :]
    for _ in range(draw(st.integers(0, 3))):
        if element := _one(draw, ELEMENT, text):
            times = draw(st.sampled_from([0, 2, 40]))
            text = text[: element.start()] + element[0] * times + text[element.end() :]
    return text


@given(domains())
@settings(max_examples=200, suppress_health_check=[HealthCheck.too_slow], deadline=10_000)
def test_a_domain_is_read_or_refused(text: str) -> None:
    assert _read(text) is None or WHERE.match(str(_read(text)))


@given(st.text(max_size=200))
@settings(deadline=10_000)
def test_any_text_is_refused(text: str) -> None:
    assert WHERE.match(str(_read(text)))


def _read(text: str) -> UsageError | None:
    try:
        return None if read_domain(text, "odd.xml").options else UsageError("no options")
    except UsageError as refused:
        return refused
