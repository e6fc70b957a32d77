"""Write the settings files with which other runtimes open an artifact.

sentence-transformers, transformers, Optimum and Transformers.js read these files; koe5_onnx does not. The
settings of sentence-transformers are written from the contract, since a checkpoint may lack them.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from koe5_export.config import read_json
from koe5_export.settings import MODEL_SETTINGS, MODULES, TRANSFORMER_SETTINGS
from koe5_onnx import Contract

_SPECIAL_TOKENS = "special_tokens_map.json"
_COPIED = (_SPECIAL_TOKENS, "added_tokens.json")
_CONFIG = "config.json"
_TOKENIZER_SETTINGS = "tokenizer_config.json"
_TOKEN_ROLES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_POOLING = "1_Pooling/config.json"
FOREIGN_SETTINGS = (
    *_COPIED,
    _CONFIG,
    _TOKENIZER_SETTINGS,
    MODULES,
    MODEL_SETTINGS,
    TRANSFORMER_SETTINGS[0],
    _POOLING,
)
"""Files that `write_foreign_settings` may write."""
_DTYPES = {"fp32": "fp32", "fp16": "fp16", "int8": "q8", "int8-block": "int8", "int4-block": "q4"}
"""The `dtype` with which Transformers.js finds the graph of each precision (`GRAPHS`).
Source: https://huggingface.co/docs/transformers.js/guides/dtypes"""


def write_foreign_settings(encoder: Path, contract: Contract, precision: str, out: Path) -> None:
    """Write the settings files of other runtimes to the artifact folder `out`.

    Args:
        encoder: Folder of the checkpoint's config.json and tokenizer.
        contract: Contract of the artifact.
        precision: Precision of the artifact.
        out: Folder of the artifact.
    """
    for name in _COPIED:
        if (encoder / name).is_file():
            shutil.copyfile(encoder / name, out / name)
    tokenizer = encoder / _TOKENIZER_SETTINGS
    known = read_json(tokenizer) if tokenizer.is_file() else {"tokenizer_class": "PreTrainedTokenizerFast"}
    # Without these settings, Transformers.js does not download the weights next to the graph.
    javascript = {"dtype": _DTYPES[precision], "use_external_data_format": True}
    settings = {
        _CONFIG: read_json(encoder / _CONFIG) | {"transformers.js_config": javascript},
        _TOKENIZER_SETTINGS: known | {"model_max_length": contract.max_tokens},
        **_sentence_transformers(contract),
    }
    if not (encoder / _SPECIAL_TOKENS).is_file():
        # Required by fastembed. transformers 5 does not write it.
        settings[_SPECIAL_TOKENS] = {role: known[role] for role in _TOKEN_ROLES if known.get(role)}
    for name, content in settings.items():
        (out / name).parent.mkdir(exist_ok=True)
        text = json.dumps(content, ensure_ascii=False, indent=2) + "\n"
        (out / name).write_text(text, encoding="utf-8")


def _sentence_transformers(contract: Contract) -> Mapping[str, Any]:
    """Return the content of each settings file of sentence-transformers."""
    steps = {"Transformer": "", "Pooling": "1_Pooling"}
    if contract.normalize:
        steps["Normalize"] = "2_Normalize"
    prompts = dict(contract.prompts)
    if "passage" in prompts:
        # Without this name, SentenceTransformer.encode_document adds no prompt.
        prompts.setdefault("document", prompts["passage"])
    return {
        MODULES: [
            {"idx": turn, "name": str(turn), "path": path, "type": f"sentence_transformers.models.{kind}"}
            for turn, (kind, path) in enumerate(steps.items())
        ],
        MODEL_SETTINGS: {
            "prompts": prompts,
            "default_prompt_name": contract.default_prompt_name,
            "similarity_fn_name": contract.similarity,
        },
        TRANSFORMER_SETTINGS[0]: {"max_seq_length": contract.max_tokens, "do_lower_case": False},
        _POOLING: {
            "word_embedding_dimension": contract.dim,
            "pooling_mode_cls_token": contract.pooling == "cls",
            "pooling_mode_mean_tokens": contract.pooling == "mean",
        },
    }
