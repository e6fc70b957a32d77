"""Lines of a text file, plain or gzip, with the position of each; a line of any length in bounded memory."""

from __future__ import annotations

import codecs
import gzip
import zlib
from pathlib import Path
from typing import BinaryIO, Self, cast

from koe5_onnx import InputError

MAX_RECORD_BYTES = 16 << 20
"""A longer row is bad. No text is: 512 tokens are a few kilobytes, and what follows them is cut."""


class LineTooLongError(ValueError):
    """A line has more than MAX_RECORD_BYTES; it has been passed over."""


class Lines:
    """Iterates over lines with their ends, as bytes; only LF ends a line. Its position is the next one's.

    Args:
        path: The file; its content is unpacked where the name ends with .gz.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.offset = 0
        """Bytes before it, unpacked."""
        self.line = 0
        """Lines before it."""
        packed = path.suffix.lower() == ".gz"
        opened = gzip.open(path, "rb") if packed else path.open("rb")  # noqa: SIM115 - close() closes it
        self._stream = cast("BinaryIO", opened)

    def seek(self, offset: int, line: int) -> None:
        """Go to a position that this class gave; in a gzip file by unpacking what lies before it."""
        if offset != self.offset:
            self._guarded_seek(offset)
        self.offset, self.line = offset, line

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> bytes:
        first = self.offset == 0
        content = self._read()
        if not content:
            raise StopIteration
        self.line += 1
        if len(content) > MAX_RECORD_BYTES:
            self._skip_rest(content)
            raise LineTooLongError(f"a line of more than {MAX_RECORD_BYTES >> 20} MiB")
        return content.removeprefix(codecs.BOM_UTF8) if first else content

    def close(self) -> None:
        """Close the file."""
        self._stream.close()

    def _read(self) -> bytes:
        try:
            content = self._stream.readline(MAX_RECORD_BYTES + 1)
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise self._damaged(error) from error
        self.offset += len(content)
        return content

    def _skip_rest(self, content: bytes) -> None:
        while content and not content.endswith(b"\n"):
            content = self._read()

    def _guarded_seek(self, offset: int) -> None:
        try:
            self._stream.seek(offset)
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise self._damaged(error) from error

    def _damaged(self, error: Exception) -> InputError:
        return InputError(f"{self.path} is a damaged gzip file ({error}): make or fetch it again")
