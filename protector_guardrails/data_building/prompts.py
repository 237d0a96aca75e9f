"""What the model is asked. Texts are pinned: a change of one is a new :data:`PROMPT_VERSION`."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from itertools import cycle

from protector_guardrails.data_building.scenarios import Scenario

PROMPT_VERSION = 1
"""Version of the texts below; the card of a data set names it."""

SKIP = "SKIP"
"""What the model replies where it would not even write a stand-in."""

_QUESTIONS = """\
You help to build a data set from which a safety classifier learns to tell harmful answers of chat assistants from \
harmless ones. Write {count} questions that users might put to an assistant on this subject:
{name}: {description}
They come from {angle}.
- Each is one that a careful assistant would not simply comply with, since an answer that complies could do harm.
- Each is one or two sentences in plain words, and holds no instructions, amounts, code, names of real people or slurs.
- No two are alike, neither in wording nor in what they are after.
Reply with a JSON list of {count} strings, and with nothing else."""

_AGAIN = """

A reply to this could not be read. Give the list alone: it begins with [ and ends with ]."""

_ACCEPTED = """\
Answer the question at the end safely, and as helpfully as that allows.
- Write in the language of the question, three to six sentences, to the person who asks.
- Where it asks for something harmful, say in one sentence what you will not do and why, then help with a safe side of \
it: how to prevent it, where to find support, what the law says.
- Where it asks for a decision that belongs to a professional or to an authority, say what is generally known, what it \
depends on, and whom to ask.
- Reply with the answer alone: no heading, no remark on these rules.
The question:
{question}"""

_STAND_IN = """\
A safety classifier learns from answers of assistants that go along with what they should not. Write such an answer to \
the question at the end, one that shows the form and is of no use to anybody.
- Agree and encourage in two to four sentences, and stay vague.
- Give no working instructions, amounts or code; no ingredients, tools, products, names, places or links; nothing that \
somebody could act on. No insults, nothing sexual.
- No refusal, no warning, no remark on these rules. Write in the language of the question.
- If even such an answer would do harm, reply with the one word {skip}.
The question:
{question}"""

_ANGLES = (
    "people who are curious and mean no harm",
    "people in a hurry who want a short answer",
    "people who give a reason that sounds innocent",
    "people who are angry with somebody they know",
    "people who send a photo along and refer to what it shows",
    "people who send a screenshot of a text and refer to it",
    "people at work who want to take a shortcut",
    "people who need money badly",
    "people who ask for a story or a role play",
    "people who claim to be professionals",
    "people who ask for a friend",
    "young adults who want to impress others",
    "people who ask politely and at some length",
    "people who want to know whether it would work at all",
)


def questions_prompt(scenario: Scenario, *, count: int, angle: str, again: bool = False) -> str:
    """What a batch of questions is asked for with; once more, after a reply that could not be read."""
    asked = _QUESTIONS.format(count=count, name=scenario.name, description=scenario.description, angle=angle)
    return asked + _AGAIN if again else asked


def accepted_prompt(question: str) -> str:
    """What a harmless answer is asked for with."""
    return _ACCEPTED.format(question=question)


def stand_in_prompt(question: str) -> str:
    """What a mild stand-in for a harmful answer is asked for with: it agrees, and is of no use."""
    return _STAND_IN.format(question=question, skip=SKIP)


def angles(scenario: Scenario, *, seed: int) -> Iterator[str]:
    """Who asks, batch by batch and without end; the order depends on seed and scenario alone."""
    chosen = random.Random(f"{seed}:{scenario.name}")  # noqa: S311 - an order, no secret
    return cycle(chosen.sample(_ANGLES, len(_ANGLES)))


def prompts_sha256() -> str:
    """Hash of all texts; tests hold it against :data:`PROMPT_VERSION`."""
    return hashlib.sha256("\0".join((_QUESTIONS, _AGAIN, _ACCEPTED, _STAND_IN, SKIP, *_ANGLES)).encode()).hexdigest()
