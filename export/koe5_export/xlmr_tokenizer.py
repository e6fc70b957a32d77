"""Build XLM-RoBERTa's tokenizer from its vocabulary.

The normalizer of this tokenizer contains SentencePiece's rule set nmt_nfkc for Unicode 11, compiled to a
table. SentencePiece still ships this rule set, but extended for later Unicode versions. This module removes
the extensions, compiles the remaining rules, and compares the SHA-256 of the result with the original
table's.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors

from koe5_onnx import InputError, MissingDependencyError

_CHARSMAP_BYTES = 237539
_CHARSMAP_SHA256 = "0942789e0111452f1cc446f70036e26d24458c3c7858c53cc12ca4d87531279b"
"""Source: sentencepiece.bpe.model of FacebookAI/xlm-roberta-base (normalizer_spec.precompiled_charsmap)"""
_LATER_BLOCKS = (
    range(0x105C0, 0x10600),  # Todhri, Unicode 16
    range(0x11380, 0x11400),  # Tulu-Tigalari, Unicode 16
    range(0x11900, 0x11960),  # Dives Akuru, Unicode 13
    range(0x16100, 0x16140),  # Gurung Khema, Unicode 16
    range(0x16D40, 0x16D80),  # Kirat Rai, Unicode 16
)
"""Unicode blocks with composed letters that XLM-R's table does not contain.
Source: https://www.unicode.org/Public/16.0.0/ucd/Blocks.txt"""
_SENTENCEPIECE_ERRORS_ONLY = 2


def xlmr_tokenizer(
    pieces: Sequence[tuple[str, float]], special_ids: Mapping[str, int], characters: Mapping[str, str]
) -> tokenizers.Tokenizer:
    """Build the tokenizer.

    Args:
        pieces: Text and Unigram score of each token; the index is the token id.
        special_ids: Ids of `<s>`, `<pad>`, `</s>` and `<unk>`. `<mask>` is in `pieces`.
        characters: Output of the normalizer for single characters.

    Raises:
        MissingDependencyError: sentencepiece is not installed.
        InputError: The rebuilt table differs from XLM-R's.
    """
    rust = tokenizers.Tokenizer(models.Unigram(list(pieces), unk_id=special_ids["<unk>"]))
    spaces = normalizers.Replace(tokenizers.Regex(" {2,}"), " ")
    rust.normalizer = normalizers.Sequence([normalizers.Precompiled(_charsmap(characters)), spaces])
    rust.pre_tokenizer = pre_tokenizers.Metaspace()
    rust.decoder = decoders.Metaspace()
    specials = [tokenizers.AddedToken(text, normalized=False, special=True) for text in special_ids]
    mask = tokenizers.AddedToken("<mask>", lstrip=True, normalized=False, special=True)
    rust.add_special_tokens([*specials, mask])
    rust.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>",
        pair="<s> $A </s> </s> $B </s>",
        special_tokens=[(text, special_ids[text]) for text in ("<s>", "</s>")],
    )
    return rust


def _charsmap(characters: Mapping[str, str]) -> bytes:
    """Return the compiled rules of the normalizer. `characters` has the rules for single characters."""
    try:
        import sentencepiece
    except ImportError as error:
        raise MissingDependencyError("sentencepiece", None, "building XLM-R's tokenizer") from error
    sentencepiece.set_min_log_level(_SENTENCEPIECE_ERRORS_ONLY)
    shipped = dict(sentencepiece.SentencePieceNormalizer(rule_name="nmt_nfkc").decompile())
    unknown = {text for text in shipped if len(text) == 1 and text not in characters}
    sequences = {
        text: written
        for text, written in shipped.items()
        if len(text) > 1 and not unknown.intersection(text) and not _is_later(written)
    }
    rules = sorted({**characters, **sequences}.items())
    compiled = sentencepiece.SentencePieceNormalizer(norm_map=rules)
    charsmap = bytes(compiled.serialized_normalizer_spec()[-_CHARSMAP_BYTES:])
    if hashlib.sha256(charsmap).hexdigest() != _CHARSMAP_SHA256:
        raise InputError(
            f"sentencepiece {sentencepiece.__version__} does not reproduce XLM-R's normalizer. "
            "Install the version in constraints.txt"
        )
    return charsmap


def _is_later(written: str) -> bool:
    return any(ord(written[0]) in block for block in _LATER_BLOCKS)
