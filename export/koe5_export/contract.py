"""How a checkpoint wants to be used: pooling, normalisation, prompts, token limit.

Read from the checkpoint's own sentence-transformers files; else from a table of Hub ids whose repositories
do not carry them. Never guessed: servers that guess take CLS for KoE5, and their embeddings are wrong.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from koe5_export.checkpoint import Checkpoint
from koe5_export.config import read_json
from koe5_export.matryoshka import matryoshka_dims
from koe5_onnx import CheckpointError, Contract

_POOLINGS = ("mean", "cls")
_SPECIALS = 2
"""Tokens around every text, `<s>` and `</s>`: a limit must leave room for more."""
_FLAGS = {"pooling_mode_mean_tokens": "mean", "pooling_mode_cls_token": "cls"}


@dataclass(frozen=True)
class KnownContract:
    """What the model card says where the repository's files do not."""

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
    # queries only, MRL), https://arxiv.org/abs/2412.04506 (trained to be cut to 256)
    "Snowflake/snowflake-arctic-embed-l-v2.0": KnownContract("cls", {"query": "query: "}, (256,)),
}


def read_contract(
    checkpoint: Checkpoint,
    like: str | None = None,
    files: Path | None = None,
    dims: Sequence[int] | None = None,
) -> Contract:
    """Find out how texts become embeddings.

    Args:
        checkpoint: The opened checkpoint.
        like: Hub id of `KNOWN` whose contract a local copy shares; None takes the checkpoint's own id.
        files: Folder of the sentence-transformers files; None takes the checkpoint's own.
        dims: Widths that the model was trained to be cut to; None takes those of the files or of `KNOWN`.

    Raises:
        CheckpointError: The files contradict what this project can do, or say nothing and the id is unknown.
    """
    known = _known(checkpoint, like)
    folder = files or checkpoint.folder
    pooling, normalize = _pooling(folder, checkpoint.repository, known)
    return Contract(
        pooling=pooling,
        normalize=normalize,
        max_tokens=_max_tokens(folder, checkpoint.config.max_tokens),
        dim=checkpoint.config.hidden,
        pad_id=checkpoint.config.pad_id,
        prompts=_prompts(folder, known),
        matryoshka_dims=matryoshka_dims(
            folder, checkpoint.config.hidden, known.matryoshka_dims if known else (), dims
        ),
    )


def _known(checkpoint: Checkpoint, like: str | None) -> KnownContract | None:
    if like is not None and like not in KNOWN:
        raise CheckpointError(f"no contract is known for {like}: expected one of {', '.join(KNOWN)}")
    return KNOWN.get(like or checkpoint.repository)


def _pooling(folder: Path, repository: str, known: KnownContract | None) -> tuple[str, bool]:
    """Pooling and whether embeddings are normalised."""
    file = folder / "modules.json"
    if file.is_file():
        return _pooling_of_modules(folder, read_json(file, list))
    if known is not None:
        return known.pooling, True
    raise CheckpointError(
        f"{folder} does not say how to pool: it has no modules.json, and "
        f"{repository} is not a known id. "
        f"If it is a copy of one, name it with --like: {', '.join(KNOWN)}"
    )


def _pooling_of_modules(folder: Path, modules: Any) -> tuple[str, bool]:
    types = [module.get("type") if isinstance(module, dict) else repr(module) for module in modules]
    kinds = [str(type_).rsplit(".", 1)[-1] for type_ in types]
    if kinds not in (["Transformer", "Pooling"], ["Transformer", "Pooling", "Normalize"]):
        raise CheckpointError(
            f"{folder / 'modules.json'} has the modules {', '.join(kinds)}: "
            "expected Transformer, Pooling and perhaps Normalize"
        )
    file = folder / str(modules[1].get("path")) / "config.json"
    if not file.is_file():
        raise CheckpointError(f"{file} is missing: modules.json names it")
    return _pooling_mode(file), kinds[-1] == "Normalize"


def _pooling_mode(file: Path) -> str:
    """The pooling that a 1_Pooling/config.json asks for, in its older or newer form."""
    data = read_json(file)
    modes = [name for flag, name in data.items() if flag == "pooling_mode"] or [
        _FLAGS.get(flag, flag) for flag, on in data.items() if flag.startswith("pooling_mode_") and on is True
    ]
    if len(modes) != 1 or modes[0] not in _POOLINGS:
        raise CheckpointError(f"{file} asks for pooling {modes}: expected one of {', '.join(_POOLINGS)}")
    if data.get("include_prompt") is False:
        raise CheckpointError(f"{file} leaves the prompt out of pooling: that is not supported")
    return str(modes[0])


def _max_tokens(folder: Path, positions: int) -> int:
    """sentence-transformers' limit, else the tokenizer's, never above the positions."""
    limits: list[float] = [positions]
    for name, key in (
        ("sentence_bert_config.json", "max_seq_length"),
        ("tokenizer_config.json", "model_max_length"),
    ):
        file = folder / name
        limit = read_json(file).get(key) if file.is_file() else None
        if limit is not None:
            if not isinstance(limit, int | float) or limit <= _SPECIALS:
                raise CheckpointError(f"{file}: {key} is {limit!r}, expected a number of tokens")
            limits.append(limit)
            break
    return int(min(limits))


def _prompts(folder: Path, known: KnownContract | None) -> dict[str, str]:
    """The prompts by this project's names; sentence-transformers calls passages "document" too."""
    file = folder / "config_sentence_transformers.json"
    stored = (read_json(file).get("prompts") or {}) if file.is_file() else {}
    if not isinstance(stored, dict) or not all(isinstance(prompt, str) for prompt in stored.values()):
        raise CheckpointError(f"{file}: prompts is {stored!r}, expected texts by their names")
    prompts = {**(known.prompts if known else {}), **stored}
    if "passage" not in prompts and "document" in prompts:
        prompts["passage"] = prompts["document"]
    return {"query": "", "passage": "", **prompts}
