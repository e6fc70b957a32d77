"""A histogram of a certificate as HTML; certificate_page.css draws it.

The axis is 1 - cosine on a logarithmic scale. It shows only the bins that matter, the same in all panels of a
page, so that panels can be compared.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from koe5_onnx.artifact import ERROR_BINS
from koe5_onnx.cli.report import Histogram, Histograms, escaped


def axis_of(histograms: Histograms) -> range:
    """Return the bins that hold all panels and the gate's bound, and one more on either side."""
    shown = list(histograms.used_bins())
    if histograms.bound is not None:
        shown.append(_bin_of(histograms.bound))
    if not shown:
        return range(len(ERROR_BINS))
    return range(max(0, min(shown) - 1), min(len(ERROR_BINS), max(shown) + 2))


def draw(panel: Histogram, bins: range, bound: float | None) -> Iterator[str]:
    """Yield the lines of one panel: the area that the gate rejects, then a column per bin."""
    gate = "no bound" if bound is None else f"the gate's bound is {bound:.2g}"
    label = escaped(f"Number of texts by 1 - cosine: {panel.title}. {panel.summary}; {gate}.")
    yield f'<div class="histogram" role="img" aria-label="{label}">'
    if bound is not None:
        place = _place_of(bound, bins)
        side = "before" if place > 0.5 else "after"
        yield f'<div class="gate {side}" style="left: {place:.2%}"><span>gate {bound:.2g}</span></div>'
    for turn in bins:
        count = panel.counts[turn]
        share = count / max(panel.counts) if count else 0
        bar = f'<div class="bar" style="height: {share:.2%}"><span>{count:,}</span></div>' if count else ""
        yield f'<div class="bin">{bar}{_tick(turn)}</div>'
    yield "</div>"


def _tick(turn: int) -> str:
    """Label the upper end of a bin, if it is a power of ten."""
    mantissa, _, power = f"{ERROR_BINS[turn]:e}".partition("e")
    if not mantissa.startswith("1"):
        return ""
    return f'<div class="tick">{f"10<sup>{int(power)}</sup>" if int(power) else "1"}</div>'


def _place_of(error: float, bins: range) -> float:
    """Return the share of the axis left of a value of 1 - cosine."""
    turn = _bin_of(error)
    high = ERROR_BINS[turn]
    low = ERROR_BINS[turn - 1] if turn else high / 3  # the first bin has no lower end
    return (turn - bins.start + max(0.0, math.log(error / low) / math.log(high / low))) / len(bins)


def _bin_of(error: float) -> int:
    return next((turn for turn, end in enumerate(ERROR_BINS) if error < end), len(ERROR_BINS) - 1)
