"""Texts and tokens a second of each contender, in interleaved rounds, next to the machine's int8 ceiling."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from koe5_export.checkpoint import Checkpoint

from benchmarks.contenders.registry import CONTENDERS
from benchmarks.speed import arguments
from benchmarks.speed.arguments import Setting, setting_of
from benchmarks.speed.gemm import Ceiling, Shape
from benchmarks.speed.opened import Field, choose_batches, open_field
from benchmarks.speed.results import head, write_json
from benchmarks.speed.statistics import rotated, spread, with_ratios
from koe5_onnx import InputError

Rounds = dict[str, dict[str, list[float]]]
"""Corpus to contender to seconds of each round."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    arguments.add_arguments(parser, rounds=5)
    parser.add_argument(
        "--baseline",
        choices=CONTENDERS,
        default="openvino-int8",
        help="ratios are to this one (default: %(default)s)",
    )


def run(args: argparse.Namespace) -> int:
    """Measure and print; the exit code is 1 where a contender is wrong."""
    setting = setting_of(args)
    ceiling = Ceiling(shape_of(setting), setting.threads)
    with open_field(setting) as field:
        if not field.opened:
            raise InputError("no contender gives the right embedding: nothing to time")
        for opened in field.opened.values():
            choose_batches(opened, setting.corpora, setting.store.own, setting.threads)
        seconds, ceilings = _measure(setting, field, ceiling, args.rounds)
        result = _result(setting, field, seconds, ceilings, args.baseline)
    print(table(result))
    if setting.json is not None:
        write_json(setting.json, result)
    return 1 if field.wrong else 0


def shape_of(setting: Setting) -> Shape:
    """The shape of the encoder that is measured."""
    config = Checkpoint.open(str(setting.store.checkpoint)).config
    return Shape(config.layers, config.hidden, config.intermediate)


def _measure(
    setting: Setting, field: Field, ceiling: Ceiling, rounds: int
) -> tuple[Rounds, dict[str, list[float]]]:
    """Every contender once a round and corpus; the ceiling once a round. One warm-up before all."""
    names = list(field.opened)
    seconds: Rounds = {corpus.name: {name: [] for name in names} for corpus in setting.corpora}
    ceilings: dict[str, list[float]] = {}
    for turn in range(rounds):
        for kind, rate in ceiling.measure().items():
            ceilings.setdefault(kind, []).append(rate)
        for corpus in setting.corpora:
            for name in rotated(names, turn):
                opened = field.opened[name]
                ask = {"texts": corpus.texts, "batch": opened.batch[corpus.name]}
                if turn == 0:
                    opened.worker.ask("embed", **ask | {"texts": corpus.texts[:8]})
                taken = opened.worker.ask("embed", **ask)["seconds"]
                seconds[corpus.name][name].append(taken)
                rate = corpus.tokens / taken
                print(f"round {turn + 1}, {corpus.name}, {name}: {rate:,.0f} tokens/s", file=sys.stderr)
    return seconds, ceilings


def _result(
    setting: Setting, field: Field, seconds: Rounds, ceilings: dict[str, list[float]], baseline: str
) -> dict[str, Any]:
    result = head("throughput", setting.threads, setting.store.checkpoint)
    result["baseline"] = baseline if baseline in field.opened else None
    result["ceiling"] = {kind: spread(rates) for kind, rates in ceilings.items()}
    stock = result["ceiling"]["stock"]["median"]
    result["contenders"] = {name: opened.describe() for name, opened in field.opened.items()}
    result["wrong"] = field.wrong
    result["corpora"] = {}
    for corpus in setting.corpora:
        rates = {
            name: spread([corpus.tokens / one for one in taken])
            for name, taken in seconds[corpus.name].items()
        }
        figures = with_ratios(rates, result["baseline"])
        for one in figures.values():
            one["texts_per_second"] = one["median"] * len(corpus.texts) / corpus.tokens
            one["share_of_ceiling"] = one["median"] / stock
        result["corpora"][corpus.name] = {
            "texts": len(corpus.texts),
            "tokens": corpus.tokens,
            "tokens_per_second": figures,
        }
    return result


def table(result: dict[str, Any]) -> str:
    """The result for a terminal."""
    lines = [
        f"{result['machine']['cpu']}, {result['threads']} threads; int8 ceiling "
        + ", ".join(f"{kind} {one['median']:,.0f}" for kind, one in result["ceiling"].items())
        + " tokens/s",
    ]
    for name, corpus in result["corpora"].items():
        lines.append(f"\n{name}: {corpus['texts']} texts, {corpus['tokens']:,} tokens")
        lines.append(f"{'':28}{'tokens/s':>9}{'min':>7}{'max':>7}{'texts/s':>9}{'ratio':>7}{'ceiling':>9}")
        for contender, one in corpus["tokens_per_second"].items():
            against = "" if one["ratio"] is None else f"{one['ratio']:.2f}"
            lines.append(
                f"{contender:28}{one['median']:9,.0f}{one['min']:7,.0f}{one['max']:7,.0f}"
                f"{one['texts_per_second']:9.1f}{against:>7}{one['share_of_ceiling']:9.1%}"
            )
    lines += [f"\n{name} is wrong, not timed: {fault}" for name, fault in result["wrong"].items()]
    return "\n".join(lines)
