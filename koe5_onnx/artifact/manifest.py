"""The manifest of an artifact as dataclasses and as JSON. The export writes it and the runtime reads it."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from koe5_onnx.artifact.parsing import AGAIN, build
from koe5_onnx.errors import ArtifactError

FORMAT_VERSION = 1
MANIFEST = "manifest.json"
GRAPHS: Mapping[str, str] = {
    "fp32": "onnx/model.onnx",
    "fp16": "onnx/model_fp16.onnx",
    "int8": "onnx/model_quantized.onnx",
    "int8-block": "onnx/model_int8.onnx",
    "int4-block": "onnx/model_q4.onnx",
}
"""File of the padded graph by precision. Transformers.js finds it by this name.
Source: https://huggingface.co/docs/transformers.js/guides/dtypes"""
PACKED_CPU_GRAPH = "onnx/packed_cpu.onnx"
PACKED_CUDA_GRAPH = "onnx/packed_cuda.onnx"
PACKED_GRAPHS = (PACKED_CPU_GRAPH, PACKED_CUDA_GRAPH)
"""Files of packed graphs. An int8 artifact may have the first one, an fp16 artifact the second one."""
TOKENIZER = "tokenizer.json"

ERROR_BINS = tuple(float(f"{digit}e{power}") for power in range(-8, 1) for digit in (1, 3))
"""Upper ends of the bins in the histogram of 1 - cosine (`Agreement.error_counts`), two per decade."""

PRECISIONS: Mapping[str, Sequence[str]] = {
    "fp32": ("cpu", "cuda"),
    "fp16": ("cuda",),
    "int8": ("cpu",),
    "int8-block": ("cpu",),
    "int4-block": ("cpu",),
}
"""Supported devices by precision (`Manifest.precision`). koe5_export.precision implements the precisions."""

COUNTING_TYPES = (
    "xlm-roberta",
    "roberta",
    "camembert",
    "data2vec-text",
    "ibert",
    "longformer",
    "mpnet",
    "roberta-prelayernorm",
    "xlm-roberta-xl",
    "xmod",
)
"""Model types whose position ids start at pad_id + 1.
Source: callers of create_position_ids_from_input_ids in
https://github.com/huggingface/transformers/tree/v4.57.6/src/transformers/models"""


def weights_of(graph: str) -> str:
    """Return the weights file of a padded graph. Its suffix is the one that Transformers.js expects."""
    return f"{graph}_data"


@dataclass(frozen=True)
class Source:
    """The checkpoint from which an artifact was exported."""

    repository: str
    """Hub id, or folder name if the checkpoint was local."""
    revision: str | None
    """Commit of the Hub repository; None for a folder that is not in the Hub's cache."""
    weights_sha256: str
    """SHA-256 of the weight files (safetensors or pytorch_model.bin), sorted by name and concatenated."""
    license: str | None = None
    """License that the checkpoint's model card names, such as "mit"; None if it names none."""
    languages: Sequence[str] = ()
    """Languages that the checkpoint's model card names, such as "ko"."""


@dataclass(frozen=True)
class Architecture:
    """Shape of the encoder."""

    model_type: str
    """`model_type` of the checkpoint's config.json, such as "xlm-roberta"."""
    layers: int
    """Number of encoder layers."""
    hidden: int
    """Hidden size."""
    heads: int
    """Attention heads per layer."""
    intermediate: int
    """Size of the feed-forward layer."""
    vocabulary: int
    """Rows of the token embedding table."""
    parameters: int
    """Number of weights of the encoder, embedding tables included."""

    @property
    def counts_from_pad(self) -> bool:
        """True if position ids start at pad_id + 1 and skip pad tokens, as in RoBERTa."""
        return self.model_type in COUNTING_TYPES


