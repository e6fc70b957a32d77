"""Render a manifest and its certificate as an HTML page, from the sections that manifest_report.py returns.

The page is self-contained, without scripts or external resources. Every string of the manifest is passed
through `escaped`, and the page's Content-Security-Policy also forbids scripts.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from importlib import resources

from koe5_onnx import Manifest, __version__
from koe5_onnx.cli.histogram import axis_of, draw
from koe5_onnx.cli.manifest_report import headline, name_of, sections
from koe5_onnx.cli.report import Fact, Histograms, Section, Table, counted, escaped

_POLICY = "default-src 'none'; style-src 'unsafe-inline'"
_EXPLANATION = (
    "Each bar shows how many texts have this distance to PyTorch (1 - cosine). Smaller distances are on the "
    "left. All histograms have the same axis. Heights are relative to the largest bar of each histogram."
)
_GATE = (
    " The dashed line is the bound of the gate. An artifact with a text in the shaded area is not published."
)


def render(manifest: Manifest) -> str:
    """Return the HTML of the page.

    Raises:
        ArtifactError: A histogram of the certificate has invalid counts.
    """
    title = escaped(name_of(manifest))
    lines = [
        *_head(title),
        "<body>",
        "<header>",
        '<p class="kind">Certificate of an ONNX artifact</p>',
        f"<h1>{title}</h1>",
        *_facts(headline(manifest), "headline"),
        "</header>",
        "<main>",
        *(line for section in sections(manifest) for line in _section(section)),
        "</main>",
        f"<footer>Written by koe5-onnx {__version__} from manifest.json. The figures were measured when the "
        "artifact was made. To measure them again, run <code>koe5-onnx verify</code>.</footer>",
        "</body>",
        "</html>",
    ]
    return "\n".join(lines) + "\n"


def _head(title: str) -> Iterator[str]:
    style = resources.files("koe5_onnx.cli").joinpath("certificate_page.css").read_text(encoding="utf-8")
    yield '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">'
    yield f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
    yield '<meta name="viewport" content="width=device-width, initial-scale=1">'
    yield f"<title>{title}: certificate</title>"
    yield f"<style>\n{style}</style>\n</head>"


def _section(section: Section) -> Iterator[str]:
    yield f"<section>\n<h2>{escaped(section.title)}</h2>"
    for note in section.notes:
        yield f'<p class="note"><strong>Note:</strong> {escaped(note)}</p>'
    if section.facts:
        yield from _facts(section.facts, "facts")
    for table in section.tables:
        yield from _table(table)
    if section.histograms is not None:
        yield from _histograms(section.histograms)
    yield "</section>"


def _facts(facts: Sequence[Fact], kind: str) -> Iterator[str]:
    yield f'<dl class="{kind}">'
    for fact in facts:
        yield f"<div><dt>{escaped(fact.name)}</dt><dd>{escaped(fact.value)}</dd></div>"
    yield "</dl>"


def _table(table: Table) -> Iterator[str]:
    yield _scrolling(table.caption)
    yield f"<table>\n<caption>{escaped(table.caption)}</caption>\n<thead>"
    yield "<tr>" + "".join(f'<th scope="col">{escaped(column)}</th>' for column in table.columns) + "</tr>"
    yield "</thead>\n<tbody>"
    for first, *others in table.rows:
        cells = "".join(f"<td>{escaped(cell)}</td>" for cell in others)
        yield f'<tr><th scope="row">{escaped(first)}</th>{cells}</tr>'
    yield "</tbody>\n</table>\n</div>"


def _scrolling(label: str) -> str:
    """Return the start tag of a scrollable region that can be focused, so that the keyboard can scroll it."""
    return f'<div class="wide" role="region" tabindex="0" aria-label="{escaped(label)}">'


def _histograms(histograms: Histograms) -> Iterator[str]:
    axis = axis_of(histograms)
    yield f"<p>{_EXPLANATION}{_GATE if histograms.bound is not None else ''}</p>"
    yield _scrolling(histograms.caption)
    for panel in histograms.panels:
        texts = counted(sum(panel.counts), "text")
        yield f'<div class="panel">\n<h3>{escaped(panel.title)} <span>{texts}</span></h3>'
        yield from draw(panel, axis, histograms.bound)
        yield "</div>"
    yield "</div>\n<details>\n<summary>Show as a table</summary>"
    yield from _table(histograms.as_table())
    yield "</details>"
