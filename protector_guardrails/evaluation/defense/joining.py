"""Bringing answers back to their questions, in whatever order they were given."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from protector_guardrails.evaluation.defense.cases import Answer, Case

Asked = tuple[str, Case]
"""The name of a benchmark and one of its cases."""


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer beside its question.

    Attributes:
        benchmark: Name of the benchmark.
        case: The case.
        model: Who answered.
        response: The answer.
    """

    benchmark: str
    case: Case
    model: str
    response: str


def join(asked: Iterable[Asked], answers: Iterable[Answer]) -> Iterator[Reply]:
    """Answers with their questions, in the order of the answers.

    In memory is what lies between a case and its answer: little where answers come in about the
    order of the cases, as they do. Answers without a response and answers of other cases are left out.

    Args:
        asked: The cases; their ids differ.
        answers: At most one answer with a response for each.
    """
    coming = iter(asked)
    waiting: dict[str, Asked] = {}
    for answer in answers:
        if answer.response is None:
            continue
        while answer.case not in waiting:
            following = next(coming, None)
            if following is None:
                break
            waiting[following[1].id] = following
        if (found := waiting.pop(answer.case, None)) is not None:
            benchmark, case = found
            yield Reply(benchmark, case, answer.model, answer.response)