@dataclass(frozen=True)
class Contract:
    """Settings that determine the embedding of a text, such as pooling, prompts and the token limit."""

    pooling: str
    """"mean" over the attention mask, or "cls"."""
    normalize: bool
    """True if embeddings have unit length."""
    max_tokens: int
    """Longest input in tokens, special tokens included."""
    dim: int
    """Embedding dimension."""
    pad_id: int
    """Id of the pad token."""
    prompts: Mapping[str, str]
    """Prompts by name, such as "query" and "passage"."""
    default_prompt_name: str | None = None
    """Name of the prompt for calls without a prompt or prompt name; None adds no prompt."""
    similarity: str = "cosine"
    """Similarity function: "cosine" or "dot", which are equal for unit-length embeddings."""
    unicode_form: str | None = "NFC"
    """Unicode normalization of each text with its prompt before tokenization; None disables it."""
    matryoshka_dims: Sequence[int] = ()
    """Dimensions below `dim` that the model was trained for, in ascending or descending order."""

    def __post_init__(self) -> None:
        """Validate `unicode_form` and `matryoshka_dims`.

        Raises:
            ArtifactError: The form is unknown, or the dimensions are out of order or out of range.
        """
        if self.unicode_form not in ("NFC", None):
            raise ArtifactError(f"unicode_form is {self.unicode_form!r}: expected 'NFC' or null. {AGAIN}")
        dims = list(self.matryoshka_dims)
        if sorted(set(dims)) not in (dims, dims[::-1]) or not all(0 < dim < self.dim for dim in dims):
            raise ArtifactError(
                f"matryoshka_dims is {dims}: expected dimensions from 1 to {self.dim - 1} in ascending or "
                f"descending order. {AGAIN}"
            )

    @property
    def dims(self) -> tuple[int, ...]:
        """All supported embedding dimensions in ascending order; the last one is `dim`."""
        return (*sorted(self.matryoshka_dims), self.dim)


@dataclass(frozen=True)
class Target:
    """Devices and CPUs that an artifact is intended for."""

    devices: Sequence[str]
    """Supported devices, "cpu" or "cuda". Opening the artifact on another device raises an error."""
    instructions: Sequence[str]
    """CPU flags, as named by Linux. The artifact is fast and exact on CPUs that have at least one of these
    flags; on other CPUs, the runtime warns if it runs the padded graph. Empty if the artifact needs none of
    them."""
    without: str
    """Consequences of running on a CPU with none of `instructions`, as text for the warning; "" if
    `instructions` is empty."""


@dataclass(frozen=True)
class Agreement:
    """Agreement of an artifact's embeddings with those of the PyTorch reference, over a set of texts."""

    texts: int
    """Number of texts."""
    cosine_min: float
    """Smallest cosine between an embedding and its reference embedding."""
    cosine_p1: float
    """First percentile of the cosines between embeddings and their reference embeddings."""
    cosine_mean: float
    """Mean cosine between embeddings and their reference embeddings."""
    max_abs_diff: float
    """Largest absolute difference between a component of an embedding and the same component of its reference
    embedding, both scaled to unit length."""
    error_counts: Mapping[str, int]
    """Histogram of 1 - cosine: number of texts per non-empty bin of ERROR_BINS, by the bin's upper end
    ("0.0003")."""


@dataclass(frozen=True)
class Retrieval:
    """Agreement of an artifact's search results with those of the reference, among a certificate's texts."""

    texts: int
    """Number of texts. Each one is a query against all others."""
    neighbors: int
    """Number of nearest neighbors compared per text: 10, or all other texts if there are fewer."""
    overlap: float
    """Fraction of nearest neighbors shared with the reference, averaged over the texts."""
    rank_correlation: float
    """Spearman correlation between the artifact's and the reference's similarities of a text to all others,
    averaged over the texts."""
    similarity_error: float
    """Largest absolute difference between artifact and reference in the cosine of two texts."""
    similarity_p5: float | None = None
    """5th percentile of the pairwise cosines of the reference; None if not measured."""
    similarity_p50: float | None = None
    """Median of the pairwise cosines of the reference; None if not measured."""
    similarity_p95: float | None = None
    """95th percentile of the pairwise cosines of the reference; None if not measured."""


