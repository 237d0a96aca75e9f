"""Logits as P(harm)."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from protector_guardrails import HarmCategory
from protector_guardrails.detectors.heads import category_of, read_head
from protector_guardrails.detectors.pooling import batches

logits = st.lists(st.floats(-1e4, 1e4), min_size=3, max_size=3)


@given(logits, st.booleans())
def test_scores_are_probabilities(row, multi_label):
    head = read_head(["a", "b", "hate"], polarity=None, harmful_labels=["b", "hate"], multi_label=multi_label)
    rows = np.array([row])
    [score] = head.scores(rows)
    [hate] = head.category_scores(rows)["hate"]
    assert 0 <= hate <= score <= 1


@given(st.floats(-1e6, 1e6))
def test_the_polarities_are_each_others_complement(logit):
    harm, safe = (
        read_head(["a"], polarity=polarity, harmful_labels=None, multi_label=False).scores(np.array([[logit]]))[0]
        for polarity in ("harm", "safe")
    )
    assert harm + safe == pytest.approx(1)
    assert (harm > 0.5) == (logit > 0) or abs(logit) < 1e-12


def test_every_hazard_is_known_by_its_names():
    for hazard in HarmCategory:
        assert category_of(hazard.value) == category_of(hazard.value.upper().replace("_", " ")) == hazard
        assert category_of(hazard.label) == hazard
    assert category_of("06-Fraud") == HarmCategory.NON_VIOLENT_CRIMES
    assert category_of("LABEL_0") is category_of("unsafe") is category_of("") is None


def test_labels_that_name_the_same_hazard_are_combined():
    head = read_head(["safe", "Fraud", "malware generation"], polarity=None, harmful_labels=[1, 2], multi_label=False)
    assert head.categories == {"non_violent_crimes": (1, 2)}
    assert head.category_scores(np.zeros((1, 3)))["non_violent_crimes"][0] == pytest.approx(2 / 3)


def test_labels_of_the_same_name_must_be_told_apart_by_index():
    with pytest.raises(ValueError, match="not one label"):
        read_head(["safe", "bad", "bad"], polarity=None, harmful_labels=["bad"], multi_label=False)
    assert read_head(["safe", "bad", "bad"], polarity=None, harmful_labels=[2], multi_label=False).harmful == (2,)


@given(st.lists(st.integers(0, 600), max_size=40), st.integers(1, 2000))
def test_batches_hold_every_text_once_and_keep_to_the_budget(lengths, budget):
    made = list(batches(lengths, max_batch_tokens=budget))
    assert sorted(index for batch in made for index in batch) == list(range(len(lengths)))
    for batch in made:
        assert len(batch) == 1 or len(batch) * max(lengths[index] for index in batch) <= budget
