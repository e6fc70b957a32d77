"""Horizontal bars, drawn by matplotlib, as an image inside the page."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

_OURS, _OTHERS = ("#0072b2", "#56b4e9", "#a6d8f4"), ("#9aa5b1", "#c5ccd4", "#e2e6ea")
"""Colors of a bar's parts."""
_MARK = "#d55e00"


@dataclass(frozen=True)
class Bar:
    """One row of a drawing."""

    label: str
    parts: Sequence[float]
    """Stacked from left to right."""
    words: str
    """The text after the bar."""
    least: float | None = None
    most: float | None = None
    is_ours: bool = False


@dataclass(frozen=True)
class Mark:
    """A line through all bars."""

    value: float
    label: str


def draw(title: str, bars: Sequence[Bar], mark: Mark | None = None) -> str:
    """Draw bars as one `<img>` element that needs no other file."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 0.5 + 0.3 * len(bars)), layout="constrained")
    axes = figure.subplots()
    for row, bar in enumerate(bars):
        left = 0.0
        for part, color in zip(bar.parts, _OURS if bar.is_ours else _OTHERS, strict=False):
            axes.barh(row, part, height=0.6, left=left, color=color)
            left += part
        if bar.least is not None and bar.most is not None:
            axes.hlines(row, bar.least, bar.most, color="black", linewidth=1)
        end = max(left, bar.most or 0.0), row
        axes.annotate(bar.words, end, xytext=(5, 0), textcoords="offset points", va="center")
    if mark is not None:
        axes.axvline(mark.value, color=_MARK, linestyle="--", linewidth=1)
        axes.set_title(mark.label, fontsize="medium", color=_MARK, x=1, ha="right")
    axes.set_yticks(range(len(bars)), [bar.label for bar in bars])
    axes.set_xticks([])
    axes.margins(x=0.12)
    axes.invert_yaxis()
    axes.spines[["top", "right", "bottom"]].set_visible(False)
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "koe5"}), io.BytesIO() as file:
        figure.savefig(file, format="svg", metadata={"Date": None})
        data = base64.b64encode(file.getvalue()).decode("ascii")
    return f'<img alt="{escape(title)}" src="data:image/svg+xml;base64,{data}">'
