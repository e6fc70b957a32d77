"""Measure each contender's tokens per second in interleaved rounds, compared with matrix products alone."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

from koe5_export.checkpoint import Checkpoint

from benchmarks.contenders.registry import CONTENDERS
from benchmarks.speed import arguments
from benchmarks.speed.arguments import Setting, setting_of
from benchmarks.speed.gemm import SETTLE_SECONDS, Ceiling, Shape
from benchmarks.speed.opened import Field, Opened, choose_batches, open_field
from benchmarks.speed.results import head, write_json
from benchmarks.speed.statistics import ratio, rotated, spread, with_ratios
from benchmarks.speed.texts import Corpus
from koe5_onnx import InputError

Rounds = dict[str, dict[str, list[float]]]
"""Tokens per second of each round, by corpus and name."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    arguments.add_arguments(parser, rounds=5)
    parser.add_argument(
        "--baseline",
        choices=CONTENDERS,
        default="openvino-int8",
        help="baseline of the ratios (default: %(default)s)",
    )
    parser.add_argument(
        "--processor-time",
        action="store_true",
        help="compute rates from CPU time, for a machine with other load; requires --threads 1",
    )


def run(args: argparse.Namespace) -> int:
    """Measure and print. The exit code is 1 if a contender is wrong."""
    setting = setting_of(args)
    if args.processor_time and setting.threads != 1:
        raise InputError(
            f"--processor-time with {setting.threads} threads would count threads that spin. Pass --threads 1"
        )
    ceiling = Ceiling(shape_of(setting), setting.threads)
    with open_field(setting) as field:
        if not field.opened:
            raise InputError("no contender has the right embeddings, so there is nothing to time")
        for opened in field.opened.values():
            choose_batches(opened, setting.corpora, setting.store.own, setting.threads)
        embed = _embed_by_processor if args.processor_time else _embed
        *_, (rates, ceilings) = measure(setting, field, ceiling, args.rounds, embed)
        result = result_of(setting, field, rates, ceilings, args.baseline)
    result["time"] = "processor" if args.processor_time else "wall"
    print(table(result))
    if setting.json is not None:
        write_json(setting.json, result)
    return 1 if field.wrong else 0


def shape_of(setting: Setting) -> Shape:
    """Return the shape of the measured encoder."""
    config = Checkpoint.open(str(setting.store.checkpoint)).config
    return Shape(config.layers, config.hidden, config.intermediate)


class Measurable(Protocol):
    """A measurement of only the encoder's matrix products."""

    def measure(self) -> Mapping[str, float]:
        """Return the tokens per second, by kind of product."""


def _embed(opened: Opened, corpus: Corpus, texts: Sequence[str]) -> float:
    """Return the seconds of one pass. First wait until the threads of the previous contender do not spin."""
    time.sleep(SETTLE_SECONDS)
    reply = opened.worker.ask("embed", texts=list(texts), batch=opened.batch[corpus.name])
    return float(reply["seconds"])


def _embed_by_processor(opened: Opened, corpus: Corpus, texts: Sequence[str]) -> float:
    """Return the CPU seconds of all threads of the process for one pass.

    Raises:
        InputError: The time is shorter than a tick of the clock for CPU time.
    """
    before = opened.worker.cpu_seconds()
    _embed(opened, corpus, texts)
    seconds = opened.worker.cpu_seconds() - before
    if not seconds:
        raise InputError(
            f"{opened.contender.name} takes less than one clock tick for {corpus.name}. Increase --texts"
        )
    return seconds


def measure(
    setting: Setting,
    field: Field,
    ceiling: Measurable,
    rounds: int,
    embed: Callable[[Opened, Corpus, Sequence[str]], float] = _embed,
) -> Iterator[tuple[Rounds, Rounds]]:
    """Time the ceiling and then every contender, once per round and corpus.

    Yields:
        After each round, the rates of the contenders and those of the ceiling in all rounds so far.
    """
    names = list(field.opened)
    rates: Rounds = {corpus.name: {name: [] for name in names} for corpus in setting.corpora}
    ceilings: Rounds = {corpus.name: {} for corpus in setting.corpora}
    for turn in range(rounds):
        for corpus in setting.corpora:
            for kind, rate in ceiling.measure().items():
                ceilings[corpus.name].setdefault(kind, []).append(rate)
            for name in rotated(names, turn):
                if turn == 0:
                    _embed(field.opened[name], corpus, corpus.texts[:8])
                seconds = embed(field.opened[name], corpus, corpus.texts)
                rates[corpus.name][name].append(corpus.tokens / seconds)
            _show(turn, corpus.name, rates[corpus.name], ceilings[corpus.name])
        yield rates, ceilings


