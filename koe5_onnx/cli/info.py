"""koe5-onnx info: show an artifact's manifest and its certificate.

The command shows what the manifest says (manifest_report.py) and does not run the artifact. `doctor` also
checks file hashes and embeds a text, and `verify` measures the certificate again.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from koe5_onnx import Artifact, Manifest
from koe5_onnx.cli.certificate_page import render
from koe5_onnx.cli.manifest_report import headline, name_of, sections
from koe5_onnx.cli.output_file import require_output
from koe5_onnx.cli.report import Fact, Section, Table, printable
from koe5_onnx.files import atomic_path


def add_parser(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the subcommand and its arguments."""
    parser = verbs.add_parser(
        "info",
        help="show an artifact's manifest and certificate",
        description="Show an artifact's manifest and its measured agreement with PyTorch. "
        "This checks the sizes of the files; doctor also checks their hashes.",
    )
    parser.set_defaults(run=run, usage_error=parser.error)
    parser.add_argument("artifact", metavar="ARTIFACT", help="folder or Hub id of the artifact")
    parser.add_argument("--revision", help="branch, tag or commit of the Hub id")
    parser.add_argument(
        "--html",
        type=Path,
        metavar="FILE",
        help="also write a self-contained HTML page with histograms",
    )
    parser.add_argument("--json", action="store_true", help="print the manifest as JSON instead of text")


def run(args: argparse.Namespace) -> int:
    """Show the artifact and return the exit code.

    Raises:
        Koe5Error: The artifact cannot be read, or the path of the page is invalid.
        OSError: The page cannot be written.
    """
    if args.html is not None:
        _check_output(args)
    manifest = Artifact.open(args.artifact, revision=args.revision, check=False).manifest
    if args.html is not None:
        with atomic_path(args.html) as temporary:
            temporary.write_text(render(manifest), encoding="utf-8")
    print(_as_json(manifest) if args.json else _as_text(manifest), end="")
    if args.html is not None:
        print(f"page written: {args.html}", file=sys.stderr)
    return 0


def _check_output(args: argparse.Namespace) -> None:
    usage_error: Callable[[str], None] = args.usage_error
    if args.html.suffix.lower() not in (".html", ".htm"):
        usage_error(f"--html is '{args.html}': expected a .html file")
    require_output(args.html, args.artifact)


def _as_json(manifest: Manifest) -> str:
    # A lone surrogate cannot be printed. backslashreplace writes it as a JSON escape.
    return manifest.to_json().encode("utf-8", "backslashreplace").decode()


def _as_text(manifest: Manifest) -> str:
    first = Section(name_of(manifest), facts=headline(manifest))
    blocks = ["\n".join(section_lines(section)) for section in (first, *sections(manifest))]
    return "\n\n".join(blocks) + "\n"


def section_lines(section: Section) -> Iterator[str]:
    """Yield the lines of a section as text."""
    yield printable(section.title)
    for note in section.notes:
        yield f"  NOTE: {printable(note)}"
    yield from _fact_lines(section.facts)
    tables = [*section.tables, *([section.histograms.as_table()] if section.histograms else [])]
    for index, table in enumerate(tables):
        if len(tables) > 1:  # for a single table, the title of the section is enough
            yield from ("", f"  {table.caption}")[not index :]
        yield from _table_lines(table)


def _fact_lines(facts: Sequence[Fact]) -> Iterator[str]:
    names = [printable(fact.name) for fact in facts]
    width = max(map(len, names), default=0)
    for name, fact in zip(names, facts, strict=True):
        yield f"  {name:{width}}  {printable(fact.value)}".rstrip()


def _table_lines(table: Table) -> Iterator[str]:
    rows = [[printable(cell) for cell in row] for row in (table.columns, *table.rows)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for first, *others in rows:
        cells = (f"{cell:>{width}}" for cell, width in zip(others, widths[1:], strict=True))
        yield "  ".join((f"  {first:{widths[0]}}", *cells)).rstrip()
