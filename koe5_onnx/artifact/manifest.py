"""The manifest of an artifact: the contract between export and runtime, as dataclasses and as JSON."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from koe5_onnx.artifact.parsing import build
from koe5_onnx.errors import ArtifactError

FORMAT_VERSION = 1
MANIFEST = "manifest.json"
GRAPH = "model.onnx"
PACKED_CPU_GRAPH = "model.fused.onnx"
PACKED_CUDA_GRAPH = "model.packed.onnx"
PACKED_GRAPHS = (PACKED_CPU_GRAPH, PACKED_CUDA_GRAPH)
"""An artifact has one of them at most: the first is int8, the second fp16."""
WEIGHTS = "model.onnx.data"
TOKENIZER = "tokenizer.json"

ERROR_BINS = tuple(float(f"{digit}e{power}") for power in range(-8, 1) for digit in (1, 3))
"""Upper ends of the bins of 1 - cosine, two a decade; the first takes what is smaller, the last the rest."""

PRECISIONS = ("fp32", "fp16", "int8", "int8-block", "int4-block")
"""Names that a manifest's precision may have; koe5_export knows how each is written."""

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
"""Types whose positions count from the pad token. Source: who calls create_position_ids_from_input_ids in
https://github.com/huggingface/transformers/tree/v4.57.6/src/transformers/models"""

AGAIN = "export or download the artifact again"


@dataclass(frozen=True)
class Source:
    """The checkpoint that an artifact was made from."""

    repository: str
    """Hub id, or the folder's name where the checkpoint was local."""
    revision: str | None
    """Commit of the Hub repository; None for a local folder."""
    weights_sha256: str
    """SHA-256 over the weight files (safetensors or pytorch_model.bin) in name order."""


@dataclass(frozen=True)
class Architecture:
    """Shape of the encoder."""

    model_type: str
    layers: int
    hidden: int
    heads: int
    intermediate: int
    vocabulary: int
    parameters: int

    @property
    def counts_from_pad(self) -> bool:
        """Whether positions start at pad_id + 1 and skip pad tokens, as in RoBERTa."""
        return self.model_type in COUNTING_TYPES


@dataclass(frozen=True)
class Contract:
    """How texts become one embedding: what a caller must know and a server must not guess."""

    pooling: str
    """"mean" over the attention mask, or "cls"."""
    normalize: bool
    """Whether embeddings have unit length."""
    max_tokens: int
    """Longest input in tokens, `<s>` and `</s>` included."""
    dim: int
    """Width of an embedding."""
    pad_id: int
    prompts: Mapping[str, str]
    """Prompt name ("query", "passage") to the text put in front."""
    default_prompt_name: str | None = None
    """The prompt of texts for which none is named; None puts nothing in front of them."""
    similarity: str = "cosine"
    """How embeddings are compared: "cosine" or "dot". The two are the same at unit length."""
    unicode_form: str | None = "NFC"
    """Unicode form that every text with its prompt is brought to before it is tokenized; None leaves texts as
    they are."""
    matryoshka_dims: Sequence[int] = ()
    """Widths below `dim` that the model was trained to be cut to, in rising or falling order."""

    def __post_init__(self) -> None:
        """Check form and widths.

        Raises:
            ArtifactError: The form is unknown, widths are not in order, or one is not below `dim`.
        """
        if self.unicode_form not in ("NFC", None):
            raise ArtifactError(f"unicode_form is {self.unicode_form!r}: expected 'NFC' or null; {AGAIN}")
        dims = list(self.matryoshka_dims)
        if sorted(set(dims)) not in (dims, dims[::-1]) or not all(0 < dim < self.dim for dim in dims):
            raise ArtifactError(
                f"matryoshka_dims is {dims}: expected widths from 1 to {self.dim - 1} in rising or falling "
                f"order; {AGAIN}"
            )

    @property
    def dims(self) -> tuple[int, ...]:
        """All widths that an embedding may have, in rising order; the last is `dim`."""
        return (*sorted(self.matryoshka_dims), self.dim)


