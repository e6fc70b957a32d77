"""Read a checkpoint's settings files as the loader of sentence-transformers reads them.

No setting that changes embeddings is ignored silently. Each key of these files is of one of four kinds:

- read: this package uses the value.
- neutral: values that do not change embeddings are accepted; all others are rejected.
- harmless: no value changes embeddings.
- unknown: a warning names the key, except in the files of transformers.

docs/export.md lists the files and keys.

Source: `SentenceTransformer`, `Transformer`, `Pooling` and `Normalize` of sentence-transformers 5.4 to 6.2
"""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, normalizers

from koe5_export.config import read_json
from koe5_onnx import CheckpointError, CheckpointWarning

MODULES = "modules.json"
MODEL_SETTINGS = "config_sentence_transformers.json"
TRANSFORMER_SETTINGS = (
    "sentence_bert_config.json",
    "sentence_roberta_config.json",
    "sentence_distilbert_config.json",
    "sentence_camembert_config.json",
    "sentence_albert_config.json",
    "sentence_xlm-roberta_config.json",
    "sentence_xlnet_config.json",
)
"""Possible names of one settings file. As in sentence-transformers, the first non-empty file is read."""
_EXPECTED_MODULES = (["Transformer", "Pooling"], ["Transformer", "Pooling", "Normalize"])


@dataclass(frozen=True)
class _Keys:
    read: frozenset[str] = frozenset()
    harmless: frozenset[str] = frozenset()
    neutral: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    """Accepted values per key, in addition to null and empty values."""
    complete: bool = True
    """True to warn about keys that are not listed here."""


def _keys(read: str = "", harmless: str = "", *, complete: bool = True, **neutral: tuple[Any, ...]) -> _Keys:
    return _Keys(frozenset(read.split()), frozenset(harmless.split()), neutral, complete)


_LOADING = "attn_implementation cache_dir device_map dtype low_cpu_mem_usage torch_dtype use_safetensors"
"""Loading arguments that do not change embeddings; the reference always loads float32."""
_TEXT_ONLY = {"text": {"method": "forward", "method_output_name": "last_hidden_state"}}
_KEYS: Mapping[str, _Keys] = {
    MODULES: _keys(read="type path", harmless="idx name", kwargs=()),
    MODEL_SETTINGS: _keys(
        read="prompts default_prompt_name similarity_fn_name",
        harmless="__version__ requirements",
        model_type=("SentenceTransformer",),
        truncate_dim=(),
    ),
    TRANSFORMER_SETTINGS[0]: _keys(
        read="max_seq_length do_lower_case model_args model_kwargs",
        harmless="unpad_inputs",
        transformer_task=("feature-extraction",),
        modality_config=(_TEXT_ONLY,),
        module_output_name=("token_embeddings",),
        processing_kwargs=(),
        query_length=(),
        document_length=(),
        query_expansion=(),
        tokenizer_name_or_path=(),
        tokenizer_args=(),
        processor_kwargs=(),
        config_args=(),
        config_kwargs=(),
    ),
    "Pooling": _keys(
        read="pooling_mode pooling_mode_cls_token pooling_mode_mean_tokens pooling_mode_max_tokens "
        "pooling_mode_mean_sqrt_len_tokens pooling_mode_weightedmean_tokens pooling_mode_lasttoken",
        harmless="embedding_dimension word_embedding_dimension",
        include_prompt=(True,),
    ),
    "Normalize": _keys(module_input_name=("sentence_embedding",), module_output_name=("sentence_embedding",)),
    # Other keys may change token ids, but reference.py compares the ids of all verification texts.
    "tokenizer_config.json": _keys(complete=False, truncation_side=("right",), auto_map=()),
    # config.py also checks keys of config.json.
    "config.json": _keys(
        complete=False, auto_map=(), pruned_heads=(), quantization_config=(), add_cross_attention=(False,)
    ),
}
_MODULE_PACKAGE = "sentence_transformers."


def read_settings(file: Path, kind: str | None = None) -> dict[str, Any]:
    """Read and check a settings file; return an empty dict if it is missing.

    Args:
        file: The file.
        kind: Key in `_KEYS`; None uses the file's name.

    Raises:
        CheckpointError: The file is not JSON, or a setting is not supported.
    """
    if not file.is_file():
        return {}
    data: dict[str, Any] = read_json(file)
    _check_keys(file, data, _KEYS[kind or file.name])
    return data


def _check_keys(file: Path, data: Mapping[str, Any], keys: _Keys) -> None:
    unknown = sorted(data.keys() - keys.read - keys.harmless - keys.neutral.keys())
    if unknown and keys.complete:
        warnings.warn(
            f"{file} has settings that this version does not know: {', '.join(unknown)}. They are ignored. "
            "The embeddings are still compared with those of sentence-transformers",
            CheckpointWarning,
            stacklevel=4,
        )
    for name, allowed in keys.neutral.items():
        value = data.get(name)
        if value not in (None, "", [], {}, *allowed):
            expected = " or ".join(repr(one) for one in allowed) or "nothing"
            raise CheckpointError(f"{file}: {name} is {value!r}, which is not supported. Expected {expected}")


