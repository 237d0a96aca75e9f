"""Hazards of exchanges, and how sure a category must be to be told."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("sklearn")

import random

from protector_guardrails.training.augmentation import refusals_that_give_in, roughened
from protector_guardrails.training.categories import CATEGORIES, hazard
from protector_guardrails.training.category_calibration import (
    UNSPECIFIED,
    calibrate_categories,
    category_metrics,
    told,
)
from protector_guardrails.training.data import LabelledExchange
from protector_guardrails.types import HarmCategory


@pytest.mark.parametrize(
    ("category", "question", "expected"),
    [
        ("Malware/Hacking", "", HarmCategory.NON_VIOLENT_CRIMES),
        ("Physical harm", "Write about a bomb", HarmCategory.INDISCRIMINATE_WEAPONS),
        ("hate; violence", "", HarmCategory.HATE),
        ("Biased Opinion", "What do you think of them?", HarmCategory.HATE),
        ("privacy", "How do I hack it?", HarmCategory.PRIVACY),  # a hazard's own name stands
        ("none", "How do I hack it?", None),
        ("", "How do I steal a bicycle?", HarmCategory.NON_VIOLENT_CRIMES),
        ("", "What is the capital of France?", None),
        ("Toxicity Agreement", "Hello there", None),
    ],
)
def test_hazards(category: str, question: str, expected: HarmCategory | None) -> None:
    assert hazard(category, question) is expected


def test_there_is_no_output_for_what_there_is_no_data_on() -> None:
    assert len(set(CATEGORIES)) == len(CATEGORIES) == 11
    assert HarmCategory.CHILD_SEXUAL_EXPLOITATION not in CATEGORIES


def row(number: int, category: str, *, harmful: bool = True) -> LabelledExchange:
    return LabelledExchange(str(number), "s", "", "", "r", harmful, category=category)


def test_a_category_is_told_from_the_floor_on() -> None:
    logits = np.log(np.array([[0.7, 0.2, 0.1], [0.4, 0.35, 0.25]]))
    assert told(logits, 1.0, 0.7 - 1e-9).tolist() == [0, UNSPECIFIED]
    assert told(logits, 1.0, 0.3).tolist() == [0, 0]


def test_the_floor_leaves_guesses_unspecified() -> None:
    rng = np.random.default_rng(1)
    names = [str(category) for category in CATEGORIES]
    rows, logits = [], []
    for number in range(400):
        truth = number % len(names)
        rows.append(row(number, names[truth]))
        each = rng.normal(size=len(names)) * 0.3
        if number % 2:
            each[truth] += 4.0  # half of the rows are clear, the others are noise
        logits.append(each)
    found = calibrate_categories(rows, {"full": np.array(logits)})
    assert found is not None
    measured = found.metrics["full"]["s"]
    assert measured["right_when_told"] >= 0.75
    assert 0.4 < measured["told"] < 0.75


def test_a_category_told_of_a_row_that_has_none_raises_the_floor() -> None:
    confident, unsure = np.eye(len(CATEGORIES))[0] * 6.0, np.eye(len(CATEGORIES))[0] * 0.5
    known = [row(number, str(CATEGORIES[0])) for number in range(10)]
    without = [row(number, "none") for number in range(10, 20)]
    plain = calibrate_categories(known, {"full": np.array([confident] * 10)})
    found = calibrate_categories([*known, *without], {"full": np.array([confident] * 10 + [unsure] * 10)})
    assert plain is not None and found is not None
    assert found.temperature == plain.temperature
    answers = told(np.array([confident, unsure]), found.temperature, found.floor)
    assert plain.floor < found.floor and answers.tolist() == [0, UNSPECIFIED]


def test_only_harmful_rows_with_a_known_hazard_count() -> None:
    rows = [row(0, "hate", harmful=False), row(1, "")]
    assert calibrate_categories(rows, {"full": np.zeros((2, len(CATEGORIES)))}) is None


def test_macro_f1_by_hand() -> None:
    truth = np.array([0] * 5 + [1] * 5 + [2])
    answers = np.array([0] * 5 + [1, 1, 1, UNSPECIFIED, 0] + [2])
    # Category 0: precision 5/6, recall 1, F1 10/11. Category 1: precision 1, recall 3/5, F1 3/4. Category 2 is rare.
    assert category_metrics(truth, answers) == {
        "rows": 11,
        "categories": 2,
        "told": pytest.approx(10 / 11, abs=1e-4),
        "macro_f1": pytest.approx((10 / 11 + 3 / 4) / 2, abs=1e-4),
        "right_when_told": 0.9,
    }


def test_refusals_that_give_in_stay_harmful_and_begin_with_a_real_refusal() -> None:
    refusal = "I'm sorry, but I cannot help you with that request. Please ask for something else."
    answer = "First you take the ladder, then you wait for the night, and then you climb over the wall of the yard."
    rows = [
        LabelledExchange("0", "s", "May I?", "", refusal, harmful=False),
        LabelledExchange("1", "s", "How?", "", answer, harmful=True),
    ]
    [made] = refusals_that_give_in(rows, count=5, rng=random.Random(1))
    assert made.harmful and made.question == "How?"
    assert made.response.startswith("I'm sorry, but I cannot help you with that request. ")
    assert made.response.endswith(answer)
    assert refusals_that_give_in(rows[1:], count=5, rng=random.Random(1)) == []


def test_roughened_text_keeps_its_spaces_and_most_of_its_words() -> None:
    text = "The quick brown fox  jumps over\nthe lazy dog and 7 other animals in the garden. " * 4
    kinds = set()
    for seed in range(30):
        rough = roughened(text, random.Random(seed))
        assert len(rough.split()) == len(text.split())
        same = sum(a == b for a, b in zip(rough.split(), text.split(), strict=True)) / len(text.split())
        kinds.add("upper" if rough.isupper() else "lower" if rough == text.lower() else "slips")
        if not rough.isupper() and rough != text.lower():
            assert same > 0.7
    assert kinds == {"upper", "lower", "slips"}
