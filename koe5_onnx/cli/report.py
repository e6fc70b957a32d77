"""The parts of a report about an artifact; manifest_report.py fills them, callers lay them out.

Every string here may come from a foreign manifest: whoever prints one puts it through `printable`, or
through `escaped` on a page.
"""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass

from koe5_onnx.artifact import ERROR_BINS


@dataclass(frozen=True)
class Fact:
    """A name and what is known under it."""

    name: str
    value: str


@dataclass(frozen=True)
class Table:
    """Cells as text; the first of each row names it."""

    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Histogram:
    """Number of texts by 1 - cosine."""

    title: str
    summary: str
    """One sentence for who does not see it."""
    counts: Sequence[int]
    """One for each of ERROR_BINS."""


@dataclass(frozen=True)
class Histograms:
    """Several over one axis, so that they can be compared."""

    caption: str
    panels: Sequence[Histogram]
    bound: float | None
    """Where the gate ends for every text; None where it has no such bound."""

    def used_bins(self) -> range:
        """From the first to the last bin in which any panel has texts."""
        used = [turn for panel in self.panels for turn, count in enumerate(panel.counts) if count]
        return range(min(used), max(used) + 1) if used else range(0)

    def as_table(self) -> Table:
        """The same as numbers."""
        used = self.used_bins()
        return Table(
            caption=self.caption,
            columns=("length", *map(_bin_in_words, used)),
            rows=[(panel.title, *(f"{panel.counts[turn]:,}" for turn in used)) for panel in self.panels],
        )


@dataclass(frozen=True)
class Section:
    """A title and what stands under it, in the order of the fields."""

    title: str
    notes: Sequence[str] = ()
    """Sentences that a reader must not miss."""
    facts: Sequence[Fact] = ()
    tables: Sequence[Table] = ()
    histograms: Histograms | None = None


def _bin_in_words(turn: int) -> str:
    end = f"{ERROR_BINS[turn]:g}"
    return f"{ERROR_BINS[turn - 1]:g} to {end}" if turn else f"below {end}"


def printable(text: str) -> str:
    """`text` with control characters, bidirectional marks and lone surrogates as escapes.

    Printed as they are, the first two could forge what a terminal shows, and the last end in an error.
    """
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode("ascii")
        for character in text
    )


def escaped(text: str) -> str:
    """`printable` text for HTML and SVG: markup in it is shown, never obeyed."""
    return html.escape(printable(text))
