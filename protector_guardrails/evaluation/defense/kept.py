"""What guard and judges said, on disk by the text it was said of, so that an interrupted run can go on.

Texts that left a guard stand in these files, harmful ones too: only their owner can read them.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Generic, Self, TypeVar

from protector_guardrails.errors import ConfigurationError

T = TypeVar("T")


def digest(*texts: str | None) -> int:
    """A number that stands for some texts, the same in every process.

    >>> digest("a", "b") == digest("ab", None)
    False
    """
    written = json.dumps(texts).encode()
    return int.from_bytes(hashlib.sha256(written).digest()[:16])


class KeptLines(Generic[T]):
    """Entries of a JSON Lines file by their key. In memory is only where each of them stands.

    Args:
        folder: Where the file is; made if there is none.
        header: What the entries depend on: its hash is the file's name, so no others are taken over.
        parse: Makes the value of an entry; None for one that is to be made again, such as a failure.

    Raises:
        ConfigurationError: If a line of the file was not written here; a torn last line is cut off.
    """

    def __init__(self, folder: Path, header: Mapping[str, Any], parse: Callable[[Mapping[str, Any]], T | None]) -> None:
        self._parse = parse
        self._places: dict[int, int] = {}
        first = json.dumps(header, sort_keys=True).encode()
        self.path = folder / f"{hashlib.sha256(first).hexdigest()[:24]}.jsonl"
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._file = os.fdopen(os.open(self.path, os.O_RDWR | os.O_CREAT, 0o600), "r+b")
        self.path.chmod(0o600)
        self._end = self._read(first)
        if not self._end:
            self._append(first + b"\n")
            self._file.flush()

    def get(self, key: int) -> T | None:
        """The value of a key, if there is one."""
        place = self._places.get(key)
        if place is None:
            return None
        self._file.seek(place)
        return self._parse(json.loads(self._file.readline()))

    def put(self, entries: Iterable[tuple[int, Mapping[str, Any]]]) -> None:
        """Keep a batch of entries."""
        for key, entry in entries:
            if self._parse(entry) is not None:
                self._places[key] = self._end
            self._append(json.dumps({"key": f"{key:032x}", **entry}).encode() + b"\n")
        self._file.flush()

    def _append(self, line: bytes) -> None:
        self._file.seek(self._end)
        self._file.write(line)
        self._end += len(line)

    def _read(self, first: bytes) -> int:
        end = 0
        for number, line in enumerate(self._file, start=1):
            if not line.endswith(b"\n"):
                break  # torn by a crash
            try:
                if number == 1:
                    if line.rstrip(b"\n") != first:
                        raise ValueError("another header")
                else:
                    entry = json.loads(line)
                    key = int(entry["key"], 16)
                    if self._parse(entry) is None:
                        self._places.pop(key, None)
                    else:
                        self._places[key] = end
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise ConfigurationError(
                    f"{self.path}, line {number}: not written by this command; delete the file to start it anew"
                ) from error
            end += len(line)
        self._file.truncate(end)
        return end

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
