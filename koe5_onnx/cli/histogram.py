"""Histograms of a certificate as HTML, styled by certificate_page.css.

The axis is 1 - cosine on a logarithmic scale.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from koe5_onnx.artifact import ERROR_BINS
from koe5_onnx.cli.report import Histogram, Histograms, escaped


def axis_of(histograms: Histograms) -> range:
    """Return the shown bins: from the first to the last with texts or the bound, and one on each side."""
    shown = list(histograms.used_bins())
    if histograms.bound is not None:
        shown.append(_bin_of(histograms.bound))
    if not shown:
        return range(len(ERROR_BINS))
    return range(max(0, min(shown) - 1), min(len(ERROR_BINS), max(shown) + 2))


def draw(panel: Histogram, bins: range, bound: float | None) -> Iterator[str]:
    """Yield the HTML lines of one histogram: the area beyond the bound, if there is one, and the columns."""
    gate = "no bound" if bound is None else f"the bound of the gate is {bound:.2g}"
    label = escaped(f"Number of texts by 1 - cosine: {panel.title}. {panel.summary}; {gate}.")
    yield f'<div class="histogram" role="img" aria-label="{label}">'
    if bound is not None:
        position = _position_of(bound, bins)
        side = "before" if position > 0.5 else "after"
        yield f'<div class="gate {side}" style="left: {position:.2%}"><span>gate {bound:.2g}</span></div>'
    for index in bins:
        count = panel.counts[index]
        share = count / max(panel.counts) if count else 0
        bar = f'<div class="bar" style="height: {share:.2%}"><span>{count:,}</span></div>' if count else ""
        yield f'<div class="bin">{bar}{_tick(index)}</div>'
    yield "</div>"


def _tick(index: int) -> str:
    """Return the axis label of a bin if its upper end is a power of ten, else an empty string."""
    mantissa, _, power = f"{ERROR_BINS[index]:e}".partition("e")
    if not mantissa.startswith("1"):
        return ""
    return f'<div class="tick">{f"10<sup>{int(power)}</sup>" if int(power) else "1"}</div>'


def _position_of(error: float, bins: range) -> float:
    """Return the position of a value of 1 - cosine on the axis, from 0 (left) to 1 (right)."""
    index = _bin_of(error)
    high = ERROR_BINS[index]
    low = ERROR_BINS[index - 1] if index else high / 3  # the first bin has no lower end
    return (index - bins.start + max(0.0, math.log(error / low) / math.log(high / low))) / len(bins)


def _bin_of(error: float) -> int:
    return next((index for index, end in enumerate(ERROR_BINS) if error < end), len(ERROR_BINS) - 1)
