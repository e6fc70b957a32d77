"""Fields that select how to embed, and the inputs of a request: texts or token IDs, with a prompt."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, cast

import numpy as np
from pydantic import AliasChoices, BaseModel, ConfigDict, Field, model_validator

from koe5_onnx import Embedder, InputError, Tokens
from koe5_onnx.artifact.matryoshka import require_dim
from koe5_onnx.serve.refusals import Reason, Refusal
from koe5_onnx.serve.settings import Settings

RawInputs = str | list[str] | list[int] | list[list[int]]
"""Inputs in OpenAI's and TEI's API: a text, a list of texts, the token IDs of a text, or a list of those."""

_QUERY, _PASSAGE = "query", "passage"
INPUT_TYPES: Mapping[str | None, str] = {
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
    """Body of a request or response. Docstrings of fields are their descriptions in the OpenAPI schema."""

    model_config = ConfigDict(use_attribute_docstrings=True)


class PromptFields(Documented):
    """Fields that select the prompt, under the names that different APIs have for them."""

    model_config = ConfigDict(extra="allow")

    input_type: str | None = None
    """Prompt to add to the texts: 'query', 'passage' or 'none'."""
    prompt_name: str | None = None
    """Another name for input_type."""
    task: str | None = None
    """Another name for input_type: 'retrieval.query' or 'retrieval.passage'."""
    # A prompt is added to up to 2,048 texts, so a long one would multiply the size of the body.
    prompt: Annotated[str, Field(max_length=4096)] | None = None
    """Text to put in front of the texts, instead of the name of a prompt."""
    parameters: dict[str, Any] | None = None
    """Fields as an object. A field outside of it takes precedence."""

    @model_validator(mode="before")
    @classmethod
    def _flat(cls, given: Any) -> Any:
        """Move the fields of `parameters` to the top level, and leave out fields that are null.

        Clients send null for every option that is not set.
        """
        if not isinstance(given, dict):
            return given
        if isinstance(nested := given.get("parameters"), dict):
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

    truncate: Annotated[
        Literal["NONE", "END"] | bool | None, Field(validation_alias=AliasChoices("truncate", "truncation"))
    ] = None
    """True or 'END' to accept texts above the token limit, False or 'NONE' to reject them. The server's
    --overflow is the default, and determines whether accepted texts are truncated or averaged."""
    truncation_direction: Literal["Left", "Right", "left", "right"] = "Right"
    """End at which texts are truncated. "Left" is rejected."""
    dimensions: Annotated[
        int | None, Field(validation_alias=AliasChoices("dimensions", "output_dimension"))
    ] = None
    """Size of the embeddings. GET /v1/models lists the choices."""
    normalize: Annotated[bool | None, Field(validation_alias=AliasChoices("normalize", "normalized"))] = None
    """No effect, because the model determines whether embeddings have unit length. Another value is reported
    as ignored, or rejected with --strict."""


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
    """False to reject texts above the token limit."""
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
    """Converts the fields of requests to Inputs, and Inputs to Tokens."""

    def __init__(self, embedder: Embedder, settings: Settings) -> None:
        self._embedder, self._settings, self._contract = embedder, settings, embedder.contract
        self._known = {**self._contract.prompts, _NO_PROMPT: ""}
        self.default_prompt_name = settings.default_prompt_name or self._contract.default_prompt_name
        """Prompt name of requests without one."""

    def read(
        self, raw: RawInputs, fields: PromptFields, param: str, *, of_model: str | None = None
    ) -> Inputs:
        """Return the inputs of a request.

        `param` is the name of the field with the inputs, `raw` its value, and `of_model` the prompt name in
        the suffix of the model name.

        Raises:
            Refusal: There are no inputs or too many, an input is too long, a field is invalid, or the request
                combines token IDs with a prompt.
        """
        many = self._listed(raw, param)
        truncate = self._truncate(fields) if isinstance(fields, EmbedFields) else False
        ignored = self._ignored(fields)
        if isinstance(many[0], str):
            name, prompt = self._prompt(fields, of_model or self.default_prompt_name)
            return Inputs(cast("Sequence[str]", many), [], name, prompt, truncate, param, ignored)
        _, prompt = self._prompt(fields, of_model)
        if prompt:
            found = f"{param} has token IDs, and no prompt ({prompt!r}) can be added to token IDs"
            message = f"{found}. Add the prompt before you tokenize, or send the text"
            raise Refusal(Reason.INVALID, message, param)
        return Inputs([], cast("Sequence[Sequence[int]]", many), None, "", truncate, param, ignored)

    def _listed(self, raw: RawInputs, param: str) -> Sequence[str] | Sequence[Sequence[int]]:
        most, longest = self._settings.max_inputs, self._settings.max_text_characters
        is_one = isinstance(raw, str) or (raw and isinstance(raw[0], int))
        many = cast("list[str] | list[list[int]]", [raw] if is_one else raw)
        if not many:
            raise Refusal(Reason.EMPTY, f"{param} is empty: expected at least one text", param)
        if len(many) > most:
            message = f"{param} has {len(many):,} texts: expected at most {most:,}"
            raise Refusal(Reason.TOO_MANY_INPUTS, message, param)
        lengths = [*map(len, many)]
        if (length := max(lengths)) > longest:
            found = f"{param} {lengths.index(length)} has {length:,} characters"
            raise Refusal(Reason.TOO_MANY_TOKENS, f"{found}: expected at most {longest:,}. Split it", param)
        return many

    def _truncate(self, fields: EmbedFields) -> bool:
        try:
            require_dim(fields.dimensions, self._contract, "dimensions")
        except InputError as error:
            raise Refusal(Reason.INVALID, str(error), "dimensions") from error
        if fields.truncation_direction.lower() == "left":
            message = (
                "truncation_direction is Left: expected Right, because only the end of a text can be cut"
            )
            raise Refusal(Reason.INVALID, message, "truncation_direction")
        if fields.truncate is None:
            return self._settings.engine.overflow != "error"
        return fields.truncate in (True, "END")

    def _ignored(self, fields: PromptFields) -> list[str]:
        """Return the names of fields that have no effect; reject them if the server is strict."""
        ignored: list[str] = []
        if isinstance(fields, EmbedFields) and fields.normalize not in (None, self._contract.normalize):
            ignored.append("normalize")
        if fields.task is not None and INPUT_TYPES.get(fields.task, fields.task) not in self._known:
            ignored.append("task")
        ignored += fields.model_extra or ()
        names = [re.sub(r"[^!-+\--~]", "?", name[:_NAMED_CHARACTERS]) for name in ignored[:_NAMED]]
        if names and self._settings.strict:
            found = f"{', '.join(names)} would have no effect, and the server runs with --strict"
            raise Refusal(Reason.INVALID, f"{found}. Remove it", names[0])
        return names

    def _prompt(self, fields: PromptFields, default: str | None) -> tuple[str | None, str]:
        """Return the name of a request's prompt, None for no prompt, and its text.

        `default` is the prompt name of a request whose fields select no prompt.
        """
        known, chosen = self._known, dict[str, tuple[str, str]]()
        for field in ("input_type", "prompt_name", "task"):
            word: str | None = getattr(fields, field)
            name = INPUT_TYPES.get(word, word)
            if name in known:
                chosen[field] = name, known[name]
            elif name is not None and field != "task":
                message = f"{field} is {word!r}: expected one of {', '.join(sorted(known))}"
                raise Refusal(Reason.INVALID, message, field)
        if (text := fields.prompt) is not None:
            names = (name for name, known_text in known.items() if known_text == text)
            chosen["prompt"] = next(names, _LITERAL), text
        if len({text for _, text in chosen.values()}) > 1:
            message = f"{' and '.join(chosen)} are different prompts: send only one"
            raise Refusal(Reason.INVALID, message, [*chosen][-1])
        default = default or _NO_PROMPT
        name, text = next(iter(chosen.values()), (default, known[default]))
        return None if name == _NO_PROMPT else name, text

    def tokens(self, inputs: Inputs) -> Tokens:
        """Tokenize the texts, or check the token IDs of the request.

        Raises:
            Refusal: A text is not valid Unicode; token IDs cannot be from this model's tokenizer; or there
                are too many tokens in the request, or in a text that may not be truncated.
        """
        tokens = self._tokenized(inputs)
        most, limit = self._settings.max_request_tokens, self._contract.max_tokens
        if not inputs.truncate and (too_long := np.flatnonzero(tokens.full_lengths > limit)).size:
            first = int(too_long[0])
            found = f"{inputs.param} {first} has {tokens.full_lengths[first]:,} tokens"
            message = f"{found}: expected at most {limit}. Split it, or send truncate: true"
            raise Refusal(Reason.TOO_MANY_TOKENS, message, inputs.param)
        if (total := tokens.total) > most:
            message = (
                f"the request has {total:,} tokens: expected at most {most:,}. Send fewer texts per request"
            )
            raise Refusal(Reason.TOO_MANY_TOKENS, message, inputs.param)
        return tokens

    def _tokenized(self, inputs: Inputs) -> Tokens:
        if inputs.texts:
            return self._embedder.tokenize(inputs.prompted, prompt="")
        try:
            return self._embedder.tokens_of(inputs.ids)
        except InputError as error:
            message = (
                f"{inputs.param}: {error}. Send the text instead. Clients that tokenize for OpenAI's models "
                "have an option for that (LangChain: check_embedding_ctx_length=False). Or use POST /tokenize"
            )
            raise Refusal(Reason.INVALID, message, inputs.param) from error


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
        if stem in self.names and suffix in (*self.prompts, _NO_PROMPT):
            return suffix
        message = f"model is {name[:200]!r}: expected one of {', '.join(self.all)}"
        raise Refusal(Reason.UNKNOWN_MODEL, message, "model")

    @property
    def all(self) -> list[str]:
        """The names that GET /v1/models lists: first those without a prompt name, then those with one."""
        return [*self.names, *(f"{name}:{prompt}" for name in self.names for prompt in self.prompts)]
