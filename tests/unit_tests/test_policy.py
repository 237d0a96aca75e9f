"""The policy: what counts as harmful, and what a refusal says."""

from __future__ import annotations

import copy
import math
import pickle
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from langchain_core.language_models import FakeListChatModel
from pydantic import ValidationError

from protector_guardrails import (
    HarmCategory,
    HarmDetectorRunnable,
    HarmResponsePostprocessor,
    Policy,
    Protector,
    Verdict,
    protect,
)
from protector_guardrails.errors import ConfigurationError

scores = st.floats(0, 1)


@given(score=scores, threshold=scores, own=st.booleans())
def test_a_score_at_the_threshold_is_harmful_whatever_the_detector_said(
    score: float, threshold: float, own: bool
) -> None:
    applied = Policy(threshold=threshold).apply(Verdict(harmful=own, score=score, threshold=0.123))
    assert applied.harmful is (score >= threshold)
    assert applied.threshold == threshold
    assert applied.score == score


@given(
    score=scores,
    thresholds=st.dictionaries(st.sampled_from(["default", "hate", "privacy"]), scores),
    categories=st.dictionaries(st.sampled_from(["hate", "privacy", "default", "other"]), scores),
)
def test_a_category_threshold_can_only_add_harm(
    score: float, thresholds: dict[str, float], categories: dict[str, float]
) -> None:
    applied = Policy(threshold=thresholds).apply(Verdict(harmful=False, score=score, categories=categories))
    by_hand = score >= thresholds.get("default", 0.5)
    for name, category_score in categories.items():
        by_hand |= name in thresholds and category_score >= thresholds[name]
    assert applied.harmful is by_hand
    assert applied.threshold == thresholds.get("default", 0.5)


def test_a_category_can_be_given_as_its_enum_member() -> None:
    policy = Policy(threshold={HarmCategory.HATE: 0.2})
    assert policy.apply(Verdict(harmful=False, score=0.1, categories={"hate": 0.2})).harmful
    assert policy.apply(Verdict(harmful=False, score=0.1, categories={HarmCategory.HATE: 0.2})).harmful
    assert not policy.apply(Verdict(harmful=False, score=0.1, categories={"privacy": 0.9})).harmful


@pytest.mark.parametrize(
    "fields",
    [
        {"threshold": 1.5},
        {"threshold": math.nan},
        {"threshold": {"hate": -0.1}},
        {"on_harm": "shout"},
        {"on_error": "ajar"},
        {"timeout_s": 0},
        {"timeout_s": math.inf},
        {"max_rewrites": 0},
        {"refusal": ""},
        {"refusal": " \n"},
        {"treshold": 0.5},
    ],
)
def test_a_policy_that_cannot_work_is_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Policy(**fields)


def test_a_policy_does_not_change() -> None:
    thresholds = {"hate": 0.2}
    policy = Policy(threshold=thresholds)
    thresholds["hate"] = 1.0
    assert policy.apply(Verdict(harmful=False, score=0.0, categories={"hate": 0.3})).harmful
    with pytest.raises(ValidationError):
        policy.on_error = "open"  # type: ignore[misc]


@pytest.mark.parametrize("policy", [Policy(), Policy(threshold={"hate": 0.2}, timeout_s=None, refusal="No.")])
def test_a_policy_survives_json_pickle_and_copies(policy: Policy) -> None:
    assert Policy.model_validate_json(policy.model_dump_json()) == policy
    assert pickle.loads(pickle.dumps(policy)) == policy
    assert copy.deepcopy(policy) == policy


def test_guards_take_the_path_of_a_policy(tmp_path: Path) -> None:
    path = tmp_path / "policy.json"
    path.write_text('{"threshold": 0.873, "on_harm": "refuse"}')
    policy = Policy(threshold=0.873, on_harm="refuse")
    assert Policy.from_file(path) == Policy.model_validate(str(path)) == policy
    assert Protector(policy=path).policy == policy
    assert HarmDetectorRunnable(policy=str(path)).policy.threshold == 0.873
    assert HarmResponsePostprocessor(policy=path).policy.threshold == 0.873
    assert protect(FakeListChatModel(responses=["."]), policy=path).policy == policy


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (None, "the policy .*policy.json cannot be read: No such file"),
        ("{", "policy.json is not a policy: Invalid JSON"),
        ("[0.5]", "policy.json is not a policy: Input should be an object"),
        ('{"threshold": {"hate": 2}}', "policy.json is not a policy: threshold: "),
        ('{"threshhold": 0.5}', "policy.json is not a policy: threshhold: Extra inputs"),
    ],
)
def test_what_is_wrong_with_a_file_is_said(text: str | None, told: str, tmp_path: Path) -> None:
    path = tmp_path / "policy.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ConfigurationError, match=told):
        Policy.from_file(path)
    with pytest.raises(ValueError, match=told):
        Protector(policy=path)


def test_it_fails_closed_and_rewrites_by_default() -> None:
    assert (Policy().on_error, Policy().on_harm, Policy().threshold) == ("closed", "detoxify", 0.5)


@pytest.mark.parametrize(
    ("categories", "said"),
    [({}, "harm"), ({"hate": 0.9, "privacy": 0.2}, "hateful content"), ({"bad_puns": 0.9}, "bad puns")],
)
def test_the_refusal_names_the_kind_of_harm(categories: dict[str, float], said: str) -> None:
    verdict = Verdict(harmful=True, score=0.9, categories=categories)
    assert Policy(refusal="No {harm}; no {harm}.").refusal_for(verdict) == f"No {said}; no {said}."
    assert "{" not in Policy().refusal_for(verdict)


@given(st.text(st.characters(exclude_characters="{}", codec="utf-8"), min_size=1).filter(str.strip))
def test_other_braces_of_a_refusal_are_left_alone(text: str) -> None:
    refusal = f"{{}} {{0}} {{{text}!r:>9}} {{{{harm}}}} {text}"
    assert Policy(refusal=refusal).refusal_for(None) == f"{{}} {{0}} {{{text}!r:>9}} {{harm}} {text}"
