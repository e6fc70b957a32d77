"""Arguments that several verbs share: the options that open an artifact, the prompt and the width."""

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
        parser: Parser or group that gets them.
        **defaults: Defaults of this verb, if they differ from those of `EngineOptions`.
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
    return {"type": int, "metavar": "N"} if int in get_args(hint) else {}


def engine_options(args: argparse.Namespace, **changes: Any) -> EngineOptions:
    """Return the options that were given, with some replaced.

    Raises:
        InputError: One is out of range, or two contradict each other.
    """
    given = {field.name: getattr(args, field.name) for field in dataclasses.fields(EngineOptions)}
    return EngineOptions(**given | changes)


def add_text_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare which artifact embeds, what the texts are, and how wide embeddings become."""
    parser.add_argument("--artifact", required=True, metavar="DIR_OR_HUB_ID", help="an exported artifact")
    prompt = parser.add_mutually_exclusive_group(required=True)
    prompt.add_argument(
        "--prompt-name",
        choices=("query", "passage", "none"),
        help="what the texts are: the model expects its prompt in front, and a wrong one costs quality",
    )
    prompt.add_argument("--prompt", metavar="TEXT", help="the text itself to put in front, as 'query: '")
    parser.add_argument(
        "--dim",
        type=int,
        metavar="N",
        help="components to keep of each embedding: one that the model was trained to be cut to, as "
        "koe5-onnx info lists them (default: all)",
    )


def prompt_of(args: argparse.Namespace) -> dict[str, Any]:
    """Return `prompt_name` and `prompt` for an Embedder."""
    if args.prompt_name == "none":
        return {"prompt_name": None, "prompt": ""}
    return {"prompt_name": args.prompt_name, "prompt": args.prompt}
