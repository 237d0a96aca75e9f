"""The detoxifier that does not rewrite but refuse."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from protector_guardrails.detoxifiers.base import Detoxifier
from protector_guardrails.policy import render_refusal
from protector_guardrails.types import Exchange, Verdict


class RefusalDetoxifier(Detoxifier):
    """Replaces a harmful response by a short refusal.

    Args:
        text: The refusal; ``{harm}`` becomes the kind of harm where the verdict tells it.
            None: the refusal of the guard's policy.

    Example:
        >>> from protector_guardrails import Exchange, Verdict
        >>> from protector_guardrails.detoxifiers.refusal import RefusalDetoxifier
        >>> verdict = Verdict(harmful=True, score=0.9, categories={"hate": 0.9})
        >>> RefusalDetoxifier(text="I don't write {harm}.").detoxify([Exchange(response="...")], [verdict])
        ["I don't write hateful content."]
    """

    refuses: ClassVar[bool] = True

    def __init__(self, *, text: str | None = None) -> None:
        self.text = text

    def detoxify(self, exchanges: Sequence[Exchange], verdicts: Sequence[Verdict]) -> list[str]:  # noqa: ARG002
        """One refusal per exchange; empty, which leaves it to the policy, if there is no text of its own."""
        return [render_refusal(self.text, verdict) if self.text else "" for verdict in verdicts]
