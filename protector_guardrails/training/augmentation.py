"""Rows made from rows: harm in one passage, refusals that give in, and texts typed in haste."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import replace

from protector_guardrails.evaluation.refusals import is_refusal
from protector_guardrails.training.data import LabelledExchange

HOST_WORDS = range(40, 221)
"""Words of a harmless answer that a passage is put into; more would not fit the windows of one step."""
PASSAGE_WORDS = range(4, 61)
OPENING_WORDS = range(5, 31)
"""Words of the first sentence of a refusal."""
ANSWER_WORDS = range(15, 201)
"""Words of a harmful answer that gets a refusal put before it."""
TURNS = ("", "However, ", "That said: ", "But here is what you asked for. ", "Still, ", "\n\n")
"""How one gets from the refusal to the answer."""
_BREAK = re.compile(r"(?<=[.!?])\s+")


def inserted_passages(rows: Sequence[LabelledExchange], *, pairs: int, rng: random.Random) -> list[LabelledExchange]:
    """Harmless answers with a foreign passage inside: half of them harmful by that passage alone.

    In most data sets an answer is harmful, or not, as a whole, and its manner gives the
    label away: essays are harmless, rough chat is not. Here the same host gets a harmful
    passage once and a harmless passage of the same source once, so only what the passage
    says can tell the two apart.

    Passages are taken from texts that people labelled for what they say by themselves:
    rows without a question. Hosts are harmless rows of any source.

    Args:
        rows: Labelled rows to draw from.
        pairs: How many hosts to use; two rows come of each.
        rng: Source of randomness.

    Returns:
        At most ``2 * pairs`` rows; none if there are no hosts or no passages of both labels.
    """
    hosts = [row for row in rows if not row.harmful and len(row.response.split()) in HOST_WORDS]
    by_source: dict[str, tuple[list[str], list[str]]] = {}
    for row in rows:
        if not row.question and len(row.response.split()) in PASSAGE_WORDS:
            by_source.setdefault(row.source, ([], []))[row.harmful].append(row.response.strip())
    sources = [source for source, (harmless, harmful) in sorted(by_source.items()) if harmless and harmful]
    if not hosts or not sources:
        return []
    result: list[LabelledExchange] = []
    for number in range(pairs):
        host = rng.choice(hosts)
        sentences = _BREAK.split(host.response)
        place = rng.randrange(len(sentences) + 1)
        harmless, harmful = by_source[rng.choice(sources)]
        for label, passages in ((False, harmless), (True, harmful)):
            parts = [*sentences[:place], rng.choice(passages), *sentences[place:]]
            identity = f"inserted-{number}-{label}"
            result.append(replace(host, id=identity, source="inserted", response=" ".join(parts), harmful=label))
    return result


def refusals_that_give_in(
    rows: Sequence[LabelledExchange], *, count: int, rng: random.Random
) -> list[LabelledExchange]:
    """Harmful answers that begin like a refusal: the first sentence of a real one, then what it declined.

    Without them a detector learns that an apology at the start settles the matter.

    Args:
        rows: Labelled rows to draw from: refusals among the harmless ones, answers among the harmful ones.
        count: How many to make; fewer if there are too few harmful answers.
        rng: Source of randomness.
    """
    openings = sorted(
        {
            first
            for row in rows
            if not row.harmful and is_refusal(row.response)
            for first in [_BREAK.split(row.response.strip())[0]]
            if len(first.split()) in OPENING_WORDS
        }
    )
    answers = [
        row
        for row in rows
        if row.harmful and row.question and not is_refusal(row.response) and len(row.response.split()) in ANSWER_WORDS
    ]
    if not openings or not answers:
        return []
    return [
        replace(
            row,
            id=f"gives-in-{number}",
            source="gives_in",
            response=f"{rng.choice(openings)} {rng.choice(TURNS)}{row.response.strip()}",
        )
        for number, row in enumerate(rng.sample(answers, min(count, len(answers))))
    ]


def roughened(text: str, rng: random.Random) -> str:
    """A text as people type it in haste: one kind of case throughout, or letters swapped, dropped or doubled.

    About one word in twelve is hit; which of the changes is made is drawn.
    """
    kind = rng.randrange(3)
    if kind == 0:
        return text.lower()
    if kind == 1:
        return text.upper() if len(text) < 400 else text.lower()
    return "".join(_slip(part, rng) for part in re.split(r"(\s+)", text))


def _slip(word: str, rng: random.Random) -> str:
    if len(word) < 4 or not word.isalpha() or rng.random() >= 1 / 12:
        return word
    place = rng.randrange(1, len(word) - 1)
    return rng.choice(
        (
            word[:place] + word[place + 1] + word[place] + word[place + 2 :],
            word[:place] + word[place + 1 :],
            word[:place] + word[place] + word[place:],
        )
    )