def _show(turn: int, corpus: str, *figures: dict[str, list[float]]) -> None:
    shown = ", ".join(f"{name} {rounds[-1]:,.0f}" for one in figures for name, rounds in one.items())
    print(f"round {turn + 1}, {corpus}: {shown} tokens/s", file=sys.stderr)


def result_of(
    setting: Setting,
    field: Field,
    rates: Rounds,
    ceilings: Rounds,
    baseline: str,
    kind: tuple[str, str, str] = ("throughput", "stock", "int8"),
) -> dict[str, Any]:
    """Return the result as JSON-serializable data.

    Args:
        setting: Settings of the run.
        field: The measured contenders.
        rates: Tokens per second of each round.
        ceilings: Tokens per second of each round by kind of ceiling.
        baseline: Contender that ratios refer to, if it was measured.
        kind: Name of the benchmark, kind of ceiling for the shares, and number format of the ceiling.
    """
    benchmark, share_of, number = kind
    result = head(benchmark, setting.threads, setting.store.checkpoint)
    result["baseline"] = baseline if baseline in field.opened else None
    result["share_of"] = share_of
    result["ceiling_of"] = number
    kinds = next(iter(ceilings.values()))
    result["ceiling"] = {
        kind: spread([rate for corpus in ceilings.values() for rate in corpus[kind]]) for kind in kinds
    }
    result["contenders"] = {name: opened.describe() for name, opened in field.opened.items()}
    result["wrong"] = field.wrong
    result["corpora"] = {
        corpus.name: {
            "texts": len(corpus.texts),
            "tokens": corpus.tokens,
            "ceiling": ceilings[corpus.name],
            "tokens_per_second": _figures(
                corpus, rates[corpus.name], ceilings[corpus.name][share_of], result["baseline"]
            ),
        }
        for corpus in setting.corpora
    }
    return result


def _figures(
    corpus: Corpus, rates: dict[str, list[float]], ceiling: list[float], baseline: str | None
) -> dict[str, dict[str, Any]]:
    """Return each contender's results. The share of the ceiling is the median of the shares per round."""
    figures = with_ratios({name: spread(rounds) for name, rounds in rates.items()}, baseline)
    for one in figures.values():
        one["texts_per_second"] = one["median"] * len(corpus.texts) / corpus.tokens
        one["share_of_ceiling"] = ratio(one["rounds"], ceiling)
    return figures


def table(result: dict[str, Any]) -> str:
    """Format the result for a terminal."""
    lines = [
        f"{result['machine']['cpu']}, {result['threads']} threads; {result['ceiling_of']} ceiling "
        + ", ".join(f"{kind} {one['median']:,.0f}" for kind, one in result["ceiling"].items())
        + " tokens/s",
    ]
    for name, corpus in result["corpora"].items():
        lines.append(f"\n{name}: {corpus['texts']} texts, {corpus['tokens']:,} tokens")
        lines.append(f"{'':28}{'tokens/s':>10}{'min':>9}{'max':>9}{'texts/s':>9}{'ratio':>7}{'ceiling':>9}")
        for contender, one in corpus["tokens_per_second"].items():
            against = "" if one["ratio"] is None else f"{one['ratio']:.2f}"
            lines.append(
                f"{contender:28}{one['median']:10,.0f}{one['min']:9,.0f}{one['max']:9,.0f}"
                f"{one['texts_per_second']:9.1f}{against:>7}{one['share_of_ceiling']:9.1%}"
            )
    lines += [f"\n{name} is wrong, not timed: {fault}" for name, fault in result["wrong"].items()]
    return "\n".join(lines)
