"""Answers that were recorded before, in place of a model."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from protector_guardrails.errors import ConfigurationError
from protector_guardrails.evaluation.defense.cases import Answer, Case
from protector_guardrails.evaluation.defense.directory import CASES, rows_with_ids, stem
from protector_guardrails.evaluation.defense.mllms import UnanswerableError
from protector_guardrails.evaluation.rows import MalformedRecordError, model_name, text_of
from protector_guardrails.evaluation.tables import Record
from protector_guardrails.models.base_weights import sha256_of


class NoRecordedAnswerError(UnanswerableError):
    """There is no recorded answer to a case."""


@dataclass(frozen=True, slots=True)
class _Recorded:
    answer: Answer
    question: str | None
    asked: str | None


class RecordedMllm:
    """Answers each case with what is on file under its id.

    Two forms of rows are read: ``answers.jsonl`` of an earlier run, and rows of our own form
    that have a ``response`` (see :func:`~.directory.read_own`). An answer to another question
    than the case's is not taken, though its id be the same.

    Args:
        paths: JSON Lines, plain or compressed.

    Raises:
        ConfigurationError: If it cannot be read, holds no answer, or two answers to one case.
    """

    concurrency: int | None = None

    def __init__(self, *paths: Path) -> None:
        self._recorded: dict[str, _Recorded] = {}
        for path in paths:
            self._read(path)
        if not self._recorded:
            raise ConfigurationError(f"{', '.join(map(str, paths))} holds no recorded answers")
        models = {read.answer.model for read in self._recorded.values()}
        self.name = models.pop() if len(models) == 1 else f"{len(models)} models"
        self.fingerprint = " ".join(sha256_of(path) for path in paths)

    def _read(self, path: Path) -> None:
        if not path.is_file():
            raise ConfigurationError(f"{path} is not a file of recorded answers")
        for place, told_id, record in rows_with_ids(path):
            try:
                is_ours = "case" in record and "asked" in record
                read = _of_a_run(record) if is_ours else _of_a_row(record, told_id, stem(path))
            except MalformedRecordError as error:
                raise ConfigurationError(f"{path}, {place}: {error}") from error
            if read is None:
                continue
            if not is_ours and read.answer.case in self._recorded:
                raise ConfigurationError(f"{path}, {place}: a second answer to the case {read.answer.case[:80]!r}")
            self._recorded[read.answer.case] = read  # of a run's answers the last one counts

    async def answer(self, case: Case) -> str:
        """The recorded answer.

        Raises:
            NoRecordedAnswerError: If there is none.
        """
        response = self.recall(case).response
        return response or ""

    def recall(self, case: Case, *, asked: str | None = None) -> Answer:
        """The recorded answer, with the model that gave it and the time it took.

        Args:
            case: The case.
            asked: Hash of its question and image; an answer recorded with another one is not its answer.

        Raises:
            NoRecordedAnswerError: If there is none.
        """
        read = self._recorded.get(case.id)
        if read is None:
            raise NoRecordedAnswerError("no answer is recorded under the case's id")
        if (asked and read.asked and asked != read.asked) or (
            read.question is not None and read.question.strip() != case.question.strip()
        ):
            raise NoRecordedAnswerError("the answer recorded under the case's id is to another question")
        return read.answer


def recorded_beside(questions: Iterable[Path]) -> RecordedMllm:
    """The answers that stand in the rows of benchmarks in our own form, beside the questions.

    Args:
        questions: The benchmarks' files and folders.

    Raises:
        ConfigurationError: If there are none.
    """
    files = [path / CASES if path.is_dir() else path for path in questions]
    own = [file for file in files if file.is_file() and not file.name.endswith(".json")]
    if not own:
        raise ConfigurationError("no benchmark is a file of recorded answers: name one with recorded:FILE")
    return RecordedMllm(*own)


def _of_a_run(record: Record) -> _Recorded | None:
    """An answer that an earlier run recorded; None for a failure."""
    case, response = text_of(record, "case"), record.get("response")
    if case is None or not isinstance(response, str | None):
        raise MalformedRecordError("'case' and 'response' must be texts")
    if response is None:
        return None
    elapsed = record.get("elapsed_ms")
    answer = Answer(
        case=case,
        model=text_of(record, "model") or "unknown",
        response=response,
        elapsed_ms=float(elapsed) if isinstance(elapsed, int | float) else None,
    )
    return _Recorded(answer, None, text_of(record, "asked"))


def _of_a_row(record: Record, told_id: str, file: str) -> _Recorded | None:
    """The answer of a row of our own form; None if it has none."""
    response = record.get("response")
    if not isinstance(response, str | None):
        raise MalformedRecordError(f"'response' must be a text, not {type(response).__name__}")
    if response is None:
        return None
    model = model_name(text_of(record, "model")) or file
    return _Recorded(Answer(case=told_id, model=model, response=response), text_of(record, "question"), None)
