"""What a request asks to embed, checked: texts or token ids, the prompt, what to do with long ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import cast

import numpy as np
import numpy.typing as npt

from koe5_onnx import Contract, Embedder, InputError, Tokens
from koe5_onnx.artifact.matryoshka import require_dim
from koe5_onnx.serve.refusals import (
    EMPTY,
    INVALID,
    TOO_MANY_INPUTS,
    TOO_MANY_TOKENS,
    UNKNOWN_MODEL,
    Refusal,
)

RawInputs = str | list[str] | list[int] | list[list[int]]
"""As both APIs take them: one text, texts, the ids of one text, or ids of texts."""

INPUT_TYPES: Mapping[str, str] = {
    "query": "query",
    "search_query": "query",
    "passage": "passage",
    "document": "passage",
    "search_document": "passage",
}
"""Other APIs' words for the prompts."""
_NO_PROMPT = "none"


@dataclass(frozen=True)
class Inputs:
    """What is to be embedded."""

    texts: Sequence[str]
    ids: Sequence[Sequence[int]]
    """In place of texts; one of the two is empty."""
    prompt_name: str | None
    """None puts nothing in front."""
    truncate: bool
    """Cut texts above the token limit; else refuse them."""
    param: str
    """The request's field that holds the texts, for messages."""

    @property
    def prompt(self) -> str | None:
        """The prompt's text in place of its name: "" if there is no name, whatever the contract's default."""
        return "" if self.prompt_name is None else None

    @property
    def characters(self) -> int:
        """Of all texts; or how many ids there are."""
        return sum(map(len, self.texts)) + sum(map(len, self.ids))


def as_inputs(
    raw: RawInputs, prompt_name: str | None, *, truncate: bool, param: str, max_inputs: int, max_length: int
) -> Inputs:
    """Bring the four forms of inputs into one.

    Raises:
        Refusal: There are none, or too many, or one is too long even for cutting, or a prompt is to go in
            front of token ids.
    """
    many: Sequence[str] | Sequence[Sequence[int]]
    if isinstance(raw, str) or (raw and isinstance(raw[0], int)):
        many = cast("list[str] | list[list[int]]", [raw])
    else:
        many = cast("list[str] | list[list[int]]", raw)
    if not many:
        raise Refusal(EMPTY, f"{param} is empty: expected a text or more", param=param)
    if len(many) > max_inputs:
        raise Refusal(
            TOO_MANY_INPUTS, f"{param} has {len(many):,} texts: expected at most {max_inputs:,}", param=param
        )
    if (longest := max(map(len, many))) > max_length:
        raise Refusal(
            TOO_MANY_TOKENS,
            f"{param} {[*map(len, many)].index(longest)} has {longest:,} characters: expected at most "
            f"{max_length:,}; split it",
            param=param,
        )
    if isinstance(many[0], str):
        return Inputs(cast("Sequence[str]", many), [], prompt_name, truncate, param)
    if prompt_name:
        raise Refusal(
            INVALID,
            f"{param} holds token ids, which no prompt ({prompt_name!r}) can go in front of: put it into the "
            "text before tokenizing, or send the text",
            param=param,
        )
    return Inputs([], cast("Sequence[Sequence[int]]", many), None, truncate, param)


def require_dimensions(dimensions: int | None, contract: Contract) -> None:
    """Check a request's `dimensions`.

    Raises:
        Refusal: The model was not trained to be cut to that many.
    """
    try:
        require_dim(dimensions, contract, "dimensions")
    except InputError as error:
        raise Refusal(INVALID, str(error), param="dimensions") from error


