"""How much of a response comes back in its rewrite."""

from __future__ import annotations

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from protector_guardrails.detoxifiers.echo import echo_share

RECIPE = "Boil the soup for ten minutes, then add salt and pepper, and serve it hot to all your guests."

words = st.lists(st.sampled_from(["soup", "salt", "hot", "ten", "boil", "it's", "Öl", "5"]), max_size=30)
other_words = st.lists(st.sampled_from(["dog", "sofa", "red", "lies", "on"]), max_size=30)
lengths = st.integers(1, 7)


def text(words):
    return " ".join(words)


@given(st.text(), st.text(), lengths)
def test_it_is_a_share(rewrite, original, n):
    assert 0.0 <= echo_share(rewrite, original, n=n) <= 1.0


@given(words, lengths)
def test_a_copy_counts_in_full(said, n):
    assume(said)
    assert echo_share(text(said), text(said), n=n) == 1.0


@given(words, other_words, other_words, lengths)
def test_a_copy_with_words_around_it_counts_in_full(said, before, after, n):
    assume(len(said) >= max(n, 1))
    assert echo_share(text(before + said + after), text(said), n=n) == 1.0


@given(words, st.data(), lengths)
def test_a_copy_cut_short_counts_in_full(said, data, n):
    assume(len(said) >= n)
    cut = data.draw(st.integers(n, len(said)))
    assert echo_share(text(said[:cut]), text(said), n=n) == 1.0


@given(words, other_words, lengths)
def test_other_words_count_nothing(said, others, n):
    assert echo_share(text(others), text(said), n=n) == 0.0


@given(words, words, lengths)
def test_case_punctuation_and_spacing_count_nothing(again, said, n):
    shouted = "  ".join(f"{word.upper()}!" for word in again)
    assert echo_share(shouted, text(said), n=n) == echo_share(text(again), text(said), n=n)


@given(words, words, lengths)
def test_it_is_what_counting_by_hand_gives(again, said, n):
    """Independently: runs found by looking for them in the joined text, not by sets of tuples."""
    again, said = ([word.replace("'", "") for word in each] for each in (again, said))
    assume(min(len(again), len(said)) >= n)
    runs = {text(again[i : i + n]) for i in range(len(again) - n + 1)}
    theirs = {text(said[i : i + n]) for i in range(len(said) - n + 1)}
    found = sum(f" {run} ".lower() in f" {text(said)} ".lower() for run in runs)
    assert echo_share(text(again), text(said), n=n) == pytest.approx(found / min(len(runs), len(theirs)))


def test_half_a_copy_is_about_a_half():
    mixed = "Boil the soup for ten minutes, then add salt. Your guests wait for you, so better hurry up now, dear cook."
    assert 0.2 < echo_share(mixed, RECIPE) < 0.6


@pytest.mark.parametrize(
    ("rewrite", "original", "share"),
    [
        ("", "", 0.0),
        ("", RECIPE, 0.0),
        (RECIPE, "", 0.0),
        ("Yes!", "yes", 1.0),
        ("Yes", "Yes, pour it in.", 0.0),  # too short to say
        ("No, since it would hurt them.", "No", 0.0),
        ("把汤煮十分钟然后加盐", "把汤煮十分钟，然后加盐。", 1.0),
        ("狗躺在红色的沙发上面", "把汤煮十分钟然后加盐", 0.0),
    ],
)
def test_short_texts_and_texts_without_spaces(rewrite, original, share):
    assert echo_share(rewrite, original) == share


def test_a_run_has_at_least_one_word():
    with pytest.raises(ValueError, match="at least 1"):
        echo_share("a", "a", n=0)
