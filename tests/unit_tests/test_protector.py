"""The guard: what passes, what is rewritten or refused, and that nothing unjudged leaves."""

from __future__ import annotations

import asyncio
import contextvars
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from protector_guardrails import (
    ConfigurationError,
    DetectorError,
    Detoxifier,
    Exchange,
    HarmDetector,
    HarmfulResponseError,
    Image,
    Outcome,
    Policy,
    Protector,
    RedactDetoxifier,
    RefusalDetoxifier,
    ToolCall,
    Verdict,
    WeightsError,
)

REFUSAL = "I'd rather not."
SAFE = Exchange(question="Tea?", response="Green tea, please.")
HARMFUL = Exchange(question="Tea?", response="Put poison in the tea.")
BROKEN = Exchange(question="Tea?", response="A cracked cup of tea.")


def verdict_of(exchange: Exchange) -> Verdict:
    score = 0.9 if any("poison" in passage for passage in exchange.passages) else 0.1
    return Verdict(harmful=score >= 0.5, score=score, detector="rules@1")


class Rules(HarmDetector):
    """Poison is harmful; a cracked cup breaks the detector. Remembers what it judged."""

    name = "rules@1"

    def __init__(self) -> None:
        self.judged: list[Exchange] = []
        self.calls: list[int] = []

    def detect(self, exchanges: Sequence[Exchange]) -> list[Verdict]:
        self.calls.append(len(exchanges))
        self.judged.extend(exchanges)
        for exchange in exchanges:
            if "cracked" in exchange.response:
                raise ValueError(f"cannot judge {exchange.response!r}")
        return [verdict_of(exchange) for exchange in exchanges]


class Returns(HarmDetector):
    """Returns whatever a function makes of the batch."""

    def __init__(self, function: Callable[[Sequence[Exchange]], Any]) -> None:
        self.function = function

    def detect(self, exchanges: Sequence[Exchange]) -> list[Verdict]:
        result: list[Verdict] = self.function(exchanges)
        return result


class Rewrites(Detoxifier):
    """Makes of each response what a function says; remembers what it was given."""

    def __init__(self, function: Callable[[str], Any]) -> None:
        self.function = function
        self.seen: list[tuple[Exchange, Verdict]] = []

    def detoxify(self, exchanges: Sequence[Exchange], verdicts: Sequence[Verdict]) -> list[str]:
        self.seen.extend(zip(exchanges, verdicts, strict=True))
        return [self.function(exchange.response) for exchange in exchanges]


def raises(error: BaseException) -> Callable[[Any], Any]:
    def function(_: Any) -> Any:
        raise error

    return function


def sweetened(response: str) -> str:
    return response.replace("poison", "honey")


def protector(
    detector: HarmDetector | None = None, detoxifier: Detoxifier | str | None = None, **policy: Any
) -> Protector:
    return Protector(detector or Rules(), detoxifier or Rewrites(sweetened), policy=Policy(refusal=REFUSAL, **policy))


def both(guard: Protector, exchanges: Sequence[Exchange]) -> list[Outcome]:
    """The outcomes of guard, after a check that aguard gives the same."""
    outcomes = guard.guard(exchanges, return_exceptions=True)
    asynchronous = asyncio.run(guard.aguard(exchanges, return_exceptions=True))
    assert timeless(asynchronous) == timeless(outcomes)
    return outcomes


def timeless(outcomes: Sequence[Outcome]) -> list[Outcome]:
    return [replace(outcome, elapsed_ms=0.0) for outcome in outcomes]


# What is safe ------------------------------------------------------------------------


@given(
    st.text(st.characters(), max_size=200)
    | st.sampled_from(["", "\ud83d", "a\x00b", "\u202eabc", "👩‍👩‍👧‍👦", "  \r\n\t", "שלום עולם", "{harm}"])
)
def test_a_safe_response_leaves_as_it_came(response: str) -> None:
    exchange = Exchange(response=response, question="?", images=(Image(data=b"x"),))
    [outcome] = protector(timeout_s=None).guard([exchange])
    assert outcome.text == response
    assert outcome.exchange is exchange
    assert (outcome.action, outcome.changed, outcome.error) == ("pass", False, None)


