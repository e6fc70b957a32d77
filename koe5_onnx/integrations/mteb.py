"""Encoder for MTEB, which evaluates an artifact on the tasks of MTEB. Requires the extra `mteb`.

import mteb
from koe5_onnx.integrations.mteb import Koe5Encoder

mteb.evaluate(Koe5Encoder("koe5-int8"), mteb.get_tasks(tasks=["Ko-StrategyQA"]))

Prompts are those that MTEB uses for KoE5: "query" and "passage" in retrieval tasks, and none in other tasks
(STS, classification, clustering).
Source: https://github.com/embeddings-benchmark/mteb/blob/main/mteb/models/model_implementations/korean_models.py
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Unpack

import numpy as np
import numpy.typing as npt

from koe5_onnx import Embedder, EngineOptions, InputError, MissingDependencyError
from koe5_onnx.artifact.matryoshka import require_dim
from koe5_onnx.integrations.shared_embedders import opened
from koe5_onnx.options import EngineFields

try:
    from mteb.models import ModelMeta
    from mteb.models.abs_encoder import AbsEncoder
    from mteb.models.model_meta import ScoringFunction
    from mteb.types import PromptType
except ImportError as error:
    raise MissingDependencyError("mteb", "mteb", "the MTEB integration") from error

_PROMPTS = {PromptType.query: "query", PromptType.document: "passage"}
"""Prompt name of the artifact for each prompt type of MTEB."""


class Koe5Encoder(AbsEncoder):
    """Encoder for MTEB tasks.

    The model name in results consists of checkpoint name, precision and, for shortened embeddings, `dim`.

    Args:
        artifact: Embedder, folder created by `koe5-onnx export`, or Hub id of an artifact.
        dim: Number of components to keep, one of `contract.dims`; None keeps all.
        **options: Fields of `EngineOptions`. Not allowed with an Embedder.

    Raises:
        Koe5Error: The artifact cannot be opened (see `Embedder.open`), or it does not support `dim`.
    """

    def __init__(
        self, artifact: Embedder | str | Path, *, dim: int | None = None, **options: Unpack[EngineFields]
    ) -> None:
        self.embedder = opened(artifact, EngineOptions(**options))
        require_dim(dim, self.embedder.contract)
        self.dim = dim
        self.mteb_model_meta = ModelMeta.create_empty(_facts(self.embedder, dim or self.embedder.dim))

    def encode(
        self,
        inputs: Iterable[dict[str, Any]],
        *,
        task_metadata: Any,
        hf_split: str,  # noqa: ARG002 - part of MTEB's protocol, like hf_subset
        hf_subset: str,  # noqa: ARG002
        prompt_type: PromptType | None = None,
        precision: str | None = None,
        **_without_effect: Any,
    ) -> npt.NDArray[np.float32]:
        """Embed all texts of `inputs`: float32[n, dim], in the order of the texts.

        Args:
            inputs: Data loader of MTEB, whose batches have a list of texts under the key "text".
            task_metadata: Metadata of the task, for error messages.
            hf_split: Not used.
            hf_subset: Not used.
            prompt_type: Query or document; None uses the contract's default prompt, or no prompt if it has
                none.
            precision: None or "float32".

        Raises:
            InputError: The task has no texts, or another precision is requested.
        """
        if precision not in (None, "float32"):
            raise InputError(f"precision is {precision!r}: expected 'float32'")
        texts: list[str] = []
        for batch in inputs:
            if "text" not in batch:
                raise InputError(
                    f"the task {task_metadata.name} has the inputs {', '.join(batch)}: expected 'text'"
                )
            texts.extend(batch["text"])
        name = None if prompt_type is None else _PROMPTS[prompt_type]
        return self.embedder.encode(texts, name, dim=self.dim)


def _facts(embedder: Embedder, dim: int) -> dict[str, Any]:
    manifest = embedder.artifact.manifest
    source, contract = manifest.source, manifest.contract
    shortened = "" if dim == contract.dim else f"-{dim}"
    return {
        "name": f"koe5-onnx/{source.repository.rpartition('/')[2]}-{manifest.precision}{shortened}",
        "revision": source.revision or source.weights_sha256,
        "n_parameters": manifest.architecture.parameters,
        "memory_usage_mb": manifest.total_bytes / 2**20,
        "max_tokens": contract.max_tokens,
        "embed_dim": dim,
        "framework": ["ONNX"],
        "similarity_fn_name": ScoringFunction(contract.similarity),
        "use_instructions": bool(contract.prompts),
        "adapted_from": source.repository,
    }
