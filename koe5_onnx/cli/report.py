"""Classes of a report about an artifact. manifest_report.py and certificate_report.py create its sections.

All strings may come from an untrusted manifest. Pass them through `printable` before printing them, or
through `escaped` before writing them to HTML.
"""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass

from koe5_onnx.artifact import ERROR_BINS


@dataclass(frozen=True)
class Fact:
    """A name and its value."""

    name: str
    value: str


@dataclass(frozen=True)
class Table:
    """A table of text cells. The first cell of each row is its header."""

    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Histogram:
    """Histogram of 1 - cosine, the distance of an embedding to PyTorch's."""

    title: str
    summary: str
    """Text alternative for screen readers."""
    counts: Sequence[int]
    """Number of texts in each bin of ERROR_BINS."""


@dataclass(frozen=True)
class Histograms:
    """Several histograms with the same axis, so that they can be compared."""

    caption: str
    panels: Sequence[Histogram]
    bound: float | None
    """Largest 1 - cosine that the gate allows; None if the gate has no such bound."""

    def used_bins(self) -> range:
        """Return the indices of the bins from the first to the last one with texts in any panel."""
        used = [index for panel in self.panels for index, count in enumerate(panel.counts) if count]
        return range(min(used), max(used) + 1) if used else range(0)

    def as_table(self) -> Table:
        """Return the counts as a table."""
        used = self.used_bins()
        return Table(
            caption=self.caption,
            columns=("length", *map(_bin_in_words, used)),
            rows=[(panel.title, *(f"{panel.counts[index]:,}" for index in used)) for panel in self.panels],
        )


@dataclass(frozen=True)
class Section:
    """A section of a report. Its parts are shown in the order of the fields."""

    title: str
    notes: Sequence[str] = ()
    """Important notes, shown first."""
    facts: Sequence[Fact] = ()
    tables: Sequence[Table] = ()
    histograms: Histograms | None = None


def _bin_in_words(index: int) -> str:
    end = f"{ERROR_BINS[index]:g}"
    return f"{ERROR_BINS[index - 1]:g} to {end}" if index else f"below {end}"


def counted(count: int, noun: str) -> str:
    """Format a number of things, such as "1 text" or "1,024 texts"."""
    return f"{count:,} {noun}{'s' if count != 1 else ''}"


def printable(text: str) -> str:
    """Return `text` with escapes for all characters that are not printable (`str.isprintable`).

    Control characters and bidirectional marks could change what a terminal shows, and lone surrogates cannot
    be printed.
    """
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode("ascii")
        for character in text
    )


def escaped(text: str) -> str:
    """Return `printable(text)`, escaped for HTML."""
    return html.escape(printable(text))
