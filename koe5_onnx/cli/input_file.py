"""Read texts for the command line from stdin, a .txt file or a .jsonl file, and records from .jsonl and .csv.

Only LF and CRLF end a line. A text may contain the other characters that str.splitlines splits at, such as
U+2028 and form feeds.
"""

from __future__ import annotations

import csv
import io
import json
import sys
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any, BinaryIO, cast

from koe5_onnx import InputError
from koe5_onnx.text import encoding as encodings

STDIN = "-"


def suffix_of_input(name: str) -> str | None:
    """Return the kind of an input: ".txt" (also for stdin) or ".jsonl"; None for any other."""
    # The query of a URL, as in presigned URLs, is not part of its name.
    path = name.partition("?")[0] if "://" in name else name
    suffix = ".txt" if name == STDIN else Path(path).suffix.lower()
    return suffix if suffix in (".txt", ".jsonl") else None


def read_texts(name: str, field: str | None = None, encoding: str | None = None) -> list[str]:
    """Read all texts of an input.

    Args:
        name: A .txt or .jsonl file or its URL, or "-" for stdin.
        field: Name of the field with the text in a .jsonl file. None means "text", for commands without
            the option --text-column.
        encoding: Encoding of the file: an ASCII-compatible Python codec, "utf-16", or "auto" to detect it.
            None means "utf-8", for commands without the option --encoding.

    Raises:
        InputError: The encoding is unknown, or a line has another encoding, is not a JSON object, or has no
            valid text in `field`. Messages about a line name the file and the line.
        MissingDependencyError: The driver of the URL is not installed.
        OSError: The file cannot be read.
    """
    if suffix_of_input(name) == ".jsonl":
        return [text_of(record, field, where) for where, record in read_records(name, encoding)]
    return [line for _, line in _lines_of(name, encoding)]


def read_records(name: str, encoding: str | None = None) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the position and the fields of each record of a .jsonl or .csv file.

    Raises:
        InputError: A line has another encoding, or is not a JSON object or a CSV record.
    """
    lines = _lines_of(name, encoding)
    if not name.lower().endswith(".csv"):
        yield from ((where, _object(line, where)) for where, line in lines)
        return
    try:
        for number, record in enumerate(csv.DictReader(line + "\n" for _, line in lines), 1):
            yield f"{name}, record {number}", record
    except csv.Error as error:
        raise InputError(f"{name}: not CSV ({error}). Expected a header and one record per row") from error


def _lines_of(name: str, encoding: str | None) -> Iterator[tuple[str, str]]:
    encoding = None if encoding is None else encodings.canonical(encoding)
    with nullcontext(sys.stdin.buffer) if name == STDIN else _open(name) as opened:
        stream = io.BufferedReader(cast("io.RawIOBase", opened), encodings.SAMPLE_BYTES)
        try:
            yield from _lines(stream, encoding, "stdin" if name == STDIN else name)
        finally:
            stream.detach()  # closing it would close stdin


def _open(name: str) -> BinaryIO:
    if "://" not in name:
        return Path(name).open("rb")
    from koe5_onnx.stores import locate  # slow to import

    return locate(name).open()


def _lines(
    stream: io.BufferedReader[io.RawIOBase], encoding: str | None, shown: str
) -> Iterator[tuple[str, str]]:
    """Yield the position and the text of each line, without its line end and without a byte order mark."""
    likely = encodings.likely(stream.peek(encodings.SAMPLE_BYTES))
    codec = encodings.codec_of("utf-8" if encoding is None else encoding, likely)
    number = 0
    while line := encodings.read_line(stream, codec, -1):
        number += 1
        content = encodings.without_mark(line, codec) if number == 1 else line
        where = f"{shown}, line {number}"
        if (place := _not_text(content, codec, likely)) is not None:
            wrong = f"byte {place + 1} (0x{content[place]:02x}) is not {codec.upper()}"
            if encoding is None:
                raise InputError(f"{where}: {wrong}. Convert the file to UTF-8")
            if likely in (None, codec):
                raise InputError(f"{where}: {wrong}. Convert the file, or pass --encoding")
            raise InputError(f"{where}: {wrong}. Pass --encoding {likely}, which the file probably has")
        text = content.decode(codec)
        yield where, text[:-1].removesuffix("\r") if text.endswith("\n") else text


def _not_text(line: bytes, codec: str, likely: str | None) -> int | None:
    """Return the index of a byte which shows that a line is not in `codec`; None if there is none."""
    try:
        line.decode(codec)
    except UnicodeDecodeError as error:
        return error.start
    # ASCII characters encoded in UTF-16 are also valid UTF-8, but with a NUL after or before each one.
    looks_wide = likely is not None and likely.startswith("utf-16") and codec == "utf-8"
    return line.index(0) if looks_wide and 0 in line else None


def _object(line: str, where: str) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where}: not JSON ({error}). Expected one object per line") from error
    if not isinstance(record, dict):
        raise InputError(f"{where}: expected a JSON object, found {type(record).__name__}")
    return record


def text_of(record: Mapping[str, Any], field: str | None, where: str) -> str:
    """Return the text in a field of a record; see `read_texts`.

    Raises:
        InputError: The record has no such field, or the field has no valid text.
    """
    name = "text" if field is None else field
    if name not in record:
        advice = "Rename one" if field is None else "Name one with --text-column"
        raise InputError(f"{where}: no field {name!r}, only {sorted(record)}. {advice}")
    text = record[name]
    if not isinstance(text, str):
        raise InputError(f"{where}: field {name!r} is {type(text).__name__}, expected a string")
    _require_unicode(text, where)
    return text


def _require_unicode(text: str, where: str) -> None:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise InputError(
            f"{where}: the escape \\u{ord(text[error.start]):04x} is a lone surrogate. Fix the text"
        ) from error
