"""The folder where weights that do not ship are kept, and how they get there in one piece.

An entry is a folder with its files and a record of their sizes and sha256. It is made under
another name and then renamed, by one process at a time, so what is there is whole. It
is hashed again whenever it is used, which takes well under a second: a disk that lost a bit
is found before its weights speak.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from protector_guardrails.errors import WeightsError
from protector_guardrails.models.hashing import sha256_of

_log = logging.getLogger(__name__)

RECORD = "record.json"
_WAIT_S = 1800


class Record(BaseModel):
    """What an entry is.

    Attributes:
        source: Where it came from.
        sha256: File name to sha256.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    source: str
    sha256: dict[str, str]


def cache_folder() -> Path:
    """Where weights are kept: ``PROTECTOR_CACHE``, or ``protector-guardrails`` in the user's folder for caches."""
    if chosen := os.environ.get("PROTECTOR_CACHE"):
        return Path(chosen).expanduser()
    if sys.platform == "win32":
        root = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    elif sys.platform == "darwin":
        root = Path.home() / "Library" / "Caches"
    else:
        root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return root / "protector-guardrails"


def find_entry(name: str) -> Path | None:
    """Folder of an entry whose files all have the sha256 of its record; None if there is none.

    A damaged entry counts as none, and is replaced when it is fetched again.
    """
    folder = cache_folder() / name
    try:
        record = Record.model_validate_json((folder / RECORD).read_bytes())
        damaged = [file for file, expected in record.sha256.items() if sha256_of(folder / file) != expected]
    except FileNotFoundError as error:
        if not folder.exists():
            return None
        damaged = [str(error.filename)]
    except (OSError, ValidationError):
        damaged = [RECORD]
    if damaged:
        _log.warning("%s in the cache is damaged (%s)", folder, Path(damaged[0]).name)
        return None
    return folder


def add_entry(name: str, *, source: str, needed_bytes: int, make: Callable[[Path, Path], None]) -> Path:
    """Make an entry, unless another process just did.

    Args:
        name: Name of the entry.
        source: Where it comes from.
        needed_bytes: Space that making it takes.
        make: Called with the folder to fill, and with one for what is thrown away afterwards.

    Raises:
        WeightsError: If the cache cannot be written or is full, or another process takes too long.
    """
    from filelock import FileLock, Timeout  # comes with PyTorch

    root = cache_folder()
    try:
        root.mkdir(parents=True, exist_ok=True)
        with FileLock(root / f".{name}.lock", timeout=_WAIT_S):
            if (folder := find_entry(name)) is not None:
                return folder
            for left_behind in root.glob(f".{name}.partial-*"):  # by a process that was ended
                shutil.rmtree(left_behind, ignore_errors=True)
            if (free := shutil.disk_usage(root).free) < needed_bytes:
                raise WeightsError(
                    f"{root} has {free / 1e6:.0f} MB of free space, {needed_bytes / 1e6:.0f} MB are needed: make room, "
                    "or set PROTECTOR_CACHE to a folder elsewhere"
                )
            with tempfile.TemporaryDirectory(dir=root, prefix=f".{name}.partial-", ignore_cleanup_errors=True) as made:
                return _make(root / name, Path(made), source, make)
    except Timeout as error:
        raise WeightsError(
            f"another process has been fetching {name} into {root} for {_WAIT_S // 60} minutes"
        ) from error
    except OSError as error:
        raise WeightsError(
            f"{error.filename or root} cannot be written ({error.strerror or error}): make room or give access, or set "
            "PROTECTOR_CACHE to a folder elsewhere"
        ) from error


def _make(target: Path, made: Path, source: str, make: Callable[[Path, Path], None]) -> Path:
    (folder := made / "entry").mkdir()
    (scratch := made / "scratch").mkdir()
    make(folder, scratch)
    record = Record(source=source, sha256={path.name: sha256_of(path) for path in sorted(folder.iterdir())})
    (folder / RECORD).write_text(json.dumps(record.model_dump(), indent=2) + "\n", encoding="utf-8")
    if target.exists():  # damaged, or it would have been found
        target.replace(made / "damaged")
    folder.replace(target)
    return target
