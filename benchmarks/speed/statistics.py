"""Rounds to figures: median, extremes, ratios a round."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from koe5_onnx import InputError


def spread(rounds: Sequence[float]) -> dict[str, Any]:
    """Least, median, most and every round.

    Raises:
        InputError: There is no round.
    """
    if not rounds:
        raise InputError("no round was measured: expected 1 or more")
    return {
        "min": min(rounds),
        "median": statistics.median(rounds),
        "max": max(rounds),
        "rounds": list(rounds),
    }


def ratio(rounds: Sequence[float], baseline: Sequence[float]) -> float:
    """The median of the ratios of each round, which a slow moment of the machine changes least.

    Raises:
        InputError: The rounds are not as many.
    """
    if len(rounds) != len(baseline) or not rounds:
        raise InputError(f"{len(rounds)} rounds against {len(baseline)}: expected as many, 1 or more")
    return statistics.median(one / other for one, other in zip(rounds, baseline, strict=True))


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that `share` of all values do not exceed; `share` in (0, 1]."""
    if not values or not 0 < share <= 1:
        raise InputError(f"the percentile {share} of {len(values)} values: expected a share in (0, 1]")
    ordered = sorted(values)
    return ordered[max(0, -(-round(share * len(ordered) * 1000) // 1000) - 1)]


def rotated(names: Sequence[str], turn: int) -> list[str]:
    """The order of a round: each contender is first once, so none is always after the same one."""
    start = turn % len(names) if names else 0
    return [*names[start:], *names[:start]]


def with_ratios(figures: Mapping[str, Mapping[str, Any]], baseline: str | None) -> dict[str, dict[str, Any]]:
    """Figures by contender, each with its ratio to the baseline's where that was measured."""
    against = figures.get(baseline) if baseline else None
    return {
        name: {**one, "ratio": ratio(one["rounds"], against["rounds"]) if against else None}
        for name, one in figures.items()
    }
