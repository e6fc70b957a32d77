"""Horizontal bar charts as SVG, drawn with matplotlib."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_OURS, _OTHERS = "#0072b2", "#9aa5b1"


@dataclass(frozen=True)
class Bar:
    """One row of a chart."""

    label: str
    value: float
    """Length of the bar, and the number after it."""
    least: float
    most: float
    """`least` and `most` are the ends of the line that shows the spread."""
    is_ours: bool = False


@dataclass(frozen=True)
class Panel:
    """Bars on one scale, with a title above them."""

    title: str
    bars: Sequence[Bar]


def chart(title: str, panels: Sequence[Panel]) -> bytes:
    """Return panels below each other as SVG, on white, so that the chart is also readable on dark pages."""
    from matplotlib.figure import Figure

    heights = [1 + len(panel.bars) for panel in panels]
    figure = Figure(figsize=(8, 5), layout="constrained")
    figure.suptitle(title, fontsize=12)
    rows = figure.subplots(len(panels), 1, squeeze=False, height_ratios=heights)
    for axes, panel in zip(rows[:, 0], panels, strict=True):
        axes.set_title(panel.title, fontsize=11, loc="left", fontweight="bold")
        _draw_bars(axes, panel.bars)
    return _svg(figure)


def _draw_bars(axes: Axes, bars: Sequence[Bar]) -> None:
    for row, bar in enumerate(bars):
        axes.barh(row, bar.value, height=0.6, color=_OURS if bar.is_ours else _OTHERS)
        axes.hlines(row, bar.least, bar.most, color="black", linewidth=1)
        end = max(bar.value, bar.most), row
        axes.annotate(f"{bar.value:,.0f}", end, xytext=(5, 0), textcoords="offset points", va="center")
    axes.set_yticks(range(len(bars)), [bar.label for bar in bars])
    axes.set_xticks([])
    axes.margins(x=0.12)
    axes.invert_yaxis()
    axes.spines[["top", "right", "bottom"]].set_visible(False)


def _svg(figure: Figure) -> bytes:
    """Return the figure as SVG with selectable text, with identical bytes for identical figures."""
    import matplotlib as mpl

    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "koe5"}), io.BytesIO() as file:
        figure.savefig(file, format="svg", metadata={"Date": None})
        return file.getvalue()
