"""Open a PyTorch checkpoint, local or from the Hub, and read its tensors one at a time.

This module decides which files of a Hub repository are downloaded, and maps tensor names. `tensors.py` reads
the file formats. A tensor is not read before it is requested, so that an export need not hold all layers in
memory. But `.bin` files written before PyTorch 1.6 are loaded completely.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from huggingface_hub import metadata_load

from koe5_export.config import read_config
from koe5_export.settings import encoder_folder, read_modules, require_plain_encoder
from koe5_export.tensors import FLOATS, INDEX, SAFETENSORS, TORCH, Array, Tensor, shard_names, weight_files
from koe5_export.weights import Layer, Linear, Norm
from koe5_onnx import CheckpointError, InputError, Source
from koe5_onnx.artifact.hub import fetch, is_hub_id

_SMALL_FILES = (
    "config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "modules.json",
    "sentence_*_config.json",
    "config_sentence_transformers.json",
    "adapter_config.json",
    "[0-9]*_*/config.json",
    "README.md",
    SAFETENSORS + INDEX,
    TORCH + INDEX,
)
"""Files that transformers, sentence-transformers or this package may read in addition to weights.
A module's folder is named after its number and class, for example 1_Pooling. `onnx/` and `openvino/` contain
other exports and are not downloaded."""
_OWN_PREFIX = {"xlm-roberta": "roberta.", "roberta": "roberta.", "bert": "bert."}
"""Prefix of the encoder's tensor names by model type, if the checkpoint was saved with a head. transformers
also accepts names without a prefix, but none with another prefix.
Source: `base_model_prefix` in transformers' modeling_xlm_roberta.py, modeling_roberta.py, modeling_bert.py"""
_WORDS = "embeddings.word_embeddings.weight"
_ROWS_PER_READ = 16384
"""Rows of the word embeddings per read: 64 MiB if the hidden size is 1024."""


