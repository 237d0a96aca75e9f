"""The arms of a defence's evaluation, as reports call them."""

from __future__ import annotations

from collections.abc import Iterable

from protector_guardrails.evaluation.defense.results import Arm
from protector_guardrails.evaluation.report.document import Cell
from protector_guardrails.evaluation.report.figures import absent, count, share
from protector_guardrails.evaluation.results import Estimate

ALL = "all"
ARM_NAMES: dict[Arm, str] = {"none": "bare model", "detector": "guard refuses", "detoxifier": "guard rewrites"}
GUARDS: tuple[Arm, ...] = ("detector", "detoxifier")
NOT_RUN = "this was not measured"


def share_of(estimate: Estimate | None, *, bar: bool = False) -> Cell:
    """A share, or that there is none."""
    return absent(NOT_RUN) if estimate is None else share(estimate, bar=bar)


def counts(values: Iterable[int]) -> Cell:
    """How many, in each arm where that differs."""
    told = list(values)
    return count(told[0]) if len(set(told)) == 1 else Cell(" / ".join(f"{value:,}" for value in told), number=True)
