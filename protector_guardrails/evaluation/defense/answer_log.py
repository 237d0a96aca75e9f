"""The file of answers, ``answers.jsonl``: appended to while a model is asked, read again afterwards."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from protector_guardrails.errors import ConfigurationError
from protector_guardrails.evaluation.defense.cases import Answer

_FIELDS = tuple(field.name for field in fields(Answer))


@dataclass(frozen=True, slots=True)
class _Line:
    start: int
    key: tuple[str, str] | None  # of a good answer: what was asked, and who


class AnswerLog:
    """Answers on disk, and which of them belong to a run; texts are never kept in memory.

    A line holds the fields of :class:`~.cases.Answer`, ``asked`` (a hash of the question and
    image) and ``by`` (the model's fingerprint). The last line of a case counts.

    Args:
        path: The file; made if there is none.

    Attributes:
        taken_over: Answers of the run that were not asked for but taken from a file.
        failures: Class of the error to the number of the run's cases without an answer.
        notes: What a reader must know of the file, in sentences.

    Raises:
        ConfigurationError: If the file was not written by this class.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.taken_over = 0
        self.failures: Counter[str] = Counter()
        self.notes: list[str] = []
        self._lines: dict[str, _Line] = {}
        self._run: dict[str, None] = {}
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists():
            self._read()
        self._file = path.open("ab")

    def __len__(self) -> int:
        """How many cases of the run have a line, be it an answer or a failure."""
        return sum(case in self._lines for case in self._run)

    def answers(self) -> Iterator[Answer]:
        """The run's answers in the order of its cases, read from the file one by one.

        A case that failed has an answer whose ``response`` is None; one that was never
        reached has none.
        """
        with self.path.open("rb") as file:
            for case in self._run:
                if line := self._lines.get(case):
                    file.seek(line.start)
                    record = json.loads(file.readline())
                    yield Answer(**{name: record[name] for name in _FIELDS})

    def expect(self, case: str) -> None:
        """Note that a case belongs to the run.

        Raises:
            ConfigurationError: If it does already.
        """
        if case in self._run:
            raise ConfigurationError(f"the case id {case[:80]!r} occurs twice: give the cases ids that differ")
        self._run[case] = None

    def holds(self, case: str, *, asked: str, by: str) -> bool:
        """Whether there is a good answer to a case, to this question and by this model."""
        line = self._lines.get(case)
        return line is not None and line.key == (asked, by)

    def write(self, answer: Answer, *, asked: str | None, by: str) -> None:
        """Append an answer or a failure; it is handed to the operating system at once."""
        record = {**asdict(answer), "asked": asked, "by": by}
        start = self._file.tell()
        self._file.write(json.dumps(record).encode() + b"\n")
        self._file.flush()
        self._note(record, start)
        if answer.error is not None:
            self.failures[answer.error.partition(":")[0]] += 1

    def close(self) -> None:
        """Write no more; :meth:`answers` still reads."""
        self._file.close()

    def _note(self, record: dict[str, Any], start: int) -> None:
        good = isinstance(record["response"], str) and isinstance(record["asked"], str)
        self._lines[str(record["case"])] = _Line(start, (record["asked"], record["by"]) if good else None)

    def _read(self) -> None:
        end = 0
        with self.path.open("rb") as lines:
            for number, line in enumerate(lines, start=1):
                if not line.endswith(b"\n"):
                    self.notes.append(f"The last line of {self.path.name} was cut off; that case was asked again.")
                    break
                try:
                    record = json.loads(line)
                    Answer(**{name: record[name] for name in _FIELDS})
                    self._note(record, end)
                except (ValueError, KeyError, TypeError) as error:
                    raise ConfigurationError(
                        f"{self.path}, line {number}: not written by this command; move the file away to ask again"
                    ) from error
                end += len(line)
        os.truncate(self.path, end)
