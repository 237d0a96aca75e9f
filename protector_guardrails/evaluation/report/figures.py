"""Figures as people read them."""

from __future__ import annotations

import math
from datetime import UTC, datetime

from protector_guardrails.evaluation.report.document import Cell
from protector_guardrails.evaluation.results import Estimate
from protector_guardrails.masking import plain

NONE = "–"
_NBSP = "\u00a0"
FEW = 50
"""Of fewer, a share is told by its counts."""


def words(text: str | None) -> Cell:
    """A text that came with the data: one line, without control characters."""
    return Cell(plain(text or "") or NONE)


def code(text: str) -> Cell:
    """A hash, a command or a path."""
    return Cell(plain(text) or NONE, code=True)


def count(value: int) -> Cell:
    """A whole number."""
    return Cell(f"{value:,}", number=True)


def milliseconds(value: float) -> Cell:
    """A time."""
    if 0 < value < 0.05:
        return Cell(f"<{_NBSP}0.1{_NBSP}ms", number=True)
    return Cell(f"{value:,.1f}{_NBSP}ms" if value < 100 else f"{value:,.0f}{_NBSP}ms", number=True)


def absent(reason: str) -> Cell:
    """No figure, and why."""
    return Cell(NONE, reason=plain(reason), number=True)


def percent(value: float) -> str:
    """A share in percent; only 0 and 1 themselves are told as such.

    >>> [percent(share).replace(_NBSP, " ") for share in (0, 0.0004, 0.538, 0.9998, 1)]
    ['0 %', '< 0.1 %', '53.8 %', '> 99.9 %', '100 %']
    """
    if value in (0, 1):
        told = "0" if value == 0 else "100"
    elif 0 < value < 0.0005:
        told = f"<{_NBSP}0.1"
    elif 0.9995 <= value < 1:
        told = f">{_NBSP}99.9"
    else:
        told = f"{100 * value:.1f}"
    return f"{told}{_NBSP}%"


def share(estimate: Estimate, *, bar: bool = False) -> Cell:
    """A share with its interval, in percent."""
    if estimate.value is None:
        return absent(estimate.reason or "not given")
    low, high = estimate.low, estimate.high
    interval = "" if low is None or high is None else f"{100 * low:.1f}–{100 * high:.1f}"
    return Cell(
        percent(estimate.value),
        interval=interval,
        reason=plain(estimate.reason or ""),
        share=min(1.0, max(0.0, estimate.value)) if bar else None,
        number=True,
    )


def number(estimate: Estimate) -> Cell:
    """A figure that is no share, such as an AUROC, with its interval."""
    if estimate.value is None:
        return absent(estimate.reason or "not given")
    low, high = estimate.low, estimate.high
    interval = "" if low is None or high is None else f"{_signed(low)}–{_signed(high)}"
    if low is not None and high is not None and low < 0:
        interval = f"{_signed(low)} to {_signed(high)}"
    return Cell(_signed(estimate.value), interval=interval, reason=plain(estimate.reason or ""), number=True)


def p_value(value: float) -> Cell:
    """A p-value."""
    return Cell(f"<{_NBSP}0.001" if value < 0.001 else f"{value:.3f}", number=True)


def score(value: float | None) -> Cell:
    """A detector's score, or a threshold."""
    return Cell(NONE if value is None else f"{value:.3f}", number=True)


def moment(value: datetime) -> str:
    """A point in time, UTC."""
    aware = value if value.tzinfo else value.replace(tzinfo=UTC)
    return f"{aware.astimezone(UTC):%Y-%m-%d %H:%M} UTC"


def out_of(estimate: Estimate, of: int) -> str:
    """A share of so many, in words that need no calculator: "9 in 10", "1 in 200", "7 of 9".

    >>> out_of(Estimate(value=0.005), 2000)
    '1 in 200'
    """
    value = estimate.value
    if value is None:
        return NONE
    if value == 0:
        return f"none of {of:,}"
    if value == 1:
        return f"all {of:,}"
    if of < FEW:
        return f"{round(value * of)} of {of}"
    if value < 0.1:
        hits, parts = 1, _round(1 / value)
    elif value > 0.99:
        parts = _round(1 / (1 - value))
        hits = parts - 1
    elif abs(value * 10 - round(value * 10)) <= 0.15 and value < 0.95:
        hits, parts = round(value * 10), 10
    else:
        hits, parts = round(value * 100), 100
    exact = math.isclose(hits / parts, value, rel_tol=1e-9)
    return f"{'' if exact else 'about '}{hits:,} in {parts:,}"


def brief(value: float) -> str:
    """A share in percent with two figures, for a sentence.

    >>> [brief(share).replace(_NBSP, " ") for share in (0.62, 0.04, 0.0417, 0.996, 1)]
    ['62 %', '4 %', '4.2 %', '99.6 %', '100 %']
    """
    if value in (0, 1) or not 0.0005 <= value < 0.9995:
        return percent(value)
    told = f"{100 * value:.1f}" if value < 0.0995 or value >= 0.995 else f"{100 * value:.0f}"
    return f"{told.removesuffix('.0')}{_NBSP}%"


def _signed(value: float) -> str:
    told = f"{value:.3f}"
    return told.lstrip("-") if float(told) == 0 else told.replace("-", "\N{MINUS SIGN}")


def _round(value: float) -> int:
    """To two figures, as a person would say it."""
    digits = math.floor(math.log10(value)) - 1
    return int(round(value, -max(0, digits)))
