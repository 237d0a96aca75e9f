"""Long answers whose harm sits in one passage, made from rows that have been labelled."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import replace

from protector_guardrails.training.data import LabelledExchange

HOST_WORDS = range(40, 221)
"""Words of a harmless answer that a passage is put into; more would not fit the windows of one step."""
PASSAGE_WORDS = range(4, 61)
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
