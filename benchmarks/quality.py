"""Retrieval quality: NDCG, F1, Recall and MRR of artifacts and of their checkpoint, and what changed.

python -m benchmarks quality --artifact koe5-int8 --checkpoint nlpai-lab/KoE5 --dataset autorag

The checkpoint, else the first artifact, is the baseline; every other run is compared with it. The folder
`--out` gets quality.json (everything), quality.md (what is printed), quality.png and quality.svg.
Embeddings are kept in its folder `embeddings`, part by part: PyTorch takes long, and an interrupted run
goes on where it was.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import json
import platform
from contextlib import AbstractContextManager
from pathlib import Path

from benchmarks.corpora import KNOWN, Dataset, load
from benchmarks.published import AUTORAG
from benchmarks.quality_change import Measured, compare
from benchmarks.quality_plot import draw
from benchmarks.quality_report import REVERSED, Report, as_data, as_markdown
from benchmarks.quality_run import Encoder, Run, open_artifact, open_checkpoint, run_on, with_unique_labels
from benchmarks.retrieval import rank, score, score_reversed
from koe5_onnx import Artifact, InputError, MissingDependencyError, __version__

_LIBRARIES = {"ir_measures": "ir-measures", "matplotlib": "matplotlib", "numpy": "numpy", "scipy": "scipy"}
"""Import name to distribution of what computes and draws; the extra "bench" brings what is not here."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument(
        "--artifact",
        action="append",
        default=[],
        metavar="A",
        help="an artifact's folder or Hub id; repeatable",
    )
    parser.add_argument("--checkpoint", metavar="C", help="folder or Hub id: PyTorch, the baseline")
    parser.add_argument("--like", metavar="ID", help="Hub id that a local checkpoint is a copy of")
    parser.add_argument(
        "--dataset", required=True, metavar="D", help=f"one of {', '.join(KNOWN)}, or a dataset's folder"
    )
    parser.add_argument(
        "--data", type=Path, metavar="FOLDER", help="where a named dataset lies (default: Hub)"
    )
    parser.add_argument(
        "--limit",
        type=int,
        metavar="N",
        help="only the first N queries, their passages and N others: a trial",
    )
    parser.add_argument(
        "--out", type=Path, default=Path("build/quality"), metavar="DIR", help="default: %(default)s"
    )


def run(args: argparse.Namespace) -> int:
    """Measure, write and print.

    Raises:
        InputError: Nothing to measure, or the dataset cannot be used.
        Koe5Error: A run cannot be made.
    """
    libraries = _libraries()
    encoders = _encoders(args)
    dataset = load(args.dataset, args.data, args.limit)
    runs = with_unique_labels([_run(encoder, dataset, args.out / "embeddings") for encoder in encoders])
    measured = [_measure(one, dataset) for one in runs]
    changes = [compare(measured[0], other) for other in measured[1:]]
    figures = [_means(one, dataset) for one in measured]
    report = Report(dataset, runs, figures, changes, libraries)
    _write(report, args.out)
    return 0


def _libraries() -> dict[str, str]:
    """Versions of what computes the figures; found missing before the hours of embedding, not after."""
    for package in _LIBRARIES:
        try:
            importlib.import_module(package)
        except ImportError as error:
            raise MissingDependencyError(package, "bench", "measuring quality") from error
    versions = {name: importlib.metadata.version(name) for name in _LIBRARIES.values()}
    return {"koe5-onnx": __version__, "python": platform.python_version(), **versions}


def _encoders(args: argparse.Namespace) -> list[AbstractContextManager[Encoder]]:
    """The baseline first; no graph and no weights are loaded yet, but a wrong name is found."""
    artifacts = [Artifact.open(name) for name in args.artifact]
    if len({artifact.path.resolve() for artifact in artifacts}) < len(artifacts):
        raise InputError(f"an artifact is given twice: {', '.join(args.artifact)}")
    if not artifacts and args.checkpoint is None:
        raise InputError("nothing to measure: give --artifact, --checkpoint or both")
    reference = [] if args.checkpoint is None else [open_checkpoint(args.checkpoint, args.like)]
    return [*reference, *map(open_artifact, artifacts)]


def _run(encoder: AbstractContextManager[Encoder], dataset: Dataset, cache: Path) -> Run:
    with encoder as opened:
        return run_on(opened, dataset, cache)


def _measure(one: Run, dataset: Dataset) -> Measured:
    ranking = rank(one.queries, one.passages)
    return Measured(one, ranking, score(dataset, ranking))


def _means(measured: Measured, dataset: Dataset) -> dict[str, float]:
    means = {name: float(values.mean()) for name, values in measured.figures.items()}
    if dataset.name == AUTORAG:
        means[REVERSED] = float(score_reversed(dataset, measured.ranking).mean())
    return means


def _write(report: Report, folder: Path) -> None:
    data = json.dumps(as_data(report), ensure_ascii=False, indent=2)
    (folder / "quality.json").write_text(data + "\n", encoding="utf-8")
    text = as_markdown(report)
    (folder / "quality.md").write_text(text, encoding="utf-8")
    draw(report, folder)
    print(text)
    print(f"{folder}: quality.json, quality.md, quality.png, quality.svg")
