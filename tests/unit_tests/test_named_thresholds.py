"""``Policy(threshold="fpr-1%")``: a name for a number that the detector knows, wherever a policy goes."""

from __future__ import annotations

import asyncio
import json
import pickle
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest
from langchain_core.language_models import FakeListChatModel
from langchain_core.messages import AIMessage
from llama_index.core.llms import MockLLM
from pydantic import ValidationError

from protector_guardrails import (
    CachingDetector,
    ConfigurationError,
    DetoxifierRunnable,
    EmbeddedDetector,
    Exchange,
    HarmDetector,
    HarmDetectorRunnable,
    Policy,
    Protector,
    ProtectorMiddleware,
    Verdict,
    protect,
)
from protector_guardrails.detectors import check_thresholds
from protector_guardrails.llama_index import GuardedLLM, HarmResponsePostprocessor
from protector_guardrails.models import EMBEDDED_DETECTOR, load_manifest


class Length(HarmDetector):
    """P(harm) is a hundredth of the length."""

    name = "length@1"
    thresholds: Mapping[str, float] = {"strict": 0.1, "mild": 0.3}

    def detect(self, exchanges: Sequence[Exchange]) -> list[Verdict]:
        return [Verdict(harmful=False, score=len(e.response) / 100, detector=self.name) for e in exchanges]


SHORT, MIDDLE = "a" * 9, "a" * 20


@pytest.mark.parametrize(("name", "actions"), [("strict", ["pass", "refuse"]), ("mild", ["pass", "pass"])])
def test_a_name_decides_like_its_number(name: str, actions: list[str]) -> None:
    exchanges = [Exchange(response=SHORT), Exchange(response=MIDDLE)]
    by_name = Protector(Length(), "refuse", policy=Policy(threshold=name)).guard(exchanges)
    by_number = Protector(Length(), "refuse", policy=Policy(threshold=Length.thresholds[name])).guard(exchanges)
    assert [outcome.action for outcome in by_name] == actions
    assert [outcome.verdict for outcome in by_name] == [outcome.verdict for outcome in by_number]
    assert by_name[0].verdict is not None and by_name[0].verdict.threshold == Length.thresholds[name]


def test_a_name_may_stand_beside_thresholds_of_categories() -> None:
    policy = Policy(threshold={"default": "strict", "privacy": 0.7})
    resolved = Protector(Length(), policy=policy).policy
    assert resolved.threshold == {"default": 0.1, "privacy": 0.7}
    assert (resolved.default_threshold, resolved.strictest_threshold) == (0.1, 0.1)
    assert policy.threshold == {"default": "strict", "privacy": 0.7}, "the policy itself stays as it is"


def test_a_threshold_for_a_category_that_is_never_told_is_an_error_and_not_a_comfort() -> None:
    policy = Policy(threshold={"default": 0.5, "privicy": 0.1})
    with pytest.raises(ConfigurationError, match=r"'privicy', which the detector embedded@.* never tells.*'privacy'"):
        Protector(policy=policy)
    with pytest.raises(ConfigurationError, match="'privicy'"):
        check_thresholds(policy, "embedded")
    with pytest.raises(ConfigurationError, match="'privicy'"):
        Protector(CachingDetector("embedded"), policy=policy)
    assert Protector(Length(), policy=policy).policy == policy, "one that does not say what it tells may tell it"
    assert Policy(threshold={}).strictest_threshold == 0.5


GUARDS: dict[str, Callable[[Policy], Any]] = {
    "Protector": lambda policy: Protector(Length(), policy=policy),
    "HarmDetectorRunnable": lambda policy: HarmDetectorRunnable(Length(), policy=policy),
    "DetoxifierRunnable": lambda policy: DetoxifierRunnable("redact", detector=Length(), policy=policy),
    "protect": lambda policy: protect(FakeListChatModel(responses=["x"]), detector=Length(), policy=policy),
    "middleware": lambda policy: ProtectorMiddleware(detector=Length(), policy=policy),
    "LlamaIndex": lambda policy: HarmResponsePostprocessor(detector=Length(), policy=policy),
    "LlamaIndex LLM": lambda policy: GuardedLLM(MockLLM(), detector=Length(), policy=policy),
    "embedded, not loaded": lambda policy: HarmDetectorRunnable(policy=policy),
}


