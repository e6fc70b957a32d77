"""Input files of the command line to texts: stdin, .txt and .jsonl, all UTF-8.

Only LF and CRLF end a line: a text may hold U+2028, form feeds and whatever else str.splitlines splits at.
"""

from __future__ import annotations

import codecs
import json
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import BinaryIO

from koe5_onnx import InputError

STDIN = "-"


def suffix_of_input(name: str) -> str | None:
    """The kind of an input, ".txt" (stdin too) or ".jsonl"; None for any other."""
    suffix = ".txt" if name == STDIN else Path(name).suffix.lower()
    return suffix if suffix in (".txt", ".jsonl") else None


def read_texts(name: str, field: str) -> list[str]:
    """Read all texts of an input.

    Args:
        name: A .txt or .jsonl file, or "-" for stdin.
        field: Where the text is in an object of a .jsonl file.

    Raises:
        InputError: A line is not UTF-8, not a JSON object, or has no such text; names file and line.
        OSError: The file cannot be read.
    """
    shown = "stdin" if name == STDIN else name
    with nullcontext(sys.stdin.buffer) if name == STDIN else Path(name).open("rb") as stream:
        lines = ((f"{shown}, line {number}", line) for number, line in enumerate(_lines(stream), 1))
        if suffix_of_input(name) == ".jsonl":
            return [_text_of_object(_decode(line, where), field, where) for where, line in lines]
        return [_decode(line, where) for where, line in lines]


def _lines(stream: BinaryIO) -> Iterator[bytes]:
    """The lines without their ends; a byte order mark before the first is dropped."""
    for number, line in enumerate(stream):
        text = line.removeprefix(codecs.BOM_UTF8) if number == 0 else line
        yield text[:-1].removesuffix(b"\r") if text.endswith(b"\n") else text


def _decode(line: bytes, where: str) -> str:
    try:
        return line.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(
            f"{where}: byte {error.start + 1} (0x{line[error.start]:02x}) is not UTF-8: convert it first"
        ) from error


def _text_of_object(line: str, field: str, where: str) -> str:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where}: not JSON ({error}): expected one object a line") from error
    if not isinstance(record, dict):
        raise InputError(f"{where}: expected a JSON object, found {type(record).__name__}")
    if field not in record:
        raise InputError(f"{where}: no field {field!r}, only {sorted(record)}: name it with --field")
    text = record[field]
    if not isinstance(text, str):
        raise InputError(f"{where}: field {field!r} is {type(text).__name__}: expected a string")
    _require_unicode(text, where)
    return text


def _require_unicode(text: str, where: str) -> None:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise InputError(
            f"{where}: the escape \\u{ord(text[error.start]):04x} is half a character"
        ) from error