def test_an_empty_batch_asks_nobody() -> None:
    detector = Rules()
    assert both(protector(detector), []) == []
    assert detector.calls == []


def test_a_batch_is_judged_in_one_call_and_answered_in_order() -> None:
    detector = Rules()
    outcomes = protector(detector).guard([SAFE, HARMFUL, SAFE])
    assert [outcome.text for outcome in outcomes] == [SAFE.response, "Put honey in the tea.", SAFE.response]
    assert detector.calls == [3, 1]
    assert all(outcome.elapsed_ms > 0 for outcome in outcomes)


def test_an_unknown_name_is_refused_when_the_guard_is_built() -> None:
    with pytest.raises(ConfigurationError, match="'embeded'"):
        Protector("embeded")
    with pytest.raises(ConfigurationError, match="refuse"):
        Protector(Rules(), "detoxify")
    with pytest.raises(ConfigurationError):
        Protector(Rules, "refuse")  # type: ignore[arg-type]


# What is harmful -----------------------------------------------------------------------


def test_a_rewrite_leaves_once_it_was_judged_safe() -> None:
    detector, detoxifier = Rules(), Rewrites(sweetened)
    [outcome] = protector(detector, detoxifier).guard([HARMFUL])
    assert (outcome.action, outcome.text) == ("rewrite", "Put honey in the tea.")
    assert outcome.exchange is HARMFUL
    assert outcome.verdict == verdict_of(HARMFUL)
    rewrite = replace(HARMFUL, response=outcome.text)
    assert outcome.recheck == verdict_of(rewrite)
    assert detector.judged == [HARMFUL, rewrite]
    assert detoxifier.seen == [(HARMFUL, verdict_of(HARMFUL))]


def test_a_rewrite_that_is_still_harmful_is_refused() -> None:
    [outcome] = both(protector(detoxifier=Rewrites(lambda _: "More poison.")), [HARMFUL])
    assert (outcome.action, outcome.text, outcome.error) == ("refuse", REFUSAL, None)
    assert outcome.recheck is not None
    assert outcome.recheck.harmful


@pytest.mark.parametrize(("max_rewrites", "action", "rounds"), [(1, "refuse", 1), (2, "rewrite", 2), (3, "rewrite", 2)])
def test_rewriting_goes_on_from_the_last_rewrite(max_rewrites: int, action: str, rounds: int) -> None:
    detoxifier = Rewrites(lambda text: text.replace("poison", "honey", 1))
    twice = Exchange(response="poison, poison")
    [outcome] = protector(detoxifier=detoxifier, max_rewrites=max_rewrites).guard([twice])
    assert outcome.action == action
    assert outcome.text == ("honey, honey" if action == "rewrite" else REFUSAL)
    assert [exchange.response for exchange, _ in detoxifier.seen] == ["poison, poison", "honey, poison"][:rounds]


def test_only_what_is_still_harmful_is_rewritten_again() -> None:
    detoxifier = Rewrites(lambda text: text.replace("poison", "honey", 1))
    batch = [Exchange(response=text) for text in ("poison", "tea", "poison poison", "poison poison poison")]
    outcomes = both(protector(detoxifier=detoxifier, max_rewrites=2), batch)
    assert [outcome.text for outcome in outcomes] == ["honey", "tea", "honey honey", REFUSAL]


@pytest.mark.parametrize("empty", ["", " \n\t"])
def test_an_empty_rewrite_is_a_refusal(empty: str) -> None:
    [outcome] = both(protector(detoxifier=Rewrites(lambda _: empty)), [HARMFUL])
    assert (outcome.action, outcome.text, outcome.error) == ("refuse", REFUSAL, None)


