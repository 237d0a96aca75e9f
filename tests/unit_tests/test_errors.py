"""Errors can be logged, caught by their standard kind, and sent between processes."""

from __future__ import annotations

import copy
import pickle

import pytest

from protector_guardrails import (
    ConfigurationError,
    DetectorError,
    DetoxifierError,
    Exchange,
    GuardTimeoutError,
    HarmfulResponseError,
    InputError,
    MissingExtraError,
    Outcome,
    ProtectorError,
    Verdict,
    WeightsError,
)

OUTCOME = Outcome(
    exchange=Exchange(question="what is in it?", response="a drop of poison"),
    text="I can't share that.",
    action="raise",
    verdict=Verdict(harmful=True, score=0.875, threshold=0.25, detector="rules@1"),
)


@pytest.mark.parametrize(
    ("error", "standard"),
    [
        (ConfigurationError("x"), ValueError),
        (MissingExtraError("x", extra="torch"), ImportError),
        (InputError("x"), TypeError),
        (GuardTimeoutError("x"), TimeoutError),
        (WeightsError("x"), Exception),
        (DetectorError("x"), Exception),
        (DetoxifierError("x"), Exception),
        (HarmfulResponseError(OUTCOME), Exception),
    ],
)
def test_every_error_is_a_protector_error_and_of_a_standard_kind(
    error: ProtectorError, standard: type[Exception]
) -> None:
    assert isinstance(error, ProtectorError)
    assert isinstance(error, standard)


@pytest.mark.parametrize("copied", [copy.copy, lambda error: pickle.loads(pickle.dumps(error))])
def test_errors_with_fields_of_their_own_can_be_copied_and_sent(copied: object) -> None:
    harmful = copied(HarmfulResponseError(OUTCOME))  # type: ignore[operator]
    assert harmful.outcome == OUTCOME
    assert str(harmful) == str(HarmfulResponseError(OUTCOME))
    missing = copied(MissingExtraError("The detoxifier", extra="torch"))  # type: ignore[operator]
    assert str(missing) == str(MissingExtraError("The detoxifier", extra="torch"))


def test_a_missing_extra_says_what_to_install() -> None:
    message = str(MissingExtraError("The detoxifier", extra="torch"))
    assert message == "The detoxifier needs an extra: pip install 'protector-guardrails[torch]'"


def test_a_harmful_response_is_told_without_its_text() -> None:
    error = HarmfulResponseError(OUTCOME)
    assert str(error) == "the response was judged harmful (score 0.875, threshold 0.25, rules@1)"
    assert "poison" not in str(error) + repr(error) + repr(error.args)
    assert error.refusal == OUTCOME.text
