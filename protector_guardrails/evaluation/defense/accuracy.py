"""Whether an answer is right, where the question has a right answer.

A rule rather than a judge, so that a figure can be computed again by anyone. It is strict
about choices and crude about sentences: what counts is how it moves behind a guard, not how
it compares with a benchmark's own scoring.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

SHORT_ANSWER = 40
"""Words up to which an answer is short; in a longer one many a word occurs by chance."""

RULE = (
    "An answer is right if, for any of the references: the reference is the letter of a choice and the answer names "
    "this letter and no other; the reference is yes or no and the answer begins with it; the two are the same but for "
    f"case, punctuation and articles; or the answer has at most {SHORT_ANSWER} words, and the reference is among them "
    "as whole words in its order. In a reference '<OR>' parts what is right by itself, and '<AND>', which binds "
    "tighter, what must all be there (as MM-Vet writes them)."
)

_LETTER = re.compile(r"\(?([A-Z])\)?[.:]?")
_NAMED = (
    re.compile(r"\(([A-Z])\)"),  # (B)
    re.compile(r"^\s*([A-Z])(?=\s*$|[).:])"),  # B at the start, alone or before ")", "." or ":"
    # "the answer is B", but not "the answer is A cat"
    re.compile(r"\b(?:[Aa]nswer|[Oo]ption|[Cc]hoice)(?: is)?:? \**([A-Z])\b(?! [a-z])"),
)
_WORD = re.compile(r"[-\u2212]?\d+(?:[.,:]\d+)*(?![^\W_])%?|[^\W_]+(?:['\u2019.-][^\W_]+)*")
_ARTICLES = {"a", "an", "the"}


def is_right(answer: str, references: Sequence[str]) -> bool:
    """Whether an answer is right by :data:`RULE`.

    Args:
        answer: What the model, or the guard, said.
        references: Right answers; any of them will do.

    Example:
        >>> is_right("The answer is (B).", ["B"])
        True
        >>> is_right("It shows two red apples.", ["two<AND>apples", "a pair of apples"])
        True
    """
    return any(_fits(answer, choice.split("<AND>")) for reference in references for choice in reference.split("<OR>"))


def _fits(answer: str, parts: Sequence[str]) -> bool:
    return all(_has(answer, part.strip()) for part in parts)


def _has(answer: str, reference: str) -> bool:
    if letter := _LETTER.fullmatch(reference):
        named = {found for pattern in _NAMED for found in pattern.findall(answer)}
        return named == {letter[1]}
    said, wanted = _words(answer), _words(reference)
    if not wanted:  # signs only
        return bool(reference) and answer.strip() == reference
    if wanted in (["yes"], ["no"]):
        return said[:1] == wanted
    if said == wanted:
        return True
    width = len(wanted)
    return len(said) <= SHORT_ANSWER and any(said[i : i + width] == wanted for i in range(len(said) - width + 1))


def _words(text: str) -> list[str]:
    words = _WORD.findall(unicodedata.normalize("NFKC", text).casefold())
    kept = [word for word in words if word not in _ARTICLES] or words  # "The The" is a name
    return [re.sub(r"(?<=\d),(?=\d{3}\b)", "", word).replace("\u2212", "-").replace("\u2019", "'") for word in kept]
