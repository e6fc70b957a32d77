"""koe5-onnx identify: name what made the vectors of an index, and whether the artifact can search it."""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import json
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

from koe5_onnx import Contract, Embedder, Manifest
from koe5_onnx.cli.engine_arguments import add_encoding, add_engine_arguments, engine_options
from koe5_onnx.cli.info import section_lines
from koe5_onnx.cli.input_file import read_texts, suffix_of_input
from koe5_onnx.cli.report import Fact, Section, Table, counted
from koe5_onnx.cli.vector_file import SUFFIXES, read_columns, read_vectors
from koe5_onnx.identify import Candidate, Identified, identify

_SHOWN = 8
"""Number of candidates in the table; --json has all."""


def add_parser(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the subcommand and its arguments."""
    parser = verbs.add_parser(
        "identify",
        help="name what made the vectors of an index, and whether an artifact can search it",
        description="Compare stored vectors with embeddings of their texts in all prompts, poolings and "
        "token limits, and measure whether queries of the artifact may be mixed with them. Some hundred "
        "vectors are enough. The exit code is 1 if the maker is unknown.",
    )
    parser.set_defaults(run=run, usage_error=parser.error)
    parser.add_argument(
        "vectors",
        metavar="VECTORS",
        help=".npy: one vector per row; .parquet, .jsonl or .csv: one vector per record, for example an "
        "export of pgvector or Qdrant",
    )
    parser.add_argument(
        "--texts",
        metavar="FILE",
        help="the texts without prompts, in the order of the vectors. .txt or - (stdin): one per line; "
        ".jsonl: one object per line (default: a column of VECTORS)",
    )
    parser.add_argument("--artifact", required=True, metavar="DIR_OR_HUB_ID", help="an exported artifact")
    parser.add_argument(
        "--checkpoint",
        metavar="C",
        help="folder or Hub id of the artifact's checkpoint, to compare with its embeddings in fp32 "
        "(requires the extra reference; default: compare with those of the artifact)",
    )
    parser.add_argument(
        "--vector-column", metavar="NAME", help="column of the vectors (default: the only one with vectors)"
    )
    parser.add_argument(
        "--text-column", default="text", metavar="NAME", help='column of the texts (default: "text")'
    )
    parser.add_argument("--json", action="store_true", help="print the result with all candidates as JSON")
    add_encoding(parser)
    add_engine_arguments(parser.add_argument_group("engine"))


def run(args: argparse.Namespace) -> int:
    """Identify the maker, print the report and return the exit code.

    Raises:
        Koe5Error: A file, the artifact or the checkpoint is invalid, or the vectors do not fit the texts.
        OSError: A file cannot be read.
    """
    _check_usage(args)
    options = engine_options(args)
    texts = [] if args.texts is None else read_texts(args.texts, args.text_column, args.encoding)
    if args.vectors.lower().endswith(".npy"):
        vectors = read_vectors(args.vectors)
    else:
        column = args.text_column if args.texts is None else None
        vectors, own = read_columns(args.vectors, args.vector_column, column, args.encoding)
        texts = own if args.texts is None else texts
    with Embedder.open(args.artifact, options=options) as embedder:
        if args.checkpoint is None:
            found = identify(vectors, texts, embedder)
        else:
            with closing(_reference(args.checkpoint, embedder.artifact.manifest)) as reference:
                found = identify(vectors, texts, embedder, reference.token_embeddings)
        contract = embedder.contract
    sections = [_report(found, args.vectors, contract), *([_candidates(found)] if found.candidates else [])]
    text = "\n\n".join("\n".join(section_lines(section)) for section in sections)
    print(_as_json(found) if args.json else text)
    return 0 if found.maker else 1


def _check_usage(args: argparse.Namespace) -> None:
    usage_error: Callable[[str], None] = args.usage_error
    suffix = Path(args.vectors).suffix.lower()
    if suffix not in SUFFIXES:
        usage_error(
            f"VECTORS is {args.vectors!r}: expected a {', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]} file"
        )
    if suffix == ".npy" and args.texts is None:
        usage_error("--texts is required with a .npy file, which has no texts")
    if args.texts is not None and suffix_of_input(args.texts) is None:
        usage_error(f"--texts is {args.texts!r}: expected -, a .txt file or a .jsonl file")


def _reference(checkpoint: str, manifest: Manifest) -> Any:
    # Imported by name, because modules of koe5_onnx must not contain an import of koe5_export.
    importlib.import_module("koe5_export.cli.export").import_export()
    checkpoints = importlib.import_module("koe5_export.checkpoint")
    references = importlib.import_module("koe5_export.reference")
    references.require_reference()
    opened = checkpoints.Checkpoint.open(checkpoint, any_encoder=True)
    opened.require_source(manifest.source)
    return references.Reference(opened.folder, manifest.contract)


def _as_json(found: Identified) -> str:
    words = {"truncation": found.truncation, "verdict": found.verdict}
    return json.dumps(dataclasses.asdict(found) | words, ensure_ascii=False, indent=2)


def _report(found: Identified, name: str, contract: Contract) -> Section:
    whole = f" of {contract.dim}" if found.dim < contract.dim else ""
    facts = [
        Fact("made by", "unknown" if found.maker is None else _name(found.maker)),
        Fact("truncation", found.truncation),
        Fact("normalization", "unit length" if found.unit_length else "none"),
        Fact("precision", found.precision),
        Fact("dimension", f"{found.dim}{whole} components"),
    ]
    for rank, one in zip(("best", "runner-up"), found.candidates, strict=False):
        limit = f", truncated at {one.max_tokens} tokens" if one.max_tokens else ""
        cosines = f"cosine mean {one.cosine_mean:.5f}, min {one.cosine_min:.5f}"
        facts.append(Fact(rank, f"{_name(one)}{limit}: {cosines}"))
    if found.overlap is not None:
        differ = f"{100 * (1 - found.overlap):.1f} % of the best {found.neighbors} results of a query differ"
        facts.append(Fact("loss", f"{differ} from those among embeddings of this artifact"))
    facts.append(Fact("verdict", found.verdict))
    return Section(f"{name}: {counted(found.texts, 'text')} compared", _notes(found, contract), facts)


def _notes(found: Identified, contract: Contract) -> list[str]:
    notes = []
    if found.dim > contract.dim:
        notes.append(
            f"the vectors have {found.dim} components, but embeddings of this artifact {contract.dim}"
        )
    if found.maker and found.maker.pooling == "cls" != contract.pooling:
        notes.append("servers fall back to CLS pooling if a repository does not name the pooling mode")
    if found.maker and not found.unit_length:
        notes.append("search by cosine, because the vectors do not have unit length")
    return notes


def _name(candidate: Candidate) -> str:
    prompt = f"prompt {candidate.prompt_name} ({candidate.prompt!r})" if candidate.prompt else "no prompt"
    return f"{prompt}, pooling {candidate.pooling}"


def _candidates(found: Identified) -> Section:
    columns = ("prompt", "pooling", "truncated at", "cosine mean", "cosine min", "nearest", "distance")
    rows = [
        (
            one.prompt_name,
            one.pooling,
            str(one.max_tokens or "-"),
            f"{one.cosine_mean:.5f}",
            f"{one.cosine_min:.5f}",
            f"{one.nearest:.0%}",
            f"{one.distance:.5f}",
        )
        for one in found.candidates[:_SHOWN]
    ]
    return Section(
        f"best of {counted(len(found.candidates), 'candidate')}", tables=[Table("", columns, rows)]
    )
