"""JSON Lines files, plain or gzip: numbered reading, and writing that can be cut off anywhere.

A gzip file is written as a row of complete members that hold whole lines, so that
after a crash everything up to the last complete member can be kept.
"""

from __future__ import annotations

import errno
import gzip
import io
import os
import zlib
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import IO, Self, cast

MEMBER_BYTES = 256 * 1024
"""About so much text goes into one gzip member; a crash loses at most that."""

_MAGIC = b"\x1f\x8b"
_BLOCK = 1 << 16


class LineReader:
    """The lines of a file one by one, as bytes; a file that starts like gzip is read as gzip.

    Lines end at a line feed and nowhere else: JSON strings may hold any other separator.

    Raises:
        OSError: If it cannot be read, is no regular file, or is a damaged gzip file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._raw = path.open("rb")
        self.size = os.fstat(self._raw.fileno()).st_size
        compressed = self._raw.read(2) == _MAGIC
        self._raw.seek(0)
        self._file: IO[bytes] = gzip.GzipFile(fileobj=self._raw) if compressed else self._raw  # type: ignore[assignment]

    @property
    def position(self) -> int:
        """How many bytes of the file have been read."""
        return self._raw.tell()

    def __iter__(self) -> Iterator[tuple[int, bytes]]:
        try:
            for number, line in enumerate(self._file, start=1):
                yield number, line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise OSError(errno.EIO, "the gzip file is damaged or cut off", str(self.path)) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._raw.close()


class LineWriter:
    """Appends whole lines to a file; ``.gz`` in its name means gzip.

    Args:
        path: File to append to; it is made if there is none.
    """

    def __init__(self, path: Path) -> None:
        self._file = path.open("ab")
        self._waiting: bytearray | None = bytearray() if path.suffix == ".gz" else None

    def write(self, lines: bytes) -> None:
        """Append lines, each with its line feed; plain text is on its way to disk on return."""
        if self._waiting is None:
            self._file.write(lines)
            self._file.flush()
            return
        self._waiting += lines
        if len(self._waiting) >= MEMBER_BYTES:
            self._write_member()

    def _write_member(self) -> None:
        # No time stamp: the same lines give the same bytes.
        self._file.write(gzip.compress(bytes(self._waiting or b""), mtime=0))
        self._file.flush()
        self._waiting = bytearray()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        # What is done is kept when the work is interrupted; a gzip file without a member is no gzip file.
        if self._waiting is not None and (self._waiting or self._file.tell() == 0):
            self._write_member()
        self._file.close()


def intact_length(path: Path) -> int:
    """How many leading bytes of a file hold whole lines (plain) or whole members (``.gz``).

    Raises:
        OSError: If there are no such bytes and the file does not begin like one of ours.
    """
    with path.open("rb") as file:
        begins = file.read(2)
        file.seek(0)
        ours = _MAGIC.startswith(begins) if path.suffix == ".gz" else begins[:1] in (b"{", b"")
        if not ours:
            raise OSError(errno.EINVAL, "not something that this command wrote", str(path))
        return _intact_members(file) if path.suffix == ".gz" else _intact_lines(file)


def _intact_lines(file: IO[bytes]) -> int:
    end = seen = 0
    while block := file.read(_BLOCK):
        if (at := block.rfind(b"\n")) >= 0:
            end = seen + at + 1
        seen += len(block)
    return end


def _intact_members(file: IO[bytes]) -> int:
    end = seen = 0
    member = zlib.decompressobj(31)
    while block := file.read(_BLOCK):
        seen += len(block)
        while block:
            try:
                member.decompress(block)
            except zlib.error:
                return end
            if not member.eof:
                break
            block = member.unused_data
            end = seen - len(block)
            member = zlib.decompressobj(31)
    return end


class _Prefix(io.RawIOBase):
    """The first bytes of a file as if they were all of it."""

    def __init__(self, file: IO[bytes], length: int) -> None:
        self._file, self._left = file, length

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: bytearray) -> int:  # type: ignore[override]
        block = self._file.read(min(len(buffer), self._left))
        buffer[: len(block)] = block
        self._left -= len(block)
        return len(block)


def intact_lines(path: Path, length: int) -> Iterator[bytes]:
    """The lines within the first ``length`` bytes of a file, without their line feeds."""
    with path.open("rb") as file:
        prefix = io.BufferedReader(cast(io.RawIOBase, _Prefix(file, length)))
        lines: IO[bytes] = gzip.GzipFile(fileobj=prefix) if path.suffix == ".gz" else prefix  # type: ignore[assignment]
        for line in lines:
            yield line.removesuffix(b"\n")