def test_a_response_that_comes_back_unchanged_is_refused_though_a_second_look_would_pass_it() -> None:
    fickle = iter([0.9])
    detector = Returns(lambda batch: [Verdict(harmful=False, score=next(fickle, 0.0)) for _ in batch])
    [outcome] = protector(detector, Rewrites(lambda text: text), max_rewrites=2).guard([HARMFUL])
    assert (outcome.action, outcome.text) == ("refuse", REFUSAL)


def test_reasoning_and_tool_calls_do_not_outlive_a_rewrite() -> None:
    detector = Rules()
    exchange = replace(
        SAFE, reasoning="Add poison.", tool_calls=(ToolCall(name="buy", arguments="poison"),), images=(Image(url="a"),)
    )
    [outcome] = protector(detector).guard([exchange])
    assert (outcome.action, outcome.text) == ("rewrite", SAFE.response)
    assert detector.judged[1] == Exchange(question="Tea?", response=SAFE.response, images=exchange.images)


def test_the_policys_refusal_leaves_with_the_kind_of_harm() -> None:
    verdict = Verdict(harmful=True, score=0.9, categories={"hate": 0.8})
    guard = Protector(
        Returns(lambda batch: [verdict for _ in batch]), policy=Policy(on_harm="refuse", refusal="{no} {harm} {0}")
    )
    assert [outcome.text for outcome in both(guard, [HARMFUL])] == ["{no} hateful content {0}"]


def test_a_category_threshold_decides_over_response_and_rewrite() -> None:
    def judge(batch: Sequence[Exchange]) -> list[Verdict]:
        return [
            Verdict(harmful=False, score=0.0, categories={"privacy": 0.3 if "address" in exchange.response else 0.0})
            for exchange in batch
        ]

    exchange = Exchange(response="Her address.")
    lenient = protector(Returns(judge), threshold={"privacy": 0.4})
    assert both(lenient, [exchange])[0].action == "pass"
    for text, action in (("Her name.", "rewrite"), ("Her new address.", "refuse")):
        strict = protector(Returns(judge), Rewrites(lambda _, text=text: text), threshold={"privacy": 0.2})
        assert both(strict, [exchange])[0].action == action


# What the policy wants -----------------------------------------------------------------


def test_on_harm_refuse_rewrites_nothing() -> None:
    detoxifier = Rewrites(sweetened)
    outcomes = both(protector(detoxifier=detoxifier, on_harm="refuse"), [HARMFUL, SAFE])
    assert [(o.action, o.text) for o in outcomes] == [("refuse", REFUSAL), ("pass", SAFE.response)]
    assert detoxifier.seen == []


def test_on_harm_flag_lets_it_through_with_its_verdict() -> None:
    [outcome] = both(protector(on_harm="flag"), [HARMFUL])
    assert (outcome.action, outcome.text, outcome.changed) == ("flag", HARMFUL.response, False)
    assert outcome.verdict is not None
    assert outcome.verdict.harmful


def test_on_harm_raise_raises_without_the_text() -> None:
    guard = protector(on_harm="raise")
    with pytest.raises(HarmfulResponseError) as caught:
        guard.guard([SAFE, HARMFUL])
    with pytest.raises(HarmfulResponseError):
        asyncio.run(guard.aguard([SAFE, HARMFUL]))
    assert caught.value.outcome.exchange is HARMFUL
    assert caught.value.refusal == REFUSAL
    assert "poison" not in str(caught.value)
    assert guard.guard([SAFE])[0].action == "pass"


def test_on_harm_raise_can_return_the_outcomes_instead() -> None:
    outcomes = both(protector(on_harm="raise"), [HARMFUL, SAFE])
    assert [(o.action, o.text) for o in outcomes] == [("raise", REFUSAL), ("pass", SAFE.response)]


def test_what_was_judged_already_is_only_treated() -> None:
    detector = Rules()
    guard = protector(detector)
    verdicts = [Verdict(harmful=True, score=0.1), Verdict(harmful=False, score=0.9)]
    for outcomes in (
        guard.treat([HARMFUL, HARMFUL], verdicts),
        asyncio.run(guard.atreat([HARMFUL, HARMFUL], verdicts)),
    ):
        assert [outcome.action for outcome in outcomes] == ["rewrite", "pass"]
        assert [outcome.verdict for outcome in outcomes] == verdicts
    assert {exchange.response for exchange in detector.judged} == {"Put honey in the tea."}


