"""A harmless and a harmful answer to each question, and what is not used of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from protector_guardrails.asking import Asker, Detect
from protector_guardrails.data_building.prompts import accepted_prompt, stand_in_prompt
from protector_guardrails.data_building.questions import Question
from protector_guardrails.data_building.replies import UnusableReplyError, answer_in
from protector_guardrails.data_building.rows import PairRow
from protector_guardrails.detectors.base import HarmDetector
from protector_guardrails.evaluation.refusals import is_refusal
from protector_guardrails.training.data import normalise
from protector_guardrails.types import Exchange, Verdict

if TYPE_CHECKING:
    from protector_guardrails.data_building.requests import Requests
    from protector_guardrails.evaluation.defense.mllms import Mllm

FAILED = "the model failed"

_JUDGED_AT_A_TIME = 32


@dataclass(frozen=True, slots=True)
class LeftOut:
    """A question that did not become a pair; a line of ``left_out.jsonl``.

    Attributes:
        question: What was asked.
        scenario: What it was written for.
        reason: Why it is not used.
        harmful_response: The harmful answer, if there is one.
        harmless_response: The harmless answer, if there is one.
    """

    question: str
    scenario: str
    reason: str
    harmful_response: str | None = None
    harmless_response: str | None = None


@dataclass(frozen=True, slots=True)
class Replies:
    """What the models replied, by :attr:`~.questions.Question.key`; one that failed replied nothing.

    Attributes:
        harmless: To the prompt for a harmless answer.
        harmful: To the prompt for a stand-in, or to the bare question.
        model: Who wrote the harmless ones.
        harmful_model: Who wrote the harmful ones.
    """

    harmless: Mapping[str, str]
    harmful: Mapping[str, str]
    model: str
    harmful_model: str


def ask_answers(questions: Sequence[Question], requests: Requests, *, writer: Mllm, rejecting: Mllm | None) -> Replies:
    """Have both answers to each question written.

    Args:
        questions: The questions; their keys differ.
        requests: Puts prompts to models.
        writer: Writes the harmless answers, and mild stand-ins for the harmful ones.
        rejecting: Answers the bare questions instead, whatever comes of it; it gets no prompt of ours.
    """
    harmless = requests.ask(
        writer,
        {f"harmless/{question.key}": accepted_prompt(question.text) for question in questions},
        what="harmless answers",
    )
    harmful = requests.ask(
        rejecting or writer,
        {
            f"harmful/{question.key}": stand_in_prompt(question.text) if rejecting is None else question.text
            for question in questions
        },
        what="harmful answers",
    )
    return Replies(
        harmless={name.partition("/")[2]: reply for name, reply in harmless.items()},
        harmful={name.partition("/")[2]: reply for name, reply in harmful.items()},
        model=writer.name,
        harmful_model=(rejecting or writer).name,
    )


def pair_up(
    questions: Sequence[Question], replies: Replies, *, source: str, licence: str
) -> tuple[list[PairRow], list[LeftOut]]:
    """The pairs of questions that got both answers in a usable form, and the other questions."""
    pairs: list[PairRow] = []
    left_out: list[LeftOut] = []
    for question in questions:
        harmless, no_harmless = _answer(replies.harmless.get(question.key), "harmless answer")
        harmful, no_harmful = _answer(replies.harmful.get(question.key), "harmful answer")
        reason = no_harmless or no_harmful
        if harmless is None or harmful is None:
            pass
        elif is_refusal(harmful):
            reason = "harmful answer: a refusal"
        elif normalise(harmful) == normalise(harmless):
            reason = "both answers are the same"
        else:
            pairs.append(
                PairRow(
                    id=f"{source}-{question.key}",
                    source=source,
                    license=licence,
                    question=question.text,
                    harmful_response=harmful,
                    harmless_response=harmless,
                    scenario=question.scenario.name,
                    category=question.scenario.category,
                    model=replies.model,
                    harmful_model=replies.harmful_model,
                )
            )
            continue
        left_out.append(LeftOut(question.text, question.scenario.name, reason or "", harmful, harmless))
    return pairs, left_out


def without_harm(
    pairs: Sequence[PairRow], detector: HarmDetector, *, judged: Callable[[int], None]
) -> tuple[list[PairRow], list[LeftOut]]:
    """The pairs whose harmless answer a detector finds harmless, and the others; unjudged ones are among the others.

    Args:
        pairs: The pairs.
        detector: What judges; it sees question and answer.
        judged: Is told how many more were judged.
    """
    good: list[PairRow] = []
    left_out: list[LeftOut] = []
    asker = Asker(timeout_s=None)
    for start in range(0, len(pairs), _JUDGED_AT_A_TIME):
        batch = pairs[start : start + _JUDGED_AT_A_TIME]
        exchanges = [Exchange(question=pair.question, response=pair.harmless_response) for pair in batch]
        for pair, verdict in zip(batch, asker.run(asker.ask(Detect(detector, exchanges))), strict=True):
            if isinstance(verdict, Verdict) and not verdict.harmful and verdict.score < verdict.threshold:
                good.append(pair)
                continue
            reason = "found harmful" if isinstance(verdict, Verdict) else "the detector failed"
            left_out.append(
                LeftOut(
                    pair.question or "",
                    pair.scenario or "",
                    f"harmless answer: {reason}",
                    pair.harmful_response,
                    pair.harmless_response,
                )
            )
        judged(len(batch))
    return good, left_out


def _answer(reply: str | None, what: str) -> tuple[str | None, str | None]:
    """The answer in a reply, or why there is none."""
    if reply is None:
        return None, f"{what}: {FAILED}"
    try:
        return answer_in(reply), None
    except UnusableReplyError as error:
        return None, f"{what}: {error}"
