"""The PyTorch-side checkpoint: a folder and its named weights, streamed from safetensors.

Owns where files lie and what the tensors in them are called. Nothing here holds more
than one layer, and no tensor stays mapped after it was read: reading a file through its mapping counts
as memory, so each read opens the file anew.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator
from pathlib import Path

import ml_dtypes  # noqa: F401  (gives numpy the name bfloat16, which safetensors looks up)
import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open

from koe5_export.config import read_config, read_json
from koe5_export.weights import Layer, Linear, Norm
from koe5_onnx import CheckpointError, Source
from koe5_onnx.hub import fetch, is_hub_id

Array = npt.NDArray[np.float32]

_FILES = (
    "config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "modules.json",
    "sentence_bert_config.json",
    "config_sentence_transformers.json",
    "1_Pooling/config.json",
    "model*.safetensors",
    "model.safetensors.index.json",
)
_PREFIXES = ("", "roberta.", "bert.", "model.")
_FLOATS = ("F64", "F32", "BF16", "F16")
"""Types that are weights as they stand; others are quantised and mean nothing without their scales."""
_ROWS_PER_READ = 16384
"""Rows of the word embeddings read at once: 64 MiB at width 1024."""


class Checkpoint:
    """A folder with config.json, tokenizer.json and safetensors weights.

    Args:
        folder: The folder.
        repository: Hub id that it came from, else the folder's name.
        revision: Commit on the Hub, or None.
        any_encoder: Take encoders too that the graph builder does not know. They can be traced and measured,
            but their layers cannot be read.

    Raises:
        CheckpointError: Something is missing, damaged or of an unknown kind; the message names all of it.
    """

    def __init__(
        self, folder: Path, repository: str, revision: str | None, *, any_encoder: bool = False
    ) -> None:
        self.folder = folder
        self.repository = repository
        self.revision = revision
        self.config = read_config(folder, any_encoder=any_encoder)
        if not self.tokenizer.is_file():
            raise CheckpointError(
                f"{folder} has no tokenizer.json: expected the Rust tokenizer's file; make it with "
                "transformers: AutoTokenizer.from_pretrained(folder).save_pretrained(folder)"
            )
        self._files = _weight_files(folder)
        stored = _stored_tensors(self._files)
        # Of an encoder that is not buildable nobody knows what it needs: whatever is there.
        self._shapes = self.config.shapes or {name: shape for name, (_, shape, _) in stored.items()}
        self._where = self._locate_tensors(stored)

    @classmethod
    def open(
        cls, folder_or_hub_id: str | Path, revision: str | None = None, *, any_encoder: bool = False
    ) -> Checkpoint:
        """Open a local checkpoint, or fetch one from the Hub; `any_encoder` as in the constructor.

        Raises:
            CheckpointError: It cannot be exported.
            HubError: It cannot be fetched.
        """
        name = str(folder_or_hub_id)
        if Path(name).is_dir():
            folder = Path(name)
            return cls(folder, *_hub_origin(folder.resolve()), any_encoder=any_encoder)
        if Path(name).exists() or not is_hub_id(name):
            raise CheckpointError(f"{name} is neither a checkpoint's folder nor a Hub id (owner/name)")
        folder = fetch(name, revision, _FILES)
        return cls(folder, name, folder.name, any_encoder=any_encoder)

    @property
    def tokenizer(self) -> Path:
        """The tokenizer.json."""
        return self.folder / "tokenizer.json"

    @property
    def parameters(self) -> int:
        """Number of weights that the encoder uses; all that are stored where it is not buildable."""
        return sum(math.prod(shape) for shape in self._shapes.values())

    @property
    def weight_bytes(self) -> int:
        """Size of the safetensors files."""
        return sum(file.stat().st_size for file in self._files)

    def source(self, on_bytes: Callable[[int], None] = lambda _done: None) -> Source:
        """Return origin and SHA-256 of the weights, which are read once.

        Args:
            on_bytes: Called with the number of bytes read so far.
        """
        digest, done = hashlib.sha256(), 0
        for file in self._files:
            with file.open("rb") as stream:
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
        file, stored_name = self._where[name]
        try:
            with safe_open(file, framework="numpy") as tensors:
                array = np.asarray(tensors.get_slice(stored_name)[rows]).astype(np.float32, copy=False)
        except (SafetensorError, OSError) as error:
            raise CheckpointError(
                f"{file}: {stored_name} cannot be read ({error}): download it again"
            ) from error
        if not np.isfinite(array).all():
            raise CheckpointError(f"{file}: {stored_name} holds NaN or infinity: the checkpoint is damaged")
        return array

    def word_embeddings(self) -> Iterator[Array]:
        """The word embeddings in blocks of rows: float32[rows, hidden]."""
        rows = self.config.vocabulary
        for start in range(0, rows, _ROWS_PER_READ):
            part = slice(start, min(start + _ROWS_PER_READ, rows))
            yield self.read("embeddings.word_embeddings.weight", part)

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

    def _locate_tensors(
        self, stored: dict[str, tuple[Path, tuple[int, ...], str]]
    ) -> dict[str, tuple[Path, str]]:
        """Canonical tensor name to its file and its name there, all checked at once."""
        first = "embeddings.word_embeddings.weight"
        prefix = next((p for p in _PREFIXES if p + first in stored and first in self._shapes), "")
        problems: list[str] = []
        where: dict[str, tuple[Path, str]] = {}
        for name, shape in self._shapes.items():
            found = stored.get(prefix + name)
            if found is None:
                problems.append(f"{prefix}{name} is missing")
            elif found[1] != shape:
                problems.append(f"{prefix}{name} has shape {found[1]}, config.json wants {shape}")
            elif found[2] not in _FLOATS and name.endswith((".weight", ".bias")):
                problems.append(f"{prefix}{name} has type {found[2]}, expected {', '.join(_FLOATS)}")
            else:
                where[name] = (found[0], prefix + name)
        if problems:
            raise CheckpointError(
                f"{self.folder}: {len(problems)} tensors do not fit its config.json:\n  "
                + "\n  ".join(problems)
            )
        return where


def _weight_files(folder: Path) -> list[Path]:
    """The safetensors files: one, or the shards that an index names."""
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        weight_map = read_json(index).get("weight_map")
        if not isinstance(weight_map, dict):
            raise CheckpointError(f"{index} has no weight_map: expected tensor names and their files")
        names = sorted(set(map(str, weight_map.values())))
    else:
        names = ["model.safetensors"]
    files = [folder / name for name in names]
    if missing := [file.name for file in files if not file.is_file()]:
        raise CheckpointError(
            f"{folder} lacks {', '.join(missing)}: expected safetensors weights; a pytorch_model.bin is "
            "converted by transformers: AutoModel.from_pretrained(folder).save_pretrained(folder)"
        )
    return files


def _stored_tensors(files: list[Path]) -> dict[str, tuple[Path, tuple[int, ...], str]]:
    """Tensor name to its file, shape and type."""
    stored: dict[str, tuple[Path, tuple[int, ...], str]] = {}
    for file in files:
        try:
            with safe_open(file, framework="numpy") as tensors:
                for name in tensors.keys():  # noqa: SIM118  (safe_open is no mapping)
                    tensor = tensors.get_slice(name)
                    stored[name] = (file, tuple(tensor.get_shape()), tensor.get_dtype())
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{file} is damaged or cut short ({error}): download it again") from error
    return stored


def _hub_origin(folder: Path) -> tuple[str, str | None]:
    """Hub id and commit of a folder in the Hub's local cache, else the folder's name and None.

    The cache lays snapshots out as models--OWNER--NAME/snapshots/COMMIT.
    Source: https://huggingface.co/docs/huggingface_hub/guides/manage-cache
    """
    parts = folder.parts
    if len(parts) >= 3 and parts[-2] == "snapshots" and parts[-3].startswith("models--"):
        return parts[-3].removeprefix("models--").replace("--", "/", 1), parts[-1]
    return folder.name, None
