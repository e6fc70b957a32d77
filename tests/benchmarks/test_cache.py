import numpy as np
import pytest

from benchmarks.cache import PART, embed_cached
from koe5_onnx import InputError

TEXTS = [f"text {number}" for number in range(2 * PART + 5)]
WHO = {"weights": "abc", "measured_with": {"torch": "2"}}


class Counter:
    """Embeds each text as its number. Raises KeyboardInterrupt after `stop_after` texts."""

    def __init__(self, stop_after=None):
        self.seen = []
        self.stop_after = stop_after

    def __call__(self, texts):
        if self.stop_after is not None and len(self.seen) >= self.stop_after:
            raise KeyboardInterrupt
        self.seen += texts
        return np.array([[float(text.split()[1]), 1] for text in texts], dtype=np.float32)


def expected():
    return np.array([[row, 1] for row in range(len(TEXTS))], dtype=np.float32)


def test_cached_texts_are_not_embedded_again(tmp_path):
    first, second = Counter(), Counter()
    np.testing.assert_array_equal(embed_cached(tmp_path / "new", WHO, TEXTS, first), expected())
    np.testing.assert_array_equal(embed_cached(tmp_path / "new", WHO, TEXTS, second), expected())
    assert (first.seen, second.seen) == (TEXTS, [])


def test_an_interrupted_run_continues_where_it_stopped(tmp_path):
    interrupted, second = Counter(stop_after=PART), Counter()
    with pytest.raises(KeyboardInterrupt):
        embed_cached(tmp_path, WHO, TEXTS, interrupted)
    np.testing.assert_array_equal(embed_cached(tmp_path, WHO, TEXTS, second), expected())
    assert interrupted.seen == TEXTS[:PART]
    assert second.seen == TEXTS[PART:]


@pytest.mark.parametrize(
    ("who", "texts"),
    [
        ({**WHO, "weights": "xyz"}, TEXTS),
        ({**WHO, "measured_with": {"torch": "3"}}, TEXTS),
        (WHO, [f"texts {number}" for number in range(len(TEXTS))]),
    ],
)
def test_another_encoder_or_text_is_not_found_in_the_cache(tmp_path, who, texts):
    embed_cached(tmp_path, WHO, TEXTS, Counter())
    second = Counter()
    embed_cached(tmp_path, who, texts, second)
    assert second.seen == texts


def test_progress_counts_texts(tmp_path):
    seen = []
    embed_cached(tmp_path, WHO, TEXTS, Counter(), lambda done, total: seen.append((done, total)))
    assert seen == [(PART, len(TEXTS)), (2 * PART, len(TEXTS)), (len(TEXTS), len(TEXTS))]


def test_a_damaged_cache_file_is_an_error(tmp_path):
    embed_cached(tmp_path, WHO, TEXTS[:3], Counter())
    (file,) = tmp_path.iterdir()
    np.save(file, np.ones((2, 2), np.float32))
    with pytest.raises(
        InputError, match=rf"{file.name} contains float32\[2, 2\], expected float32\[3, dim\]"
    ):
        embed_cached(tmp_path, WHO, TEXTS[:3], Counter())
    file.write_bytes(b"")
    with pytest.raises(InputError, match=r"is damaged .* Delete it"):
        embed_cached(tmp_path, WHO, TEXTS[:3], Counter())
