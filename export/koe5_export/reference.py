"""Compute reference embeddings: `SentenceTransformer(checkpoint).encode(texts)` in fp32 on the CPU.

Tokenizer, lowercasing, pooling, and the prompts that the checkpoint names are those of sentence-transformers,
and do not depend on the exported graph. The contract determines Unicode normalization, whether embeddings are
normalized, and prompts that sentence-transformers does not find. If a setting in sentence-transformers
contradicts the contract, an error names it and nothing is exported. A missing Normalize module is not an
error, but causes a warning.
"""

from __future__ import annotations

import gc
import unicodedata
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from koe5_export.config import read_config
from koe5_export.contract import pooling_mode
from koe5_export.settings import encoder_folder, read_modules
from koe5_export.texts import PROBES
from koe5_onnx import CheckpointError, CheckpointWarning, Contract, MissingDependencyError, Tokenizer

_PACKAGES = ("torch", "transformers", "sentence_transformers")
_BATCH_TOKENS = 1024
"""Maximum tokens per batch, padding included: enough for short texts to use all cores, but not too much
memory for long texts."""
_LEAST_FILL = 0.85
"""Minimum length of the shortest text in a batch, relative to the longest."""
NO_PROMPT = ""
"""Prompt name that disables all prompts, including the default prompt."""


def require_reference() -> None:
    """Check that torch, transformers and sentence-transformers are installed.

    Raises:
        MissingDependencyError: One of these packages is not installed. The message names the extra.
    """
    for package in _PACKAGES:
        try:
            __import__(package)
        except ImportError as error:
            raise MissingDependencyError(
                package.replace("_", "-"), "reference", "measuring an artifact against sentence-transformers"
            ) from error


def reference_versions() -> dict[str, str]:
    """Return the versions of the libraries that compute the reference."""
    versions = {package: __import__(package).__version__ for package in _PACKAGES}
    return {package.replace("_", "-"): str(version) for package, version in versions.items()}


def embed_reference(
    checkpoint: Path, contract: Contract, texts: Sequence[str], prompt_names: Sequence[str | None] = ()
) -> npt.NDArray[np.float32]:
    """Embed texts with a temporary `Reference`: float32[len(texts), dim].

    Args:
        checkpoint: Folder of the checkpoint.
        contract: See `Reference`.
        texts: Texts without prompts.
        prompt_names: See `Reference.embed`; empty for no prompts.
    """
    reference = Reference(checkpoint, contract)
    embeddings = reference.embed(texts, prompt_names or [NO_PROMPT] * len(texts))
    reference.close()
    return embeddings