class Checkpoint:
    """A folder with config.json, tokenizer.json and weights as safetensors or pytorch_model.bin.

    Args:
        folder: Folder of the checkpoint.
        repository: Hub id of the checkpoint, or the folder's name.
        revision: Commit on the Hub; None for a folder outside the Hub cache.
        any_encoder: True to also accept encoders that the graph builder (graph.py) does not support, so that
            they can be traced and measured.

    Raises:
        CheckpointError: A file or tensor is missing, damaged or not supported.
        MissingDependencyError: The weights are in pytorch_model.bin, and torch is not installed.
    """

    def __init__(
        self, folder: Path, repository: str, revision: str | None, *, any_encoder: bool = False
    ) -> None:
        self.folder = folder
        self.encoder_folder = encoder_folder(folder, read_modules(folder))
        self.repository = repository
        self.revision = revision
        self.metadata = _metadata(folder)
        require_plain_encoder(self.encoder_folder)
        self.config = read_config(self.encoder_folder, any_encoder=any_encoder)
        if not self.tokenizer.is_file():
            raise CheckpointError(
                f"{self.encoder_folder} has no tokenizer.json, the file of a fast tokenizer. Create it with "
                "transformers: AutoTokenizer.from_pretrained(folder).save_pretrained(folder)"
            )
        self._files = weight_files(self.encoder_folder)
        described = {file: file.tensors() for file in self._files}
        stored = {name: tensor for tensors in described.values() for name, tensor in tensors.items()}
        # It is unknown which tensors an unsupported encoder needs, so all stored ones are used.
        self._shapes = self.config.shapes or {name: tensor.shape for name, tensor in stored.items()}
        self._names = self._stored_names(stored)
        self._files_by_name = {name: file for file, tensors in described.items() for name in tensors}

    @classmethod
    def open(
        cls, folder_or_hub_id: str | Path, revision: str | None = None, *, any_encoder: bool = False
    ) -> Checkpoint:
        """Open a local checkpoint, or download one from the Hub.

        Args:
            folder_or_hub_id: Folder, or Hub id (owner/name).
            revision: Branch, tag or commit on the Hub; None for the default branch. Not used for a folder.
            any_encoder: See the constructor.

        Raises:
            CheckpointError: The checkpoint cannot be exported.
            HubError: The download failed.
            MissingDependencyError: See the constructor.
        """
        name = str(folder_or_hub_id)
        if Path(name).is_dir():
            folder = Path(name)
            return cls(folder, *_hub_origin(folder.resolve()), any_encoder=any_encoder)
        if Path(name).exists() or not is_hub_id(name):
            raise CheckpointError(f"{name} is neither a checkpoint folder nor a Hub id (owner/name)")
        folder = _fetch(name, revision)
        return cls(folder, name, folder.name, any_encoder=any_encoder)

    @property
    def tokenizer(self) -> Path:
        """Path of tokenizer.json."""
        return self.encoder_folder / "tokenizer.json"

    @property
    def parameters(self) -> int:
        """Number of weights that the encoder uses; of all stored weights if `config.buildable` is False."""
        return sum(math.prod(shape) for shape in self._shapes.values())

    @property
    def weight_bytes(self) -> int:
        """Total size of the weight files."""
        return sum(file.path.stat().st_size for file in self._files)

    def source(self, on_bytes: Callable[[int], None] = lambda _done: None) -> Source:
        """Return the origin of the checkpoint and the SHA-256 of its weight files.

        Args:
            on_bytes: Called with the number of bytes read so far.
        """
        digest, done = hashlib.sha256(), 0
        for file in self._files:
            with file.path.open("rb") as stream:
                while data := stream.read(1 << 22):
                    digest.update(data)
                    done += len(data)
                    on_bytes(done)
        license_ = self.metadata.get("license")
        return Source(
            self.repository,
            self.revision,
            digest.hexdigest(),
            license_ if isinstance(license_, str) else None,
            strings_of(self.metadata.get("language")),
        )

    def require_source(self, source: Source, on_bytes: Callable[[int], None] = lambda _done: None) -> None:
        """Check that an artifact with this source was exported from this checkpoint.

        Args:
            source: `source` of the artifact's manifest.
            on_bytes: See `source`.

        Raises:
            InputError: The weight files have another SHA-256.
        """
        if self.source(on_bytes).weights_sha256 != source.weights_sha256:
            raise InputError(
                f"{self.folder} is not the checkpoint that the artifact was exported from. Pass "
                f"{source.repository} with weights of SHA-256 {source.weights_sha256[:12]}..."
            )

    def read(self, name: str, rows: slice = slice(None)) -> Array:
        """Read one tensor, or the given rows of it, as float32.

        Raises:
            CheckpointError: The file is damaged, or the tensor contains NaN or infinity.
        """
        stored_name = self._names[name]
        file = self._files_by_name[stored_name]
        array = file.read(stored_name, rows)
        if not np.isfinite(array).all():
            raise CheckpointError(
                f"{file.path}: {stored_name} contains NaN or infinity. Download the checkpoint again"
            )
        return array

    def word_embeddings(self) -> Iterator[Array]:
        """Yield the word embeddings in groups of consecutive rows, float32[rows, hidden]."""
        rows = self.config.vocabulary
        for start in range(0, rows, _ROWS_PER_READ):
            part = slice(start, min(start + _ROWS_PER_READ, rows))
            yield self.read(_WORDS, part)

    def positions(self, max_tokens: int) -> Array:
        """Return the position embeddings, each plus the embedding of token type 0: float32[rows, hidden].

        The rows suffice for texts of up to `max_tokens` tokens. Row 0 belongs to the first token. In encoders
        that count positions from the pad id (RoBERTa), row 0 belongs to pad tokens and row 1 to the first
        other token.
        """
        first = self.config.pad_id if self.config.counts_from_pad else 0
        # Padding to a multiple of 4 adds up to three slots, which also need position ids (0 in RoBERTa).
        rows = max_tokens + (1 if self.config.counts_from_pad else 3)
        end = min(first + rows, self.config.positions)
        table = self.read("embeddings.position_embeddings.weight", slice(first, end))
        token_type = self.read("embeddings.token_type_embeddings.weight", slice(0, 1))
        return table + token_type

    def embedding_norm(self) -> Norm:
        """Return the LayerNorm that is applied to the sum of the embeddings."""
        return self._norm("embeddings.LayerNorm")

    def layer(self, number: int) -> Layer:
        """Return the weights of the encoder layer with this index, transposed to [in, out]."""
        at = f"encoder.layer.{number}"
        return Layer(
            query=self._linear(f"{at}.attention.self.query"),
            key=self._linear(f"{at}.attention.self.key"),
            value=self._linear(f"{at}.attention.self.value"),
            output=self._linear(f"{at}.attention.output.dense"),
            attention_norm=self._norm(f"{at}.attention.output.LayerNorm"),
            up=self._linear(f"{at}.intermediate.dense"),
            down=self._linear(f"{at}.output.dense"),
            output_norm=self._norm(f"{at}.output.LayerNorm"),
        )

    def _linear(self, name: str) -> Linear:
        weight = np.ascontiguousarray(self.read(f"{name}.weight").T)
        return Linear(weight, self.read(f"{name}.bias"))

    def _norm(self, name: str) -> Norm:
        return Norm(self.read(f"{name}.weight"), self.read(f"{name}.bias"))

    def _stored_names(self, stored: dict[str, Tensor]) -> dict[str, str]:
        """Map the usual name of each tensor to its name in the files.

        It is an error if a tensor is stored under two names or has an unexpected shape or dtype, or if a
        supported version of transformers would not find it and thus initialize it at random.
        """
        own = _OWN_PREFIX[self.config.model_type] if self.config.buildable else ""
        # transformers 4.57 ignores names without the prefix if at least one name has it.
        prefix = own if any(name.startswith(own) for name in stored) else ""
        self._check_prefix(own, stored)
        problems: list[str] = []
        names: dict[str, str] = {}
        for name, shape in self._shapes.items():
            found = [spelling for spelling in _spellings(name, own) if spelling in stored]
            if len(found) > 1:
                problems.append(f"{' and '.join(found)} are the same tensor, expected only one of them")
            elif not found or not found[0].startswith(prefix):
                problems.append(f"{prefix}{name} is missing")
            elif problem := _misfit(name, stored[found[0]], shape):
                problems.append(f"{found[0]} has {problem}")
            else:
                names[name] = found[0]
        if problems:
            raise CheckpointError(
                f"{self.folder}: {len(problems)} tensors do not match the encoder:\n  "
                + "\n  ".join(problems)
            )
        return names

    def _check_prefix(self, own: str, stored: dict[str, Tensor]) -> None:
        """Report an unknown prefix in one message, instead of reporting every tensor as missing."""
        words = [name for name in stored if name.endswith("." + _WORDS)]
        if self.config.buildable and words and not {_WORDS, own + _WORDS} & stored.keys():
            raise CheckpointError(
                f"{self.folder}: tensor names begin with {words[0].removesuffix(_WORDS)!r}. For "
                f"{self.config.model_type}, transformers loads names without a prefix or with {own!r} only, "
                "and would initialize these tensors at random. Rename them"
            )