def test_treat_wants_one_verdict_for_each() -> None:
    with pytest.raises(ValueError, match="zip"):
        protector().treat([SAFE, SAFE], [verdict_of(SAFE)])


# What fails ----------------------------------------------------------------------------


@pytest.mark.parametrize(("on_error", "text"), [("closed", REFUSAL), ("open", BROKEN.response)])
def test_one_bad_item_fails_alone(on_error: Literal["closed", "open"], text: str) -> None:
    outcomes = both(protector(on_error=on_error), [SAFE, BROKEN, HARMFUL])
    assert [outcome.text for outcome in outcomes] == [SAFE.response, text, "Put honey in the tea."]
    assert [outcome.error for outcome in outcomes] == [None, "DetectorError: ValueError was raised", None]
    assert outcomes[1].verdict is None


VERDICT = Verdict(harmful=False, score=0.0)
NONSENSE: dict[str, Callable[[Sequence[Exchange]], Any]] = {
    "none": lambda batch: None,
    "text": lambda batch: "y" * len(batch),
    "bytes": lambda batch: b"y" * len(batch),
    "too few": lambda batch: [VERDICT] * (len(batch) - 1),
    "too many": lambda batch: [VERDICT] * (len(batch) + 1),
    "mapping": lambda batch: dict.fromkeys(range(len(batch)), VERDICT),
    "generator": lambda batch: (VERDICT for _ in batch),
    "array": lambda batch: np.zeros(len(batch)),
    "scores": lambda batch: [0.0 for _ in batch],
    "nan": lambda batch: [Verdict(harmful=False, score=math.nan) for _ in batch],
    "error as a value": lambda batch: [DetectorError(batch[0].response)] * len(batch),
    "raises": raises(OSError("no disk")),
    "stop iteration": raises(StopIteration()),
    "system exit": raises(SystemExit(3)),
    "cancelled": raises(asyncio.CancelledError()),
}


@pytest.mark.parametrize("how", NONSENSE)
@pytest.mark.parametrize("count", [1, 3])
def test_a_detector_that_answers_nonsense_fails_closed(how: str, count: int) -> None:
    outcomes = both(protector(Returns(NONSENSE[how])), [HARMFUL] * count)
    assert [(outcome.action, outcome.text) for outcome in outcomes] == [("refuse", REFUSAL)] * count
    for outcome in outcomes:
        assert outcome.error is not None
        assert outcome.error.startswith("DetectorError: ")
        assert "poison" not in outcome.error


@pytest.mark.parametrize("how", NONSENSE)
def test_open_means_open_for_what_could_not_be_judged(how: str) -> None:
    [outcome] = both(protector(Returns(NONSENSE[how]), on_error="open"), [HARMFUL])
    assert (outcome.action, outcome.text) == ("pass", HARMFUL.response)
    assert outcome.error is not None


@pytest.mark.parametrize("on_error", ["closed", "open"])
@pytest.mark.parametrize(
    "result",
    [None, 7, b"honey", ["honey"], OSError("no disk"), StopIteration(), SystemExit(3)],
    ids=lambda result: type(result).__name__,
)
def test_a_detoxifier_that_fails_is_a_refusal_even_when_open(result: Any, on_error: str) -> None:
    function = raises(result) if isinstance(result, BaseException) else lambda _: result
    [outcome] = both(protector(detoxifier=Rewrites(function), on_error=on_error), [HARMFUL])
    assert (outcome.action, outcome.text) == ("refuse", REFUSAL)
    assert outcome.error is not None
    assert outcome.error.startswith("DetoxifierError: ")
    assert outcome.verdict == verdict_of(HARMFUL)