class Reference:
    """A checkpoint loaded by sentence-transformers.

    Args:
        checkpoint: Folder of the checkpoint.
        contract: Contract of the checkpoint. Its prompts are used if sentence-transformers finds none in the
            checkpoint.

    Raises:
        CheckpointError: sentence-transformers cannot load the checkpoint, or the loaded model differs from
            the contract. The message names each difference.
    """

    def __init__(self, checkpoint: Path, contract: Contract) -> None:
        self._checkpoint = checkpoint
        self._contract = contract
        self._model = _load(checkpoint)
        self._limit_to_positions()
        self._require_same_contract()

    def embed(
        self,
        texts: Sequence[str],
        prompt_names: Sequence[str | None],
        on_rows: Callable[[list[int]], None] = lambda _: None,
    ) -> npt.NDArray[np.float32]:
        """Embed texts.

        Args:
            texts: Texts without prompts.
            prompt_names: Prompt name per text: a name in the contract, None for the default prompt,
                `NO_PROMPT` for no prompt.
            on_rows: Called after each batch with the indices of its texts.

        Returns:
            float32[len(texts), dim].

        Raises:
            CheckpointError: The encoder cannot embed as many tokens as its settings allow.
        """
        out = np.empty((len(texts), self._contract.dim), dtype=np.float32)
        if not texts:  # transformers' tokenizers reject an empty list
            return out
        composed = [self._composed(text) for text in texts]
        tokens = list(map(len, self._model.tokenizer(composed, truncation=True)["input_ids"]))
        for rows in _batches(tokens, prompt_names):
            out[rows] = self._encode([composed[row] for row in rows], prompt_names[rows[0]])
            on_rows(rows)
        return out

    def token_embeddings(
        self, input_ids: npt.NDArray[np.int64], attention_mask: npt.NDArray[np.int64]
    ) -> npt.NDArray[np.float32]:
        """Return the embeddings of all tokens of padded rows before pooling: float32[n, width, dim]."""
        import torch

        arrays = {"input_ids": input_ids, "attention_mask": attention_mask}
        with torch.inference_mode():
            found = self._model[0]({name: torch.from_numpy(array) for name, array in arrays.items()})
        return np.asarray(found["token_embeddings"], np.float32)

    def close(self) -> None:
        """Free the encoder; the `Reference` cannot be used afterwards."""
        self._model = None
        gc.collect()  # the encoder has reference cycles

    def require_same_ids(self, tokenizer: Tokenizer, texts: Sequence[str]) -> None:
        """Check that transformers' tokenizer and `tokenizer` return the same token ids.

        Both tokenize `texts`, `PROBES`, and texts that contain special and added tokens.

        Raises:
            CheckpointError: The ids of a text differ, for example because tokenizer_config.json overrides
                tokenizer.json.
        """
        added = [f"가 {token} b{token}나 {token}{token}" for token in self._model.tokenizer.get_added_vocab()]
        prompted = [self._composed(text) for text in (*texts, *PROBES, *added)]
        # sentence-transformers 6 lowercases texts in the tokenizer, older versions before tokenization.
        lower = getattr(self._model[0], "do_lower_case", False)
        cased = [text.lower() for text in prompted] if lower else prompted
        theirs = self._model.tokenizer(cased, truncation=True)["input_ids"]
        for text, ours, expected in zip(prompted, tokenizer.encode(prompted).ids, theirs, strict=True):
            if ours.tolist() != expected:
                pairs = enumerate(zip(ours, expected, strict=False))
                place = next((at for at, (a, b) in pairs if a != b), min(len(ours), len(expected)))
                raise CheckpointError(
                    f"{self._checkpoint}: transformers tokenizes the text {text[:40]!r} differently from "
                    f"tokenizer.json. From token {place} on it returns {expected[place : place + 5]} instead "
                    f"of {ours[place : place + 5].tolist()}. Correct tokenizer_config.json, or save the "
                    "tokenizer again: AutoTokenizer.from_pretrained(folder).save_pretrained(folder)"
                )

    def prompt(self, name: str | None) -> str:
        """Return the prompt with this name; the default prompt for None, "" for `NO_PROMPT`."""
        name = self._contract.default_prompt_name if name is None else name
        return "" if name in (None, NO_PROMPT) else self._contract.prompts[name]

    def _composed(self, text: str) -> str:
        """Normalize a text to the contract's Unicode form, which sentence-transformers does not do."""
        return unicodedata.normalize("NFC", text) if self._contract.unicode_form else text

    def _encode(self, texts: list[str], name: str | None) -> npt.NDArray[np.float32]:
        # If possible, pass the name, so that sentence-transformers looks up the prompt.
        own = name is None or (name in self._model.prompts and self._model.prompts[name] == self.prompt(name))
        prompt = {"prompt_name": name} if own else {"prompt": self.prompt(name)}
        try:
            rows = self._model.encode(
                texts,
                batch_size=len(texts),
                show_progress_bar=False,
                normalize_embeddings=self._contract.normalize,
                **prompt,
            )
        except IndexError as error:
            raise CheckpointError(
                f"{self._checkpoint}: the encoder cannot embed {self._model.max_seq_length} tokens "
                f"({error}). Set max_seq_length in sentence_bert_config.json to the actual limit"
            ) from error
        return np.asarray(rows, np.float32)

    def _limit_to_positions(self) -> None:
        """Lower the token limit to the number of positions, beyond which sentence-transformers would fail."""
        encoder = encoder_folder(self._checkpoint, read_modules(self._checkpoint))
        positions = read_config(encoder, any_encoder=True).max_tokens
        if (self._model.max_seq_length or positions) >= positions:
            self._model.max_seq_length = positions

    def _require_same_contract(self) -> None:
        """Check that the model that sentence-transformers loaded has the settings in the contract."""
        differences = [
            f"{name} is {theirs!r} instead of {ours!r}"
            for name, theirs, ours in self._comparison()
            if theirs != ours
        ]
        if differences:
            raise CheckpointError(
                f"{self._checkpoint}: sentence-transformers {reference_versions()['sentence-transformers']} "
                f"differs from the contract: {'; '.join(differences)}. Correct the checkpoint's settings "
                "files or, if it is a copy of a known model, pass the id of that model with --like"
            )
        if self._contract.normalize and "Normalize" not in self._kinds:
            warnings.warn(
                f"sentence-transformers does not normalize the embeddings of {self._checkpoint}, but the "
                "artifact does. Cosine similarities are the same",
                CheckpointWarning,
                stacklevel=4,
            )

    def _comparison(self) -> Iterator[tuple[str, Any, Any]]:
        """Yield the name of each setting, its value in sentence-transformers, and the expected value."""
        model, contract = self._model, self._contract
        yield "modules", self._kinds[:2], ["Transformer", "Pooling"]
        yield "pooling", pooling_mode(model[1].get_config_dict()), contract.pooling
        yield "include_prompt", bool(getattr(model[1], "include_prompt", True)), True
        yield "max_seq_length", model.max_seq_length, contract.max_tokens
        yield "default_prompt_name", model.default_prompt_name, contract.default_prompt_name
        yield "use of a chat template", "message" in getattr(model[0], "modality_config", {}), False
        if not contract.normalize:
            yield "normalization", "Normalize" in self._kinds, False
            yield "similarity", str(model.similarity_fn_name), contract.similarity
        for name, prompt in model.prompts.items():
            if prompt:
                yield f"prompt {name!r}", prompt, contract.prompts.get(name)

    @property
    def _kinds(self) -> list[str]:
        return [type(module).__name__ for module in self._model]


