"""Holding a file of pairs or exchanges against the schema, and counting what is there twice."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from protector_guardrails.data_building.duplicates import near_duplicates
from protector_guardrails.data_building.rows import ExchangeRow, PairRow, checked
from protector_guardrails.training.data import normalise


@dataclass
class FileCheck:
    """What was found in a file; counts and reasons, never a text.

    Attributes:
        pairs: Good rows that are pairs.
        exchanges: Good rows that are exchanges.
        harmful: How many of the exchanges are labelled harmful.
        questions: Different questions, by their words.
        near_questions: Different questions that are nearly the same as an earlier one.
        same: Rows that say the same as an earlier one: same question, same answers, same label.
        contradictions: Answers that are labelled harmful and harmless, or are both sides of one pair.
        unstated: Field to the number of good rows without it, for ``source`` and ``license``.
        wrong: Reason to the number of rows that are not of the form.
        first_wrong: Reason to the first line where it occurs.
    """

    pairs: int = 0
    exchanges: int = 0
    harmful: int = 0
    questions: int = 0
    near_questions: int = 0
    same: int = 0
    contradictions: int = 0
    unstated: Counter[str] = field(default_factory=Counter)
    wrong: Counter[str] = field(default_factory=Counter)
    first_wrong: dict[str, int] = field(default_factory=dict)


def check_lines(lines: Iterable[tuple[int, bytes]]) -> FileCheck:
    """Check the lines of a JSON Lines file.

    Args:
        lines: Each with its number.
    """
    found = FileCheck()
    questions: dict[str, str] = {}
    seen: set[tuple[str, ...]] = set()
    labels: dict[tuple[str, str], bool] = {}
    for number, line in lines:
        if not line.strip():
            continue
        try:
            row = checked(_object(line))
        except ValueError as error:
            found.wrong[str(error)] += 1
            found.first_wrong.setdefault(str(error), number)
            continue
        question = normalise(row.question or "")
        if question:
            questions.setdefault(question, row.question or "")
        for name in ("source", "license"):
            found.unstated[name] += getattr(row, name) is None
        said = _answers(row)
        found.pairs += isinstance(row, PairRow)
        found.exchanges += isinstance(row, ExchangeRow)
        found.harmful += isinstance(row, ExchangeRow) and row.harmful
        key = (question, *(f"{harmful} {answer}" for answer, harmful in said))
        found.same += key in seen
        seen.add(key)
        for answer, harmful in said:
            found.contradictions += labels.setdefault((question, answer), harmful) != harmful
    found.questions = len(questions)
    found.near_questions = sum(like is not None for like in near_duplicates(list(questions.values())))
    return found


def _object(line: bytes) -> dict[str, Any]:
    try:
        record = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError:
        raise ValueError("not UTF-8") from None
    except (ValueError, RecursionError):
        raise ValueError("not JSON") from None
    if not isinstance(record, dict):
        raise ValueError("not a JSON object")
    return record


def _answers(row: PairRow | ExchangeRow) -> list[tuple[str, bool]]:
    if isinstance(row, PairRow):
        found = [(row.harmful_response, True), (row.harmless_response, False)]
    else:
        found = [("\n".join((row.image_desc or "", row.response)), row.harmful)]
    # By its words; an answer without any, such as an emoji, by itself.
    return [(normalise(answer) or answer, harmful) for answer, harmful in found]