@dataclass(frozen=True)
class Target:
    """What an artifact is good for: elsewhere the runtime refuses it or warns."""

    devices: Sequence[str]
    """"cpu", "cuda": a session on any other is refused."""
    instructions: Sequence[str]
    """CPU flags by the kernel's names, any one of which makes it fast and exact; empty for any CPU."""
    without: str
    """What to expect on a CPU that has none of them; empty where none is needed."""


@dataclass(frozen=True)
class Agreement:
    """Cosine between artifact and reference over some texts."""

    texts: int
    cosine_min: float
    cosine_p1: float
    """First percentile."""
    cosine_mean: float
    max_abs_diff: float
    """Largest difference of one component, both embeddings at unit length."""
    error_counts: Mapping[str, int]
    """Number of texts by 1 - cosine: upper end of a bin of ERROR_BINS, as "0.0003", to how many are in it."""


@dataclass(frozen=True)
class Retrieval:
    """The effect of the difference from the reference on a search among the texts of a certificate."""

    texts: int
    """Number of texts. Each is a query for which all others are searched."""
    neighbors: int
    """Number of nearest neighbors that count as found: 10, or fewer among few texts."""
    overlap: float
    """Share of the nearest neighbors found that are the reference's too, mean over the texts."""
    rank_correlation: float
    """Spearman's correlation of a text's similarities to all the others, mean over the texts."""
    similarity_error: float
    """Largest change of the cosine between two texts."""
    similarity_p5: float | None = None
    """5th percentile of the reference's cosines between two texts; None if it was not measured."""
    similarity_p50: float | None = None
    """Their median."""
    similarity_p95: float | None = None
    """Their 95th percentile."""


@dataclass(frozen=True)
class Certificate:
    """What was measured against the PyTorch reference before the artifact got its name."""

    overall: Agreement
    by_length: Mapping[str, Agreement]
    """Bucket of lengths in tokens, as "33-128", to its agreement."""
    batch_cosine_min: float
    """Smallest cosine of a text alone to the same text in a mixed batch, over `batch_texts`."""
    retrieval: Retrieval
    gate: Mapping[str, float]
    """The bounds that it passed."""
    texts_sha256: str
    measured_with: Mapping[str, str]
    """CPU, execution provider and library versions."""
    batch_texts: int | None = None
    """Number of texts that were also embedded alone; None if all were."""


@dataclass(frozen=True)
class File:
    """Size and hash of one file of the artifact."""

    bytes: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """Everything that manifest.json says."""

    format_version: int
    source: Source
    architecture: Architecture
    precision: str
    recipe: Mapping[str, Any]
    """How the precision was reached: parameters of the quantization, free-form."""
    target: Target
    contract: Contract
    files: Mapping[str, File]
    certificate: Certificate | None
    """None only while an export has not been measured yet."""
    fused_certificate: Certificate | None = None
    """Of the packed graph; None if there is none."""
    tokenizer_probes: Mapping[str, Sequence[int]] = field(default_factory=dict)
    """Odd texts and their token ids at export: another version of tokenizers must give the same."""
    fused_operators: int = 1
    """Version of the fused CPU operators that the graph for them is written for."""

    @property
    def total_bytes(self) -> int:
        """Size of all files together."""
        return sum(file.bytes for file in self.files.values())

    def to_json(self) -> str:
        """The manifest as indented JSON text."""
        return json.dumps(dataclasses.asdict(self), ensure_ascii=False, indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Manifest:
        """Parse and check a manifest.

        Raises:
            ArtifactError: Not JSON, another format version, or a field missing, unknown or of a wrong type.
        """
        try:
            data = json.loads(text)
        except (ValueError, RecursionError) as error:  # digits and nesting have limits of their own
            raise ArtifactError(f"{MANIFEST} is not JSON ({error}): {AGAIN}") from error
        version = data.get("format_version") if isinstance(data, dict) else None
        if version != FORMAT_VERSION:
            raise ArtifactError(
                f"{MANIFEST} has format version {version!r}, this koe5-onnx reads {FORMAT_VERSION}: "
                "export again, or install the version that made it"
            )
        return build(cls, data, MANIFEST)
