"""What kind of harm the embedded detector tells, on networks that go by single words."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from tiny_onnx import word_detector

from protector_guardrails import Exchange, Policy, Protector
from protector_guardrails.errors import WeightsError
from protector_guardrails.models import DetectorManifest

CATEGORIES = ("privacy", "hate")
WORDS = {"address": (3.0, 4.0, 0.0), "insult": (2.0, 0.0, 4.0), "bad": (3.0, 1.0, 1.0)}


def sigmoid(value: float) -> float:
    return 1 / (1 + math.exp(-value))


def test_a_category_is_told_with_the_probability_of_harm_of_that_kind(tmp_path: Path) -> None:
    detector = word_detector(tmp_path, WORDS, categories=CATEGORIES, category_temperature=2.0)
    [verdict] = detector.detect([Exchange(response="her address")])
    share = sigmoid((4.0 - 0.0) / 2.0)
    assert verdict.score == pytest.approx(sigmoid(3.0))
    assert dict(verdict.categories) == {"privacy": pytest.approx(sigmoid(3.0) * share)}
    assert verdict.top_category == "privacy"


def test_what_is_not_sure_is_left_unspecified(tmp_path: Path) -> None:
    detector = word_detector(tmp_path, WORDS, categories=CATEGORIES, category_floor=0.6)
    bad, insult, nothing = detector.detect([Exchange(response=text) for text in ("bad", "insult", "soup")])
    assert bad.harmful and dict(bad.categories) == {} and bad.top_category is None
    assert set(insult.categories) == {"hate"}
    assert not nothing.harmful and dict(nothing.categories) == {}


def test_at_a_low_floor_several_are_told_and_they_sum_to_the_score(tmp_path: Path) -> None:
    detector = word_detector(tmp_path, WORDS, categories=CATEGORIES, category_floor=0.0)
    for verdict in detector.detect([Exchange(response=text) for text in ("bad", "insult address", "soup")]):
        assert sum(verdict.categories.values()) == pytest.approx(verdict.score)


def test_the_most_harmful_window_says_what_kind_it_is(tmp_path: Path) -> None:
    """Weights are the softmax of the windows' logits of harm: with two windows by hand."""
    detector = word_detector(tmp_path, WORDS, categories=CATEGORIES, category_floor=0.0)
    response = "address" + " soup" * 12 + " insult"
    [windows] = detector.encode([Exchange(response=response)])
    assert len(windows) == 2
    [verdict] = detector.detect([Exchange(response=response)])
    first, second = (math.exp(3.0), math.exp(2.0))
    privacy = (first * 4.0 + second * 0.0) / (first + second)
    hate = (first * 0.0 + second * 4.0) / (first + second)
    assert verdict.categories["privacy"] == pytest.approx(verdict.score * sigmoid(privacy - hate), rel=1e-5)


def test_a_network_without_categories_tells_none(tmp_path: Path) -> None:
    detector = word_detector(tmp_path, {"bad": (3.0,)})
    [verdict] = detector.detect([Exchange(response="bad")])
    assert verdict.harmful and dict(verdict.categories) == {}


@pytest.mark.parametrize("columns", [0, 3])
def test_a_network_that_does_not_fit_its_manifest_is_refused(tmp_path: Path, columns: int) -> None:
    with pytest.raises(WeightsError, match="category_logits of width 2"):
        word_detector(tmp_path, WORDS, categories=CATEGORIES, columns=columns)


@pytest.mark.parametrize(
    "fields",
    [{"categories": ["rudeness"]}, {"categories": ["hate", "hate"]}, {"thresholds": {"fpr-1%": 1.2}}, {"surprise": 1}],
)
def test_a_manifest_that_cannot_be_right_is_refused(tmp_path: Path, fields: dict[str, object]) -> None:
    with pytest.raises(WeightsError, match=r"detector\.json"):
        word_detector(tmp_path, WORDS, columns=0, **fields)


def test_todays_manifest_has_the_defaults() -> None:
    old = {"name": "x", "version": "1", "max_tokens": 16, "question_tokens": 4, "overlap": 2}
    manifest = DetectorManifest.model_validate(old | {"temperature": 1, "bias": 0, "sha256": {}})
    assert (manifest.categories, manifest.thresholds, manifest.normalise) == ((), {}, False)


def test_a_threshold_for_a_category_decides_and_names_it(tmp_path: Path) -> None:
    detector = word_detector(tmp_path, {"address": (-1.0, 4.0, 0.0), "insult": (-1.0, 0.0, 4.0)}, categories=CATEGORIES)
    policy = Policy(threshold={"default": 0.5, "privacy": 0.2}, refusal="No: {harm}.")
    outcomes = Protector(detector, "refuse", policy=policy).guard(
        [Exchange(response="her address"), Exchange(response="an insult")]
    )
    assert [outcome.action for outcome in outcomes] == ["refuse", "pass"]
    assert outcomes[0].text == "No: violating somebody's privacy."
    assert outcomes[0].verdict is not None and outcomes[0].verdict.score < 0.5