def choose_prompt(
    asked: Mapping[str, str | None], of_model: str | None, default: str | None, prompts: Mapping[str, str]
) -> str | None:
    """Return the name of a request's prompt: by its own fields, else by the model's name, else the default.

    None puts nothing in front.

    Args:
        asked: Field of the request ("input_type", "prompt_name") to what it says.
        of_model: What the suffix of the model's name says.
        default: The server's, or the contract's.
        prompts: The contract's.

    Raises:
        Refusal: It is none of the contract's, or two fields differ.
    """
    found: str | None = None
    for field, word in asked.items():
        if word is None:
            continue
        name = INPUT_TYPES.get(word, word)
        if name != _NO_PROMPT and name not in prompts:
            raise Refusal(
                INVALID,
                f"{field} is {word!r}: expected one of {', '.join(sorted({*prompts, _NO_PROMPT}))}",
                param=field,
            )
        if found is not None and name != found:
            raise Refusal(INVALID, f"{' and '.join(asked)} name different prompts: send one", param=field)
        found = name
    found = found or of_model or default
    return None if found == _NO_PROMPT else found


@dataclass(frozen=True)
class ModelNames:
    """The names that the model answers to, each also with the suffix ":PROMPT"."""

    names: Sequence[str]
    prompts: Mapping[str, str]

    def prompt_of(self, name: str | None) -> str | None:
        """The prompt in a model's name; None where it names none.

        Raises:
            Refusal: The server has no such model.
        """
        if name is None or name in self.names:
            return None
        stem, _, suffix = name.rpartition(":")
        if stem in self.names and (suffix in self.prompts or suffix == _NO_PROMPT):
            return suffix
        raise Refusal(
            UNKNOWN_MODEL,
            f"model is {name[:200]!r}: expected one of {', '.join(self.all)}",
            param="model",
        )

    @property
    def all(self) -> list[str]:
        """All names, those with a prompt behind those without."""
        return [*self.names, *(f"{name}:{prompt}" for name in self.names for prompt in self.prompts)]


def prepare(embedder: Embedder, inputs: Inputs) -> Tokens:
    """Tokenize, or check the ids that a client made itself.

    Raises:
        InputError: A text is not valid Unicode.
        Refusal: A text is above the limit and is not to be cut, or ids are not this tokenizer's.
    """
    tokens = (
        embedder.tokenize(inputs.texts, inputs.prompt_name, prompt=inputs.prompt)
        if inputs.texts
        else _given_ids(embedder, inputs)
    )
    limit = embedder.contract.max_tokens
    if not inputs.truncate and (too_long := np.flatnonzero(tokens.full_lengths > limit)).size:
        first = int(too_long[0])
        raise Refusal(
            TOO_MANY_TOKENS,
            f"{inputs.param} {first} has {tokens.full_lengths[first]:,} tokens: expected at most {limit}; "
            "split it, or send truncate: true",
            param=inputs.param,
        )
    return tokens


def _given_ids(embedder: Embedder, inputs: Inputs) -> Tokens:
    limit, vocabulary = embedder.contract.max_tokens, embedder.artifact.manifest.architecture.vocabulary
    opening, closing = embedder.tokenize([""]).ids[0][[0, -1]].tolist()
    rows: list[npt.NDArray[np.int32]] = []
    for number, ids in enumerate(inputs.ids):
        name = f"{inputs.param} {number}"
        if len(ids) < 2 or ids[0] != opening or ids[-1] != closing:
            raise Refusal(
                INVALID,
                f"{name} is not of this model's tokenizer, whose ids begin with {opening} and end with "
                f"{closing}: send the text itself. Clients that tokenize for OpenAI's own models do that on "
                "request (LangChain: check_embedding_ctx_length=False), or use POST /tokenize",
                param=inputs.param,
            )
        if min(ids) < 0 or max(ids) >= vocabulary:
            raise Refusal(INVALID, f"{name} has an id outside 0 to {vocabulary - 1}", param=inputs.param)
        cut = [*ids[: limit - 1], closing] if len(ids) > limit else ids
        rows.append(np.asarray(cut, dtype=np.int32))
    full_lengths = np.fromiter(map(len, inputs.ids), np.int32, len(inputs.ids))
    return replace(Tokens.of(rows), full_lengths=full_lengths)
