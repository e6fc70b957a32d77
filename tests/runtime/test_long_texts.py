"""A long text has the same ids as without splitting, for tokenizers that allow parts and for others."""

from __future__ import annotations

import unicodedata
from pathlib import Path

import pytest
import tokenizers
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, models, normalizers, pre_tokenizers, processors, trainers

from koe5_onnx import Tokenizer
from koe5_onnx.text import parts, tokenizer

REAL = Path(__file__).resolve().parents[3] / "shared/data/xlmr_tokenizer/tokenizer.json"
TINY = Path(__file__).resolve().parents[1] / "data/tiny-int8/tokenizer.json"
MAX_TOKENS, CALL, PART = 12, 96, 24
CORPUS = [
    "대한민국의 수도는 서울이다",
    "the quick brown fox isn't lazy",
    "中文没有空格的文本例子",
    "ㅋㅋㅋ aaa === 000",
] * 9

words = st.sampled_from(
    [
        *("대한민국의", "수도는", "가", unicodedata.normalize("NFD", "각"), "\u1100", "\u1161", "(주)", "ㅋ"),
        *("the", "isn't", "FOX", "#tag", "a", "0", "=", "é", "e\u0301", "\u0300", "Σ", "İ", "\u037a"),
        *(
            "中文没有空格的文本例子",
            "日本語のテキスト、です。",
            "ﷺ",
            "ﬁ",
            "㍿",
            "\u200b",
            "🇰🇷",
            "👩\u200d👩\u200d👧",
        ),
        *("<s>", "</s>", "[SEP]", "<mask>"),
    ]
)
spaces = st.sampled_from(
    ["", "", " ", " ", " ", "  ", "\n", "\t", "\r\n", "\u3000", "\xa0", " \u200b ", "\0"]
)
runs = st.builds(lambda text, times: text * times, words, st.integers(1, 60))
texts = st.lists(st.tuples(words | runs, spaces), min_size=1, max_size=60).map(
    lambda pairs: "".join(map("".join, pairs))
)


def trained(model, trainer, *, pre, special, normalizer=None, added=()):
    rust = tokenizers.Tokenizer(model)
    rust.pre_tokenizer = pre
    if normalizer is not None:
        rust.normalizer = normalizer
    rust.train_from_iterator(CORPUS, trainer)
    rust.add_tokens(list(added))
    opening, closing = special
    pairs = [(one, rust.token_to_id(one)) for one in special]
    rust.post_processor = processors.TemplateProcessing(f"{opening} $A {closing}", None, pairs)
    return rust


def byte_level(**options):
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=["<s>", "</s>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    return trained(
        models.BPE(), trainer, pre=pre_tokenizers.ByteLevel(**options), special=("<s>", "</s>"),
        added=[AddedToken("<mask>", lstrip=True), AddedToken("fox", single_word=True)],
    )  # fmt: skip


def word_piece(**options):
    trainer = trainers.WordPieceTrainer(vocab_size=120, special_tokens=["[UNK]", "[CLS]", "[SEP]"])
    return trained(
        models.WordPiece(unk_token="[UNK]"), trainer, pre=pre_tokenizers.BertPreTokenizer(),
        special=("[CLS]", "[SEP]"), normalizer=normalizers.BertNormalizer(), **options,
    )  # fmt: skip


def unigram(pre, normalizer, added=()):
    trainer = trainers.UnigramTrainer(
        vocab_size=90, special_tokens=["<s>", "</s>", "<unk>"], unk_token="<unk>"
    )
    return trained(
        models.Unigram(), trainer, pre=pre, special=("<s>", "</s>"), normalizer=normalizer, added=added
    )


SPACES = normalizers.Replace(tokenizers.Regex(" {2,}"), " ")
METASPACE = pre_tokenizers.Metaspace()
KINDS = {
    "tiny": lambda: tokenizers.Tokenizer.from_file(str(TINY)),
    "unigram": lambda: unigram(METASPACE, normalizers.Sequence([normalizers.NFKC(), SPACES])),
    "words, then unigram": lambda: unigram(
        pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), METASPACE]), normalizers.NFKC()
    ),
    "unigram, first word": lambda: unigram(pre_tokenizers.Metaspace(prepend_scheme="first"), SPACES),
    "unigram across words": lambda: unigram(pre_tokenizers.Metaspace(split=False), SPACES),
    "unigram with phrases": lambda: unigram(METASPACE, SPACES, ["the quick", AddedToken("0", rstrip=True)]),
    "stripped": lambda: unigram(
        METASPACE, normalizers.Sequence([normalizers.Strip(), normalizers.Prepend("e")])
    ),
    "byte-level": byte_level,
    "byte-level with a space": lambda: byte_level(add_prefix_space=True),
    "byte-level across words": lambda: byte_level(use_regex=False),
    "word pieces": word_piece,
}  # fmt: skip
if REAL.is_file():
    KINDS["XLM-R"] = lambda: tokenizers.Tokenizer.from_file(str(REAL))
WHOLE = ("unigram across words", "unigram with phrases", "stripped", "byte-level across words")


@pytest.fixture(scope="module", params=KINDS)
def kind(request, tmp_path_factory):
    """Return a name, the library's tokenizer without truncation, and ours without and with `keep_rest`."""
    file = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    rust = KINDS[request.param]()
    rust.no_truncation()
    rust.save(str(file))
    both = [Tokenizer(file, MAX_TOKENS, keep_rest=keep_rest) for keep_rest in (False, True)]
    return request.param, rust, *both


@pytest.fixture(autouse=True, scope="module")
def _small_parts():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tokenizer, "_CHARACTERS_PER_CALL", CALL)
        patch.setattr(tokenizer, "_PART_CHARACTERS", PART)
        patch.setattr(parts, "_HEAD_CHARACTERS_PER_TOKEN", (3, 6))
        yield


@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
@given(text=texts)
@example(text="ㅋ" * 400)
@example(text="中文没有空格的文本例子" * 40)
@example(text="가 나다 " * 10 + "中文没有空格的文本例子" * 40 + " the" * 30)
@example(text="a\0 " * 90)
def test_ids_are_those_of_the_whole_text(kind, text):
    _, rust, cut, kept = kind
    composed = unicodedata.normalize("NFC", text)
    whole = rust.encode(composed).ids
    opening, *body, closing = whole
    windows = [[opening, *body[start : start + 10], closing] for start in range(0, max(1, len(body)), 10)]
    (row,), (length,) = (found := cut.encode([text])).ids, found.full_lengths
    assert row.tolist() == windows[0]
    assert (length > MAX_TOKENS) == (len(whole) > MAX_TOKENS)
    found = kept.encode([text])
    assert [one.tolist() for one in found.parts] == windows
    assert found.full_lengths.tolist() == [len(whole)]


@pytest.mark.parametrize(
    ("kind", "space"),
    [(name, " ") for name in KINDS if name not in WHOLE]
    + [(name, "\n") for name in ("XLM-R", "words, then unigram", "word pieces") if name in KINDS],
    indirect=["kind"],
)
def test_words_are_counted_exactly_in_parts(kind, space, monkeypatch):
    _, rust, cut, _ = kind
    longest = []
    real = cut._rust

    class Watching:
        def encode_batch(self, chunk, **options):
            longest.append(max(map(len, chunk)))
            return real.encode_batch(chunk, **options)

    monkeypatch.setattr(cut, "_rust", Watching())
    text = space.join(["대한민국의", "quick", "서울이다", "lazy"] * 100)
    assert cut.encode([text]).full_lengths.tolist() == [len(rust.encode(text).ids)]
    assert max(longest) < CALL
