# SPDX-License-Identifier: GPL-2.0-or-later
"""Nights in a row and speeds as curves, as SVG that stands in a page: no script, no file beside it.

Colours are the page's (``pages.css``), and none tells anything alone: what is bad is also higher in a strip, and each
drawing says in words what it shows.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise

from markupsafe import Markup, escape

from harness.report.text import number, plural
from harness.results.verdict import UNDECIDED, Verdict
from harness.store.nights import Mark, Missing, mark_rank, newest
from harness.store.speeds import Curve, SpeedChange
from harness.store.write import RateKind
from harness.text import one_line

_UNIT = {RateKind.LOADS: "loads/s", RateKind.BOOT: "s of CPU to boot"}
_MISSING = {Missing.NOT_JUDGED: "not judged", Missing.ABSENT: "not planned"}
_STEP, _BAR, _HEIGHT = 4, 3, 16
#: From the top: the worse the higher.
_TOPS = {"bad": 0, "warn": 0, "err": 4, "ok": 9, "off": 12}
_WIDE, _HIGH, _LEFT, _FOOT = 360, 110, 8, 92


def mark_class(mark: Mark) -> str:
    """The class of a mark by its colour: ``bad``, ``warn``, ``err``, ``ok`` or ``off``."""
    if isinstance(mark, Missing) or mark in UNDECIDED:
        return "err"
    if mark in (Verdict.OK, Verdict.UNSUPPORTED):
        return "ok" if mark is Verdict.OK else "off"
    return "warn" if mark in (Verdict.DRIFT, Verdict.LEAK, Verdict.FLAKY) else "bad"


def mark_text(mark: Mark) -> str:
    """A mark as it is read."""
    return _MISSING[mark] if isinstance(mark, Missing) else str(mark)


def strip_text(marks: Sequence[Mark]) -> str:
    """A strip in words: ``last crash; of 30 nights crash in 3, ok in 26, not planned in 1``."""
    counts = sorted(Counter(marks).items(), key=lambda each: mark_rank(each[0]))
    parts = ", ".join(f"{mark_text(mark)} in {count}" for mark, count in counts)
    return f"last {mark_text(newest(marks))}; of {plural(len(marks), 'night')} {parts}"


def strip_svg(marks: Sequence[Mark]) -> Markup:
    """Nights in a row, the newest at the right."""
    bars: dict[str, list[str]] = {}
    for night, mark in enumerate(marks):
        if mark is not Missing.ABSENT:
            name = mark_class(mark)
            bars.setdefault(name, []).append(f"M{night * _STEP} {_TOPS[name]}h{_BAR}V{_HEIGHT}h-{_BAR}z")
    paths = "".join(f'<path class="s-{name}" d="{"".join(each)}"/>' for name, each in bars.items())
    words, width = escape(strip_text(marks)), len(marks) * _STEP
    return Markup(
        f'<svg class="strip" width="{width}" height="{_HEIGHT}" viewBox="0 0 {width} {_HEIGHT}" role="img" '
        f'aria-label="{words}"><title>{words}</title>{paths}</svg>'
    )


def is_worse(kind: RateKind, change: SpeedChange) -> bool:
    """Whether a change is for the worse: fewer loads a second, more seconds."""
    return (change.by < 0) is (kind is RateKind.LOADS)


def change_text(change: SpeedChange, nights: Sequence[str]) -> str:
    """``−40 % since 20260105-220000``.

    :param nights: names of the runs that are shown
    """
    return f"{_by_text(change).replace('%', ' %')} since {nights[change.night]}"


def _by_text(change: SpeedChange) -> str:
    return f"{'+' if change.by > 0 else '−'}{abs(change.by):.0%}"


def value_text(curve: Curve) -> str:
    """The newest value with its unit."""
    return f"{number(curve.points[-1].value)} {_UNIT[curve.kind]}"


def ratio_text(value: float) -> str:
    """A ratio to a control, with three figures."""
    return f"{value:.3g}"


def curve_text(curve: Curve, nights: Sequence[str]) -> str:
    """What a curve says, in words."""
    said = [f"{value_text(curve)} in the newest of {plural(len(curve.points), 'night')}"]
    said += [change_text(change, nights) for change in curve.changes]
    return "; ".join(said)


def curve_svg(curve: Curve, nights: Sequence[str]) -> Markup:
    """A speed through the nights: dots, the median of each part between two changes, and the changes.

    What is drawn is the ratio to the control, or the value itself where there is no control.
    """
    dots = _dots(curve)
    low, high = _ends(dots)
    frame = _Frame(len(nights), low, high)
    words = escape(one_line(f"{curve.subject}: {curve_text(curve, nights)}"))
    return Markup(
        f'<svg class="curve" viewBox="0 0 {_WIDE} {_HIGH}" role="img" aria-label="{words}">'
        f'<line class="c-axis" x1="0" y1="{_FOOT}" x2="{_WIDE}" y2="{_FOOT}"/>'
        f'<text class="c-word" x="0" y="9">{ratio_text(high)}</text>'
        f'<text class="c-word" x="0" y="{_FOOT - 3}">{ratio_text(low)}</text>'
        f'<text class="c-word" x="0" y="{_HIGH - 4}">{escape(nights[0][:8])}</text>'
        f'<text class="c-word c-end" x="{_WIDE}" y="{_HIGH - 4}">{escape(nights[-1][:8])}</text>'
        f"{_changes(curve, frame, len(nights))}{_line(dots, frame)}{_circles(dots, frame, nights)}</svg>"
    )


def spark_svg(curve: Curve, nights: Sequence[str]) -> Markup:
    """A curve as small as a word."""
    dots = _dots(curve)
    frame = _Frame(len(nights), *_ends(dots), width=120, height=20, left=2, top=2)
    marks = "".join(
        f'<line class="c-change c-{_side(curve, change)}" x1="{frame.x(change.night) - 2:.1f}" y1="0" '
        f'x2="{frame.x(change.night) - 2:.1f}" y2="24"/>'
        for change in curve.changes
    )
    words = escape(one_line(curve_text(curve, nights)))
    return Markup(
        f'<svg class="spark" width="124" height="24" viewBox="0 0 124 24" role="img" aria-label="{words}">'
        f"<title>{words}</title>{marks}{_line(dots, frame)}</svg>"
    )


class _Frame:
    """From nights and values to places in a drawing."""

    def __init__(
        self,
        nights: int,
        low: float,
        high: float,
        *,
        width: float = _WIDE - 2 * _LEFT,
        height: float = _FOOT - 24,
        left: float = _LEFT,
        top: float = 12,
    ) -> None:
        self._step = width / max(1, nights - 1)
        self._low, self._scale = low, height / (high - low)
        self._left, self._foot = left, top + height

    def x(self, night: float) -> float:
        return self._left + night * self._step

    def y(self, value: float) -> float:
        return self._foot - (value - self._low) * self._scale


def _dots(curve: Curve) -> list[tuple[int, float]]:
    """Night and ratio, or value where no night has a ratio."""
    ratios = [(point.night, point.ratio) for point in curve.points if point.ratio is not None]
    return ratios or [(point.night, point.value) for point in curve.points]


def _ends(dots: Sequence[tuple[int, float]]) -> tuple[float, float]:
    """The least and the greatest value of a drawing: what is too little to be told is not drawn as if it were much."""
    low, high = min(value for _, value in dots), max(value for _, value in dots)
    margin = max((high - low) * 0.08, high * 0.2 - (high - low) / 2)
    return low - margin, high + margin


def _side(curve: Curve, change: SpeedChange) -> str:
    return "worse" if is_worse(curve.kind, change) else "better"


def _line(dots: Iterable[tuple[int, float]], frame: _Frame) -> str:
    places = " ".join(f"{frame.x(night):.1f},{frame.y(value):.1f}" for night, value in dots)
    return f'<polyline class="c-line" points="{places}"/>'


def _circles(dots: Iterable[tuple[int, float]], frame: _Frame, nights: Sequence[str]) -> str:
    return "".join(
        f'<circle class="c-dot" cx="{frame.x(night):.1f}" cy="{frame.y(value):.1f}" r="2">'
        f"<title>{escape(nights[night])}: {ratio_text(value)}</title></circle>"
        for night, value in dots
    )


def _changes(curve: Curve, frame: _Frame, nights: int) -> str:
    return "".join(_parts(curve, frame, nights))


def _parts(curve: Curve, frame: _Frame, nights: int) -> Iterator[str]:
    ends = [*(change.night for change in curve.changes), nights]
    for change, (start, end) in zip(curve.changes, pairwise(ends), strict=True):
        side, left, right = _side(curve, change), frame.x(start - 0.5), frame.x(end - 0.5)
        y = frame.y(change.after)
        yield f'<rect class="c-part c-{side}" x="{left:.1f}" y="0" width="{right - left:.1f}" height="{_FOOT}"/>'
        yield f'<line class="c-change c-{side}" x1="{left:.1f}" y1="0" x2="{left:.1f}" y2="{_FOOT}"/>'
        yield f'<line class="c-median c-{side}" x1="{left:.1f}" y1="{y:.1f}" x2="{right:.1f}" y2="{y:.1f}"/>'
        yield f'<text class="c-word c-{side} c-end" x="{left - 3:.1f}" y="9">{_by_text(change)}</text>'
