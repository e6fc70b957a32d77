"""The PyTorch reference: what transformers computes from the checkpoint in fp32. The only user of torch.

It shares no code with the graph: its own weights, its own padding, its own positions, its own pooling.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from koe5_onnx import CheckpointError, Contract, MissingDependencyError

_TEXTS_PER_BATCH = 4


def require_reference() -> None:
    """Check that torch and transformers are installed.

    Raises:
        MissingDependencyError: One is not; the message names the extra.
    """
    for package in ("torch", "transformers"):
        try:
            __import__(package)
        except ImportError as error:
            raise MissingDependencyError(
                package, "reference", "measuring an artifact against PyTorch"
            ) from error


def reference_versions() -> dict[str, str]:
    """Versions of the libraries that the reference runs on."""
    import torch
    import transformers

    return {"torch": torch.__version__, "transformers": transformers.__version__}


def embed_reference(
    checkpoint: Path,
    contract: Contract,
    texts: Sequence[str],
    threads: int | None = None,
    on_tokens: Callable[[int], None] = lambda _tokens: None,
) -> npt.NDArray[np.float32]:
    """Embed texts with PyTorch in fp32 on the CPU, and free the encoder again.

    Args:
        checkpoint: Folder of the checkpoint.
        contract: Pooling, normalisation and token limit.
        texts: Texts with their prompts in front.
        threads: Threads of PyTorch; None takes its own choice.
        on_tokens: Called after each batch with its number of tokens.

    Returns:
        float32[len(texts), dim].

    Raises:
        CheckpointError: transformers does not know the encoder, or it has fewer positions than `max_tokens`.
    """
    import torch
    from transformers import PreTrainedTokenizerFast

    if threads is not None:
        torch.set_num_threads(threads)
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(checkpoint / "tokenizer.json"))
    pad_token = tokenizer.convert_ids_to_tokens(contract.pad_id)
    tokenizer.pad_token, tokenizer.padding_side = pad_token, "right"
    encoder = _encoder(checkpoint)
    out = np.empty((len(texts), contract.dim), dtype=np.float32)
    order = np.argsort([-len(text) for text in texts], kind="stable")
    with torch.inference_mode():
        for start in range(0, len(order), _TEXTS_PER_BATCH):
            rows = order[start : start + _TEXTS_PER_BATCH]
            inputs = tokenizer(
                [texts[row] for row in rows],
                padding=True,
                truncation=True,
                max_length=contract.max_tokens,
                return_tensors="pt",
            )
            mask = inputs["attention_mask"]
            hidden = _hidden(encoder, inputs["input_ids"], mask)
            out[rows] = _pool(hidden, mask, contract).numpy()
            on_tokens(int(mask.sum()))
    del encoder
    gc.collect()
    return out


def _encoder(checkpoint: Path) -> Any:
    """The encoder in fp32. It may have a pooler, which is not used; not every class can leave it out."""
    import torch
    import transformers

    try:
        with quiet():
            encoder = transformers.AutoModel.from_pretrained(
                checkpoint, dtype=torch.float32, trust_remote_code=False
            )
    except (ValueError, OSError) as error:
        raise CheckpointError(
            f"transformers {transformers.__version__} cannot load {checkpoint}: {error}"
        ) from error
    return encoder.eval()


def _hidden(encoder: Any, ids: Any, mask: Any) -> Any:
    """float32[n, width, hidden] of ids and mask int64[n, width]."""
    try:
        return encoder(input_ids=ids, attention_mask=mask).last_hidden_state
    except IndexError as error:
        raise CheckpointError(
            f"{type(encoder).__name__} cannot embed {ids.shape[1]} tokens ({error}): "
            "give the true limit as max_seq_length in sentence_bert_config.json"
        ) from error


@contextmanager
def quiet() -> Iterator[None]:
    """Keep transformers from drawing a bar and from listing the pooler, which is not used."""
    from transformers.utils import logging

    level, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bar:
            logging.enable_progress_bar()


def _pool(hidden: Any, mask: Any, contract: Contract) -> Any:
    import torch

    if contract.pooling == "cls":
        pooled = hidden[:, 0]
    else:
        kept = hidden.masked_fill(~mask[..., None].bool(), 0.0)
        pooled = kept.sum(dim=1) / mask.sum(dim=1, keepdim=True)
    return torch.nn.functional.normalize(pooled, dim=1) if contract.normalize else pooled
