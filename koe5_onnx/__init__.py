"""KoE5 text embeddings for Korean and English with ONNX Runtime, without PyTorch.

from koe5_onnx import Embedder

embedder = Embedder.open("koe5-int8")
embedder.encode_queries(["대한민국의 수도는?"])      # float32[1, 1024]
"""

from koe5_onnx.artifact import (
    Agreement,
    Architecture,
    Artifact,
    Certificate,
    Contract,
    File,
    Manifest,
    Retrieval,
    Source,
    Target,
)
from koe5_onnx.async_embedder import AsyncEmbedder
from koe5_onnx.embedder import Embedder, Encoded
from koe5_onnx.errors import (
    ArtifactError,
    CheckpointError,
    CheckpointWarning,
    DoublePromptWarning,
    FidelityError,
    HubError,
    InputError,
    Koe5Error,
    Koe5Warning,
    MissingDependencyError,
    OutOfMemoryError,
    ProviderError,
    SharedWeightsWarning,
    SmallerBatchWarning,
    TextTooLongError,
    TruncationWarning,
    UnsuitedCpuWarning,
)
from koe5_onnx.options import EngineOptions
from koe5_onnx.text.tokenizer import Piece, Tokenizer, Tokens

__version__ = "0.1.0"

__all__ = [
    "Agreement",
    "Architecture",
    "Artifact",
    "ArtifactError",
    "AsyncEmbedder",
    "Certificate",
    "CheckpointError",
    "CheckpointWarning",
    "Contract",
    "DoublePromptWarning",
    "Embedder",
    "Encoded",
    "EngineOptions",
    "FidelityError",
    "File",
    "HubError",
    "InputError",
    "Koe5Error",
    "Koe5Warning",
    "Manifest",
    "MissingDependencyError",
    "OutOfMemoryError",
    "Piece",
    "ProviderError",
    "Retrieval",
    "SharedWeightsWarning",
    "SmallerBatchWarning",
    "Source",
    "Target",
    "TextTooLongError",
    "Tokenizer",
    "Tokens",
    "TruncationWarning",
    "UnsuitedCpuWarning",
]