@dataclass(frozen=True)
class Certificate:
    """Measured agreement of an artifact with the PyTorch reference."""

    overall: Agreement
    """Agreement over all texts."""
    by_length: Mapping[str, Agreement]
    """Agreement by range of text lengths in tokens, such as "33-64"."""
    batch_cosine_min: float
    """Smallest cosine between a text embedded alone and the same text embedded in a batch with others, over
    `batch_texts` texts."""
    retrieval: Retrieval
    """Agreement of search results."""
    gate: Mapping[str, float]
    """Bounds that the measurements had to satisfy."""
    texts_sha256: str
    """SHA-256 of a JSON list with a pair [text, prompt name] per text."""
    measured_with: Mapping[str, str]
    """CPU, execution provider, graph file and library versions."""
    batch_texts: int | None = None
    """Number of texts that were embedded both alone and in a batch; None means all."""


@dataclass(frozen=True)
class GoldenEmbedding:
    """A text and its embedding, with which any runtime can test that it computes the same embeddings."""

    text: str
    """The text with its prompt, if any."""
    ids: Sequence[int]
    """Its token ids."""
    embedding: str
    """Its embedding by the padded graph, computed at export: float32[dim], little-endian, in base64."""


@dataclass(frozen=True)
class File:
    """Size and SHA-256 of a file of the artifact."""

    bytes: int
    """Size in bytes."""
    sha256: str
    """SHA-256 as 64 hexadecimal digits."""


@dataclass(frozen=True)
class Manifest:
    """Content of manifest.json."""

    format_version: int
    """Version of the manifest format, `FORMAT_VERSION`."""
    source: Source
    """The exported checkpoint."""
    architecture: Architecture
    """Shape of the encoder."""
    precision: str
    """Precision of the weights, one of `PRECISIONS`."""
    recipe: Mapping[str, Any]
    """Parameters of the conversion or quantization, free-form."""
    target: Target
    """Devices and CPUs that the artifact is intended for."""
    contract: Contract
    """Pooling, prompts and limits."""
    files: Mapping[str, File]
    """All files of the artifact, except the manifest, by path relative to the artifact."""
    certificate: Certificate | None
    """Certificate of the padded graph; None before an export has been measured."""
    packed_certificate: Certificate | None = None
    """Certificate of the packed graph; None if there is no packed graph."""
    tokenizer_probes: Mapping[str, Sequence[int]] = field(default_factory=dict)
    """Unusual texts and their token ids at export. `Embedder.open` fails if the installed version of the
    tokenizers library returns other ids."""
    selftest: Sequence[GoldenEmbedding] = ()
    """Texts and their embeddings for `EngineOptions.selftest` and for other runtimes."""
    fused_operators: int = 1
    """Version of the custom CPU operators that the packed graph for CPUs requires."""

    def __post_init__(self) -> None:
        """Validate `precision`.

        Raises:
            ArtifactError: The precision is unknown.
        """
        if self.precision not in PRECISIONS:
            raise ArtifactError(
                f"precision is {self.precision!r}: expected one of {', '.join(PRECISIONS)}. {AGAIN}, or "
                "update koe5-onnx"
            )

    @property
    def graph(self) -> str:
        """File of the padded graph."""
        return GRAPHS[self.precision]

    @property
    def weights(self) -> str:
        """File of the weights, which all graphs of the artifact share."""
        return weights_of(self.graph)

    @property
    def total_bytes(self) -> int:
        """Total size of all files."""
        return sum(file.bytes for file in self.files.values())

    @property
    def sha256(self) -> str:
        """SHA-256 of `to_json`. It identifies the artifact, because the JSON has the hashes of all files."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()

    def to_json(self) -> str:
        """Return the manifest as indented JSON."""
        return json.dumps(dataclasses.asdict(self), ensure_ascii=False, indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Manifest:
        """Parse and validate a manifest.

        Raises:
            ArtifactError: The text is not JSON, the format version is not supported, or a field is missing,
                unknown, of the wrong type or out of range.
        """
        try:
            data = json.loads(text)
        except (ValueError, RecursionError) as error:  # RecursionError: nested too deeply
            raise ArtifactError(f"{MANIFEST} is not JSON ({error}). {AGAIN}") from error
        version = data.get("format_version") if isinstance(data, dict) else None
        if version != FORMAT_VERSION:
            raise ArtifactError(
                f"{MANIFEST} has format version {version!r}: this koe5-onnx reads version {FORMAT_VERSION}. "
                "Export the artifact again, or install the koe5-onnx version that created it"
            )
        return build(cls, data, MANIFEST)