def _metadata(folder: Path) -> Mapping[str, Any]:
    """Return the metadata of the model card (README.md), or an empty mapping if there is none."""
    file = folder / "README.md"
    if not file.is_file():
        return {}
    try:
        return metadata_load(file) or {}
    except Exception as error:  # the exception classes are those of huggingface_hub's YAML parser
        reason = " ".join(str(error).split())
        raise CheckpointError(
            f"the metadata of {file} is not valid YAML ({reason}). Correct or remove it"
        ) from error


def strings_of(value: Any) -> Sequence[str]:
    """Return the strings of a metadata field, which may be missing, a string or a list."""
    values = value if isinstance(value, list) else [value]
    return tuple(one for one in values if isinstance(one, str))


def _spellings(name: str, own_prefix: str) -> list[str]:
    """Return all names under which transformers looks for a tensor.

    In checkpoints converted from TensorFlow, the parameters of LayerNorm are called gamma and beta.
    Source: "legacy" in transformers' conversion_mapping.py
    """
    old = name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")
    return list(dict.fromkeys(prefix + each for prefix in ("", own_prefix) for each in (name, old)))


def _misfit(name: str, tensor: Tensor, shape: tuple[int, ...]) -> str | None:
    floats = FLOATS.values()
    if tensor.shape != shape:
        return f"shape {tensor.shape}, config.json requires {shape}"
    if tensor.dtype not in floats and name.endswith((".weight", ".bias")):
        return f"type {tensor.dtype}, expected {', '.join(floats)}"
    return None


def _fetch(repository: str, revision: str | None) -> Path:
    """Download a checkpoint from the Hub, with .bin weights only if the repository has no safetensors."""
    files = (*_SMALL_FILES, SAFETENSORS)
    folder = fetch(repository, revision, files)
    # The folder's name is the commit, so all downloads are of the same commit.
    modules, inside = read_modules(folder), ""
    if modules is not None and (modules.transformer or not (folder / modules.pooling).is_dir()):
        inside = f"{modules.transformer}/" if modules.transformer else ""
        fetch(repository, folder.name, [f"{modules.pooling}/config.json", *(inside + file for file in files)])
    if not (folder / inside / SAFETENSORS).is_file():
        index = folder / inside / (SAFETENSORS + INDEX)
        weights = shard_names(index) if index.is_file() else ["pytorch_model*.bin"]
        fetch(repository, folder.name, [inside + name for name in weights])
    return folder


def _hub_origin(folder: Path) -> tuple[str, str | None]:
    """Return the Hub id and commit of a folder in the Hub cache; for other folders, the name and None.

    Snapshots are in models--OWNER--NAME/snapshots/COMMIT.
    Source: https://huggingface.co/docs/huggingface_hub/guides/manage-cache
    """
    parts = folder.parts
    if len(parts) >= 3 and parts[-2] == "snapshots" and parts[-3].startswith("models--"):
        return parts[-3].removeprefix("models--").replace("--", "/", 1), parts[-1]
    return folder.name, None
