"""Files and folders, on the local disk or in a remote store such as S3, Google Cloud Storage and the Hub.

fsspec finds the driver for the scheme of a URL, such as s3fs for s3://. The driver takes its settings and
credentials from the environment and from its own configuration files.
"""

from __future__ import annotations

import errno
import io
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, BinaryIO, cast

from fsspec import AbstractFileSystem
from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem

from koe5_onnx.errors import InputError, Koe5Error, MissingDependencyError
from koe5_onnx.files import atomic_path

_BLOCK_BYTES = 4 << 20
_BLOCKS = 16
"""Blocks of a remote file that stay in memory. Parquet readers alternate between the columns of a file."""
_VERSION_KEYS = ("ETag", "etag", "blob_id", "md5Hash", "mtime", "Last-Modified", "created")
"""Names that the drivers give to a hash or the time of a file, in order of preference."""


@dataclass(frozen=True)
class Entry:
    """Size and version of a file. A file counts as unchanged while both are the same."""

    bytes: int
    version: str
    """Hash or modification time of the file; "" if the driver reports neither."""


@dataclass(frozen=True)
class Location:
    """A file or folder, which may not exist. It can be pickled and used on another machine."""

    fs: AbstractFileSystem
    path: str
    """Absolute path with "/" as separator, without the scheme of the URL, except for HTTP."""

    def __str__(self) -> str:
        """Return the local path or the URL."""
        return self.path if self.is_local else str(self.fs.unstrip_protocol(self.path))

    def __truediv__(self, name: str) -> Location:
        """Return the location of a file or folder in this folder."""
        return Location(self.fs, f"{self.path.rstrip('/')}/{name}")

    @property
    def is_local(self) -> bool:
        """True if the location is on the local disk or a mounted file system."""
        return isinstance(self.fs, LocalFileSystem)

    @property
    def is_http(self) -> bool:
        """True if the location is a URL of HTTP, which is read-only."""
        return self.path.startswith(("http://", "https://"))

    @property
    def name(self) -> str:
        """The last part of the path. The query of a URL, as in presigned URLs, is not part of it."""
        path = self.path.partition("?")[0] if self.is_http else self.path
        return path.rpartition("/")[2]

    def entry(self) -> Entry | None:
        """Return the entry of a file; None if it does not exist or is a folder."""
        info = self._info()
        return None if info is None or info["type"] == "directory" else _entry(info)

    def is_folder(self) -> bool:
        """Return True if the location is a folder, or in an object store the prefix of existing objects."""
        info = self._info()
        return info is not None and info["type"] == "directory"

    def find(self) -> dict[str, Entry]:
        """Return the files of this folder and its subfolders, sorted by path relative to this folder."""
        found = {}
        start = len(self.path.rstrip("/")) + 1
        with self._named_errors():
            self.fs.invalidate_cache()
            for path, info in self.fs.find(self.path, detail=True).items():
                if info["type"] == "other":  # a symbolic link; this is not the entry of its target
                    if not self.fs.isfile(path):
                        continue
                    info = self.fs.info(path)
                found[path[start:]] = _entry(info)
        return found

    def open(self) -> BinaryIO:
        """Open the file for reading. A remote file is read in blocks, at any position."""
        with self._named_errors():
            opened = self.fs.open(
                self.path,
                "rb",
                block_size=_BLOCK_BYTES,
                cache_type="blockcache",
                cache_options={"maxblocks": _BLOCKS},
            )
        return cast("BinaryIO", io.BufferedReader(_Stream(self, opened), 1 << 20))

    def read(self) -> bytes:
        """Return the content of the file."""
        with self._named_errors():
            return bytes(self.fs.cat_file(self.path))

    def remove(self) -> None:
        """Delete the file."""
        with self._named_errors():
            self.fs.rm_file(self.path)

    @contextmanager
    def writing(self, *, new: bool = False) -> Iterator[Path]:
        """Yield a temporary local path, whose file is published at this location when the block ends.

        Readers never see a part of the file: a local file is renamed, a remote file is one upload.

        Args:
            new: The file must not exist. S3 and Google Cloud Storage check this atomically.

        Raises:
            FileExistsError: The file exists and `new` is True.
            OSError: The file cannot be written.
        """
        if self.is_local:
            if new and self.entry() is not None:
                raise FileExistsError(errno.EEXIST, "the file exists", str(self))
            with atomic_path(Path(self.path)) as temporary:
                yield temporary
            return
        with tempfile.TemporaryDirectory(prefix="koe5-onnx-") as folder:
            temporary = Path(folder) / self.name
            yield temporary
            with self._named_errors():
                self.fs.put_file(str(temporary), self.path, **({"mode": "create"} if new else {}))

    def _info(self) -> dict[str, Any] | None:
        try:
            with self._named_errors():
                self.fs.invalidate_cache(self.path)
                return dict(self.fs.info(self.path))
        except FileNotFoundError:
            return None

    @contextmanager
    def _named_errors(self) -> Iterator[None]:
        """Turn errors of a driver into OSErrors with the URL. Drivers raise errors of their own libraries."""
        try:
            yield
        except (FileExistsError, Koe5Error):
            raise
        except Exception as error:
            if self.is_local:
                raise
            number = getattr(error, "errno", None) or errno.EIO
            number = errno.ENOENT if isinstance(error, FileNotFoundError) else number
            raise OSError(number, str(error) or type(error).__name__, str(self)) from error


class _Stream(io.RawIOBase):
    """An open file of a driver as a raw stream."""

    def __init__(self, location: Location, opened: Any) -> None:
        self._location, self._opened = location, opened

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        with self._location._named_errors():
            found = self._opened.read(len(buffer))
        buffer[: len(found)] = found
        return len(found)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        with self._location._named_errors():
            return int(self._opened.seek(offset, whence))

    def tell(self) -> int:
        return int(self._opened.tell())

    def close(self) -> None:
        self._opened.close()
        super().close()


def locate(place: str | Path) -> Location:
    """Return the location of a local path or a URL.

    Raises:
        InputError: The scheme of the URL is unknown, or a URL was turned into a Path.
        MissingDependencyError: The driver of the URL is not installed.
    """
    scheme, separator, _ = str(place).partition("://")
    if not separator:
        if (found := re.match(r"([a-z][a-z0-9+.-]+):/\w", str(place))) is not None:
            raise InputError(f"{place} is a {found[1]}:// URL as a Path. Pass it as a string")
        return Location(LocalFileSystem(), Path(place).resolve().as_posix())
    try:
        fs, path = url_to_fs(place)
    except ImportError as error:
        package = getattr(error.__cause__, "name", None) or scheme
        raise MissingDependencyError(package, None, str(place)) from error
    except ValueError as error:
        raise InputError(f"the URL {place} is invalid ({error})") from error
    return Location(fs, path)


def _entry(info: dict[str, Any]) -> Entry:
    version = next((info[key] for key in _VERSION_KEYS if info.get(key) is not None), "")
    if isinstance(version, datetime):  # some drivers return a number in listings
        version = version.timestamp()
    return Entry(info.get("size") or 0, str(version))
