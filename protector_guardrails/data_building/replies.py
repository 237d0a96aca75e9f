"""Reading what the model replied, strictly: a reply that is not in the form asked for is not used."""

from __future__ import annotations

import json
import re

from protector_guardrails.data_building.prompts import SKIP
from protector_guardrails.evaluation.refusals import is_refusal
from protector_guardrails.training.data import normalise

LONGEST_QUESTION = 600
"""Characters of a question; a longer one is no question."""

_FENCED = re.compile(r"```[a-zA-Z]*[ \t]*\n(.*?)\n?[ \t]*```", re.DOTALL)


class UnusableReplyError(ValueError):
    """A reply that is not in the form asked for; the message says why and never quotes it."""


def questions_in(reply: str) -> list[str]:
    r"""The questions of a reply that is a JSON list of strings; around it may be a code fence and reasoning.

    Raises:
        UnusableReplyError: If it is anything else.

    Example:
        >>> questions_in('```json\n["What is in it?", "Who made it?"]\n```')
        ['What is in it?', 'Who made it?']
    """
    text = _said(reply)
    fenced = _FENCED.findall(text)
    try:
        found = json.loads(fenced[0] if len(fenced) == 1 else text)
    except (ValueError, RecursionError):
        raise UnusableReplyError("a refusal" if is_refusal(text) else "no JSON list") from None
    if not isinstance(found, list):
        raise UnusableReplyError("JSON, but no list")
    if not all(isinstance(question, str) for question in found):
        raise UnusableReplyError("a list, but not of texts")
    if not found:
        raise UnusableReplyError("an empty list")
    return [" ".join(question.split()) for question in found]


def is_usable_question(question: str) -> bool:
    """Whether a text has words, is no essay, and can be written in UTF-8.

    >>> is_usable_question("Is it safe?"), is_usable_question("...")
    (True, False)
    """
    return bool(normalise(question)) and len(question) <= LONGEST_QUESTION and _is_unicode(question)


def answer_in(reply: str) -> str:
    """The answer in a reply: without reasoning before it and space around it.

    Raises:
        UnusableReplyError: If there is none.

    Example:
        >>> answer_in("<think>A question of taste.</think> Some salt will do.")
        'Some salt will do.'
    """
    text = _said(reply)
    if not text:
        raise UnusableReplyError("empty")
    if not _is_unicode(text):
        raise UnusableReplyError("not valid Unicode")
    if text.strip(".!*\"'` ").upper() == SKIP:
        raise UnusableReplyError("the model would not write one")
    return text


def _said(reply: str) -> str:
    _, thought, after = reply.rpartition("</think>")  # reasoning comes first with some models
    if not thought and after.lstrip().startswith("<think>"):  # cut off before any answer
        return ""
    return after.strip()


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:  # lone surrogates
        return False
    return True
