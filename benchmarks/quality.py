"""Retrieval quality: NDCG, F1, Recall and MRR of artifacts, checkpoint and contenders, and what changed.

python -m benchmarks quality --artifact koe5-int8 --checkpoint nlpai-lab/KoE5 --dataset autorag

The checkpoint, else the first artifact, is the baseline; every other run is compared with it. All runs use
one contract (prompts, pooling, token limit): the artifacts', or the checkpoint's own without artifacts.
`--contender` adds other systems on the same checkpoint; `--speed` adds figures of the throughput benchmark.

The folder `--out` gets quality.json (everything), quality.md (what is printed), quality.png and quality.svg.
Embeddings are kept in its folder `embeddings`, part by part: PyTorch takes long, and an interrupted run
goes on where it was.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import json
import platform
import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path

from koe5_export.checkpoint import Checkpoint
from koe5_export.contract import read_contract

from benchmarks.contenders.prepared import Store
from benchmarks.contenders.registry import CONTENDERS, chosen
from benchmarks.corpora import KNOWN, Dataset, load
from benchmarks.published import AUTORAG
from benchmarks.quality_change import Measured, compare
from benchmarks.quality_pareto import draw_pareto
from benchmarks.quality_plot import draw
from benchmarks.quality_report import REVERSED, Report, as_data, as_markdown
from benchmarks.quality_run import (
    Encoder,
    ImpossibleError,
    Run,
    open_artifact,
    open_checkpoint,
    open_contender,
    run_on,
    shared_contract,
    with_unique_labels,
)
from benchmarks.quality_speed import read_speeds
from benchmarks.retrieval import rank, score, score_reversed
from benchmarks.speed.arguments import add_cache
from koe5_onnx import Artifact, InputError, __version__
from koe5_onnx.engine.machine import usable_cores

_LIBRARIES = {"ir_measures": "ir-measures", "matplotlib": "matplotlib", "numpy": "numpy", "scipy": "scipy"}
"""Import name to distribution of what computes and draws; the group `bench` brings what is not here."""


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
    parser.add_argument(
        "--contender",
        action="append",
        default=[],
        choices=[name for name, one in CONTENDERS.items() if not one.is_ours],
        help="another system on the folder --checkpoint; repeatable",
    )
    add_cache(parser)
    parser.add_argument(
        "--speed",
        action="append",
        type=Path,
        default=[],
        metavar="FILE",
        help="a result of the throughput benchmark, drawn against top-10 overlap; repeatable",
    )
    parser.add_argument("--note", default="", help="what the report says of the weights")
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
    speeds = read_speeds(args.speed)
    encoders = _encoders(args)
    dataset = load(args.dataset, args.data, args.limit)
    found, impossible = _runs(encoders, dataset, args.out / "embeddings")
    runs = with_unique_labels(found)
    measured = [_measure(one, dataset) for one in runs]
    changes = [compare(measured[0], other) for other in measured[1:]]
    figures = [_means(one, dataset) for one in measured]
    report = Report(dataset, runs, figures, changes, libraries, impossible, speeds, args.note)
    _write(report, args.out)
    return 0


def _libraries() -> dict[str, str]:
    """Versions of what computes the figures; found missing before the hours of embedding, not after."""
    for package in _LIBRARIES:
        try:
            importlib.import_module(package)
        except ImportError as error:
            raise InputError(
                f"measuring quality needs the package {package}: pip install --group bench"
            ) from error
    versions = {name: importlib.metadata.version(name) for name in _LIBRARIES.values()}
    return {"koe5-onnx": __version__, "python": platform.python_version(), **versions}


def _encoders(args: argparse.Namespace) -> list[AbstractContextManager[Encoder]]:
    """The baseline first; no graph and no weights are loaded yet, but a wrong name is found."""
    artifacts = [Artifact.open(name) for name in args.artifact]
    if len({artifact.path.resolve() for artifact in artifacts}) < len(artifacts):
        raise InputError(f"an artifact is given twice: {', '.join(args.artifact)}")
    contract = shared_contract(artifacts)
    if args.checkpoint is None:
        if not artifacts or args.contender:
            missing = "nothing to measure" if not args.contender else "contenders need a checkpoint"
            raise InputError(f"{missing}: give --artifact, --checkpoint or both")
        return [*map(open_artifact, artifacts)]
    checkpoint = Checkpoint.open(args.checkpoint)
    contract = contract or read_contract(checkpoint)
    store, threads = Store(checkpoint.folder, args.cache), usable_cores().count
    contenders = chosen(args.contender)
    return [
        open_checkpoint(checkpoint, contract),
        *map(open_artifact, artifacts),
        *(open_contender(one, store, checkpoint, contract, threads) for one in contenders),
    ]


def _runs(
    encoders: Sequence[AbstractContextManager[Encoder]], dataset: Dataset, cache: Path
) -> tuple[list[Run], dict[str, str]]:
    """Embed the dataset with each encoder; the second are contenders that cannot, with the reason."""
    runs: list[Run] = []
    impossible: dict[str, str] = {}
    for encoder in encoders:
        try:
            with encoder as opened:
                runs.append(run_on(opened, dataset, cache))
        except ImpossibleError as error:
            print(f"{error.contender} is not possible: {error}", file=sys.stderr)
            impossible[error.contender] = str(error)
    return runs, impossible


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
    written = ["quality.json", "quality.md", "quality.png", "quality.svg"]
    if report.speeds:
        written.append("pareto.svg")
        draw_pareto(report, report.speeds[0], folder / written[-1])
    print(text)
    print(f"{folder}: {', '.join(written)}")