@pytest.mark.parametrize("guard", GUARDS)
def test_an_unknown_name_is_told_when_the_guard_is_built(guard: str) -> None:
    with pytest.raises(ConfigurationError, match="has no threshold 'fpr-7%': give ") as told:
        GUARDS[guard](Policy(threshold="fpr-7%"))
    if guard != "embedded, not loaded":
        assert "length@1" in str(told.value) and "'strict', 'mild'" in str(told.value)


def test_where_there_are_no_names_the_error_asks_for_a_number() -> None:
    class Nameless(Length):
        thresholds: Mapping[str, float] = {}

    with pytest.raises(ConfigurationError, match="no threshold 'strict': give a number from 0 to 1"):
        Protector(Nameless(), policy=Policy(threshold="strict"))


@pytest.mark.parametrize("policy", [Policy(threshold="strict"), {"threshold": "strict"}])
def test_runnables_take_a_name(policy: Any) -> None:
    chain = HarmDetectorRunnable(Length(), policy=policy) | DetoxifierRunnable("refuse")
    assert chain.invoke(AIMessage(SHORT)).content == SHORT
    changed = chain.invoke(AIMessage(MIDDLE))
    assert changed.content != MIDDLE
    assert changed.response_metadata["protector"]["threshold"] == 0.1
    assert asyncio.run(chain.ainvoke(AIMessage(MIDDLE))).content == changed.content


@pytest.mark.parametrize("streaming", ["full", "window"])
def test_a_protected_model_takes_a_name_in_calls_and_streams(streaming: Any) -> None:
    policy = Policy(threshold="strict", streaming=streaming)
    long = "Nothing of this may leave at all. " * 20
    model = protect(FakeListChatModel(responses=[SHORT, MIDDLE, long[:100]]), detector=Length(), policy=policy)
    assert model.invoke("Hm?").content == SHORT
    assert model.invoke("Hm?").content != MIDDLE
    assert "".join(str(chunk.content) for chunk in model.stream("Hm?")) not in ("", long[:100])


def test_redaction_judges_passages_at_the_number() -> None:
    policy = Policy(threshold="strict")
    text = "Stir it. A sentence that is much too long. Eat it. Yes. Now. Hm."

    class Sentences(Length):
        def detect(self, exchanges: Sequence[Exchange]) -> list[Verdict]:
            return [Verdict(harmful=False, score=max(len(s) for s in e.response.split(".")) / 100) for e in exchanges]

    [outcome] = Protector(Sentences(), "redact", policy=policy).guard([Exchange(response=text)])
    assert (outcome.action, outcome.text) == ("rewrite", "Stir it. Eat it. Yes. Now. Hm.")


def test_a_name_survives_json_and_pickle_and_numbers_in_text_are_numbers() -> None:
    policy = Policy(threshold="fpr-1%")
    assert Policy.model_validate_json(policy.model_dump_json()) == policy
    assert Policy.model_validate(json.loads('{"threshold": "fpr-1%"}')) == policy
    assert pickle.loads(pickle.dumps(policy)) == policy
    assert Policy(threshold="0.7") == Policy(threshold=0.7)
    for nonsense in ("1.5", "nan", "", "  "):
        with pytest.raises(ValidationError):
            Policy(threshold=nonsense)


def test_an_unresolved_name_decides_nothing() -> None:
    policy = Policy(threshold="strict")
    for use in (lambda: policy.apply(Verdict(harmful=False, score=0.5)), lambda: policy.default_threshold):
        with pytest.raises(ConfigurationError, match="'strict' is a name"):
            use()
    assert policy.resolved({"strict": 0.4}, detector="x").apply(Verdict(harmful=False, score=0.5)).harmful


def test_the_embedded_detectors_names_are_those_of_its_manifest() -> None:
    detector, manifest = EmbeddedDetector.shared(), load_manifest(EMBEDDED_DETECTOR)
    assert (detector.thresholds, detector.threshold) == (manifest.thresholds, manifest.threshold)
    for name, number in manifest.thresholds.items():
        check_thresholds(Policy(threshold=name), "embedded")
        assert Protector(policy=Policy(threshold=name)).policy.threshold == number
