"""Five subcommands accept all engine options; the call stack down to ONNX Runtime stays short."""

from __future__ import annotations

import argparse
import sys
from dataclasses import fields
from typing import get_type_hints

import pytest
from other_options import OTHER

from koe5_onnx import EngineOptions, InputError
from koe5_onnx.cli import bulk, doctor, embed, identify, serve, tune
from koe5_onnx.cli.engine_arguments import engine_options
from koe5_onnx.options import EngineFields, field_docs

TEXTS = ["--artifact", "a", "--prompt-name", "none"]
VERBS = {
    embed: ["in.txt", *TEXTS, "--output", "out.npy"],
    bulk: ["in.jsonl", "out", *TEXTS],
    serve: ["a"],
    tune: ["a"],
    doctor: [],
    identify: ["v.csv", "--artifact", "a"],
}
MOST_FRAMES = 8
"""Maximum number of frames from `encode_queries` to `InferenceSession.run`, including both."""


def parse(verb, *arguments: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    verb.add_parser(parser.add_subparsers())
    return parser.parse_args([verb.__name__.rpartition(".")[2], *arguments])


def flag(name: str, value: object) -> list[str]:
    return [f"--{name.replace('_', '-')}", *([] if value is True else [str(value)])]


def test_the_fields_are_those_of_the_dataclass():
    assert get_type_hints(EngineFields) == get_type_hints(EngineOptions)
    assert list(field_docs()) == [field.name for field in fields(EngineOptions)] == list(OTHER)
    assert EngineOptions(**OTHER).changed() == OTHER
    assert EngineOptions().changed() == {}


@pytest.mark.parametrize("verb", VERBS, ids=lambda verb: verb.__name__)
def test_a_verb_takes_every_option(verb):
    given = [word for name, value in OTHER.items() for word in flag(name, value)]
    assert engine_options(parse(verb, *VERBS[verb], *given)) == EngineOptions(**OTHER)


@pytest.mark.parametrize("verb", VERBS, ids=lambda verb: verb.__name__)
def test_help_is_the_fields_documentation(verb, capsys):
    with pytest.raises(SystemExit, match="0"):
        parse(verb, "--help")
    printed = "".join(capsys.readouterr().out.split())
    for doc in field_docs().values():
        assert "".join(doc.split()) in printed.replace("thedefault", "None")


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        *((name, 0, f"{name} is 0: expected 1 or more, or None") for name in OTHER if OTHER[name] in (2, 3)),
        ("max_batch_tokens", -1, "max_batch_tokens is -1"),
        ("gpu_mem_limit", 0, "gpu_mem_limit is 0"),
        ("overflow", "cut", "overflow is 'cut': expected one of 'truncate', 'error'"),
        ("graph", "fast", "graph is 'fast': expected one of 'auto', 'packed', 'padded'"),
        ("cuda_graphs", True, "cuda_graphs requires the packed graph on CUDA, but device is 'cpu'"),
        *(
            ("device", device, "expected 'cpu', 'cuda' or 'cuda:N'")
            for device in ("", "CPU", "gpu", "cuda:", "cuda:x", "cuda:-1", "cuda:0 ", "cpu:0", "cuda:1\n")
        ),
    ],
)
def test_out_of_range(field, value, message):
    with pytest.raises(InputError, match=message):
        EngineOptions(**{field: value})


def test_the_padded_graph_is_not_captured():
    with pytest.raises(InputError, match=r"graph is 'padded'\. Pass device='cuda' and graph='packed'"):
        EngineOptions(device="cuda", graph="padded", cuda_graphs=True)


@pytest.mark.parametrize(("device", "gpu"), [("cpu", None), ("cuda", 0), ("cuda:0", 0), ("cuda:12", 12)])
def test_the_number_of_the_gpu(device, gpu):
    assert EngineOptions(device=device).gpu == gpu


def test_frames_from_a_text_to_onnxruntime(embedder, monkeypatch):
    session, frames = embedder.session._session(), []
    run = type(session).run

    def counted(*given):
        frame = sys._getframe()
        while frame.f_code is not type(embedder).encode_queries.__code__:
            frames.append(frame.f_code.co_qualname if hasattr(frame.f_code, "co_qualname") else "")
            frame = frame.f_back
        return run(*given)

    monkeypatch.setattr(type(session), "run", counted)
    embedder.encode_queries(["가"])
    assert 2 < len(frames) + 1 <= MOST_FRAMES, frames
