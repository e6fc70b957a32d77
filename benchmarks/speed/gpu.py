"""Measure fidelity, tokens per second and query latency on a GPU, compared with PyTorch and ONNX Runtime.

One command exports, verifies the padded and the packed graph on the device, tunes the batch sizes, measures
in rounds, and writes JSON, so that a GPU is needed only briefly (benchmarks/decisions/gpu.md). Each round
also measures the ceiling: the fp16 matrix products of the encoder alone (gpu_ceiling.py).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from koe5_export.checkpoint import Checkpoint
from koe5_export.verify import verify_artifact

from benchmarks.contenders.registry import GPU_NAMES, gpu_contenders
from benchmarks.speed import arguments, latency, throughput
from benchmarks.speed.arguments import Setting, setting_of
from benchmarks.speed.gpu_ceiling import GpuCeiling
from benchmarks.speed.opened import Field, Opened, choose_batches, open_field
from benchmarks.speed.results import write_json
from benchmarks.speed.texts import MAX_TOKENS, Corpus
from koe5_onnx import Artifact, EngineOptions, FidelityError, InputError, Tokenizer
from koe5_onnx.engine.cuda.provider import require_gpu
from koe5_onnx.engine.tuning import describe, remembered, tune
from koe5_onnx.options import GraphChoice

BASELINE = "sentence-transformers-sdpa"
_PASS_TOKENS = 400_000
"""Minimum number of tokens per pass over a corpus: about one second on a fast GPU."""
_SWEEP_TOKENS = 200_000


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    arguments.add_arguments(parser, rounds=7, contenders=GPU_NAMES)
    parser.add_argument("--device", default="cuda", help="cuda, cuda:N, or cpu for a trial")
    parser.add_argument("--baseline", choices=GPU_NAMES, default=BASELINE, help="default: %(default)s")
    parser.add_argument(
        "--calls", type=int, default=300, metavar="N", help="query calls (default: %(default)s)"
    )
    parser.add_argument(
        "--pass-tokens",
        type=int,
        default=_PASS_TOKENS,
        metavar="N",
        help="minimum number of tokens per pass (default: %(default)s)",
    )
    parser.add_argument(
        "--trained", type=Path, action="append", default=[], metavar="C", help="also verify this checkpoint"
    )


def run(args: argparse.Namespace) -> int:
    """Verify, measure and print. The exit code is 1 if a contender or an artifact is wrong.

    Raises:
        ProviderError: The GPU does not exist, or ONNX Runtime cannot use it.
    """
    gpu = name_of_gpu(args.device)
    if args.calls < args.rounds:
        raise InputError(f"--calls is {args.calls}, expected at least {args.rounds}, one per round")
    setting = setting_of(args, gpu_contenders(args.device))
    counter = Tokenizer(args.checkpoint / "tokenizer.json", MAX_TOKENS)
    corpora = [lengthened(one, args.pass_tokens, counter) for one in setting.corpora]
    setting = replace(setting, corpora=corpora)
    fidelity = verified(setting, args.trained, args.device)
    tune_ours(setting, args.device)
    ceiling = GpuCeiling(throughput.shape_of(setting), args.device)
    with open_field(setting) as field:
        if not field.opened:
            raise InputError(f"no contender has the right embeddings: {field.wrong}")
        for opened in field.opened.values():
            folder = setting.store.own
            choose_batches(opened, setting.corpora, folder, setting.threads, gpu, _SWEEP_TOKENS)
        head = {"gpu": gpu, "device": args.device, "fidelity": fidelity}
        head |= _latency(setting, field, args.calls, args.rounds)
        kind = ("gpu", "fp16", "fp16" if args.device != "cpu" else "fp32")
        # GPU time may be limited, so each round writes the results so far.
        for rates, ceilings in throughput.measure(setting, field, ceiling, args.rounds, _embed):
            result = throughput.result_of(setting, field, rates, ceilings, args.baseline, kind) | head
            if setting.json is not None:
                write_json(setting.json, result)
    print(table(result))
    return 1 if field.wrong or any(one["fault"] for one in fidelity.values()) else 0


def name_of_gpu(device: str) -> str:
    """Return the GPU's name and compute capability, or a note if the device is the CPU.

    Raises:
        InputError: `device` is not "cpu", "cuda" or "cuda:N".
        ProviderError: The GPU does not exist.
    """
    number = EngineOptions(device=device).gpu
    if number is None:
        return "no GPU: fp32 on the CPU, for tests only; the results do not apply to GPUs"
    gpu = require_gpu(number)
    return f"{gpu.name}, compute capability {gpu.capability[0]}.{gpu.capability[1]}"


def lengthened(corpus: Corpus, tokens: int, counter: Tokenizer) -> Corpus:
    """Repeat the texts, with numbers, until they have about `tokens` tokens.

    A few pages take a GPU only milliseconds. The numbers make all texts different.
    """
    times = max(1, -(-tokens // corpus.tokens))
    if times == 1:
        return corpus
    texts = [f"{number} {text}" for number in range(times) for text in corpus.texts]
    return Corpus(corpus.name, texts, counter.encode(texts).lengths.tolist())


def _embed(opened: Opened, corpus: Corpus, texts: Sequence[str]) -> float:
    """Return the seconds of one pass. Unlike on a CPU, waiting threads of other contenders do not matter."""
    reply = opened.worker.ask("embed", texts=list(texts), batch=opened.batch[corpus.name])
    return float(reply["seconds"])


def verified(setting: Setting, trained: Sequence[Path], device: str) -> dict[str, dict[str, Any]]:
    """Compare this project's artifacts with PyTorch on the device.

    Returns:
        Results by "CHECKPOINT, GRAPH": the padded graph and, except on a CPU, the packed graph.
    """
    found = {}
    for checkpoint in (setting.store.checkpoint, *trained):
        store = replace(setting.store, checkpoint=checkpoint, artifacts={})
        store = setting.store if checkpoint == setting.store.checkpoint else store
        artifact = Artifact.open(store.files_of(gpu_contenders(device)["koe5"]))
        graphs: tuple[GraphChoice, ...] = ("padded", "packed") if device != "cpu" else ("padded",)
        for graph in graphs:
            name = f"{checkpoint.name}, {graph}"
            found[name] = _fidelity(artifact, checkpoint, graph)
            print(f"{name}: {found[name]['fault'] or 'passed its gate'}", file=sys.stderr)
    return found


def _fidelity(artifact: Artifact, checkpoint: Path, graph: GraphChoice) -> dict[str, Any]:
    keys = ("texts", "cosine_min", "cosine_mean", "batch_cosine_min", "provider")
    try:
        certificate = verify_artifact(artifact, Checkpoint.open(str(checkpoint)), graph=graph)
    except FidelityError as error:
        return dict.fromkeys(keys) | {"fault": str(error)}
    overall, provider = certificate.overall, certificate.measured_with["provider"]
    values = (overall.texts, overall.cosine_min, overall.cosine_mean, certificate.batch_cosine_min, provider)
    return dict(zip(keys, values, strict=True)) | {"fault": ""}


def tune_ours(setting: Setting, device: str) -> None:
    """Find and save the best parallel batches and tokens per batch for each of this project's contenders."""
    for contender in setting.contenders:
        if contender.is_ours and device != "cpu":
            options = EngineOptions(**contender.options)
            artifact = Artifact.open(setting.store.files_of(contender))
            if (profile := remembered(artifact, options)) is not None:
                print(f"{contender.name}: stored result of tune", file=sys.stderr)
            else:
                profile = tune(artifact, options, report=lambda line: print(line, file=sys.stderr))
            print(f"{contender.name}: {describe(profile.best)}", file=sys.stderr)


def _latency(setting: Setting, field: Field, calls: int, rounds: int) -> Mapping[str, Any]:
    """Return the latency of one query; no figures if the corpora have no query of typical length."""
    with suppress(InputError):
        query = latency.query_of(setting)
        corpus = setting.corpora[0]
        return {
            "latency_ms": latency.figures(latency.measure(field, query, calls, rounds), {}),
            "query_tokens": corpus.lengths[corpus.texts.index(query)],
        }
    return {"latency_ms": {}, "query_tokens": 0}


def table(result: dict[str, Any]) -> str:
    """Format the result for a terminal."""
    lines = [result["gpu"], throughput.table(result), ""]
    for name, one in result["latency_ms"].items():
        lines.append(f"{name:32} query p50 {one['p50']:.2f} ms, p90 {one['p90']:.2f}, p99 {one['p99']:.2f}")
    for name, one in result["fidelity"].items():
        lines.append(
            f"{name:32} {one['fault'] or 'lowest cosine to PyTorch ' + format(one['cosine_min'], '.7f')}"
        )
    return "\n".join(lines)
