"""The PyTorch-side checkpoint: a folder and its named weights, read one tensor at a time.

Owns which files of a Hub repository are fetched and what the tensors in them are called. Nothing here holds
more than one layer; `tensors.py` knows the file formats.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from koe5_export.config import read_config
from koe5_export.settings import encoder_folder, read_modules, require_plain_encoder
from koe5_export.tensors import FLOATS, INDEX, SAFETENSORS, TORCH, Array, Tensor, shard_names, weight_files
from koe5_export.weights import Layer, Linear, Norm
from koe5_onnx import CheckpointError, Source
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
"""What transformers and sentence-transformers may read besides weights. A module's folder is called by its
number and class, as 1_Pooling; `onnx/` and `openvino/` hold exports by others."""
_OWN_PREFIX = {"xlm-roberta": "roberta.", "roberta": "roberta.", "bert": "bert."}
"""Prefix of the encoder's tensors in a checkpoint with a head. No other prefix is stripped by transformers.
Source: `base_model_prefix` in its modeling_xlm_roberta.py, modeling_roberta.py and modeling_bert.py"""
_WORDS = "embeddings.word_embeddings.weight"
_ROWS_PER_READ = 16384
"""Rows of the word embeddings read at once: 64 MiB at width 1024."""


class Checkpoint:
    """A folder with config.json, tokenizer.json and weights as safetensors or pytorch_model.bin.

    Args:
        folder: The folder.
        repository: Hub id that it came from, else the folder's name.
        revision: Commit on the Hub, or None.
        any_encoder: Take encoders too that the graph builder does not know. They can be traced and measured,
            but their layers cannot be read.

    Raises:
        CheckpointError: Something is missing, damaged or of an unknown kind; the message names all of it.
        MissingDependencyError: The weights are a pytorch_model.bin, and torch is not installed.
    """

    def __init__(
        self, folder: Path, repository: str, revision: str | None, *, any_encoder: bool = False
    ) -> None:
        self.folder = folder
        self.encoder_folder = encoder_folder(folder, read_modules(folder))
        self.repository = repository
        self.revision = revision
        require_plain_encoder(self.encoder_folder)
        self.config = read_config(self.encoder_folder, any_encoder=any_encoder)
        if not self.tokenizer.is_file():
            raise CheckpointError(
                f"{self.encoder_folder} has no tokenizer.json: expected the Rust tokenizer's file; make it "
                "with transformers: AutoTokenizer.from_pretrained(folder).save_pretrained(folder)"
            )
        self._files = weight_files(self.encoder_folder)
        described = {file: file.tensors() for file in self._files}
        stored = {name: tensor for tensors in described.values() for name, tensor in tensors.items()}
        # Of an encoder that is not buildable nobody knows what it needs: whatever is there.
        self._shapes = self.config.shapes or {name: tensor.shape for name, tensor in stored.items()}
        self._names = self._stored_names(stored)
        self._files_by_name = {name: file for file, tensors in described.items() for name in tensors}

    @classmethod
    def open(
        cls, folder_or_hub_id: str | Path, revision: str | None = None, *, any_encoder: bool = False
    ) -> Checkpoint:
        """Open a local checkpoint, or fetch one from the Hub; `any_encoder` as in the constructor.

        Raises:
            CheckpointError: It cannot be exported.
            HubError: It cannot be fetched.
            MissingDependencyError: As in the constructor.
        """
        name = str(folder_or_hub_id)
        if Path(name).is_dir():
            folder = Path(name)
            return cls(folder, *_hub_origin(folder.resolve()), any_encoder=any_encoder)
        if Path(name).exists() or not is_hub_id(name):
            raise CheckpointError(f"{name} is neither a checkpoint's folder nor a Hub id (owner/name)")
        folder = _fetch(name, revision)
        return cls(folder, name, folder.name, any_encoder=any_encoder)

    @property
    def tokenizer(self) -> Path:
        """The tokenizer.json."""
        return self.encoder_folder / "tokenizer.json"

    @property
    def parameters(self) -> int:
        """Number of weights that the encoder uses; all that are stored where it is not buildable."""
        return sum(math.prod(shape) for shape in self._shapes.values())

    @property
    def weight_bytes(self) -> int:
        """Size of the weight files."""
        return sum(file.path.stat().st_size for file in self._files)

    def source(self, on_bytes: Callable[[int], None] = lambda _done: None) -> Source:
        """Return origin and SHA-256 of the weight files, whatever their format, which are read once.

        Args:
            on_bytes: Called with the number of bytes read so far.
        """
        digest, done = hashlib.sha256(), 0
        for file in self._files:
            with file.path.open("rb") as stream:
                while block := stream.read(1 << 22):
                    digest.update(block)
                    done += len(block)
                    on_bytes(done)
        return Source(self.repository, self.revision, digest.hexdigest())

    def read(self, name: str, rows: slice = slice(None)) -> Array:
        """Read one tensor, or some of its rows, as float32.

        Raises:
            CheckpointError: The file is damaged, or the tensor holds NaN or infinity.
        """
        stored_name = self._names[name]
        file = self._files_by_name[stored_name]
        array = file.read(stored_name, rows)
        if not np.isfinite(array).all():
            raise CheckpointError(
                f"{file.path}: {stored_name} holds NaN or infinity: the checkpoint is damaged"
            )
        return array

    def word_embeddings(self) -> Iterator[Array]:
        """The word embeddings in blocks of rows: float32[rows, hidden]."""
        rows = self.config.vocabulary
        for start in range(0, rows, _ROWS_PER_READ):
            part = slice(start, min(start + _ROWS_PER_READ, rows))
            yield self.read(_WORDS, part)

    def positions(self, max_tokens: int) -> Array:
        """Position and token-type embeddings summed: float32[rows, hidden].

        Row 0 is the first token's position; where positions count from the pad token, row 0 is the pad
        token's own and the first token has row 1.
        """
        first = self.config.pad_id if self.config.counts_from_pad else 0
        # Plain positions run on over the padding of a short batch, RoBERTa's have row 0 for it.
        rows = max_tokens + (1 if self.config.counts_from_pad else 3)
        end = min(first + rows, self.config.positions)
        table = self.read("embeddings.position_embeddings.weight", slice(first, end))
        token_type = self.read("embeddings.token_type_embeddings.weight", slice(0, 1))
        return table + token_type

    def embedding_norm(self) -> Norm:
        """The LayerNorm over the summed embeddings."""
        return self._norm("embeddings.LayerNorm")

    def layer(self, number: int) -> Layer:
        """The weights of one encoder layer, linears as [in, out]."""
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
        """Find each tensor's name in the files, and check all tensors at once.

        A name is found exactly if every supported transformers loads that tensor; one that it would
        initialize at random, or that two tensors lay claim to, is a problem.
        """
        own = _OWN_PREFIX[self.config.model_type] if self.config.buildable else ""
        # transformers 4.57 ignores names without the prefix as soon as one has it.
        prefix = own if any(name.startswith(own) for name in stored) else ""
        self._check_prefix(own, stored)
        problems: list[str] = []
        names: dict[str, str] = {}
        for name, shape in self._shapes.items():
            found = [spelling for spelling in _spellings(name, own) if spelling in stored]
            if len(found) > 1:
                problems.append(f"{' and '.join(found)} are the same tensor: expected one of them")
            elif not found or not found[0].startswith(prefix):
                problems.append(f"{prefix}{name} is missing")
            elif problem := _misfit(name, stored[found[0]], shape):
                problems.append(f"{found[0]} has {problem}")
            else:
                names[name] = found[0]
        if problems:
            raise CheckpointError(
                f"{self.folder}: {len(problems)} tensors do not fit its config.json:\n  "
                + "\n  ".join(problems)
            )
        return names

    def _check_prefix(self, own: str, stored: dict[str, Tensor]) -> None:
        """Reject names that all begin with a foreign prefix, by one line in place of one per tensor."""
        words = [name for name in stored if name.endswith("." + _WORDS)]
        if self.config.buildable and words and not {_WORDS, own + _WORDS} & stored.keys():
            raise CheckpointError(
                f"{self.folder}: the names of its tensors begin with {words[0].removesuffix(_WORDS)!r}. "
                f"transformers loads {self.config.model_type} tensors with plain names or with {own!r} only, "
                "and would initialize these at random. Rename them."
            )


def _spellings(name: str, own_prefix: str) -> list[str]:
    """Return all names that transformers takes for one tensor.

    The norms of checkpoints converted from TensorFlow are called gamma and beta.
    Source: "legacy" in transformers' conversion_mapping.py
    """
    old = name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")
    return list(dict.fromkeys(prefix + each for prefix in ("", own_prefix) for each in (name, old)))


def _misfit(name: str, tensor: Tensor, shape: tuple[int, ...]) -> str | None:
    """Return what is wrong with a tensor's shape or type, or None."""
    floats = FLOATS.values()
    if tensor.shape != shape:
        return f"shape {tensor.shape}, config.json wants {shape}"
    if tensor.dtype not in floats and name.endswith((".weight", ".bias")):
        return f"type {tensor.dtype}, expected {', '.join(floats)}"
    return None


def _fetch(repository: str, revision: str | None) -> Path:
    """Fetch what a checkpoint needs from the Hub, its weights as .bin only if there are no safetensors."""
    files = (*_SMALL_FILES, SAFETENSORS)
    folder = fetch(repository, revision, files)
    # The folder is called by its commit: all fetches are of the same one.
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
    """Hub id and commit of a folder in the Hub's local cache, else the folder's name and None.

    The cache lays snapshots out as models--OWNER--NAME/snapshots/COMMIT.
    Source: https://huggingface.co/docs/huggingface_hub/guides/manage-cache
    """
    parts = folder.parts
    if len(parts) >= 3 and parts[-2] == "snapshots" and parts[-3].startswith("models--"):
        return parts[-3].removeprefix("models--").replace("--", "/", 1), parts[-1]
    return folder.name, None
