"""Fields that select how to embed, and the inputs of a request: texts or token IDs, with a prompt."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal, cast

import numpy as np
import numpy.typing as npt
from pydantic import AliasChoices, BaseModel, ConfigDict, Field, model_validator

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
from koe5_onnx.serve.settings import Settings

RawInputs = str | list[str] | list[int] | list[list[int]]
"""Inputs in OpenAI's and TEI's API: a text, a list of texts, the token IDs of a text, or a list of those."""

_QUERY, _PASSAGE = "query", "passage"
INPUT_TYPES: Mapping[str, str] = {
    "search_query": _QUERY,
    "retrieval.query": _QUERY,
    "document": _PASSAGE,
    "search_document": _PASSAGE,
    "retrieval.passage": _PASSAGE,
}
"""Maps the input types of Cohere, Voyage AI and Jina AI to prompt names."""
_NO_PROMPT, _LITERAL = "none", "literal"
_NAMED, _NAMED_CHARACTERS = 16, 64
"""Maximum number and length of the names in the header x-ignored-fields. They come from the request."""


class Documented(BaseModel):
    """Body of a request or response, whose fields are described by their docstrings."""

    model_config = ConfigDict(use_attribute_docstrings=True)


class PromptFields(Documented):
    """Fields that select the prompt, under the names that different APIs have for them."""

    model_config = ConfigDict(extra="allow")

    input_type: str | None = Field(
        None, description="Prompt to add to the texts: 'query', 'passage' or 'none'"
    )
    prompt_name: str | None = Field(None, description="Another name for input_type")
    task: str | None = Field(
        None, description="Another name for input_type: 'retrieval.query' or 'retrieval.passage'"
    )
    # A prompt is added to up to 2,048 texts, so a long one would multiply the size of the body.
    prompt: Annotated[str, Field(max_length=4096)] | None = Field(
        None, description="Text to put in front of the texts, instead of the name of a prompt"
    )

    @model_validator(mode="before")
    @classmethod
    def _flat(cls, given: Any) -> Any:
        """Move the fields of `parameters` to the top level, and leave out fields that are null.

        Clients send null for every option that is not set.
        """
        if not isinstance(given, dict):
            return given
        nested = given.get("parameters") if "parameters" in cls.model_fields else None
        if isinstance(nested, dict):
            given = _not_null(nested) | _not_null(given)
            del given["parameters"]
        return _not_null(given)

    def model_post_init(self, _context: object) -> None:
        """Keep only the names of unknown fields, because their values can take 20 times their bytes."""
        self.__pydantic_extra__ = dict.fromkeys(self.model_extra or ())


def _not_null(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value is not None}


class EmbedFields(PromptFields):
    """Fields that select how to embed."""

    truncate: Literal["NONE", "END"] | bool | None = Field(
        None,
        validation_alias=AliasChoices("truncate", "truncation"),
        description="Truncate texts above the token limit. The default is the server's --overflow",
    )
    truncation_direction: Literal["Left", "Right", "left", "right"] = "Right"
    """End at which texts are truncated. "Left" is rejected."""
    dimensions: int | None = Field(
        None,
        validation_alias=AliasChoices("dimensions", "output_dimension"),
        description="Size of the embeddings. GET /v1/models lists the choices",
    )
    normalize: bool | None = Field(
        None,
        validation_alias=AliasChoices("normalize", "normalized"),
        description="No effect, because the model determines whether embeddings have unit length. Another "
        "value is reported as ignored, or rejected with --strict",
    )


@dataclass(frozen=True)
class Inputs:
    """Inputs of one request: either `texts` or `ids` is empty."""

    texts: Sequence[str]
    ids: Sequence[Sequence[int]]
    """Token IDs, if the client tokenized the texts."""
    prompt_name: str | None
    """Name of the prompt; "literal" if the request contains the prompt itself; None if no prompt is added."""
    prompt: str
    """Text of the prompt."""
    truncate: bool
    """True to truncate texts above the token limit, False to reject them."""
    param: str
    """Name of the request's field with the inputs, for error messages."""
    ignored: Sequence[str] = ()
    """Names of fields without an effect, safe for a header."""

    @property
    def prompted(self) -> list[str]:
        """Texts with the prompt.

        The Embedder does not add it, because its warning about doubled prompts quotes the prompt.
        """
        return [self.prompt + text for text in self.texts]

    @property
    def characters(self) -> int:
        """Total number of characters with prompts, or of token IDs."""
        return sum(map(len, self.texts)) + len(self.texts) * len(self.prompt) + sum(map(len, self.ids))


