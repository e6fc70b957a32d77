"""A histogram of a certificate as inline SVG; its colors and fonts are the page's style sheet's.

The axis is 1 - cosine on a logarithmic scale, cut to the bins that matter, the same for all panels of a page:
so they can be compared, and the gate's bound is one line through all of them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from koe5_onnx.artifact import ERROR_BINS
from koe5_onnx.cli.report import Histogram, Histograms, escaped

_WIDTH, _LEFT, _RIGHT = 640, 1, 16
_TOP, _BARS, _BOTTOM = 34, 72, 24
"""Heights of the rows from top to bottom: the gate's and the bars' labels, the bars, the axis."""
_BASE = _TOP + _BARS
_LEAST = 2
"""Height of a bar with any text at all, so that an outlier among thousands is seen."""
_FONT_SIZE, _DIGIT_WIDTH = 12, 0.6
"""In the drawing's units, and as a share of the font size."""
_SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


@dataclass(frozen=True)
class Axis:
    """Bins from left to right, all equally wide."""

    bins: range

    @property
    def bin_width(self) -> float:
        """Width of one bin in the drawing's units."""
        return (_WIDTH - _LEFT - _RIGHT) / len(self.bins)

    def left_of(self, turn: float) -> float:
        """Where bin number `turn` begins; a fraction is a place inside it."""
        return _LEFT + (turn - self.bins.start) * self.bin_width

    def place_of(self, error: float) -> float:
        """Where a value of 1 - cosine stands."""
        turn = _bin_of(error)
        low, high = _lower_end(turn), ERROR_BINS[turn]
        return self.left_of(turn + max(0.0, math.log(error / low) / math.log(high / low)))


def axis_of(histograms: Histograms) -> Axis:
    """The axis on which all panels and the gate's bound have room, with a bin to spare on either side."""
    shown = list(histograms.used_bins())
    if histograms.bound is not None:
        shown.append(_bin_of(histograms.bound))
    if not shown:
        return Axis(range(len(ERROR_BINS)))
    return Axis(range(max(0, min(shown) - 1), min(len(ERROR_BINS), max(shown) + 2)))


def draw(panel: Histogram, axis: Axis, bound: float | None, identity: str) -> str:
    """One panel as an `<svg>` element; `identity` makes its ids unique on the page."""
    gate = "no bound" if bound is None else f"the gate's bound is {bound:.2g}"
    title = escaped(f"Number of texts by 1 - cosine: {panel.title}")
    summary = escaped(f"{panel.summary}; {gate}.")
    return "\n".join(
        [
            f'<svg viewBox="0 0 {_WIDTH} {_BASE + _BOTTOM}" role="img" '
            f'aria-labeledby="{identity}-title {identity}-desc">',
            f'<title id="{identity}-title">{title}</title>',
            f'<desc id="{identity}-desc">{summary}</desc>',
            *_marks(panel.counts, axis, bound),
            *_ticks(axis),
            "</svg>",
        ]
    )


def _marks(counts: Sequence[int], axis: Axis, bound: float | None) -> Iterator[str]:
    """What is seen, from back to front: the gate's line crosses bars, and no line crosses a number."""
    heights = {turn: max(_LEAST, _BARS * (counts[turn] / max(counts))) for turn in axis.bins if counts[turn]}
    if bound is not None:
        yield _beyond(axis, bound)
    for turn, height in heights.items():
        yield _bar(axis, turn, height)
    if bound is not None:
        yield from _gate(axis, bound)
    for turn, height in heights.items():
        place = axis.left_of(turn + 0.5), _BASE - height - 5
        yield _text(f"{counts[turn]:,}", "count", *place, room=axis.bin_width)


def _beyond(axis: Axis, bound: float) -> str:
    """The part that the gate forbids."""
    x = axis.place_of(bound)
    return f'<rect class="beyond" x="{x:.1f}" y="0" width="{_WIDTH - _RIGHT - x:.1f}" height="{_BASE}"/>'


def _gate(axis: Axis, bound: float) -> Iterator[str]:
    x = axis.place_of(bound)
    yield f'<line class="gate" x1="{x:.1f}" y1="0" x2="{x:.1f}" y2="{_BASE}"/>'
    anchor, gap = ("end", -6) if x > _WIDTH / 2 else ("start", 6)
    yield _text(f"gate {bound:.2g}", "gate", x + gap, 11, anchor)


def _bar(axis: Axis, turn: int, height: float) -> str:
    x, width = axis.left_of(turn + 0.08), 0.84 * axis.bin_width
    return (
        f'<rect class="bar" x="{x:.1f}" y="{_BASE - height:.1f}" width="{width:.1f}" height="{height:.1f}"/>'
    )


def _ticks(axis: Axis) -> Iterator[str]:
    """The base line, and a labeled tick at each power of ten."""
    yield f'<line class="axis" x1="{_LEFT}" y1="{_BASE}" x2="{_WIDTH - _RIGHT}" y2="{_BASE}"/>'
    for turn in axis.bins:
        mantissa, _, power = f"{ERROR_BINS[turn]:e}".partition("e")
        x = axis.left_of(turn + 1)
        length = 6 if mantissa.startswith("1") else 3
        yield f'<line class="axis" x1="{x:.1f}" y1="{_BASE}" x2="{x:.1f}" y2="{_BASE + length}"/>'
        if length == 6:
            label = f"10{str(int(power)).translate(_SUPERSCRIPTS)}" if int(power) else "1"
            yield _text(label, "tick", x, _BASE + 19)


def _text(words: str, kind: str, x: float, y: float, anchor: str = "middle", room: float = math.inf) -> str:
    """Words set smaller where they would be wider than `room`."""
    size = min(_FONT_SIZE, room / (_DIGIT_WIDTH * len(words)))
    return (
        f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" font-size="{size:.1f}" '
        f'text-anchor="{anchor}">{words}</text>'
    )


def _bin_of(error: float) -> int:
    return next((turn for turn, end in enumerate(ERROR_BINS) if error < end), len(ERROR_BINS) - 1)


def _lower_end(turn: int) -> float:
    """Of the first bin, which has none, half a decade below its upper end."""
    return ERROR_BINS[turn - 1] if turn else ERROR_BINS[0] / 3
