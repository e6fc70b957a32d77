"""Write complete checkpoints with seeded random weights.

These replace real checkpoints in tests, in benchmarks, and in the demo if its download fails. Embeddings are
meaningless, but speed, size and memory are those of a real checkpoint of the same shape. There is one
exception: depending on the weights, int8 may quantize some linear layers in blocks, which are slower. The
recipe in the manifest lists these layers.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors

from koe5_export.config import EncoderConfig
from koe5_export.texts import CALIBRATION, SAMPLE_PASSAGES, SAMPLE_QUERIES, VERIFICATION
from koe5_onnx import InputError
from koe5_onnx.files import atomic_path

_SPECIALS = ("<s>", "<pad>", "</s>", "<unk>")
_LONGEST_PIECE = 6
_SHARD_BYTES = 256 << 20


@dataclass(frozen=True)
class Size:
    """Shape of a seeded encoder."""

    layers: int
    hidden: int
    heads: int
    intermediate: int
    vocabulary: int
    model_type: str = "xlm-roberta"
    """"xlm-roberta" or "bert". BERT has position ids from 0, two token types and the pad id 0."""
    positions: int = 514
    """Rows of the position table: the token limit plus two in XLM-R, the token limit in BERT."""
    pooling: str = "mean"
    """"mean" or "cls"."""
    prompted: bool = True
    """True if the checkpoint has the prompts "query: " and "passage: "."""


SIZES = {
    "tiny": Size(layers=2, hidden=64, heads=4, intermediate=128, vocabulary=2048),
    "small": Size(layers=6, hidden=384, heads=12, intermediate=1536, vocabulary=8192),
    # The shape of KoE5. Source: https://huggingface.co/nlpai-lab/KoE5/blob/main/config.json
    "large": Size(layers=24, hidden=1024, heads=16, intermediate=4096, vocabulary=250002),
}


def write_seeded_checkpoint(
    folder: Path, size: str | Size, seed: int = 0, tokenizer: Path | None = None
) -> None:
    """Write a sentence-transformers checkpoint of an XLM-R or BERT encoder with seeded weights.

    Args:
        folder: Folder to write; must not exist.
        size: "tiny", "small" or "large" (2.2 GB), or a shape.
        seed: Seed of the weights; the same seed gives the same bytes.
        tokenizer: A tokenizer.json to copy; None builds a small Unigram tokenizer from this project's texts.

    Raises:
        InputError: The folder exists, the size is unknown, the tokenizer is missing, or the vocabulary of the
            size is too small for it.
    """
    if folder.exists():
        raise InputError(f"{folder} exists. Pass a new folder, or remove it first")
    if isinstance(size, str) and size not in SIZES:
        raise InputError(f"size is {size!r}; expected one of {', '.join(SIZES)}")
    shape = SIZES[size] if isinstance(size, str) else size
    with atomic_path(folder) as partial:
        partial.mkdir(parents=True)
        _write_tokenizer(partial / "tokenizer.json", shape.vocabulary, tokenizer)
        write_configs(partial, shape)
        _write_weights(partial / "model.safetensors", encoder_config(shape), seed)


def encoder_config(size: Size) -> EncoderConfig:
    """Return the configuration of a seeded encoder."""
    is_bert = size.model_type == "bert"
    return EncoderConfig(
        model_type=size.model_type,
        layers=size.layers,
        hidden=size.hidden,
        heads=size.heads,
        intermediate=size.intermediate,
        vocabulary=size.vocabulary,
        positions=size.positions,
        token_types=2 if is_bert else 1,
        pad_id=0 if is_bert else 1,
        epsilon=1e-12 if is_bert else 1e-5,
    )


def _write_tokenizer(file: Path, vocabulary: int, source: Path | None) -> None:
    if source is not None and not source.is_file():
        raise InputError(f"{source} is not a file. Pass a tokenizer.json")
    rust = tokenizers.Tokenizer.from_file(str(source)) if source else small_tokenizer(vocabulary)
    if rust.get_vocab_size() > vocabulary:
        raise InputError(
            f"{source} has {rust.get_vocab_size()} entries; expected at most {vocabulary} for this size"
        )
    rust.save(str(file), pretty=False)


def small_tokenizer(vocabulary: int) -> tokenizers.Tokenizer:
    """Build a Unigram tokenizer like XLM-R's from pieces of this project's texts.

    The result is deterministic, unlike that of the trainer in the tokenizers library.
    """
    rust = tokenizers.Tokenizer(models.Unigram())
    # As in XLM-R, the normalizer does not compose decomposed Hangul.
    rust.normalizer = normalizers.Replace(tokenizers.Regex(" {2,}"), " ")
    rust.pre_tokenizer = pre_tokenizers.Metaspace()
    rust.decoder = decoders.Metaspace()
    prompts = [f"{prompt}: {line}" for prompt in ("query", "passage") for line in CALIBRATION]
    words: Counter[str] = Counter()
    for line in (*prompts, *VERIFICATION, *SAMPLE_QUERIES, *SAMPLE_PASSAGES):
        normalized = rust.normalizer.normalize_str(line)
        words.update(word for word, _ in rust.pre_tokenizer.pre_tokenize_str(normalized))
    rust.model = models.Unigram(_scored_pieces(words, vocabulary), unk_id=_SPECIALS.index("<unk>"))
    rust.add_special_tokens(list(_SPECIALS))
    rust.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    return rust


def _scored_pieces(words: Counter[str], vocabulary: int) -> list[tuple[str, float]]:
    """Return the special tokens, all single characters, and the pieces that cover the most characters."""
    counts: Counter[str] = Counter()
    for word, count in words.items():
        for start in range(len(word)):
            for end in range(start + 1, min(start + _LONGEST_PIECE, len(word)) + 1):
                counts[word[start:end]] += count
    total = counts.total()
    ranked = sorted(counts, key=lambda piece: (len(piece) > 1, -counts[piece] * len(piece), piece))
    kept = ranked[: vocabulary - len(_SPECIALS)]
    if missing := sum(len(piece) == 1 for piece in ranked[len(kept) :]):
        raise InputError(f"vocabulary is {vocabulary}, so {missing} characters would be unknown. Increase it")
    return [
        *((special, 0.0) for special in _SPECIALS),
        *((piece, math.log(counts[piece] / total)) for piece in kept),
    ]


def write_configs(folder: Path, size: Size) -> None:
    """Write all files of a sentence-transformers checkpoint except weights and tokenizer.json."""
    shape = encoder_config(size)
    config = {
        "architectures": ["BertModel" if size.model_type == "bert" else "XLMRobertaModel"],
        "attention_probs_dropout_prob": 0.1,
        "bos_token_id": 0,
        "eos_token_id": 2,
        "hidden_act": "gelu",
        "hidden_dropout_prob": 0.1,
        "hidden_size": shape.hidden,
        "initializer_range": 0.02,
        "intermediate_size": shape.intermediate,
        "layer_norm_eps": shape.epsilon,
        "max_position_embeddings": shape.positions,
        "model_type": shape.model_type,
        "num_attention_heads": shape.heads,
        "num_hidden_layers": shape.layers,
        "pad_token_id": shape.pad_id,
        "position_embedding_type": "absolute",
        "type_vocab_size": shape.token_types,
        "vocab_size": shape.vocabulary,
    }
    tokens = {
        f"{name}_token": token for name, token in zip(("bos", "pad", "eos", "unk"), _SPECIALS, strict=True)
    }
    modules = [
        {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
        {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
        {"idx": 2, "name": "2", "path": "2_Normalize", "type": "sentence_transformers.models.Normalize"},
    ]
    pooling = {"word_embedding_dimension": shape.hidden, "pooling_mode_mean_tokens": size.pooling == "mean"}
    pooling |= {"pooling_mode_cls_token": size.pooling == "cls", "pooling_mode_max_tokens": False}
    _write_json(folder / "config.json", config)
    _write_json(
        folder / "tokenizer_config.json",
        {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": shape.max_tokens, **tokens},
    )
    _write_json(folder / "special_tokens_map.json", tokens)
    _write_json(folder / "modules.json", modules)
    _write_json(folder / "1_Pooling" / "config.json", pooling)
    _write_json(
        folder / "sentence_bert_config.json", {"max_seq_length": shape.max_tokens, "do_lower_case": False}
    )
    prompts = {"query": "query: ", "passage": "passage: "} if size.prompted else {}
    encoder: dict[str, Any] = {
        "model_type": "SentenceTransformer",
        "__version__": {"sentence_transformers": "5.0.0"},
    }
    encoder |= {"prompts": prompts, "default_prompt_name": None, "similarity_fn_name": "cosine"}
    _write_json(folder / "config_sentence_transformers.json", encoder)


def _write_json(file: Path, data: Any) -> None:
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps(data, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")


def _write_weights(file: Path, config: EncoderConfig, seed: int) -> None:
    """Write a safetensors file tensor by tensor, because the library's writer holds all of them in memory.

    Source of the format: https://huggingface.co/docs/safetensors/index#format
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, shape in config.shapes.items():
        end = offset + 4 * int(np.prod(shape))
        header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    rng = np.random.default_rng(seed)
    with file.open("wb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        for name, shape in config.shapes.items():
            for part in _seeded(rng, name, shape, config.layers):
                part.astype("<f4").tofile(stream)


def _seeded(
    rng: np.random.Generator, name: str, shape: tuple[int, ...], layers: int
) -> Iterator[npt.NDArray[np.float32]]:
    """Yield the values of one tensor in parts: gains near 1, biases near 0, random matrices.

    Two choices make retrieval behave more as in trained models:

    - What all texts have in common is small: position embeddings are small compared with word embeddings, and
      the second linear layer of the feed-forward network removes the positive mean of GELU outputs.
      Otherwise, any two embeddings would have a cosine near 1.
    - Outputs of residual branches are scaled by 1 / sqrt(2 x layers), as in the initialization of GPT-2.
      Otherwise, each layer would amplify errors of its inputs, unlike trained layers.
      Source: Radford et al., Language Models are Unsupervised Multitask Learners (2019), 2.3
    """
    if name.endswith("LayerNorm.weight"):
        yield 1 + 0.1 * rng.standard_normal(shape, dtype=np.float32)
    elif len(shape) == 1:
        yield 0.02 * rng.standard_normal(shape, dtype=np.float32)
    else:
        spread = _spread(name, shape[1], layers)
        rows = max(1, _SHARD_BYTES // (4 * shape[1]))
        for start in range(0, shape[0], rows):
            part = spread * rng.standard_normal((min(rows, shape[0] - start), shape[1]), dtype=np.float32)
            yield part - part.mean(axis=1, keepdims=True) if _is_ffn_down(name) else part


def _spread(name: str, inputs: int, layers: int) -> np.float32:
    if "embeddings" in name:
        return np.float32(1 if "word" in name else 0.1)
    ends_branch = name.endswith("output.dense.weight")
    return np.float32((2 * layers * inputs if ends_branch else inputs) ** -0.5)


def _is_ffn_down(name: str) -> bool:
    return name.endswith("output.dense.weight") and "attention" not in name