class InputReader:
    """Converts the fields of requests to Inputs.

    Args:
        settings: Limits and defaults.
        contract: The artifact's contract.
    """

    def __init__(self, settings: Settings, contract: Contract) -> None:
        self._settings, self._contract = settings, contract
        self.default_prompt_name = settings.default_prompt_name or contract.default_prompt_name
        """Prompt name of requests without one."""

    def read(
        self, raw: RawInputs, fields: PromptFields, param: str, *, of_model: str | None = None
    ) -> Inputs:
        """Return the inputs of a request.

        Args:
            raw: Texts or token IDs.
            fields: The other fields.
            param: Name of the field with the inputs.
            of_model: Prompt name in the suffix of the model name.

        Raises:
            Refusal: There are no inputs or too many, an input is too long, a field is invalid, or the request
                combines token IDs with a prompt.
        """
        many = self._listed(raw, param)
        truncate = self._truncate(fields) if isinstance(fields, EmbedFields) else False
        ignored = self._ignored(fields)
        if isinstance(many[0], str):
            name, prompt = choose_prompt(fields, of_model or self.default_prompt_name, self._contract.prompts)
            return Inputs(cast("Sequence[str]", many), [], name, prompt, truncate, param, ignored)
        name, prompt = choose_prompt(fields, of_model, self._contract.prompts)
        if prompt:
            raise Refusal(
                INVALID,
                f"{param} has token IDs, and no prompt ({prompt!r}) can be added to token IDs. Add the "
                "prompt before you tokenize, or send the text",
                param=param,
            )
        return Inputs([], cast("Sequence[Sequence[int]]", many), None, "", truncate, param, ignored)

    def _listed(self, raw: RawInputs, param: str) -> Sequence[str] | Sequence[Sequence[int]]:
        most, longest = self._settings.max_inputs, self._settings.max_text_characters
        is_one = isinstance(raw, str) or (raw and isinstance(raw[0], int))
        many = cast("list[str] | list[list[int]]", [raw] if is_one else raw)
        if not many:
            raise Refusal(EMPTY, f"{param} is empty: expected at least one text", param=param)
        if len(many) > most:
            raise Refusal(
                TOO_MANY_INPUTS, f"{param} has {len(many):,} texts: expected at most {most:,}", param=param
            )
        if (length := max(map(len, many))) > longest:
            raise Refusal(
                TOO_MANY_TOKENS,
                f"{param} {[*map(len, many)].index(length)} has {length:,} characters: expected at most "
                f"{longest:,}. Split it",
                param=param,
            )
        return many

    def _truncate(self, fields: EmbedFields) -> bool:
        try:
            require_dim(fields.dimensions, self._contract, "dimensions")
        except InputError as error:
            raise Refusal(INVALID, str(error), param="dimensions") from error
        if fields.truncation_direction.lower() == "left":
            raise Refusal(
                INVALID,
                "truncation_direction is Left: expected Right, because only the end of a text can be cut",
                param="truncation_direction",
            )
        if fields.truncate is None:
            return self._settings.engine.overflow != "error"
        return fields.truncate in (True, "END")

    def _ignored(self, fields: PromptFields) -> list[str]:
        """Return the names of fields that have no effect; reject them if the server is strict."""
        ignored: list[str] = []
        if isinstance(fields, EmbedFields) and fields.normalize not in (None, self._contract.normalize):
            ignored.append("normalize")
        if fields.task is not None and _prompt_name(fields.task) not in (*self._contract.prompts, _NO_PROMPT):
            ignored.append("task")
        ignored += fields.model_extra or ()
        names = [re.sub(r"[^!-+\--~]", "?", name[:_NAMED_CHARACTERS]) for name in ignored[:_NAMED]]
        if names and self._settings.strict:
            raise Refusal(
                INVALID,
                f"{', '.join(names)} would have no effect, and the server runs with --strict. Remove it",
                param=names[0],
            )
        return names


def _prompt_name(word: str) -> str:
    return INPUT_TYPES.get(word, word)


