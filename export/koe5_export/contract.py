"""Determine the contract of a checkpoint: pooling, normalization, prompts, token limit and similarity.

The contract comes from the checkpoint's settings files, which are read as sentence-transformers reads them
(settings.py), and from options. For some Hub ids, the table `KNOWN` provides what these files lack. If the
pooling remains unknown, this is an error: servers that guess use CLS pooling for KoE5 and return wrong
embeddings. reference.py compares the contract with the model that sentence-transformers loads.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from koe5_export.checkpoint import Checkpoint, strings_of
from koe5_export.config import read_json
from koe5_export.matryoshka import matryoshka_dims
from koe5_export.settings import (
    MODEL_SETTINGS,
    Modules,
    read_modules,
    read_settings,
    read_transformer_settings,
    warn_if_ignored,
)
from koe5_onnx import CheckpointError, CheckpointWarning, Contract, InputError

_POOLINGS = ("mean", "cls")
_SIMILARITIES = ("cosine", "dot")
_SPECIALS = 2
"""Number of special tokens per text (`<s>` and `</s>`), which a token limit must exceed."""
_POOLING_FLAGS = {"pooling_mode_mean_tokens": "mean", "pooling_mode_cls_token": "cls"}
_E5_NAME = re.compile(r"(?<![a-z0-9])(ko)?e5(?![a-z0-9])", re.IGNORECASE)


@dataclass(frozen=True)
class KnownContract:
    """Pooling, prompts and Matryoshka dimensions of a model, used if its checkpoint's files lack them."""

    pooling: str
    prompts: Mapping[str, str]
    matryoshka_dims: Sequence[int] = ()


_E5_PROMPTS = {"query": "query: ", "passage": "passage: "}
KNOWN: Mapping[str, KnownContract] = {
    # Source: https://huggingface.co/nlpai-lab/KoE5 (card: prefixes, fine-tuned from multilingual-e5-large)
    "nlpai-lab/KoE5": KnownContract("mean", _E5_PROMPTS),
    # Source: https://huggingface.co/intfloat/multilingual-e5-large (card: average_pool, prefixes)
    "intfloat/multilingual-e5-small": KnownContract("mean", _E5_PROMPTS),
    "intfloat/multilingual-e5-base": KnownContract("mean", _E5_PROMPTS),
    "intfloat/multilingual-e5-large": KnownContract("mean", _E5_PROMPTS),
    # Source: https://huggingface.co/BAAI/bge-m3 (1_Pooling/config.json; card: no instruction for queries)
    "BAAI/bge-m3": KnownContract("cls", {}),
    # Source: https://huggingface.co/nlpai-lab/KURE-v1 (1_Pooling/config.json; card: fine-tuned from bge-m3,
    # example without prompts), https://github.com/nlpai-lab/KURE (eval/evaluate.py: prompts for KoE5 only)
    "nlpai-lab/KURE-v1": KnownContract("cls", {}),
    # Source: https://huggingface.co/Snowflake/snowflake-arctic-embed-l-v2.0 (card: first token, "query: " for
    # queries only, MRL), https://arxiv.org/abs/2412.04506 (trained for truncation to 256)
    "Snowflake/snowflake-arctic-embed-l-v2.0": KnownContract("cls", {"query": "query: "}, (256,)),
}


@dataclass(frozen=True, kw_only=True)
class ContractOptions:
    """Options for properties of a model that its checkpoint may not record."""

    like: str | None = None
    """Hub id in `KNOWN` of the model that the checkpoint is a copy of; None uses the checkpoint's own id."""
    prompts: Mapping[str, str] = field(default_factory=dict)
    """Prompts by name ("query", "passage") that the checkpoint's files lack."""
    matryoshka_dims: Sequence[int] | None = None
    """Matryoshka dimensions of the model; None uses those in the checkpoint's files or, if there are none,
    in `KNOWN`."""
    unicode_form: str | None = "NFC"
    """"NFC" composes texts before tokenization; None leaves them unchanged."""


