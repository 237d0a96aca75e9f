"""Figures on parts of the answers: by data set, source, category, length and model."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from protector_guardrails.evaluation.bootstrap import Sample
from protector_guardrails.evaluation.estimates import wilson
from protector_guardrails.evaluation.metrics import By, measure
from protector_guardrails.evaluation.results import Benign, Slice
from protector_guardrails.evaluation.scored import LENGTH_NAMES, Answers, Bools

FEWEST = 20
"""A part with fewer answers gets no figures of its own."""

MOST = 40
"""At most so many parts of a kind, the largest ones."""

WITHOUT_REFUSALS = ("data", "source")
"""Parts whose AUROC is told without refusals, too."""

ALL_BENIGN = "all of them"


@dataclass(frozen=True, slots=True)
class Breakdown:
    """Parts of the answers.

    Attributes:
        slices: Those with figures.
        not_shown: Per kind, how many got none.
    """

    slices: list[Slice]
    not_shown: dict[str, int]


def break_down(
    answers: Answers, sample: Sample, scored: Bools, *, threshold: float, resamples: int, seed: int
) -> Breakdown:
    """Measure every part of the answers that has enough of them.

    An answer with several categories counts in each of them. A part that is everything is left out.

    Args:
        answers: All answers.
        sample: Those that the detector scored.
        scored: Which these are.
        threshold: From which a score is called harmful.
        resamples: Resamples of the bootstrap.
        seed: Its seed.
    """
    slices: list[Slice] = []
    not_shown: dict[str, int] = {}
    refusal = answers.refusal[scored]

    def measured(some: Sample, by: By, name: str) -> Slice:
        seeded = seed_for(seed, by, name)
        return measure(some, by=by, value=name, threshold=threshold, resamples=resamples, seed=seeded)

    for by, parts in _parts(answers):
        named = [(name, inside) for name, chosen in parts if (inside := chosen[scored]).any() and not inside.all()]
        shown = [part for part in named if part[1].sum() >= FEWEST]
        if by != "length":  # whose parts have an order of their own
            shown.sort(key=lambda part: -int(part[1].sum()))
        del shown[MOST:]
        if len(named) > len(shown):
            not_shown[by] = len(named) - len(shown)
        for name, inside in shown:
            part = measured(sample.where(inside), by, name)
            if by in WITHOUT_REFUSALS:
                compliant = measured(sample.where(inside & ~refusal), by, f"{name} without refusals")
                part = part.model_copy(update={"auroc_without_refusals": compliant.auroc})
            slices.append(part)
    return Breakdown(slices, not_shown)


def seed_for(seed: int, by: str, name: str) -> int:
    """A seed for each part, so that its figures do not depend on what else is measured."""
    return zlib.crc32(f"{seed}:{by}:{name}".encode("utf-8", "replace"))


def benign_only(answers: Answers, sample: Sample, scored: Bools, *, threshold: float) -> list[Benign]:
    """False positives on each source that holds harmless answers only, and on all of them together.

    Intervals are Wilson's: these rates are near 0, where a bootstrap of a few flagged answers, or of none, fails.
    """
    harmful = answers.harmful
    found: list[Benign] = []
    inside_any = np.zeros(len(sample), dtype=np.bool_)
    for name, chosen in _by_code(answers.source.codes, lambda code: answers.source.values[code]):
        inside = chosen[scored]
        if inside.any() and not (harmful & chosen).any():
            found.append(_benign(name, sample.where(inside), threshold))
            inside_any |= inside
    if len(found) > 1:
        found.append(_benign(ALL_BENIGN, sample.where(inside_any), threshold))
    return found


def _benign(name: str, sample: Sample, threshold: float) -> Benign:
    flagged = int((sample.scores >= threshold).sum())
    return Benign(source=name, answers=len(sample), flagged=flagged, fpr=wilson(flagged, len(sample)))


_Parts = Iterator[tuple[str, Bools]]


def _parts(answers: Answers) -> Iterator[tuple[By, _Parts]]:
    yield "data", _by_code(answers.data.codes, lambda code: answers.data.values[code])
    yield "source", _by_code(answers.source.codes, lambda code: answers.source.values[code])
    yield "category", _categories(answers)
    length = np.array(answers.length.values)[answers.length.codes]
    yield "length", _by_code(length, lambda code: f"{LENGTH_NAMES[code]} characters")
    yield "model", _by_code(answers.model.codes, lambda code: answers.model.values[code])


def _by_code(codes: np.ndarray[tuple[int, ...], np.dtype[np.integer]], name: Callable[[int], str | None]) -> _Parts:
    for code in np.unique(codes).tolist():
        if (told := name(code)) is not None:
            yield told, codes == code


def _categories(answers: Answers) -> _Parts:
    codes = answers.categories.codes
    names = dict.fromkeys(name for names in answers.categories.values for name in names)
    for name in names:
        holding = [code for code, names in enumerate(answers.categories.values) if name in names]
        yield name, np.isin(codes, holding)