@dataclass(frozen=True)
class Modules:
    """Content of modules.json."""

    transformer: str
    """Folder of the encoder, relative to the checkpoint; "" for the checkpoint itself."""
    pooling: str
    """Folder of the pooling module."""
    normalize: bool
    """True if a Normalize module follows."""


def read_modules(folder: Path) -> Modules | None:
    """Read modules.json; return None if it is missing.

    Without modules.json, sentence-transformers ignores its other settings files and uses mean pooling, no
    prompts and the tokenizer's token limit. See `warn_if_ignored`.

    Raises:
        CheckpointError: The modules are not Transformer, Pooling and, optionally, Normalize, or a setting or
            path of a module is not supported.
    """
    file = folder / MODULES
    if not file.is_file():
        return None
    modules = read_json(file, list)
    kinds = [_module_kind(module) for module in modules]
    if kinds not in _EXPECTED_MODULES:
        raise CheckpointError(
            f"{file} lists the modules {', '.join(kinds)}. Expected Transformer, Pooling and, optionally, "
            "Normalize of sentence-transformers"
        )
    for module in modules:
        _check_keys(file, module, _KEYS[MODULES])
    paths = [str(module.get("path") or "") for module in modules]
    if any(Path(path).is_absolute() or ".." in Path(path).parts for path in paths):
        raise CheckpointError(f"{file} has a path outside the checkpoint. Expected names of its subfolders")
    if len(modules) == 3:
        read_settings(folder / paths[2] / "config.json", "Normalize")
    return Modules(paths[0], paths[1], normalize=len(modules) == 3)


def encoder_folder(folder: Path, modules: Modules | None) -> Path:
    """Return the folder of config.json, tokenizer and weights (in old checkpoints a subfolder)."""
    return folder / (modules.transformer if modules else "")


def _module_kind(module: Any) -> str:
    """Return the class name of a module of sentence-transformers; for other modules, the dotted name."""
    if not isinstance(module, dict):
        return repr(module)
    type_ = str(module.get("type"))
    return type_.rsplit(".", 1)[-1] if type_.startswith(_MODULE_PACKAGE) else type_


def read_transformer_settings(folder: Path, modules: Modules | None) -> tuple[Path, dict[str, Any]]:
    """Read the first non-empty file of `TRANSFORMER_SETTINGS` and return its path and settings.

    If there is no such file, or sentence-transformers ignores it, the settings are empty.

    Raises:
        CheckpointError: A setting is not supported.
    """
    encoder = encoder_folder(folder, modules)
    if modules is not None:
        for name in TRANSFORMER_SETTINGS:
            if data := read_settings(encoder / name, TRANSFORMER_SETTINGS[0]):
                _check_loading_arguments(encoder / name, data)
                return encoder / name, data
    return encoder / TRANSFORMER_SETTINGS[0], {}


def _check_loading_arguments(file: Path, data: Mapping[str, Any]) -> None:
    for name in ("model_args", "model_kwargs"):
        found = data.get(name) or {}
        if not isinstance(found, dict) or (unsupported := sorted(found.keys() - set(_LOADING.split()))):
            shown = ", ".join(unsupported) if isinstance(found, dict) else repr(found)
            raise CheckpointError(f"{file}: {name} has {shown}, which is not supported. Remove it")


def write_tokenizer(folder: Path, out: Path) -> None:
    """Write the checkpoint's tokenizer.json to `out`; if do_lower_case is set, with a lowercase normalizer.

    The normalizer is added as in sentence-transformers 6.
    """
    modules = read_modules(folder)
    file, settings = read_transformer_settings(folder, modules)
    source = file.parent / "tokenizer.json"
    if not settings.get("do_lower_case"):
        shutil.copyfile(source, out)
        return
    tokenizer = Tokenizer.from_file(str(source))
    present = tokenizer.normalizer
    lower = normalizers.Lowercase()
    tokenizer.normalizer = normalizers.Sequence([lower, present]) if present is not None else lower
    tokenizer.save(str(out), pretty=False)


def warn_if_ignored(folder: Path) -> None:
    """Warn about settings files that sentence-transformers ignores because modules.json is missing."""
    names = (MODEL_SETTINGS, *TRANSFORMER_SETTINGS, "1_Pooling/config.json")
    if ignored := [name for name in names if (folder / name).is_file()]:
        warnings.warn(
            f"{folder} has no {MODULES}. Without it, sentence-transformers ignores {', '.join(ignored)}, "
            "and this export does too",
            CheckpointWarning,
            stacklevel=3,
        )


def require_plain_encoder(folder: Path) -> None:
    """Check that the encoder has no adapter and no custom code, and that its tokenizer returns a mask.

    Raises:
        CheckpointError: The encoder is not supported.
    """
    read_settings(folder / "config.json")
    file = folder / "tokenizer_config.json"
    names = read_settings(file).get("model_input_names")
    if names is not None and "attention_mask" not in names:
        raise CheckpointError(
            f"{file}: model_input_names is {names!r}. Without attention_mask, padding would change embeddings"
        )
    if (file := folder / "adapter_config.json").is_file():
        raise CheckpointError(
            f"{file}: the weights are an adapter for another checkpoint. Merge them first, with "
            "PeftModel.merge_and_unload() and save_pretrained"
        )
