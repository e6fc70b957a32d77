"""Statistics of rounds: median, extremes, and ratios per round."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from koe5_onnx import InputError


def spread(rounds: Sequence[float]) -> dict[str, Any]:
    """Return the minimum, the median, the maximum and every round.

    Raises:
        InputError: There are no rounds.
    """
    if not rounds:
        raise InputError("no rounds were measured, expected at least 1")
    return {
        "min": min(rounds),
        "median": statistics.median(rounds),
        "max": max(rounds),
        "rounds": list(rounds),
    }


def ratio(rounds: Sequence[float], baseline: Sequence[float]) -> float:
    """Return the median of the ratios per round, which is robust against temporary load on the machine.

    Raises:
        InputError: The numbers of rounds differ, or there are none.
    """
    if len(rounds) != len(baseline) or not rounds:
        raise InputError(
            f"cannot compare {len(rounds)} rounds with {len(baseline)}. Expected equal numbers above 0"
        )
    return statistics.median(one / other for one, other in zip(rounds, baseline, strict=True))


def percentile(values: Sequence[float], share: float) -> float:
    """Return the nearest-rank percentile: the least value that at least `share` of values do not exceed."""
    if not values or not 0 < share <= 1:
        raise InputError(f"percentile {share} of {len(values)} values: expected values and a share in (0, 1]")
    ordered = sorted(values)
    return ordered[max(0, -(-round(share * len(ordered) * 1000) // 1000) - 1)]


def rotated(names: Sequence[str], turn: int) -> list[str]:
    """Return the names in the order of round `turn`. Each round starts with another name."""
    start = turn % len(names) if names else 0
    return [*names[start:], *names[:start]]


def with_ratios(figures: Mapping[str, Mapping[str, Any]], baseline: str | None) -> dict[str, dict[str, Any]]:
    """Return the results with their ratios to the baseline, which are None if it was not measured."""
    against = figures.get(baseline) if baseline else None
    return {
        name: {**one, "ratio": ratio(one["rounds"], against["rounds"]) if against else None}
        for name, one in figures.items()
    }
