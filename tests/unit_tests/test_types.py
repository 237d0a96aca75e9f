"""Exchanges, verdicts and categories: what they accept, refuse and keep."""

from __future__ import annotations

import copy
import dataclasses
import json
import math
import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from protector_guardrails import Exchange, HarmCategory, Image, Outcome, ToolCall, Verdict
from protector_guardrails.types import question_with_images

MM_SAFETYBENCH = {
    "01-Illegal_Activitiy": HarmCategory.NON_VIOLENT_CRIMES,
    "02-HateSpeech": HarmCategory.HATE,
    "03-Malware_Generation": HarmCategory.NON_VIOLENT_CRIMES,
    "04-Physical_Harm": HarmCategory.VIOLENT_CRIMES,
    "05-EconomicHarm": HarmCategory.NON_VIOLENT_CRIMES,
    "06-Fraud": HarmCategory.NON_VIOLENT_CRIMES,
    "07-Sex": HarmCategory.SEXUAL_CONTENT,
    "08-Political_Lobbying": None,
    "09-Privacy_Violence": HarmCategory.PRIVACY,
    "10-Legal_Opinion": HarmCategory.SPECIALIZED_ADVICE,
    "11-Financial_Advice": HarmCategory.SPECIALIZED_ADVICE,
    "12-Health_Consultation": HarmCategory.SPECIALIZED_ADVICE,
    "13-Gov_Decision": HarmCategory.SPECIALIZED_ADVICE,
}
FIGSTEP = {
    "Illegal Activity": HarmCategory.NON_VIOLENT_CRIMES,
    "Hate Speech": HarmCategory.HATE,
    "Malware Generation": HarmCategory.NON_VIOLENT_CRIMES,
    "Physical Harm": HarmCategory.VIOLENT_CRIMES,
    "Fraud": HarmCategory.NON_VIOLENT_CRIMES,
    "Adult Content": HarmCategory.SEXUAL_CONTENT,
    "Privacy Violation": HarmCategory.PRIVACY,
    "Legal Opinion": HarmCategory.SPECIALIZED_ADVICE,
    "Financial Advice": HarmCategory.SPECIALIZED_ADVICE,
    "Health Consultation": HarmCategory.SPECIALIZED_ADVICE,
}

scores = st.floats(0, 1)
verdicts = st.builds(
    Verdict,
    harmful=st.booleans(),
    score=scores,
    threshold=scores,
    categories=st.dictionaries(st.text(), scores, max_size=3),
    spans=st.lists(st.tuples(st.integers(0, 99), st.integers(0, 99)), max_size=3).map(tuple),
    detector=st.text(),
    elapsed_ms=st.floats(0, 1e6),
)


@pytest.mark.parametrize(("name", "category"), [*MM_SAFETYBENCH.items(), *FIGSTEP.items()])
def test_every_benchmark_scenario_has_its_hazard(name: str, category: HarmCategory | None) -> None:
    assert HarmCategory.from_benchmark(name) is category


def test_case_and_punctuation_of_a_scenario_do_not_matter() -> None:
    assert HarmCategory.from_benchmark("HATE speech!") is HarmCategory.HATE
    assert HarmCategory.from_benchmark("gardening") is None


def test_every_hazard_can_be_named_in_a_sentence() -> None:
    labels = [category.label for category in HarmCategory]
    assert len(set(labels)) == len(labels) == 12
    assert not any("_" in label for label in labels)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -0.01, 1.01, None, "0.5", np.array([0.1, 0.2])])
@pytest.mark.parametrize("where", ["score", "threshold", "category"])
def test_a_score_that_is_no_probability_is_refused(bad: object, where: str) -> None:
    fields = {"harmful": True, "score": 0.5, "threshold": 0.5, "detector": "rules@1"}
    fields |= {"categories": {"hate": bad}} if where == "category" else {where: bad}
    with pytest.raises(ValueError, match="rules@1"):
        Verdict(**fields)  # type: ignore[arg-type]


def test_numpy_scores_become_plain_numbers() -> None:
    verdict = Verdict(
        harmful=np.bool_(True),  # type: ignore[arg-type]
        score=np.float32(0.75),  # type: ignore[arg-type]
        categories={"hate": np.float32(0.5)},  # type: ignore[dict-item]
        spans=((np.int64(1), np.int64(2)),),  # type: ignore[arg-type]
        elapsed_ms=np.float32(1.5),  # type: ignore[arg-type]
    )
    assert json.loads(json.dumps(verdict.to_dict())) == verdict.to_dict()
    assert (verdict.harmful, verdict.score, verdict.categories["hate"]) == (True, 0.75, 0.5)


@given(verdicts)
def test_a_verdict_survives_json_pickle_and_copies(verdict: Verdict) -> None:
    assert Verdict.from_dict(json.loads(json.dumps(verdict.to_dict()))) == verdict
    assert pickle.loads(pickle.dumps(verdict)) == verdict
    assert copy.deepcopy(verdict) == verdict


def test_a_verdict_from_a_newer_version_is_read() -> None:
    assert Verdict.from_dict({"harmful": True, "score": 1, "invented_later": [1]}).score == 1.0
    with pytest.raises(KeyError):
        Verdict.from_dict({"harmful": True})


def test_a_verdict_cannot_be_changed_afterwards() -> None:
    categories = {"hate": 0.9}
    verdict = Verdict(harmful=True, score=0.9, categories=categories)
    categories["hate"] = 0.0
    assert verdict.categories == {"hate": 0.9}
    with pytest.raises(TypeError):
        verdict.categories["hate"] = 0.0  # type: ignore[index]
    with pytest.raises(dataclasses.FrozenInstanceError):
        verdict.harmful = False  # type: ignore[misc]


def test_the_foremost_category_has_the_highest_score() -> None:
    assert Verdict(harmful=True, score=0.9, categories={"hate": 0.2, "privacy": 0.7}).top_category == "privacy"
    assert Verdict(harmful=True, score=0.9).top_category is None


def test_the_question_is_judged_with_what_its_images_show() -> None:
    exchange = Exchange(
        question=" May I eat this? ",
        response="Yes.",
        images=(Image(description="a red mushroom "), Image(url="https://example.org/b.png"), Image(description="  ")),
    )
    assert exchange.judged_question == "May I eat this?\n[image: a red mushroom]"
    assert Exchange(response="Yes.", question="  ").judged_question is None
    assert question_with_images(None, ["a map"]) == "[image: a map]"


def test_reasoning_and_tool_calls_are_judged_too() -> None:
    call = ToolCall(name="search", arguments='{"q": "tea"}')
    exchange = Exchange(response="", reasoning="Look it up.", tool_calls=(call,))
    assert exchange.passages == ("", "Look it up.", 'search: {"q": "tea"}')
    assert Exchange(response="Yes.", reasoning="").passages == ("Yes.",)


def test_text_that_is_not_base64_is_an_image_without_data() -> None:
    assert Image.from_base64("aGk=", mime_type="image/png").data == b"hi"
    assert Image.from_base64("no base64 at all!", description="a map") == Image(description="a map")
    assert Image.from_base64("é").data is None


def test_an_image_does_not_print_its_bytes() -> None:
    assert "secret" not in repr(Image(data=b"secret"))


@pytest.mark.parametrize(
    ("action", "changed"), [("pass", False), ("flag", False), ("rewrite", True), ("refuse", True), ("raise", True)]
)
def test_changed_tells_whether_the_response_left(action: str, changed: bool) -> None:
    outcome = Outcome(exchange=Exchange(response="a"), text="b", action=action)  # type: ignore[arg-type]
    assert outcome.changed is changed