def test_a_detoxifier_that_miscounts_is_asked_again_one_by_one() -> None:
    class OnlyFirst(Detoxifier):
        def detoxify(self, exchanges: Sequence[Exchange], verdicts: Sequence[Verdict]) -> list[str]:
            return ["Honey for " + exchanges[0].response[-4:]]

    batch = [Exchange(response=f"poison for {name}") for name in ("Anna", "Bert")]
    outcomes = both(protector(detoxifier=OnlyFirst()), batch)
    assert [outcome.text for outcome in outcomes] == ["Honey for Anna", "Honey for Bert"]


@pytest.mark.parametrize("on_error", ["closed", "open"])
def test_a_rewrite_that_cannot_be_judged_is_refused(on_error: str) -> None:
    guard = protector(detoxifier=Rewrites(lambda _: "A cracked cup."), on_error=on_error)
    outcomes = both(guard, [HARMFUL, SAFE])
    assert [(o.action, o.text) for o in outcomes] == [("refuse", REFUSAL), ("pass", SAFE.response)]
    assert outcomes[0].error == "DetectorError: ValueError was raised"


class TellsAll(DetectorError):
    """A foreign error whose message quotes."""


@pytest.mark.parametrize("kind", [ValueError, TellsAll, DetectorError, RuntimeError, TimeoutError])
def test_no_error_quotes_the_response(kind: type[Exception]) -> None:
    def quote(batch: Any) -> Any:
        raise kind(f"cannot do {batch!r}")

    for guard in (protector(Returns(quote)), protector(detoxifier=Rewrites(quote))):
        [outcome] = both(guard, [HARMFUL])
        assert outcome.text == REFUSAL
        assert kind.__name__ in str(outcome.error)
        assert "poison" not in str(outcome.error)


def test_an_error_of_set_up_tells_what_to_do() -> None:
    guard = protector(Returns(raises(WeightsError("model.onnx cannot be read: reinstall the package"))))
    [outcome] = both(guard, [SAFE])
    assert outcome.error == "WeightsError: model.onnx cannot be read: reinstall the package"


def test_an_adetect_that_is_cancelled_from_within_is_a_failure_not_a_cancellation() -> None:
    class Cancels(Rules):
        async def adetect(self, exchanges: Sequence[Exchange]) -> list[Verdict]:
            raise asyncio.CancelledError

    for timeout_s in (5.0, None):
        [outcome] = asyncio.run(protector(Cancels(), timeout_s=timeout_s).aguard([SAFE]))
        assert (outcome.text, outcome.error) == (REFUSAL, "DetectorError: CancelledError was raised")


# What could slip through ---------------------------------------------------------------


async def test_a_list_that_changes_while_it_is_judged_changes_nothing() -> None:
    exchanges = [SAFE]

    class Swaps(Rules):
        def detect(self, given: Sequence[Exchange]) -> list[Verdict]:
            verdicts = super().detect(given)
            exchanges[:] = [HARMFUL]
            return verdicts

    [outcome] = await protector(Swaps()).aguard(exchanges)
    assert (outcome.exchange, outcome.text) == (SAFE, SAFE.response)


def test_the_callers_context_reaches_the_detector() -> None:
    tenant = contextvars.ContextVar[str]("tenant")
    seen: list[str] = []

    def judge(batch: Sequence[Exchange]) -> list[Verdict]:
        seen.append(tenant.get())
        return [VERDICT for _ in batch]

    tenant.set("acme")
    both(protector(Returns(judge)), [SAFE])
    assert seen == ["acme", "acme"]


SCORES = st.sampled_from([0.0, 0.2, 0.4, 0.6, 0.8, 1.0])
TEXTS = st.sampled_from("abcdefgh")


class Scripted(HarmDetector):
    """A score for each text, an error where there is none, and a breakdown for batches."""

    def __init__(self, scores: dict[str, float], *, breaks_on: int) -> None:
        self.scores, self.breaks_on = scores, breaks_on
        self.judged: dict[str, float] = {}

    def detect(self, exchanges: Sequence[Exchange]) -> list[Verdict]:
        if len(exchanges) == self.breaks_on:
            raise MemoryError
        verdicts = [Verdict(harmful=False, score=self.scores[exchange.response]) for exchange in exchanges]
        self.judged |= {exchange.response: self.scores[exchange.response] for exchange in exchanges}
        return verdicts


