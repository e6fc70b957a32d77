"""Token counts around the limit, ids of unusual texts, and ignored settings of tokenizer.json."""

from __future__ import annotations

import json
import unicodedata
from pathlib import Path

import numpy as np
import pytest
import tokenizers

from koe5_onnx import ArtifactError, InputError, Tokenizer

REAL = Path(__file__).resolve().parents[3] / "shared/data/xlmr_tokenizer/tokenizer.json"
CORNERS = {
    "empty": "",
    "blank": " \t\n",
    "nul": "a\0b",
    "NFC": unicodedata.normalize("NFC", "대한민국의 수도"),
    "NFD": unicodedata.normalize("NFD", "대한민국의 수도"),
    "jamo": "ㅋㅋㅋ ㅠㅠ ㄱㄴㄷ",
    "emoji": "👩‍👩‍👧‍👦 🇰🇷 👍🏽",
    "line separator": "하나\u2028둘\x0c셋",
    "beyond the BMP": "𠮷野家 𝒳",
    "special tokens": "<s> </s> <pad> <unk>",
    "mixed": "KoE5는 Korean E5입니다.",
}


@pytest.fixture(scope="module")
def file(artifact_path):
    return artifact_path / "tokenizer.json"


@pytest.fixture(scope="module")
def tokenizer(file):
    return Tokenizer(file, max_tokens=512)


@pytest.fixture(scope="module")
def plain(file):
    """Return the tokenizer of the library tokenizers, which gives the expected ids of a whole text."""
    rust = tokenizers.Tokenizer.from_file(str(file))
    rust.no_padding()
    rust.no_truncation()
    return rust


@pytest.mark.parametrize("own_tokens", [0, 1, 508, 509, 510, 511, 512, 513, 5000])
def test_lengths_and_the_cut(tokenizer, plain, text_of, own_tokens):
    text = text_of(own_tokens)
    tokens = tokenizer.encode([text])
    (row,) = tokens.ids
    whole = plain.encode(text).ids
    assert len(whole) == own_tokens + 2
    assert tokens.full_lengths.tolist() == [own_tokens + 2]
    assert tokens.lengths.tolist() == [min(own_tokens + 2, 512)]
    # Truncation keeps the beginning of the text and the closing </s>.
    expected = whole if len(whole) <= 512 else [*whole[:511], whole[-1]]
    assert row.tolist() == expected
    assert row[-1] == plain.token_to_id("</s>")


@pytest.mark.parametrize("text", CORNERS.values(), ids=CORNERS)
def test_ids_are_those_of_the_library(tokenizer, plain, text):
    tokens = tokenizer.encode([text])
    assert tokens.ids[0].tolist() == plain.encode(unicodedata.normalize("NFC", text)).ids
    assert tokens.full_lengths[0] == len(tokens.ids[0])


def test_composed_and_decomposed_hangul_are_the_same_text(tokenizer):
    composed, decomposed = tokenizer.encode([CORNERS["NFC"], CORNERS["NFD"]]).ids
    assert CORNERS["NFC"] != CORNERS["NFD"]
    np.testing.assert_array_equal(composed, decomposed)


def test_no_texts(tokenizer):
    tokens = tokenizer.encode([])
    assert tokens.ids == []
    assert tokens.lengths.shape == tokens.full_lengths.shape == (0,)


def test_long_texts_are_encoded_a_few_at_a_time(tokenizer, monkeypatch):
    texts = ["가" * 40, "나" * 40, "", "다" * 300, "라", "마" * 99]
    together = tokenizer.encode(texts)
    calls = []
    monkeypatch.setattr("koe5_onnx.text.tokenizer._CHARACTERS_PER_CALL", 100)
    real = tokenizer._rust

    class Counting:
        def encode_batch(self, chunk, **options):
            calls.append([len(text) for text in chunk])
            return real.encode_batch(chunk, **options)

    monkeypatch.setattr(tokenizer, "_rust", Counting())
    found = tokenizer.encode(texts)
    # The call with one character finds the special tokens around the long text.
    assert calls == [[40, 40, 0], [300], [1], [1, 99]]
    assert [row.tolist() for row in found.ids] == [row.tolist() for row in together.ids]
    assert found.full_lengths.tolist() == together.full_lengths.tolist()


def test_types(tokenizer):
    tokens = tokenizer.encode(["하나", "하나 둘"])
    assert {row.dtype for row in tokens.ids} == {np.dtype(np.int32)}
    assert tokens.lengths.dtype == tokens.full_lengths.dtype == np.int32


