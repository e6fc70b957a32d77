"""Lines of a plain or compressed file, with their positions. Memory is bounded for lines of any length."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import PurePosixPath
from typing import BinaryIO, Self, cast

import pyarrow as pa

from koe5_onnx import InputError
from koe5_onnx.stores import Location
from koe5_onnx.text import encoding as encodings

MAX_RECORD_BYTES = 16 << 20
"""Maximum size of a line, of a CSV row, and of a text of a parquet or Arrow file; above it, a row is bad."""
COMPRESSIONS = {".gz": "gzip", ".zst": "zstd"}


class LineTooLongError(ValueError):
    """A line is longer than MAX_RECORD_BYTES and was skipped."""


class Lines:
    """Iterator over the lines of a file, as bytes with line ends. Only LF ends a line.

    Args:
        location: The file. It is decompressed if its name ends with .gz or .zst.
        encoding: Codec of the file.
    """

    def __init__(self, location: Location, encoding: str) -> None:
        self.location, self.encoding = location, encoding
        self._compression = COMPRESSIONS.get(PurePosixPath(location.name.lower()).suffix)
        self._open()

    def _open(self) -> None:
        self.offset = 0
        """Offset of the next line in the decompressed file, in bytes."""
        self.line = 0
        """Number of lines before the next line."""
        self._stream: BinaryIO = self.location.open()
        if self._compression is not None:
            file = pa.CompressedInputStream(pa.PythonFile(self._stream, "r"), self._compression)
            self._stream = cast("BinaryIO", io.BufferedReader(file, encodings.SAMPLE_BYTES))

    def seek(self, offset: int, line: int) -> None:
        """Move to a recorded position.

        A compressed file is read up to there, from its beginning if the position is before the current one.
        """
        with self._named_damage():
            if self._compression is None:
                self._stream.seek(offset)
            else:
                self._skip_to(offset)
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
            raise LineTooLongError(f"the line is longer than {MAX_RECORD_BYTES >> 20} MiB")
        return encodings.without_mark(content, self.encoding) if first else content

    def sample(self) -> bytes:
        """Return a part of the file for detecting its encoding. Lines cannot be read afterwards."""
        with self._named_damage():
            return encodings.sample_of(self._stream)

    def close(self) -> None:
        """Close the file."""
        self._stream.close()

    def _read(self) -> bytes:
        with self._named_damage():
            content = encodings.read_line(self._stream, self.encoding, MAX_RECORD_BYTES + 2)
        self.offset += len(content)
        return content

    def _skip_rest(self, content: bytes) -> None:
        while content and not encodings.ends(content, self.encoding):
            content = self._read()

    def _skip_to(self, offset: int) -> None:
        if offset < self.offset:
            self.close()
            self._open()
        while self.offset < offset:
            skipped = self._stream.read(min(encodings.SAMPLE_BYTES, offset - self.offset))
            if not skipped:
                return
            self.offset += len(skipped)

    @contextmanager
    def _named_damage(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if self._compression is None or error.errno is not None:
                raise
            raise InputError(
                f"{self.location} is a damaged {self._compression} file ({error}). "
                "Create or download it again"
            ) from error


def codec_of(location: Location, encoding: str) -> str:
    """Return the codec of a text file: `encoding`, or the detected codec if it is "auto" or "utf-16".

    Raises:
        InputError: The encoding is UTF-8 and the file probably has another one, or the file is damaged.
    """
    with closing(Lines(location, "utf-8")) as lines:
        sample = lines.sample()
    likely = encodings.likely(sample)
    codec = encodings.codec_of(encoding, likely)
    if codec == "utf-8" and likely not in (None, codec):
        raise InputError(f"{location} is not UTF-8. Pass --encoding {likely}, which it probably has, or auto")
    return codec
