"""Horizontal bars as inline SVG; colors and fonts are the page's style sheet's."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape

_WIDTH, _LABELS, _RIGHT = 760, 210, 70
_ROW, _BAR, _TOP = 26, 16, 22
_AXIS = 6


@dataclass(frozen=True)
class Bar:
    """One row of a drawing."""

    label: str
    parts: Sequence[float]
    """Stacked from left to right."""
    words: str
    """What stands behind the bar."""
    least: float | None = None
    most: float | None = None
    is_ours: bool = False


@dataclass(frozen=True)
class Mark:
    """A line through all bars."""

    value: float
    label: str


def draw(title: str, bars: Sequence[Bar], mark: Mark | None = None) -> str:
    """One drawing as an `<svg>` element; all values are 0 or more."""
    most = max([sum(bar.parts) for bar in bars] + [bar.most or 0.0 for bar in bars] + [1e-12])
    if mark is not None:
        most = max(most, mark.value)
    scale = (_WIDTH - _LABELS - _RIGHT) / most
    height = _TOP + _ROW * len(bars) + _AXIS
    shown = [_row(bar, _TOP + _ROW * number, scale) for number, bar in enumerate(bars)]
    return "\n".join(
        [
            f'<svg viewBox="0 0 {_WIDTH} {height}" role="img" aria-label="{escape(title)}">',
            f"<title>{escape(title)}</title>",
            *(line for row in shown for line in row),
            *([] if mark is None else _mark(mark, scale, height)),
            f'<line class="axis" x1="{_LABELS}" y1="{_TOP - 2}" x2="{_LABELS}" y2="{height - _AXIS}"/>',
            "</svg>",
        ]
    )


def _row(bar: Bar, top: float, scale: float) -> Iterator[str]:
    middle = top + _ROW / 2 + 4
    yield f'<text class="label" x="{_LABELS - 8}" y="{middle}" text-anchor="end">{escape(bar.label)}</text>'
    x = float(_LABELS)
    for number, part in enumerate(bar.parts):
        kind = f"bar part{number}" + (" ours" if bar.is_ours else "")
        y = top + (_ROW - _BAR) / 2
        yield (f'<rect class="{kind}" x="{x:.1f}" y="{y:.1f}" width="{part * scale:.1f}" height="{_BAR}"/>')
        x += part * scale
    if bar.least is not None and bar.most is not None:
        low, high = (_LABELS + value * scale for value in (bar.least, bar.most))
        y = top + _ROW / 2
        yield f'<line class="range" x1="{low:.1f}" y1="{y:.1f}" x2="{high:.1f}" y2="{y:.1f}"/>'
        x = max(x, high)
    yield f'<text class="value" x="{x + 6:.1f}" y="{middle}">{escape(bar.words)}</text>'


def _mark(mark: Mark, scale: float, height: float) -> Iterator[str]:
    x = _LABELS + mark.value * scale
    yield f'<line class="mark" x1="{x:.1f}" y1="{_TOP - 4}" x2="{x:.1f}" y2="{height - _AXIS}"/>'
    yield f'<text class="mark" x="{x:.1f}" y="13" text-anchor="end">{escape(mark.label)}</text>'
