"""What the readers of benchmarks share: paths that stay inside a folder, and what was found there."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from protector_guardrails.errors import ConfigurationError
from protector_guardrails.evaluation.defense.cases import Case
from protector_guardrails.evaluation.tables import Record
from protector_guardrails.models.base_weights import sha256_of

TEXT, IMAGE = "text", "image"
"""Kinds of a question, where a benchmark does not tell them apart further."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What a reader found.

    Attributes:
        root: Folder that images are in.
        files: Files that questions were read from.
        cases: The cases, in a fixed order.
        problems: What is missing or unusable, in sentences with counts.
    """

    root: Path
    files: Sequence[Path]
    cases: Sequence[Case]
    problems: Sequence[str] = ()


def file_in(folder: Path, name: str) -> Path | None:
    """A file by its path relative to a folder, or None if there is none.

    Args:
        folder: The folder.
        name: The path as a benchmark writes it.

    Returns:
        The file with links resolved, which is inside the folder.

    Raises:
        ConfigurationError: If the path is absolute, has a ``..`` in it, or leads out of the folder over a link.
    """
    parts = (*PurePosixPath(name).parts, *PureWindowsPath(name).parts)  # whatever system it was written on
    if PurePosixPath(name).is_absolute() or PureWindowsPath(name).anchor or ".." in parts or "\0" in name:
        raise ConfigurationError(f"{name[:80]!r} is not a path inside {folder}")
    try:
        root, file = folder.resolve(), (folder / name).resolve()
        found = file.is_file()
    except (OSError, RuntimeError, ValueError):  # too long, a loop of links, or no text that a path can be
        return None
    if not file.is_relative_to(root):
        raise ConfigurationError(f"{name[:80]!r} is a link that leads out of {folder}: copy the file into it")
    return file if found else None


def read_json(file: Path) -> Any:
    """A whole JSON file, in UTF-8 with or without a byte order mark.

    Raises:
        ConfigurationError: If it is not JSON, or an object in it has a name twice; says where.
    """
    try:
        return json.loads(file.read_bytes().decode("utf-8-sig"), object_pairs_hook=_unique)
    except _NameTwiceError as error:
        raise ConfigurationError(f"{file}: {error}") from error
    except json.JSONDecodeError as error:
        raise ConfigurationError(f"{file}, line {error.lineno}: not valid JSON ({error.msg})") from error
    except (ValueError, RecursionError) as error:
        raise ConfigurationError(f"{file} is not valid JSON in UTF-8 ({type(error).__name__})") from error


def read_entries(file: Path) -> list[tuple[str, Record]]:
    """The ids and entries of a JSON file that is an object of objects.

    Raises:
        ConfigurationError: If it is not.
    """
    document = read_json(file)
    if not isinstance(document, dict) or not all(isinstance(entry, dict) for entry in document.values()):
        raise ConfigurationError(f"{file} is not an object of ids with a question each")
    return list(document.items())


class _NameTwiceError(Exception):
    pass


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        [(name, count)] = Counter(name for name, _ in pairs).most_common(1)
        raise _NameTwiceError(f"{name[:80]!r} occurs {count} times in one object")
    return found


def missing_images(counts: Counter[str]) -> list[str]:
    """A sentence for each part of a benchmark that lacks images."""
    return [f"{part}: {count:,} {_images(count)}, so the questions are left out." for part, count in counts.items()]


def _images(count: int) -> str:
    return "image is missing" if count == 1 else "images are missing"


def sha256_over(root: Path, files: Iterable[Path]) -> str:
    """Hexadecimal SHA-256 over the names and contents of files; their order does not matter."""
    resolved = root.resolve()
    named = {_name(resolved, file.resolve()): file for file in files}
    digest = hashlib.sha256()
    for name, file in sorted(named.items()):
        digest.update(f"{name}\0{sha256_of(file)}\n".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def _name(root: Path, file: Path) -> str:
    return file.relative_to(root).as_posix() if file.is_relative_to(root) else file.name
