"""Going on with an interrupted ``protector score``.

There is no state file: the output itself tells how far the work got. It is walked
along with the input, line by line, and has to agree with it.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import IO, Self

from protector_guardrails.commands.lines import intact_length, intact_lines
from protector_guardrails.commands.rows import Row
from protector_guardrails.errors import ConfigurationError


class ErrorLog:
    """Lines that could not be judged: their number and the reason, never their text.

    Made only when there is something to say.

    Args:
        path: Where it goes.
        staged: Write beside it until :meth:`commit`, so that the log of the earlier run
            survives an interruption while it is still needed.
    """

    def __init__(self, path: Path, *, staged: bool) -> None:
        self.path, self.staged, self.count = path, staged, 0
        self._target = path.with_name(path.name + ".new") if staged else path
        self._target.unlink(missing_ok=True)
        self._file: IO[bytes] | None = None

    def write(self, number: int, reason: str) -> None:
        """Note a line."""
        if self._file is None:
            self._file = self._target.open("ab")
        self._file.write(json.dumps({"line": number, "reason": reason}).encode() + b"\n")
        self.count += 1

    def flush(self) -> None:
        """Hand what was noted to the operating system."""
        if self._file is not None:
            self._file.flush()

    def commit(self) -> None:
        """Put the staged log in place of the earlier one."""
        if not self.staged:
            return
        if self._file is None:
            self.path.unlink(missing_ok=True)
        else:
            self._file.close()
            self._target.replace(self.path)
            self._file = self.path.open("ab")
        self.staged, self._target = False, self.path

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()
        if self.staged:
            self._target.unlink(missing_ok=True)


class EarlierRun:
    """What an earlier run left in its output.

    Errors are written before the output, so the log knows every failure among the lines
    that the output covers, and perhaps some behind it; those are judged again.

    Args:
        output: Its output; a torn end does not count.
        errors: Its log of lines that could not be judged.
        detector: Name of the detector now in use.
        threshold: Threshold now in use.

    Raises:
        ConfigurationError: If the output was scored with another detector or threshold.
    """

    def __init__(self, output: Path, errors: Path, *, detector: str, threshold: float) -> None:
        self.output = output
        self.scored = self.harmful = 0
        self._length = intact_length(output)
        self._lines = intact_lines(output, self._length)
        self._failed = _failures(errors)
        self._next = next(self._lines, None)
        if self._next is not None:
            verdict = self._verdict(self._next)
            then, now = (verdict.get("detector"), verdict.get("threshold")), (detector, threshold)
            if then != now:
                raise ConfigurationError(
                    f"{output} was scored by {then[0]} at threshold {then[1]}, this run would be by {now[0]} "
                    f"at {now[1]}: use the same, or --force to start over"
                )

    def knows(self, row: Row) -> str | bool:
        """True if the row was scored, the reason if it failed, and False from the first row that is left to do.

        Raises:
            ConfigurationError: If the output holds something else at this place.
        """
        if self._next is None:
            return False
        if row.number in self._failed:
            return self._failed[row.number]
        if not self._next.startswith(row.head):
            raise ConfigurationError(
                f"{self.output} does not belong to this input: they differ at line {row.number} of the input; "
                "--force starts over"
            )
        self.scored += 1
        self.harmful += bool(self._verdict(self._next).get("harmful"))
        self._next = next(self._lines, None)
        return True

    def cut(self) -> None:
        """Take the torn end off the output, so that it can be appended to.

        Raises:
            ConfigurationError: If the output goes on although the input is at its end.
        """
        if self._next is not None:
            raise ConfigurationError(f"{self.output} holds more rows than this input: --force starts over")
        os.truncate(self.output, self._length)

    def _verdict(self, line: bytes) -> dict[str, object]:
        try:
            verdict = json.loads(line)["protector"]
            return dict(verdict)
        except (ValueError, KeyError, TypeError):
            raise ConfigurationError(f"{self.output} holds a line that this command did not write") from None


def _failures(path: Path) -> dict[int, str]:
    failures: dict[int, str] = {}
    if path.exists():
        with path.open("rb") as lines:
            for line in lines:
                try:
                    entry = json.loads(line)
                    failures[int(entry["line"])] = str(entry["reason"])
                except (ValueError, KeyError, TypeError):
                    continue  # the torn last line
    return failures
