"""Files that their owner alone can read, and that are there as a whole or not at all."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any


def write_private(path: Path, text: str) -> None:
    """Write a file with mode 0600, beside its place at first."""
    new = path.with_name(f"{path.name}.new")
    new.unlink(missing_ok=True)
    with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    new.replace(path)


def write_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write JSON Lines in ASCII, in the way of :func:`write_private`."""
    write_private(path, "".join(json.dumps(row) + "\n" for row in rows))
