"""The checkpoint's tokenizer equals XLM-R's own, and returns the same ids in transformers."""

import json
import random
from pathlib import Path

import pytest
from tokenizers import Tokenizer

REAL = Path(__file__).resolve().parents[3] / "shared/data/xlmr_tokenizer_full/tokenizer.json"
RANGES = ((0x20, 0x3000), (0xAC00, 0xD7A4), (0x1100, 0x1200), (0xF900, 0xFFF0), (0x300, 0x370))
RANGES += ((0x10000, 0x20000),)
"""Most scripts, Hangul, compatibility forms, combining marks, and the first supplementary plane."""


@pytest.fixture(scope="module")
def tokenizer(checkpoint):
    return Tokenizer.from_file(str(checkpoint / "tokenizer.json"))


@pytest.fixture(scope="module")
def odd_texts(texts):
    """Return the texts of the fixture `texts`, and 2,000 texts of random characters in `RANGES`."""
    choose = random.Random(0)
    made = [
        "".join(chr(choose.randrange(*choose.choice(RANGES))) for _ in range(choose.randrange(1, 60)))
        for _ in range(2000)
    ]
    return [*texts["query"], *texts["passage"], *made]


def test_the_tokenizer_equals_xlm_r(checkpoint):
    if not REAL.is_file():
        pytest.skip(f"no XLM-R tokenizer next to the checkout: {REAL}")
    found = json.loads((checkpoint / "tokenizer.json").read_text(encoding="utf-8"))
    assert found == json.loads(REAL.read_text(encoding="utf-8"))


def test_transformers_gives_the_same_ids(checkpoint, tokenizer, odd_texts):
    transformers = pytest.importorskip("transformers")
    loaded = transformers.AutoTokenizer.from_pretrained(checkpoint)
    assert loaded.model_max_length == 512
    expected = [loaded(text, truncation=True)["input_ids"] for text in odd_texts]
    tokenizer.enable_truncation(512)
    assert [encoded.ids for encoded in tokenizer.encode_batch(odd_texts)] == expected


def test_ids_are_the_recorded_ones(tokenizer, golden):
    tokenizer.enable_truncation(512)
    prompted = [f"{prompt}: {text}" for prompt, text in zip(golden.prompts, golden.texts, strict=True)]
    assert [encoded.ids for encoded in tokenizer.encode_batch(prompted)] == golden.ids
