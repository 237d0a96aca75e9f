"""Figures in words and in percent say what they stand for."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protector_guardrails.evaluation.report import figures
from protector_guardrails.evaluation.results import Estimate


def spaced(text: str) -> str:
    return text.replace("\u00a0", " ")


@pytest.mark.parametrize(
    ("share", "of", "words"),
    [
        (0.9, 2000, "9 in 10"),
        (0.005, 2000, "about 1 in 200"),
        (0.00471, 1723, "about 1 in 210"),
        (0.0812, 2598, "about 1 in 12"),
        (0.538, 853, "about 54 in 100"),
        (0.897, 853, "about 9 in 10"),
        (0.9951, 4000, "about 199 in 200"),
        (0.9604, 4000, "about 96 in 100"),
        (0.0, 300, "none of 300"),
        (1.0, 1300, "all 1,300"),
        (7 / 9, 9, "7 of 9"),
        (0.0, 5, "none of 5"),
    ],
)
def test_a_share_in_words(share, of, words):
    shown = figures.out_of(Estimate(value=share), of)
    assert shown.removeprefix("about ") == words.removeprefix("about ")


@given(st.integers(50, 100_000).flatmap(lambda of: st.tuples(st.integers(0, of), st.just(of))))
def test_words_never_mislead(counts):
    hits, of = counts
    words = figures.out_of(Estimate(value=hits / of), of)
    if hits in (0, of):
        assert words == (f"none of {of:,}" if hits == 0 else f"all {of:,}")
        return
    part, whole = (int(number.replace(",", "")) for number in re.findall(r"[\d,]+", words))
    assert 0 < part < whole
    shown, share = part / whole, hits / of
    assert abs(shown - share) <= 0.0151
    rare, told = min(share, 1 - share), min(shown, 1 - shown)
    if share < 0.1 or share > 0.99:
        assert told == pytest.approx(rare, rel=0.06)
    assert ("about" in words) == (abs(shown - share) > 1e-9)


@given(st.floats(0, 1))
def test_percentages_are_off_by_rounding_only_and_never_claim_all_or_nothing(share):
    for form, digits in ((figures.percent, 0.0501), (figures.brief, 0.501)):
        shown = spaced(form(share))
        number = float(re.search(r"[\d.]+", shown)[0])
        if shown.startswith(("<", ">")):
            assert share < 0.0005 or share > 0.9994
        else:
            assert abs(number - 100 * share) <= digits
        assert (shown == "0 %") == (share == 0)
        assert (shown == "100 %") == (share == 1)


def test_a_figure_without_an_interval_says_why():
    cell = figures.share(Estimate(value=0.5, reason="too few"))
    assert (spaced(cell.text), cell.interval, cell.reason) == ("50.0 %", "", "too few")
    cell = figures.number(Estimate(reason="no harmful answers"))
    assert (cell.text, cell.reason) == ("–", "no harmful answers")
    assert figures.share(Estimate()).reason


def test_a_difference_may_be_negative():
    cell = figures.number(Estimate(value=-0.0123, low=-0.02, high=0.001))
    assert (cell.text, cell.interval) == ("−0.012", "−0.020 to 0.001")
    assert figures.number(Estimate(value=-0.0001)).text == "0.000"


def test_times_are_told_in_utc():
    moment = datetime(2026, 1, 2, 1, 30, tzinfo=timezone(timedelta(hours=2)))
    assert figures.moment(moment) == "2026-01-01 23:30 UTC"
    assert figures.moment(datetime(2026, 1, 1, tzinfo=UTC).replace(tzinfo=None)) == "2026-01-01 00:00 UTC"


@pytest.mark.parametrize(
    ("time", "words"), [(0.0, "0.0 ms"), (0.004, "< 0.1 ms"), (9.64, "9.6 ms"), (99.9, "99.9 ms"), (1840.2, "1,840 ms")]
)
def test_times(time, words):
    assert spaced(figures.milliseconds(time).text) == words
