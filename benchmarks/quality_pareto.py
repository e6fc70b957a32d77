"""Draw a chart of quality and speed: one mark per system at its tokens per second and top-10 overlap."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.contenders.registry import CONTENDERS
from benchmarks.quality_report import Report
from benchmarks.quality_speed import CORPUS, Speed

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_OURS, _OTHERS, _GREY = "#0072B2", "#D55E00", "#666666"
"""Colors that color-blind readers can distinguish. Source: Okabe and Ito, https://jfly.uni-koeln.de/color/"""
_OFFSETS: tuple[tuple[int, int, str], ...] = (
    (8, 6, "left"),
    (8, -7, "left"),
    (-8, 6, "right"),
    (-8, -7, "right"),
)
_OFFSETS += tuple((x, y, side) for y in (16, -16, 26, -26) for x, side in ((8, "left"), (-8, "right")))


@dataclass(frozen=True)
class Mark:
    """A system in the chart."""

    name: str
    tokens_per_second: float
    overlap_percent: float

    @property
    def is_ours(self) -> bool:
        """True for contenders of this project."""
        return CONTENDERS[self.name].is_ours


def marks_of(report: Report, speed: Speed) -> list[Mark]:
    """Return a mark for each run that was timed. The baseline has an overlap of 100 %."""
    overlaps = {change.run: change.top10_overlap.mean for change in report.changes}
    found = []
    for run in report.runs:
        rate = speed.median(run.timed_as)
        if rate is not None:
            found.append(Mark(run.timed_as, rate, 100 * overlaps.get(run.label, 1.0)))
    return found


def front(marks: Sequence[Mark]) -> list[Mark]:
    """Return the Pareto-optimal marks, from slow to fast."""
    return sorted(
        (
            one
            for one in marks
            if not any(
                other.overlap_percent >= one.overlap_percent
                and other.tokens_per_second >= one.tokens_per_second
                and other != one
                for other in marks
            )
        ),
        key=lambda one: one.tokens_per_second,
    )


def draw_pareto(report: Report, speed: Speed, file: Path) -> None:
    """Write the chart to an SVG file with selectable text."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    marks = marks_of(report, speed)
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "koe5", "font.family": "sans-serif"}):
        figure = Figure(figsize=(8, 5), layout="constrained")
        axes = figure.subplots()
        edge = front(marks)
        axes.plot(
            [one.tokens_per_second for one in edge],
            [one.overlap_percent for one in edge],
            color=_GREY,
            linewidth=1,
            linestyle="--",
            label="no system is better in both",
        )
        for ours, color, label in ((True, _OURS, "koe5-onnx"), (False, _OTHERS, "others")):
            some = [one for one in marks if one.is_ours is ours]
            x, y = [one.tokens_per_second for one in some], [one.overlap_percent for one in some]
            axes.scatter(x, y, color=color, s=45, label=label, zorder=3)
        _frame(axes, report, speed)
        _label(figure, axes, marks)
        figure.savefig(file, metadata={"Date": None})


def _frame(axes: Axes, report: Report, speed: Speed) -> None:
    note = f"{report.note}\n" if report.note else ""
    axes.set_title(f"{note}{report.dataset.name}; {speed.machine}", fontsize=10)
    axes.set_xlabel(f"tokens/s, {speed.checkpoint}, {CORPUS} of short and long texts (median of rounds)")
    axes.set_ylabel("share of the reference's top 10, percent")
    axes.set_xlim(left=0)
    axes.margins(x=0.12, y=0.12)
    axes.grid(color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(loc="lower right", fontsize=8, frameon=False)


def _label(figure: Figure, axes: Axes, marks: Sequence[Mark]) -> None:
    """Put each label at the first of `_OFFSETS` where it covers nothing, or else at the last one."""
    figure.draw_without_rendering()
    points = [axes.transData.transform((one.tokens_per_second, one.overlap_percent)) for one in marks]
    reach = 5 * figure.dpi / 72
    taken: list[Any] = []
    legend = axes.get_legend()
    if legend is not None:
        taken.append(legend.get_window_extent())
    for number, one in enumerate(marks):
        others = [point for place, point in enumerate(points) if place != number]
        for x, y, side in _OFFSETS:
            text = axes.annotate(
                one.name,
                (one.tokens_per_second, one.overlap_percent),
                xytext=(x, y),
                textcoords="offset points",
                ha=side,
                va="center",
                fontsize=8,
                color=_OURS if one.is_ours else _OTHERS,
                bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 0.5},
            )
            box = text.get_window_extent()
            inside = axes.bbox.x0 <= box.x0 and box.x1 <= axes.bbox.x1
            near = box.expanded(1 + 2 * reach / box.width, 1 + reach / box.height)
            if inside and not any(near.contains(*p) for p in others) and not any(map(box.overlaps, taken)):
                break
            if (x, y, side) != _OFFSETS[-1]:
                text.remove()
        taken.append(box)
