"""What a detoxifier learns from: questions, harmful answers, and what should be written instead."""

from __future__ import annotations

import json
import random
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from protector_guardrails.evaluation.refusals import is_refusal
from protector_guardrails.sentences import split_passages
from protector_guardrails.training.data import normalise, open_text

_WORD = re.compile(r"\w+")


@dataclass(frozen=True, slots=True)
class DetoxPair:
    """One thing to learn.

    Attributes:
        source: Data set that the harmless answer comes from.
        license: Its licence, as the row states it.
        question: What was asked; empty if that is not known.
        harmful: The harmful answer.
        harmless: What is to be written instead.
    """

    source: str
    license: str
    question: str
    harmful: str
    harmless: str


def read_pairs(path: Path) -> list[DetoxPair]:
    """Read pairs from JSON Lines with ``question``, ``harmful_response``, ``harmless_response`` (and ``source``).

    Raises:
        ValueError: If a line is not such an object; names the line.
    """
    pairs = []
    for record in _records(path, ("harmful_response", "harmless_response")):
        pairs.append(
            DetoxPair(
                source=str(record.get("source") or path.name.split(".")[0]),
                license=str(record.get("license") or "not stated"),
                question=record.get("question") or "",
                harmful=record["harmful_response"],
                harmless=record["harmless_response"],
            )
        )
    return pairs


def read_good_answers(path: Path, *, sources: Sequence[str]) -> list[DetoxPair]:
    """Harmless answers of some sources of a file of exchanges, as pairs whose harmful side is still empty.

    Raises:
        ValueError: If a line is not an exchange; names the line.
    """
    return [
        DetoxPair(
            source=str(record["source"]),
            license=str(record.get("license") or "not stated"),
            question=record["question"],
            harmful="",
            harmless=record["response"],
        )
        for record in _records(path, ("response",))
        if record.get("source") in sources and record.get("harmful") is False and record.get("question")
    ]


def with_foreign_answers(answers: Sequence[DetoxPair], harmful: Sequence[str], *, seed: int) -> list[DetoxPair]:
    """Put a harmful answer to some other question into each pair that has none.

    What should be written depends on the question then, and on nothing in the answer: a
    model that learns from such pairs does not copy from what it is to replace.

    Raises:
        ValueError: If there are no harmful answers to draw from.
    """
    if not harmful:
        raise ValueError("there are no harmful answers to put beside the good ones: give a file of pairs too")
    rng = random.Random(seed)
    return [replace(answer, harmful=rng.choice(harmful)) for answer in answers]


def shortened(text: str, *, max_words: int) -> str:
    """The whole sentences of a text that fit, at least the first.

    >>> shortened("One two three. Four five six. Seven.", max_words=6)
    'One two three. Four five six.'
    """
    kept: list[str] = []
    words = 0
    for passage in split_passages(text.strip()):
        words += len(_WORD.findall(passage))
        if kept and words > max_words:
            break
        kept.append(passage)
    return "".join(kept).strip()


def select_pairs(
    pairs: Sequence[DetoxPair],
    *,
    seed: int,
    min_words: int,
    max_words: int,
    answers_per_question: int,
    same_beginning: int,
    refusals: float,
    distinct: bool = True,
    harmful: Callable[[Sequence[DetoxPair]], Sequence[bool]] | None = None,
) -> tuple[list[DetoxPair], Counter[str]]:
    """Leave out what would teach nothing, or the wrong thing.

    Args:
        pairs: All pairs.
        seed: Of the order in which they are looked at.
        min_words: Shorter targets are left out.
        max_words: Longer ones are shortened to whole sentences.
        answers_per_question: Targets for the same question.
        same_beginning: Targets that begin with the same six words.
        refusals: Largest share of targets that refuse, in [0, 1]: one refusal learnt by heart fits every question.
        distinct: Whether a target that occurred before is left out.
        harmful: Says of which pairs the target is harmful itself; None: nobody looks.

    Returns:
        The pairs, in random order, and how many were left out for what reason.
    """
    rng = random.Random(seed)
    shuffled = list(pairs)
    rng.shuffle(shuffled)
    left_out: Counter[str] = Counter()
    questions: Counter[str] = Counter()
    beginnings: Counter[str] = Counter()
    seen: set[str] = set()
    kept: list[DetoxPair] = []
    for pair in shuffled:
        target = shortened(pair.harmless, max_words=max_words)
        words = normalise(target).split()
        beginning, question = " ".join(words[:6]), normalise(pair.question) or normalise(pair.harmful)[:200]
        if not min_words <= len(words) <= 2 * max_words:
            left_out["too short or too long"] += 1
        elif distinct and " ".join(words) in seen:
            left_out["the same text again"] += 1
        elif beginnings[beginning] >= same_beginning:
            left_out["the same beginning again"] += 1
        elif questions[question] >= answers_per_question:
            left_out["the same question again"] += 1
        else:
            seen.add(" ".join(words))
            beginnings[beginning] += 1
            questions[question] += 1
            kept.append(replace(pair, harmless=target))
    if harmful is not None:
        verdicts = harmful(kept)
        left_out["the target is harmful itself"] += sum(verdicts)
        kept = [pair for pair, found in zip(kept, verdicts, strict=True) if not found]
    refusing = [is_refusal(pair.harmless) for pair in kept]
    answering = len(kept) - sum(refusing)
    room = int(refusals * answering / (1 - refusals)) if refusals < 1 else len(kept)
    chosen = []
    for pair, refuses in zip(kept, refusing, strict=True):
        if refuses and room <= 0:
            left_out["one refusal too many"] += 1
            continue
        room -= refuses
        chosen.append(pair)
    return chosen, left_out


def _records(path: Path, needed: Sequence[str]) -> Iterator[dict[str, Any]]:
    for number, line in enumerate(open_text(path), start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except ValueError as error:
            raise ValueError(f"{path}, line {number}: not JSON ({error})") from error
        if not isinstance(record, dict) or not all(isinstance(record.get(name), str) for name in needed):
            raise ValueError(f"{path}, line {number}: expected an object with texts {' and '.join(map(repr, needed))}")
        if not isinstance(record.get("question"), str | None):
            raise ValueError(f"{path}, line {number}: 'question' must be a text or null")
        yield record