def read_contract(checkpoint: Checkpoint, options: ContractOptions | None = None) -> Contract:
    """Determine the contract of a checkpoint.

    Args:
        checkpoint: The opened checkpoint.
        options: See ContractOptions.

    Raises:
        CheckpointError: A setting is not supported, the pooling is unknown, or `options.like` is not in
            `KNOWN`.
        InputError: A Matryoshka dimension is out of range, a prompt contradicts the checkpoint's files, or
            `options.unicode_form` is not supported.
    """
    options = options or ContractOptions()
    if options.unicode_form not in ("NFC", None):
        raise InputError(f"unicode_form is {options.unicode_form!r}; expected 'NFC' or None")
    known = _known(checkpoint, options.like)
    folder = checkpoint.folder
    modules = read_modules(folder)
    # Without modules.json, sentence-transformers also ignores its other settings files.
    file, stored = folder / MODEL_SETTINGS, {}
    if modules is None:
        warn_if_ignored(folder)
    else:
        stored = read_settings(file)
    pooling, normalize = _pooling(folder, modules, checkpoint.repository, known)
    _require_right_padding(checkpoint)
    found = _prompts(file, stored, known, options.prompts)
    if not any(found.values()):
        _warn_if_e5(checkpoint)
    return Contract(
        pooling=pooling,
        normalize=normalize,
        max_tokens=_max_tokens(folder, modules, checkpoint.config.max_tokens),
        dim=checkpoint.config.hidden,
        pad_id=checkpoint.config.pad_id,
        prompts=found,
        default_prompt_name=_default_prompt_name(file, stored, found),
        similarity=_similarity(file, stored),
        unicode_form=options.unicode_form,
        matryoshka_dims=matryoshka_dims(
            checkpoint, known.matryoshka_dims if known else (), options.matryoshka_dims
        ),
    )


def _known(checkpoint: Checkpoint, like: str | None) -> KnownContract | None:
    if like is not None and like not in KNOWN:
        raise CheckpointError(f"no contract is known for {like}; expected one of {', '.join(KNOWN)}")
    return KNOWN.get(like or checkpoint.repository)


def _pooling(
    folder: Path, modules: Modules | None, repository: str, known: KnownContract | None
) -> tuple[str, bool]:
    if modules is not None:
        file = folder / modules.pooling / "config.json"
        if not file.is_file():
            raise CheckpointError(f"{file} is missing, but modules.json refers to it. Download it again")
        settings = read_settings(file, "Pooling")
        pooling = pooling_mode(settings)
        if pooling not in _POOLINGS:
            raise CheckpointError(f"{file}: pooling is {pooling}; expected {' or '.join(_POOLINGS)}")
        return pooling, modules.normalize
    if known is not None:
        return known.pooling, True
    raise CheckpointError(
        f"{folder} does not record its pooling. It has no modules.json, and {repository} is not a known id. "
        f"If it is a copy of a known model, pass --like with one of {', '.join(KNOWN)}"
    )


def pooling_mode(settings: Mapping[str, Any]) -> str:
    """Return the pooling mode from the settings of a pooling module, in the old or the new format.

    Several modes, whose results sentence-transformers concatenates, are joined by "+".
    """
    modes = settings.get("pooling_mode")
    if modes is None:
        # The old format has one flag per mode. If no flag is set, sentence-transformers uses the mean.
        flags = [flag for flag, value in settings.items() if flag.startswith("pooling_mode_") and value]
        modes = [_POOLING_FLAGS.get(flag, flag.removeprefix("pooling_mode_")) for flag in flags] or ["mean"]
    return modes if isinstance(modes, str) else "+".join(map(str, modes))


