"""The detoxifier that refuses."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from protector_guardrails import Exchange, HarmDetector, Policy, Protector, RefusalDetoxifier, Verdict

HATE = Verdict(harmful=True, score=0.9, categories={"hate": 0.9})


class AlwaysHarmful(HarmDetector):
    def __init__(self) -> None:
        self.judged: list[str] = []

    def detect(self, exchanges: Sequence[Exchange]) -> list[Verdict]:
        self.judged.extend(exchange.response for exchange in exchanges)
        return [HATE for _ in exchanges]


@pytest.mark.parametrize(
    ("text", "refusal", "leaves"),
    [
        ("I don't write {harm}.", "Policy: {harm}.", "I don't write hateful content."),
        (None, "Policy: {harm}.", "Policy: hateful content."),
        ("  ", "Policy: {harm}.", "Policy: hateful content."),
    ],
)
def test_its_text_leaves_or_else_the_policys(text: str | None, refusal: str, leaves: str) -> None:
    detector = AlwaysHarmful()
    protector = Protector(detector, RefusalDetoxifier(text=text), policy=Policy(refusal=refusal))
    [outcome] = protector.guard([Exchange(response="a slur")])
    assert (outcome.action, outcome.text, outcome.recheck) == ("refuse", leaves, None)
    assert detector.judged == ["a slur"], "the developer's own text is not judged"


def test_each_refusal_names_its_own_kind_of_harm() -> None:
    texts = RefusalDetoxifier(text="No {harm}.").detoxify(
        [Exchange(response="a"), Exchange(response="b")], [HATE, Verdict(harmful=True, score=1.0)]
    )
    assert texts == ["No hateful content.", "No harm."]
