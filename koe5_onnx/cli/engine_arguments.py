"""Arguments that several commands share: engine options, prompt, size of embeddings, encoding of files."""

from __future__ import annotations

import argparse
import dataclasses
from argparse import BooleanOptionalAction
from typing import Any, Literal, get_args, get_origin, get_type_hints

from koe5_onnx import EngineOptions
from koe5_onnx.options import field_docs


def add_engine_arguments(parser: argparse._ActionsContainer, **defaults: Any) -> None:
    """Declare an argument for each field of `EngineOptions`, with its documentation as help.

    Args:
        parser: Parser or group to add the arguments to.
        **defaults: Defaults of this command that differ from those of `EngineOptions`.
    """
    hints, docs = get_type_hints(EngineOptions), field_docs()
    for field in dataclasses.fields(EngineOptions):
        default = defaults.get(field.name, field.default)
        doc = docs.get(field.name, "").replace("%", "%%")
        if default is None:
            doc = doc.replace("None", "the default")
        elif not isinstance(default, bool):
            doc += f" (default: {default})"
        parser.add_argument(
            f"--{field.name.replace('_', '-')}",
            default=default,
            help=doc,
            **_form(hints[field.name]),
        )


def _form(hint: Any) -> dict[str, Any]:
    if hint is bool:
        return {"action": BooleanOptionalAction}
    if get_origin(hint) is Literal:
        return {"choices": get_args(hint)}
    kinds = get_args(hint) or (hint,)
    number = next((kind for kind in (int, float) if kind in kinds), None)
    return {} if number is None else {"type": number, "metavar": "N"}


def engine_options(args: argparse.Namespace, **changes: Any) -> EngineOptions:
    """Return the engine options of the command line, with `changes` applied.

    Raises:
        InputError: An option is out of range, or two options contradict each other.
    """
    given = {field.name: getattr(args, field.name) for field in dataclasses.fields(EngineOptions)}
    return EngineOptions(**given | changes)


def add_text_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments for the artifact, the prompt and the size of embeddings."""
    parser.add_argument("--artifact", required=True, metavar="DIR_OR_HUB_ID", help="an exported artifact")
    prompt = parser.add_mutually_exclusive_group(required=True)
    prompt.add_argument(
        "--prompt-name",
        choices=("query", "passage", "none"),
        help="kind of the texts, which selects the prompt that the model was trained with",
    )
    prompt.add_argument("--prompt", metavar="TEXT", help="text to add before each text, such as 'query: '")
    parser.add_argument(
        "--dim",
        type=int,
        metavar="N",
        help="size of the embeddings: one that the model was trained for, as listed by koe5-onnx info "
        "(default: the full size)",
    )


def add_encoding(parser: argparse._ActionsContainer) -> None:
    """Declare the argument for the encoding of text files."""
    parser.add_argument(
        "--encoding",
        default="utf-8",
        metavar="NAME",
        help="encoding of text files: utf-8, cp949 (Excel in Korea), utf-16 (Windows), another "
        "ASCII-compatible Python codec, or auto to detect it (default: utf-8)",
    )


def prompt_of(args: argparse.Namespace) -> dict[str, Any]:
    """Return the arguments `prompt_name` and `prompt` for `Embedder.encode`."""
    if args.prompt_name == "none":
        return {"prompt_name": None, "prompt": ""}
    return {"prompt_name": args.prompt_name, "prompt": args.prompt}
