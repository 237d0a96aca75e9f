"""Labelled exchanges: reading, splitting by question, and balanced epochs."""

from __future__ import annotations

import gzip
import hashlib
import json
import random
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

_SPEAKER_PREFIX = re.compile(r"^(assistant|### assistant|bot)\s*:\s*", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class LabelledExchange:
    """One training or validation row.

    Attributes:
        id: Identifier of the row in its file.
        source: Data set the row comes from.
        question: What the user asked, or an empty string.
        description: What the images show in words, or an empty string.
        response: What the model answered.
        harmful: The label.
        kind: The annotators' finer label, or an empty string.
        category: What the source says the exchange is about, or an empty string.
        label_kind: Who gave the label: ``human``, ``author``, ``judge``, ``dataset``, ``benign-prompt``, or an
            empty string.
    """

    id: str
    source: str
    question: str
    description: str
    response: str
    harmful: bool
    kind: str = ""
    category: str = ""
    label_kind: str = ""

    @property
    def group(self) -> str:
        """Rows with the same question belong to the same side of a split."""
        return normalise(self.question) or normalise(self.response)[:200]


def normalise(text: str) -> str:
    """Lower-case ``text`` and reduce it to words, for comparing questions."""
    return " ".join(re.findall(r"\w+", text.lower()))


def open_text(path: Path) -> Iterator[str]:
    """Yield the lines of a plain or gzip-compressed UTF-8 text file.

    Raises:
        ValueError: If a line is not UTF-8.
    """
    opener: Any = gzip.open if path.suffix == ".gz" else open
    with opener(path, "rb") as lines:  # decoded line by line, so that an error can name its line
        for number, line in enumerate(lines, start=1):
            try:
                yield line.decode("utf-8")
            except UnicodeDecodeError as error:
                raise ValueError(f"{path}, line {number}: not UTF-8 ({error.reason})") from error


def read_exchanges(path: Path) -> list[LabelledExchange]:
    """Read labelled exchanges from JSON Lines (plain or ``.gz``).

    Raises:
        ValueError: If a line is not a JSON object with a text ``response`` and ``harmful`` true or false.
    """
    rows = []
    for number, line in enumerate(open_text(path), start=1):
        try:
            rows.append(_labelled(json.loads(line), path=path, number=number))
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"{path}, line {number}: expected a JSON object with 'response' and 'harmful' ({error})"
            ) from error
    return rows


def _labelled(record: dict[str, Any], *, path: Path, number: int) -> LabelledExchange:
    if not isinstance(record["harmful"], bool):  # "false" would count as true, null as harmless
        raise ValueError(f"'harmful' must be true or false, not {record['harmful']!r}")
    texts = {
        "response": record["response"] or "",
        "question": record.get("question") or "",
        "image_desc": record.get("image_desc") or "",
    }
    for name, text in texts.items():
        if not isinstance(text, str):
            raise TypeError(f"{name!r} must be a text, not {type(text).__name__}")
    return LabelledExchange(
        id=str(record.get("id", number)),
        source=str(record.get("source", path.stem)),
        question=texts["question"],
        description=texts["image_desc"],
        # A speaker's name before the answer occurs in some sources only: a shortcut to the label.
        response=_SPEAKER_PREFIX.sub("", texts["response"]),
        harmful=record["harmful"],
        kind=str(record.get("kind") or ""),
        category=str(record.get("category") or ""),
        label_kind=str(record.get("label_kind") or ""),
    )


def _fraction(text: str, seed: int) -> float:
    digest = hashlib.sha256(f"{seed}:{text}".encode("utf-8", "replace")).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


class Grouped(Protocol):
    """Something about a question."""

    @property
    def group(self) -> str:
        """The same for everything about the same question."""


_Row = TypeVar("_Row", bound=Grouped)


def split_by_question(rows: Iterable[_Row], *, held_out: float, seed: int) -> tuple[list[_Row], list[_Row]]:
    """Split rows so that no question occurs on both sides.

    The side of a question depends on the question and the seed alone, so adding
    or removing rows never moves others across.

    Args:
        rows: The rows to split.
        held_out: Share of the questions to hold out, in [0, 1).
        seed: Any integer.

    Returns:
        The rows to train on and the rows held out.
    """
    train: list[_Row] = []
    held: list[_Row] = []
    for row in rows:
        (held if _fraction(row.group, seed) < held_out else train).append(row)
    return train, held


def balanced_epoch(
    rows: Sequence[LabelledExchange],
    *,
    seed: int,
    epoch: int,
    cap: int = 1500,
    source_caps: Mapping[str, int] | None = None,
    source_repeats: Mapping[str, int] | None = None,
    answers_per_question: int = 8,
    max_repeats: int = 4,
) -> list[LabelledExchange]:
    """Choose the rows of one epoch so that no source, question or class drowns the others.

    1. Of each (source, label, question) at most ``answers_per_question`` rows: some
       sources hold dozens of answers to each of a hundred questions.
    2. Of each (source, label) at most ``cap`` rows.
    3. A label that is rare within its source is repeated, at most ``max_repeats``
       times and up to a quarter of the other label: harm is rare among the answers of
       real multimodal models, and those are the answers that this detector is for.

    The choice differs from epoch to epoch, so more rows are seen over several epochs.

    Args:
        rows: All rows that may be chosen.
        seed: Seed of the run.
        epoch: Number of the epoch, from 0.
        cap: See above.
        source_caps: Another cap for sources named here.
        source_repeats: How often rows of the sources named here come in the epoch; others once.
        answers_per_question: See above.
        max_repeats: See above.

    Returns:
        The rows of the epoch in random order.
    """
    rng = random.Random(f"{seed}:{epoch}")
    by_class: dict[tuple[str, bool], dict[str, list[LabelledExchange]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        by_class[row.source, row.harmful][row.group].append(row)
    chosen: dict[tuple[str, bool], list[LabelledExchange]] = {}
    for key, by_question in by_class.items():
        picked = [
            row
            for answers in by_question.values()
            for row in rng.sample(answers, min(len(answers), answers_per_question))
        ]
        limit = (source_caps or {}).get(key[0], cap)
        chosen[key] = rng.sample(picked, min(len(picked), limit))
    epoch_rows: list[LabelledExchange] = []
    for (source, harmful), picked in chosen.items():
        other = len(chosen.get((source, not harmful), ()))
        repeats = max(1, min(max_repeats, other // (4 * max(1, len(picked)))))
        epoch_rows.extend(picked * max(repeats, (source_repeats or {}).get(source, 1)))
    rng.shuffle(epoch_rows)
    return epoch_rows
