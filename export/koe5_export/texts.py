"""Texts for calibration and verification, and samples for tests, written for this project.

Calibration and verification texts have only the empty text in common, so that an artifact is not measured on
the texts with which it was calibrated. In both text files, an empty line separates texts; in
verification.txt, two empty lines separate subjects.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from importlib.resources import files
from typing import NamedTuple

from koe5_onnx import Contract, Tokenizer


def _read(name: str) -> str:
    return files("koe5_export").joinpath(name).read_text(encoding="utf-8").rstrip("\n")


CALIBRATION = (*_read("calibration.txt").split("\n\n"), "")
"""Korean and English texts of many kinds, and an empty text, for which quantization must work too."""

SUBJECTS = tuple(tuple(subject.split("\n\n")) for subject in _read("verification.txt").split("\n\n\n"))
"""Questions and passages by subject. Texts on one subject are plausible search results for each other."""

EDGES = (
    "   띄어쓰기가     여러    번 \t 그리고\n줄바꿈도   있다   ",
    "예",
    "a",
    "",
    "<s> special </s> tokens <pad> typed by a user <unk>",
)
"""Texts that a tokenizer may treat specially."""

VERIFICATION = (*(text for subject in SUBJECTS for text in subject), *EDGES)

SAMPLE_QUERIES = (
    "한국의 수도는 어디인가요?",
    "감기에 걸렸을 때 어떻게 해야 하나요?",
    "How does a vaccine work?",
)
SAMPLE_PASSAGES = (
    "서울은 대한민국의 수도이며 가장 큰 도시이다.",
    "감기에 걸리면 충분히 쉬고 물을 자주 마시는 것이 좋다.",
    "A vaccine teaches the immune system to recognize a virus before an infection.",
    "이 노트북은 배터리가 오래가고 무게가 가볍다.",
)


_USUAL = 512
"""Usual token limit. At most two texts exceed it, because more such texts would take minutes to embed."""
_LENGTHS = (64, 80, 100, 128, 160, 200, 256, 320)
"""Lengths in tokens of texts that are longer than a paragraph and shorter than the usual limit."""
_DECOMPOSED_EVERY = 3
_CASED_EVERY = 12


PROBES = (
    "",
    " ",
    "한글",
    unicodedata.normalize("NFD", "한글 각"),
    "ㅎㅏㄴ ㄱㅡㄹ ㅋㅋㅋ",
    "\u1112\u1161 \u11ab",  # jamo that do not form one syllable
    "\uffa1\uffc2 ｈａｌｆ　ｗｉｄｔｈ",
    "㈜한국 ㎏ ㎢ ½ ① Ⅳ",
    "韓國 \uf900\uf9a8 漢字",  # compatibility ideographs
    "e\u0301 é ñ n\u0303 İ ı ß ſ ﬁ",
    "ΑΒΓ Σίσυφος ς",
    "MIXED case MiXeD",
    "tab\there\nline\r\nline\u2028separator",
    "many     spaces   ",
    "no\u00a0break\u2003em\u3000ideographic",
    "zero\u200bwidth\u200djoiner\u2060word\ufeffmark",
    "soft\u00adhyphen",
    "\u0000null \u0007bell \u001b[0m",
    "👩\u200d👩\u200d👧 🇰🇷 👍🏽 ❤\ufe0f",
    "\U0001d54f\U0001d7d8 \U0001f170",
    "مرحبا בעולם",
    "สวัสดี नमस्ते",
    "日本語カタカナ ｶﾀｶﾅ が か\u3099",
    "中文，标点。",
    "Tiếng Việt",
    "<s> typed </s> <pad> <unk> <mask>",
    "query: passage: ",
    "\u2581already\u2581there",
    "1234567890 1,234.56 ０１２３ ٣",
    "https://example.com/a?b=c&d=%ED%95%9C#e",
    "user.name+tag@example.co.kr",
    "for (i=0;i<n;++i){a[i]*=2;}",
    "“quotes” ‘single’ «guillemets» 「괄호」 …",
    "a" * 60,
    "가" * 60,
    "!?" * 30,
    "\ud7ff\ue000\ufffd",
    "안녕하세요.안녕하세요!안녕하세요?",
)
"""Texts on which tokenizer versions may differ; their ids are stored in the manifest."""


class VerificationText(NamedTuple):
    """A text on which artifacts are measured, and its prompt name."""

    text: str
    """Text without a prompt."""
    prompt_name: str | None
    """Prompt name in the contract; "" for no prompt, None for the default."""


def verification_texts(
    tokenizer: Tokenizer, contract: Contract, given: Sequence[str] = ()
) -> list[VerificationText]:
    """Return the texts on which an artifact is measured, always the same for the same arguments.

    Args:
        tokenizer: Tokenizer with the artifact's token limit.
        contract: Contract with the prompts. The texts get the default prompt and each prompt by name in turn;
            only the texts generated for certain lengths get no prompt.
        given: More texts, for example from the user's domain.
    """
    names = (None, *contract.prompts)
    texts = (*VERIFICATION, *_variants(), *given)
    prompted = [VerificationText(text, names[turn % len(names)]) for turn, text in enumerate(texts)]
    lengths = _lengths(tokenizer.max_tokens)
    long = [text_of_length(tokenizer, length, turn) for turn, length in enumerate(lengths)]
    return [*prompted, *(VerificationText(text, "") for text in long)]


def _variants() -> list[str]:
    decomposed = [unicodedata.normalize("NFD", subject[0]) for subject in SUBJECTS[::_DECOMPOSED_EVERY]]
    english = [text for text in VERIFICATION if text.isascii() and text[:1].isupper()][::_CASED_EVERY]
    return [*decomposed, *(text.upper() for text in english), *(text.lower() for text in english)]


def _lengths(limit: int) -> list[int]:
    """Return the lengths of the generated texts in tokens, up to twice the limit."""
    between = [length for length in _LENGTHS if length < limit - 1]
    if limit <= _USUAL:
        return [*between, limit - 1, limit, 2 * limit]
    return [*between, _USUAL, min(2 * _USUAL, limit), 2 * limit]


def with_prompts(texts: Sequence[str], contract: Contract) -> list[str]:
    """Prepend the query prompt and the passage prompt to alternate texts."""
    prompts = (contract.prompts["query"], contract.prompts["passage"])
    return [prompts[turn % 2] + text for turn, text in enumerate(texts)]


def text_of_length(tokenizer: Tokenizer, tokens: int, turn: int = 0) -> str:
    """Return running text with `tokens` tokens, or slightly fewer if no cut gives exactly that number.

    Args:
        tokenizer: Tokenizer that counts the tokens.
        tokens: Number of tokens, including special tokens.
        turn: Index of the subject with which the text begins; taken modulo the number of subjects.
    """
    start = turn % len(SUBJECTS)
    text = " ".join(text for subject in (*SUBJECTS[start:], *SUBJECTS[:start]) for text in subject)
    while _count(tokenizer, text) < tokens:
        text += " " + text
    low, high = 0, len(text)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if _count(tokenizer, text[:middle]) <= tokens else (low, middle - 1)
    return text[:low]


def _count(tokenizer: Tokenizer, text: str) -> int:
    return int(tokenizer.encode([text]).full_lengths[0])
