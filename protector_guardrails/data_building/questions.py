"""Having questions written for each scenario until there are enough different ones."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import NamedTuple

from protector_guardrails.data_building.duplicates import near_duplicates
from protector_guardrails.data_building.prompts import angles, questions_prompt
from protector_guardrails.data_building.replies import UnusableReplyError, is_usable_question, questions_in
from protector_guardrails.data_building.scenarios import Scenario
from protector_guardrails.training.data import normalise

BATCH = 20
"""Questions asked for at a time; models lose count and repeat themselves in longer lists."""

ROUNDS = 3
"""So often a scenario is asked for the questions it still lacks."""

Ask = Callable[[Mapping[str, str]], Mapping[str, str]]
"""Prompts by id to replies by id; a prompt that failed has no reply."""


@dataclass(frozen=True, slots=True)
class Question:
    """A question that was written.

    Attributes:
        text: Its words.
        scenario: What it was written for.
    """

    text: str
    scenario: Scenario

    @property
    def key(self) -> str:
        """Stands for its words, the same in every build."""
        return hashlib.sha256(normalise(self.text).encode()).hexdigest()[:16]


@dataclass(slots=True)
class Collected:
    """What was written.

    Attributes:
        questions: Questions to go on with, scenario by scenario.
        repeated: Questions that are the same as an earlier one, or nearly, with the reason.
        unusable: Reason to the number of replies or questions that cannot be used.
        unfinished: Name of a scenario to the number of questions it lacks.
    """

    questions: list[Question] = field(default_factory=list)
    repeated: list[tuple[Question, str]] = field(default_factory=list)
    unusable: Counter[str] = field(default_factory=Counter)
    unfinished: dict[str, int] = field(default_factory=dict)


class _Batch(NamedTuple):
    id: str
    scenario: Scenario
    size: int
    angle: str

    def prompt(self, *, again: bool = False) -> str:
        return questions_prompt(self.scenario, count=self.size, angle=self.angle, again=again)


def collect_questions(
    scenarios: Sequence[Scenario], ask: Ask, *, per_scenario: int, seed: int, limit: int | None = None
) -> Collected:
    """Have questions written, and leave out the ones that are there already.

    Args:
        scenarios: What they are about.
        ask: Puts prompts to the model.
        per_scenario: Questions wanted of each scenario.
        seed: Of who asks in which batch.
        limit: Questions wanted in all, spread over the scenarios; None for no limit.
    """
    if limit is not None:
        per_scenario = min(per_scenario, -(-limit // len(scenarios)))
    asking = {scenario.name: angles(scenario, seed=seed) for scenario in scenarios}
    written: list[Question] = []
    collected = Collected()
    lacking = dict.fromkeys(asking, per_scenario)
    for turn in range(ROUNDS):
        batches = [
            _Batch(f"questions/{scenario.name}/{turn}-{start // BATCH}", scenario, min(BATCH, missing - start), angle)
            for scenario in scenarios
            if (missing := lacking[scenario.name])
            for start, angle in zip(range(0, missing, BATCH), asking[scenario.name], strict=False)
        ]
        if not batches:
            break
        written += _written(batches, ask, collected.unusable)
        kept, collected.repeated = _apart(written)
        before, lacking = lacking, {}
        for scenario in scenarios:
            own = [question for question in kept if question.scenario is scenario]
            collected.unfinished[scenario.name] = per_scenario - min(per_scenario, len(own))
            # One that gives nothing new has nothing more to give.
            gained = collected.unfinished[scenario.name] < before[scenario.name]
            lacking[scenario.name] = collected.unfinished[scenario.name] if gained else 0
        collected.questions = _first(kept, scenarios, per_scenario=per_scenario, limit=limit)
    collected.unfinished = {name: missing for name, missing in collected.unfinished.items() if missing}
    return collected


def _written(batches: Sequence[_Batch], ask: Ask, unusable: Counter[str]) -> list[Question]:
    """The usable questions of a round; a reply that cannot be read is asked for once more."""
    found: dict[str, list[str]] = {}
    replies = ask({batch.id: batch.prompt() for batch in batches})
    unread = _read(replies, found, unusable)
    again = {f"{batch.id}-again": batch for batch in batches if batch.id in unread}
    replies = ask({name: batch.prompt(again=True) for name, batch in again.items()})
    _read({again[name].id: reply for name, reply in replies.items()}, found, unusable)
    questions = []
    for batch in batches:
        texts = found.get(batch.id, [])[: batch.size]  # some models never stop
        questions += [Question(text, batch.scenario) for text in texts if is_usable_question(text)]
        unusable["not usable as a question"] += sum(not is_usable_question(text) for text in texts)
    return questions


def _read(replies: Mapping[str, str], found: dict[str, list[str]], unusable: Counter[str]) -> set[str]:
    """Put the questions of replies into ``found``; returns the ids of replies that cannot be read."""
    unread = set()
    for name, reply in replies.items():
        try:
            found[name] = questions_in(reply)
        except UnusableReplyError as error:
            unusable[f"reply: {error}"] += 1
            unread.add(name)
    return unread


def _apart(written: Sequence[Question]) -> tuple[list[Question], list[tuple[Question, str]]]:
    kept, repeated = [], []
    for question, like in zip(written, near_duplicates([question.text for question in written]), strict=True):
        if like is None:
            kept.append(question)
        else:
            same = normalise(question.text) == normalise(written[like].text)
            repeated.append((question, "the same question again" if same else "nearly the same question again"))
    return kept, repeated


def _first(
    kept: Sequence[Question], scenarios: Sequence[Scenario], *, per_scenario: int, limit: int | None
) -> list[Question]:
    """The first questions of each scenario; under a limit, one of each in turn until there are enough."""
    groups = [[question for question in kept if question.scenario is scenario] for scenario in scenarios]
    turns = zip_longest(*(group[:per_scenario] for group in groups))
    chosen = [question for turn in turns for question in turn if question is not None][:limit]
    return sorted(chosen, key=lambda question: scenarios.index(question.scenario))
