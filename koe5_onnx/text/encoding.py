"""Encodings of input files: UTF-8, and those that Excel and Windows write in Korea.

A general detector such as charset-normalizer is not used, because it considers more encodings: version 3.5
mistakes a CP949 file with a single Korean word for Big5.
"""

from __future__ import annotations

import codecs
import re
from typing import BinaryIO

from koe5_onnx.errors import InputError

AUTO = "auto"
SAMPLE_BYTES = 1 << 20
_MAX_SAMPLES = 64
"""Maximum number of chunks, of `SAMPLE_BYTES` each, that `sample_of` reads."""

_BOMS = {
    "utf-8": codecs.BOM_UTF8,
    "utf-16-le": codecs.BOM_UTF16_LE,
    "utf-16-be": codecs.BOM_UTF16_BE,
}
_LINE_ENDS = {"utf-16-le": b"\n\0", "utf-16-be": b"\0\n"}
_HANGUL = re.compile("[가-힣]")
_HANJA = re.compile("[\u4e00-\u9fff\uf900-\ufaff]")
_NOT_ASCII = re.compile(r"[^\0-\x7f]")


def canonical(name: str) -> str:
    """Return "auto" unchanged, and Python's name of any other encoding. EUC-KR becomes its superset CP949.

    Raises:
        InputError: The encoding is unknown, or neither UTF-16 nor ASCII-compatible.
    """
    if name == AUTO:
        return name
    try:
        found = codecs.lookup(name).name
        usable = found.startswith("utf-16") or bytes(range(128)).decode(found).encode() == bytes(range(128))
    except (LookupError, UnicodeError):
        usable = False
    if not usable:
        raise InputError(
            f"the encoding is {name!r}: expected auto, utf-8, cp949, utf-16 or another ASCII-compatible "
            "Python codec"
        )
    return {"euc_kr": "cp949", "utf-8-sig": "utf-8"}.get(found, found)


def sample_of(stream: BinaryIO) -> bytes:
    """Return the first MiB with a byte that is 0 or not ASCII; if the first 64 have none, return the last."""
    sample = b""
    for _ in range(_MAX_SAMPLES):
        chunk = stream.read(SAMPLE_BYTES)
        sample = chunk or sample
        if len(chunk) < SAMPLE_BYTES or not chunk.isascii() or b"\0" in chunk:
            break
    return sample


def codec_of(name: str, found: str | None) -> str:
    """Return the codec of a file: `name`, or the detected codec if `name` is "auto".

    If `name` is "utf-16", the byte order is detected.

    Args:
        name: Result of `canonical`.
        found: Result of `likely` for the file.
    """
    if name == AUTO:
        return found or "utf-8"
    if name == "utf-16":
        return found if found in _LINE_ENDS else "utf-16-le"
    return name


def likely(sample: bytes) -> str | None:
    """Guess the codec of a sample: "utf-8", "utf-16-le", "utf-16-be" or "cp949"; None if it is another."""
    if (found := _utf16(sample)) is not None:
        return found
    lines = [line for line in sample.split(b"\n")[:-1] or [sample] if not line.isascii()]
    bad = [line for line in lines if decode(line, "utf-8")[1] is not None]
    if not bad:
        return "utf-8"
    decoded = [text for text, reason in (decode(line, "cp949") for line in bad) if reason is None]
    text = "".join(decoded)
    # Chinese or Japanese text decoded as CP949 becomes rare Hangul syllables, hanja and single letters.
    hangul, hanja, others = (len(kind.findall(text)) for kind in (_HANGUL, _HANJA, _NOT_ASCII))
    korean = 2 * hangul > others and hangul > 5 * hanja
    # If a tenth or more of the lines that are not UTF-8 are not CP949 either, the file is not CP949.
    return "cp949" if korean and len(bad) > 10 * (len(bad) - len(decoded)) else None


def marked(sample: bytes) -> str | None:
    """Return the codec of the byte order mark at the beginning of a file; None if there is none."""
    return next((codec for codec, mark in _BOMS.items() if sample.startswith(mark)), None)


def _utf16(sample: bytes) -> str | None:
    if (found := marked(sample)) in _LINE_ENDS:
        return found
    odd, even = sample[1::2].count(0), sample[::2].count(0)
    if 20 * max(odd, even) > len(sample) // 2 and max(odd, even) > 3 * min(odd, even):
        return "utf-16-le" if odd > even else "utf-16-be"
    return None


def decode(content: bytes, encoding: str = "utf-8") -> tuple[str, str | None]:
    """Decode bytes. Return the text and None, or an empty text and the reason why the bytes are invalid."""
    try:
        return content.decode(encoding), None
    except UnicodeDecodeError as error:
        return "", f"not {encoding.upper()}: byte {error.start} is 0x{content[error.start]:02x}"


def without_mark(line: bytes, encoding: str) -> bytes:
    """Remove a byte order mark from the first line of a file."""
    return line.removeprefix(_BOMS.get(encoding, b""))


def ends(line: bytes, encoding: str) -> bool:
    """Return True if a line ends with a line feed."""
    return line.endswith(_LINE_ENDS.get(encoding, b"\n")) and not (encoding in _LINE_ENDS and len(line) % 2)


def read_line(stream: BinaryIO, encoding: str, limit: int) -> bytes:
    """Return the next line with its line end; b"" at the end of the file.

    Args:
        stream: The file.
        encoding: Codec of the file.
        limit: Maximum number of bytes, an even number; -1 for no limit.
    """
    line = stream.readline(limit)
    # In UTF-16, a byte with the value of a line feed can be half of another character.
    while encoding in _LINE_ENDS and line and not ends(line, encoding) and len(line) != limit:
        more = stream.read(1) if len(line) % 2 else stream.readline(max(-1, limit - len(line)))
        if not more:
            break
        line += more
    return line
