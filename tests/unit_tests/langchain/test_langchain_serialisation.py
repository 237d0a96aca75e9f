"""Runnables are written and read again as LangChain does it."""

from __future__ import annotations

import json

import pytest
from langchain_core.load import dumpd, dumps, load
from langchain_core.messages import AIMessage
from langchain_core.runnables import RunnableSequence
from langchain_fakes import PoisonDetector

from protector_guardrails import DetoxifierRunnable, HarmDetectorRunnable, Policy

pytestmark = pytest.mark.filterwarnings("ignore::langchain_core._api.LangChainBetaWarning")

ALLOWED = [HarmDetectorRunnable, DetoxifierRunnable, RunnableSequence]


@pytest.mark.parametrize(
    "runnable",
    [
        HarmDetectorRunnable(),
        HarmDetectorRunnable(policy=Policy(threshold={"default": 0.4, "hate": 0.2}, on_harm="raise")),
        HarmDetectorRunnable(record_questions=False, name="mine"),
        DetoxifierRunnable("redact"),
        DetoxifierRunnable("refuse", detector="embedded", policy={"timeout_s": None}),
        HarmDetectorRunnable() | DetoxifierRunnable("refuse"),
    ],
    ids=repr,
)
def test_round_trip(runnable: HarmDetectorRunnable | DetoxifierRunnable) -> None:
    written = dumpd(runnable)
    assert json.loads(dumps(runnable)) == written
    again = load(written, allowed_objects=ALLOWED, valid_namespaces=["protector_guardrails"])
    assert type(again) is type(runnable)
    assert dumpd(again) == written
    assert getattr(again, "policy", None) == getattr(runnable, "policy", None)


def test_where_it_lives() -> None:
    assert dumpd(HarmDetectorRunnable())["id"] == ["protector_guardrails", "langchain", "HarmDetectorRunnable"]
    assert HarmDetectorRunnable.is_lc_serializable()
    assert dumpd(HarmDetectorRunnable(policy=Policy(threshold=0.3)))["kwargs"]["policy"]["threshold"] == 0.3


def test_a_detector_of_ones_own_is_told_to_be_none() -> None:
    written = dumpd(HarmDetectorRunnable(PoisonDetector()))
    assert written["kwargs"]["detector"]["type"] == "not_implemented"
    assert "PoisonDetector" in written["kwargs"]["detector"]["id"]
    with pytest.raises(NotImplementedError):
        load(written, allowed_objects=ALLOWED, valid_namespaces=["protector_guardrails"])


def test_the_verdict_is_json() -> None:
    out = HarmDetectorRunnable(PoisonDetector()).invoke(AIMessage("hello"))
    assert json.loads(json.dumps(out.response_metadata)) == out.response_metadata
