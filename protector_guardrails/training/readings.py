"""Labels that were given by reading, for texts that lie elsewhere.

``contrast/readings.jsonl.gz`` and ``readings_held_apart.jsonl.gz`` hold no text: each line has the hash
of a question and an answer, the data set it is from, and whether the answer was found harmful by a
language model that read it, shortened to its beginning and end. ``null`` means: do not learn from it.
Two kinds of rows were read: answers of preference pairs, which say which of two answers people liked
better and not whether one is harmful; and rows whose label
:func:`protector_guardrails.training.cleaning.contradicted` doubts.
"""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

from protector_guardrails.training.data import LabelledExchange, open_text, read_exchanges

READINGS = Path(__file__).parent / "contrast" / "readings.jsonl.gz"
READINGS_APART = READINGS.with_name("readings_held_apart.jsonl.gz")
"""Answers to questions of their own, for measuring; never learnt from."""


def reading_key(question: str, response: str) -> str:
    """What a reading is stored under: a hash of the question and the answer."""
    text = f"{question.strip()}\0{response.strip()}"
    return hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()[:16]


PREFERENCES = "hh_harmless"
"""Pairs of which single answers were read; answers of the other pairs are in the file of exchanges anyway."""


@cache
def readings(source: str | None = None, *, path: Path = READINGS) -> dict[str, bool | None]:
    """Key to label: harmful, harmless, or None for rows not to learn from.

    Args:
        source: Only what was read of this data set; None: everything.
        path: File of readings.
    """
    records = map(json.loads, open_text(path))
    return {record["key"]: record["harmful"] for record in records if source in {None, record["source"]}}


def reread(rows: Iterable[LabelledExchange], *, known: dict[str, bool | None] | None = None) -> list[LabelledExchange]:
    """The rows with the labels that reading gave them; rows not to learn from are left out."""
    labels = readings() if known is None else known
    kept: list[LabelledExchange] = []
    for row in rows:
        label = labels.get(reading_key(row.question, row.response), row.harmful)
        if label is not None:
            kept.append(row if label == row.harmful else replace(row, harmful=label))
    return kept


def read_pairs(path: Path, *, known: dict[str, bool | None] | None = None) -> list[LabelledExchange]:
    """The answers of a file of pairs that were read, as labelled exchanges.

    Args:
        path: JSON Lines with ``question``, ``harmful_response``, ``harmless_response`` and ``source``.
        known: Labels to go by; None: those that ship.

    Raises:
        ValueError: If a line is no such object.
    """
    labels = readings(PREFERENCES) if known is None else known
    rows: dict[str, LabelledExchange] = {}
    for number, line in enumerate(open_text(path), start=1):
        try:
            record = json.loads(line)
            question, answers = record["question"] or "", (record["harmful_response"], record["harmless_response"])
            keys = [reading_key(question, answer) for answer in answers]
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(
                f"{path}, line {number}: expected a pair with 'harmful_response' and 'harmless_response' ({error})"
            ) from error
        for key, answer in zip(keys, answers, strict=True):
            label = labels.get(key)
            if label is not None:
                rows.setdefault(
                    key,
                    LabelledExchange(
                        id=key,
                        source=str(record.get("source", path.stem)),
                        question=question.strip(),
                        description="",
                        response=answer.strip(),
                        harmful=label,
                        label_kind="judge",
                    ),
                )
    return list(rows.values())


def is_pairs(path: Path) -> bool:
    """Whether the first line of a file is a pair."""
    first = next(iter(open_text(path)), "")
    return '"harmful_response"' in first


def labelled(path: Path, *, apart: bool = False) -> list[LabelledExchange]:
    """The rows of a file; of a file of pairs, the answers that were read.

    Args:
        path: Labelled exchanges, or pairs.
        apart: Of pairs, the answers kept apart for measuring, and not those to learn from.

    Raises:
        ValueError: If a line is neither.
    """
    if not is_pairs(path):
        return read_exchanges(path)
    return read_pairs(path, known=readings(PREFERENCES, path=READINGS_APART if apart else READINGS))


def describe_sources(paths: Sequence[Path]) -> list[dict[str, Any]]:
    """Per source of some files: ``source``, ``license``, ``rows``, ``harmful``; for the model card.

    Of files of pairs, the answers that were read are counted.
    """
    counts: dict[tuple[str, str], list[int]] = defaultdict(lambda: [0, 0])
    for path in paths:
        if is_pairs(path):
            records = list(map(json.loads, open_text(path)))
            licences = {str(r.get("source", path.stem)): str(r.get("license", "not stated")) for r in records}
            labels = [(row.source, licences[row.source], row.harmful) for row in read_pairs(path)]
        else:
            records = list(map(json.loads, open_text(path)))
            labels = [
                (str(r.get("source", path.stem)), str(r.get("license", "not stated")), bool(r["harmful"]))
                for r in records
            ]
        for source, licence, harmful in labels:
            counts[source, licence][0] += 1
            counts[source, licence][1] += harmful
    return [
        {"source": source, "license": licence, "rows": rows, "harmful": harmful}
        for (source, licence), (rows, harmful) in sorted(counts.items())
    ]