class ScriptedRewrites(Detoxifier):
    """A rewrite for each text; an error where there is none."""

    def __init__(self, rewrites: dict[str, str]) -> None:
        self.rewrites = rewrites

    def detoxify(self, exchanges: Sequence[Exchange], verdicts: Sequence[Verdict]) -> list[str]:
        return [self.rewrites[exchange.response] for exchange in exchanges]


@given(
    responses=st.lists(TEXTS, max_size=5),
    scores=st.dictionaries(TEXTS, SCORES),
    breaks_on=st.integers(0, 5),
    rewrites=st.dictionaries(TEXTS, TEXTS | st.just("")),
    on_harm=st.sampled_from(["detoxify", "refuse", "flag", "raise"]),
    on_error=st.sampled_from(["closed", "open"]),
    threshold=SCORES,
    max_rewrites=st.integers(1, 3),
)
def test_whatever_leaves_was_judged_safe_or_is_the_refusal_or_was_let_through_on_request(
    responses: list[str],
    scores: dict[str, float],
    breaks_on: int,
    rewrites: dict[str, str],
    on_harm: Literal["detoxify", "refuse", "flag", "raise"],
    on_error: Literal["closed", "open"],
    threshold: float,
    max_rewrites: int,
) -> None:
    policy = Policy(
        refusal=REFUSAL,
        on_harm=on_harm,
        on_error=on_error,
        threshold=threshold,
        max_rewrites=max_rewrites,
        timeout_s=None,
    )
    detector = Scripted(scores, breaks_on=breaks_on)
    guard = Protector(detector, ScriptedRewrites(rewrites), policy=policy)
    exchanges = [Exchange(response=response) for response in responses]
    outcomes = guard.guard(exchanges, return_exceptions=True)
    assert [outcome.exchange for outcome in outcomes] == exchanges
    safe = {text for text, score in detector.judged.items() if score < threshold}
    for exchange, outcome in zip(exchanges, outcomes, strict=True):
        if exchange.response in safe:
            assert (outcome.action, outcome.text) == ("pass", exchange.response)
        elif outcome.text == REFUSAL:
            assert outcome.action in ("refuse", "raise")
        elif outcome.action == "flag":
            assert (on_harm, outcome.text) == ("flag", exchange.response)
        elif outcome.error is not None:
            assert (on_error, outcome.text) == ("open", exchange.response)
            assert exchange.response not in detector.judged
        else:
            assert (on_harm, outcome.action) == ("detoxify", "rewrite")
            assert outcome.text in safe


@given(
    responses=st.lists(TEXTS, max_size=3),
    scores=st.dictionaries(TEXTS, SCORES),
    rewrites=st.dictionaries(TEXTS, TEXTS | st.just("")),
    on_harm=st.sampled_from(["detoxify", "refuse", "flag", "raise"]),
    on_error=st.sampled_from(["closed", "open"]),
    max_rewrites=st.integers(1, 3),
)
def test_guard_and_aguard_agree(
    responses: list[str], scores: dict[str, float], rewrites: dict[str, str], **policy: Any
) -> None:
    guard = Protector(Scripted(scores, breaks_on=3), ScriptedRewrites(rewrites), policy=Policy(**policy))
    outcomes = both(guard, [Exchange(response=response) for response in responses])
    assert [outcome.exchange.response for outcome in outcomes] == responses


# Detoxifiers by name ---------------------------------------------------------------------


def test_detoxifiers_can_be_asked_for_by_name() -> None:
    assert isinstance(protector(detoxifier="redact").detoxifier, RedactDetoxifier)
    assert isinstance(protector(detoxifier="refuse").detoxifier, RefusalDetoxifier)