def test_more_texts_than_one_call_takes(tokenizer, text_of):
    own_tokens = [number % 7 for number in range(5000)]
    tokens = tokenizer.encode([text_of(count) for count in own_tokens])
    np.testing.assert_array_equal(tokens.lengths, np.array(own_tokens) + 2)


@pytest.mark.parametrize("position", [0, 3, 2049])
@pytest.mark.parametrize("half", [0xD83D, 0xDE00])
def test_lone_surrogate(tokenizer, position, half):
    texts = ["가"] * 2050
    texts[position] = f"나다{chr(half)}"
    with pytest.raises(InputError, match=rf"text {position} is not valid .* U\+{half:04X} at character 2"):
        tokenizer.encode(texts)


@pytest.mark.parametrize("wrong", [7, None, b"bytes", ["nested"]])
def test_not_a_str(tokenizer, wrong):
    with pytest.raises(InputError, match=f"text 1 is a {type(wrong).__name__}: expected str"):
        tokenizer.encode(["가", wrong])


def test_settings_of_the_file_are_replaced(file, tmp_path, text_of):
    settings = json.loads(file.read_text(encoding="utf-8"))
    settings["truncation"] = {"direction": "Left", "max_length": 8, "strategy": "LongestFirst", "stride": 2}
    settings["padding"] = {
        "strategy": {"Fixed": 64},
        "direction": "Left",
        "pad_to_multiple_of": None,
        "pad_id": 1,
        "pad_type_id": 0,
        "pad_token": "<pad>",
    }
    changed = tmp_path / "tokenizer.json"
    changed.write_text(json.dumps(settings), encoding="utf-8")
    assert len(tokenizers.Tokenizer.from_file(str(changed)).encode("가").ids) == 64
    tokens = Tokenizer(changed, max_tokens=512).encode([text_of(1), text_of(20), text_of(600)])
    assert tokens.lengths.tolist() == [3, 22, 512]
    assert tokens.full_lengths.tolist() == [3, 22, 602]
    assert tokens.ids[2].tolist() == Tokenizer(file, max_tokens=512).encode([text_of(600)]).ids[0].tolist()


def test_a_file_that_is_missing(tmp_path):
    with pytest.raises(ArtifactError, match=r"tokenizer\.json is missing"):
        Tokenizer(tmp_path / "tokenizer.json", max_tokens=512)


@pytest.mark.parametrize("content", ["", "{}", '{"version": "1.0"}', "\x80"])
def test_a_file_that_is_no_tokenizer(tmp_path, content):
    file = tmp_path / "tokenizer.json"
    file.write_text(content, encoding="latin-1")
    with pytest.raises(ArtifactError, match=r"tokenizers cannot read .*tokenizer\.json"):
        Tokenizer(file, max_tokens=512)


@pytest.mark.skipif(not REAL.is_file(), reason="the XLM-R tokenizer is not next to the checkout")
def test_the_real_tokenizer():
    tokenizer = Tokenizer(REAL, max_tokens=512)
    texts = [*CORNERS.values(), "query: 대한민국의 수도는?", " ".join(["서울"] * 5000)]
    tokens = tokenizer.encode(texts)
    assert {int(row[0]) for row in tokens.ids} == {0}
    assert {int(row[-1]) for row in tokens.ids} == {2}
    assert tokens.lengths[0] == 2
    assert (tokens.lengths[-1], tokens.full_lengths[-1]) == (512, 5002)
    rust = tokenizers.Tokenizer.from_file(str(REAL))
    composed = [unicodedata.normalize("NFC", text) for text in texts[:-1]]
    assert [row.tolist() for row in tokens.ids[:-1]] == [rust.encode(text).ids for text in composed]
    left = Tokenizer(REAL, max_tokens=512, unicode_form=None).encode(texts[:-1]).ids
    assert [row.tolist() for row in left] == [rust.encode(text).ids for text in texts[:-1]]
    assert [row.tolist() for row in left] != [row.tolist() for row in tokens.ids[:-1]]


def test_a_tokenizers_that_does_not_count_what_it_cuts_is_refused(file, monkeypatch):
    monkeypatch.setattr("tokenizers.__version__", "0.23.2")
    with pytest.raises(ArtifactError, match=r"0\.23\.2 does not report .*pip install 'tokenizers>=0\.23\.3'"):
        Tokenizer(file, max_tokens=512)
