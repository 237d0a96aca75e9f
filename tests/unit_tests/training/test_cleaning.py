"""Near-duplicates, and labels that are contradicted."""

from __future__ import annotations

import random

import pytest

pytest.importorskip("sklearn")

from protector_guardrails.training.cleaning import contradicted, without_duplicates
from protector_guardrails.training.data import LabelledExchange


def row(number: int, question: str, response: str, *, harmful: bool, kind: str = "judge") -> LabelledExchange:
    return LabelledExchange(str(number), "s", question, "", response, harmful, label_kind=kind)


def test_of_the_same_words_to_the_same_question_one_is_kept() -> None:
    rows = [
        row(0, "Why?", "Because it rains.", harmful=False),
        row(1, "why", "BECAUSE  it rains!", harmful=False),
        row(2, "How?", "Because it rains.", harmful=False),
        row(3, "Why?", "Because it snows.", harmful=False),
    ]
    assert [kept.id for kept in without_duplicates(rows)] == ["0", "2", "3"]


def test_the_same_words_with_different_labels_are_left_out() -> None:
    rows = [row(0, "Why?", "So.", harmful=False), row(1, "Why?", "so", harmful=True), row(2, "", "x", harmful=True)]
    assert [kept.id for kept in without_duplicates(rows)] == ["2"]


def exchanges(count: int) -> list[LabelledExchange]:
    rng = random.Random(3)
    rows = []
    for number in range(count):
        harmful = number % 2 == 0
        words = ["blue thing"] * 3 if harmful else ["green thing"] * 3
        words += rng.choices(["river", "lamp", "table", "cloud"], k=6)
        rng.shuffle(words)
        rows.append(row(number, f"question {number // 3}", " ".join(words), harmful=harmful))
    return rows


def test_a_label_that_all_others_speak_against_is_found() -> None:
    rows = exchanges(120)
    rows[10] = row(10, "question 3", rows[11].response, harmful=True)
    assert contradicted(rows, certainty=0.8) == {10}


def test_labels_of_people_are_not_doubted() -> None:
    rows = exchanges(120)
    rows[10] = row(10, "question 3", rows[11].response, harmful=True, kind="human")
    assert contradicted(rows, certainty=0.8) == set()


@pytest.mark.parametrize(
    "rows", [[], exchanges(120)[::2], [row(0, "", "", harmful=True), row(1, "", "", harmful=False)]]
)
def test_too_little_to_learn_from_finds_nothing(rows: list[LabelledExchange]) -> None:
    assert contradicted(rows) == set()