def choose_prompt(
    fields: PromptFields, default: str | None, prompts: Mapping[str, str]
) -> tuple[str | None, str]:
    """Return the name of a request's prompt, None for no prompt, and its text.

    Args:
        fields: Fields of the request.
        default: Prompt name of a request without these fields.
        prompts: Prompts of the contract.

    Raises:
        Refusal: The prompt name is not one of the contract's, or two fields differ.
    """
    known = {**prompts, _NO_PROMPT: ""}
    found = {
        field: _prompt_name(word)
        for field in ("input_type", "prompt_name", "task")
        if (word := getattr(fields, field)) is not None
    }
    for field, name in found.items():
        if name not in known and field != "task":
            words = ", ".join(sorted({*prompts, _NO_PROMPT}))
            raise Refusal(
                INVALID, f"{field} is {getattr(fields, field)!r}: expected one of {words}", param=field
            )
    texts = {field: known[name] for field, name in found.items() if name in known}
    if fields.prompt is not None:
        texts["prompt"] = fields.prompt
    if len({*texts.values()}) > 1:
        raise Refusal(
            INVALID, f"{' and '.join(texts)} are different prompts: send only one", param=[*texts][-1]
        )
    if texts:
        (text,) = {*texts.values()}
        names = (name for name in (*found.values(), *prompts) if known.get(name) == text)
        name = next(names, _LITERAL if text else _NO_PROMPT)
    else:
        name = default or _NO_PROMPT
        text = known[name]
    return None if name == _NO_PROMPT else name, text


@dataclass(frozen=True)
class ModelNames:
    """Names that clients may use for the model, each also with the suffix ":PROMPT_NAME"."""

    names: Sequence[str]
    prompts: Mapping[str, str]

    def prompt_of(self, name: str | None) -> str | None:
        """Return the prompt name in the suffix of a model name; None if there is no suffix.

        Raises:
            Refusal: The model name is unknown.
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
        """All names: first those without a prompt name, then those with one."""
        return [*self.names, *(f"{name}:{prompt}" for name in self.names for prompt in self.prompts)]


def prepare(embedder: Embedder, inputs: Inputs) -> Tokens:
    """Tokenize the texts, or check the token IDs of the request.

    Raises:
        InputError: A text is not valid Unicode.
        Refusal: A text is above the token limit and `truncate` is False, or token IDs cannot be from this
            model's tokenizer.
    """
    tokens = embedder.tokenize(inputs.prompted, prompt="") if inputs.texts else _given_ids(embedder, inputs)
    limit = embedder.contract.max_tokens
    if not inputs.truncate and (too_long := np.flatnonzero(tokens.full_lengths > limit)).size:
        first = int(too_long[0])
        raise Refusal(
            TOO_MANY_TOKENS,
            f"{inputs.param} {first} has {tokens.full_lengths[first]:,} tokens: expected at most {limit}. "
            "Split it, or send truncate: true",
            param=inputs.param,
        )
    return tokens


def _given_ids(embedder: Embedder, inputs: Inputs) -> Tokens:
    limit, vocabulary = embedder.contract.max_tokens, embedder.artifact.manifest.architecture.vocabulary
    opening, closing = embedder.tokenize([""]).ids[0][[0, -1]].tolist()
    rows: list[npt.NDArray[np.int32]] = []
    further: dict[int, list[npt.NDArray[np.int32]]] = {}
    for number, ids in enumerate(inputs.ids):
        name = f"{inputs.param} {number}"
        if len(ids) < 2 or ids[0] != opening or ids[-1] != closing:
            raise Refusal(
                INVALID,
                f"{name} is not from this model's tokenizer, whose token IDs begin with {opening} and end "
                f"with {closing}. Send the text instead: clients that tokenize for OpenAI's models have an "
                "option for that (LangChain: check_embedding_ctx_length=False). Or use POST /tokenize",
                param=inputs.param,
            )
        if min(ids) < 0 or max(ids) >= vocabulary:
            raise Refusal(
                INVALID,
                f"{name} has a token ID outside 0 to {vocabulary - 1}: send the text",
                param=inputs.param,
            )
        starts = range(1, max(2, len(ids) - 1), limit - 2)
        first, *rest = [
            np.asarray([opening, *ids[start : min(start + limit - 2, len(ids) - 1)], closing], dtype=np.int32)
            for start in (starts if embedder.overflow == "average" else starts[:1])
        ]
        rows.append(first)
        if rest:
            further[number] = rest
    full_lengths = np.fromiter(map(len, inputs.ids), np.int32, len(inputs.ids))
    return replace(Tokens.of(rows), full_lengths=full_lengths, further=further)
