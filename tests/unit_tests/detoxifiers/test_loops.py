"""Recognising a text that goes round in circles."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protector_guardrails.detoxifiers.echo import loop_share

words = st.lists(st.sampled_from(["alpha", "beta", "gamma", "delta"]), max_size=30)


@given(words, st.integers(1, 6))
def test_it_counts_the_runs_that_stood_before(said, n):
    runs = [tuple(said[i : i + n]) for i in range(len(said) - n + 1)]
    again = sum(run in runs[:i] for i, run in enumerate(runs))
    assert loop_share(" ".join(said), n=n) == pytest.approx(again / len(runs) if runs else 0.0)


@given(st.lists(st.integers(), unique=True, max_size=40))
def test_what_says_nothing_twice_has_none(numbers):
    assert loop_share(" ".join(f"word{number:x}".replace("-", "m") for number in numbers)) == 0.0


def test_case_and_punctuation_do_not_hide_a_loop():
    assert loop_share("No, I will not do that. no i WILL not do that!", n=3) == pytest.approx(0.4)


def test_a_run_has_at_least_one_word():
    with pytest.raises(ValueError, match="at least 1"):
        loop_share("a b c", n=0)
