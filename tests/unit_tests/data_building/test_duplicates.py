"""Near duplicates are found exactly: held against a comparison of all with all."""

from __future__ import annotations

import re
import time
from fractions import Fraction

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from protector_guardrails.data_building.duplicates import near_duplicates

WORDS = st.lists(st.sampled_from(["a", "b", "C", "d!", "é"]), max_size=9).map(" ".join)


def jaccard(one: str, other: str) -> Fraction:
    """By definition, on tuples of words; texts without words are like nothing."""

    def runs(text: str) -> set[tuple[str, ...]]:
        words = re.findall(r"\w+", text.lower())
        return {tuple(words[at : at + 3]) for at in range(len(words) - 2)} or ({tuple(words)} if words else set())

    a, b = runs(one), runs(other)
    return Fraction(len(a & b), len(a | b)) if a | b else Fraction(0)


def all_with_all(texts: list[str], threshold: Fraction) -> list[int | None]:
    results: list[int | None] = []
    for place, text in enumerate(texts):
        kept = (earlier for earlier in range(place) if results[earlier] is None)
        results.append(next((earlier for earlier in kept if jaccard(texts[earlier], text) >= threshold), None))
    return results


@given(st.lists(WORDS, max_size=12), st.integers(1, 20))
@example(["a b C d! é a b C d! é"] * 2, 14)
def test_as_a_comparison_of_all_with_all(texts, twentieths):
    threshold = Fraction(twentieths, 20)
    assert near_duplicates(texts, threshold=float(threshold)) == all_with_all(texts, threshold)


@given(st.lists(st.text(max_size=40), max_size=8))
def test_what_is_kept_stays_when_more_is_added(texts):
    whole = near_duplicates([*texts, *texts])
    assert whole[: len(texts)] == near_duplicates(texts)
    for text, like in zip(texts, whole[len(texts) :], strict=True):
        assert like is not None or not re.findall(r"\w+", text.lower())


def test_words_count_and_not_their_dress():
    texts = [
        "Is it safe to eat these raw?",
        "is it SAFE, to eat these - raw",
        "Is it safe?",
        "Is it?",
        "is it",
        "?!",
        "?!",
    ]
    assert near_duplicates(texts) == [None, 0, None, None, 3, None, None]


@pytest.mark.parametrize("beginning", ["How do I ", ""])
def test_thousands_of_questions_take_seconds(beginning):
    names = [
        f"{beginning}w{number % 91} x{number % 89} y{number % 83} z{number} v{number % 7}?" for number in range(8000)
    ]
    started = time.process_time()
    assert near_duplicates(names) == [None] * 8000
    assert time.process_time() - started < 10