def _batches(lengths: Sequence[int], prompt_names: Sequence[str | None]) -> Iterator[list[int]]:
    """Yield the indices of texts in batches with the same prompt and similar lengths, longest first."""
    for name in dict.fromkeys(prompt_names):
        rows = [row for row, other in enumerate(prompt_names) if other == name]
        batch: list[int] = []
        for row in sorted(rows, key=lambda row: -lengths[row]):
            longest = lengths[batch[0]] if batch else 0
            is_full = longest * (len(batch) + 1) > _BATCH_TOKENS
            if batch and (is_full or lengths[row] < _LEAST_FILL * longest):
                yield batch
                batch = []
            batch.append(row)
        if batch:
            yield batch


def _load(checkpoint: Path) -> Any:
    import torch
    from sentence_transformers import SentenceTransformer

    try:
        with quiet():
            model = SentenceTransformer(
                str(checkpoint),
                device="cpu",
                local_files_only=True,
                trust_remote_code=False,
                model_kwargs={"dtype": torch.float32},
            )
    except (TypeError, ValueError, LookupError, OSError, ImportError, RuntimeError) as error:
        versions = ", ".join(f"{name} {version}" for name, version in reference_versions().items())
        raise CheckpointError(f"{checkpoint} cannot be loaded by {versions}: {error}") from error
    return model.eval()


@contextmanager
def quiet() -> Iterator[None]:
    """Context manager that disables transformers' progress bars and its report of unused weights."""
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