def _max_tokens(folder: Path, modules: Modules | None, positions: int) -> int:
    """Return the token limit that sentence-transformers uses, but at most `positions`, the encoder's limit.

    As in sentence-transformers, max_seq_length overrides the tokenizer's model_max_length.
    """
    file, settings = read_transformer_settings(folder, modules)
    limit, key = settings.get("max_seq_length"), "max_seq_length"
    if limit is None:
        file = file.parent / "tokenizer_config.json"
        limit, key = read_settings(file).get("model_max_length"), "model_max_length"
    if limit is None:
        return positions
    if isinstance(limit, bool) or not isinstance(limit, int | float) or limit <= _SPECIALS:
        raise CheckpointError(f"{file}: {key} is {limit!r}; expected a number of tokens above {_SPECIALS}")
    return int(min(limit, positions))


def _require_right_padding(checkpoint: Checkpoint) -> None:
    """Reject left padding if position ids count pad tokens, because they would depend on the batch."""
    file = checkpoint.encoder_folder / "tokenizer_config.json"
    if read_settings(file).get("padding_side") == "left" and not checkpoint.config.counts_from_pad:
        raise CheckpointError(
            f"{file}: padding_side is 'left', so the positions of tokens would depend on the batch. "
            "Expected 'right'"
        )


def _prompts(
    file: Path, settings: Mapping[str, Any], known: KnownContract | None, given: Mapping[str, str]
) -> dict[str, str]:
    """Merge the prompts in `known`, in the checkpoint's `settings` and in `given`.

    Later ones take precedence, but it is an error if `given` differs from a prompt in `settings` that is not
    empty. sentence-transformers stores empty prompts if none were set. The result always has "query" and
    "passage". "document" is the name that sentence-transformers uses for passages.
    """
    stored = settings.get("prompts") or {}
    if not isinstance(stored, dict) or not all(isinstance(prompt, str) for prompt in stored.values()):
        raise CheckpointError(f"{file}: prompts is {stored!r}; expected an object that maps names to texts")
    for name, prompt in given.items():
        if stored.get(name) and stored[name] != prompt:
            raise InputError(
                f"prompt {name!r} is {prompt!r}, but {file} has {stored[name]!r}. "
                "Omit the option, or change the file"
            )
    own = {name: prompt for name, prompt in stored.items() if prompt or name not in given}
    prompts = {**(known.prompts if known else {}), **own, **given}
    if not prompts.get("passage") and "passage" not in own:
        prompts["passage"] = prompts.get("document", "")
    if "passage" in given and not stored.get("document"):
        prompts["document"] = given["passage"]
    return {"query": "", **prompts}


def _default_prompt_name(file: Path, settings: Mapping[str, Any], prompts: Mapping[str, str]) -> str | None:
    name = settings.get("default_prompt_name")
    if name is not None and name not in prompts:
        raise CheckpointError(
            f"{file}: default_prompt_name is {name!r}; expected one of {', '.join(sorted(prompts))}"
        )
    return name


def _similarity(file: Path, settings: Mapping[str, Any]) -> str:
    name = settings.get("similarity_fn_name") or "cosine"
    if name not in _SIMILARITIES:
        raise CheckpointError(
            f"{file}: similarity_fn_name is {name!r}; expected {' or '.join(_SIMILARITIES)}"
        )
    return str(name)


def _warn_if_e5(checkpoint: Checkpoint) -> None:
    """Warn if a checkpoint without prompts looks like an E5 model, because E5 was trained with prompts."""
    name = next((name for name in _names(checkpoint) if _E5_NAME.search(name)), None)
    if name is None:
        return
    prompts = (
        r"""--prompt query=$'Instruct: YOUR TASK\nQuery: '"""
        if "instruct" in name.lower()
        else "--prompt query='query: ' --prompt passage='passage: '"
    )
    warnings.warn(
        f"{checkpoint.folder} has no prompts, but the name {name} looks like an E5 model. E5 embeddings are "
        f"much worse without the prompts used in training. If it is an E5 model, pass {prompts}",
        CheckpointWarning,
        stacklevel=3,
    )


def _names(checkpoint: Checkpoint) -> list[str]:
    config = read_json(checkpoint.encoder_folder / "config.json")
    named = (str(config.get("_name_or_path", "")), *strings_of(checkpoint.metadata.get("base_model")))
    return [checkpoint.repository, *named]
