"""How sure the detector must be of a category to tell it, and how often it is right when it does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import f1_score

from protector_guardrails.training.categories import CATEGORIES, hazard
from protector_guardrails.training.data import LabelledExchange

Floats = NDArray[np.float64]
Numbers = NDArray[np.int64]

UNSPECIFIED = -1
_NONE = -2
_TEMPERATURES = np.geomspace(0.25, 8.0, 61)
_FLOORS = np.round(np.arange(0.3, 0.91, 0.05), 2)
_RARE = 5
"""Categories with fewer rows than this are left out of the mean over categories."""


@dataclass(frozen=True, slots=True)
class CategoryCalibration:
    """A fitted temperature and floor, and what was measured with them.

    Attributes:
        temperature: Category logits are divided by it before the softmax.
        floor: Least P(category | harm) with which a category is told.
        metrics: JSON-able figures, per mode of use and source.
    """

    temperature: float
    floor: float
    metrics: dict[str, Any]


def shares(logits: Floats, temperature: float) -> Floats:
    """P(category | harm), rows by categories."""
    scaled = logits / temperature
    powers = np.exp(scaled - scaled.max(axis=1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=1, keepdims=True), dtype=np.float64)


def told(logits: Floats, temperature: float, floor: float) -> Numbers:
    """Number of the category of each row, or :data:`UNSPECIFIED` where none is sure enough."""
    probabilities = shares(logits, temperature)
    return np.where(probabilities.max(axis=1) >= floor, probabilities.argmax(axis=1), UNSPECIFIED)


def calibrate_categories(
    rows: Sequence[LabelledExchange], logits: Mapping[str, Floats], *, precision: float = 0.75
) -> CategoryCalibration | None:
    """Fit on the harmful rows whose hazard is known, or known to be none of these.

    The temperature makes the known hazards most likely; the floor is the lowest at which at least
    ``precision`` of the categories that are told are right, or, where none reaches it, the highest. What is told
    of a harmful row whose category is ``"none"`` is wrong. Rows of unknown hazard count nowhere.

    Args:
        rows: Validation rows.
        logits: Mode of use to category logits (rows, categories).
        precision: See above.

    Returns:
        None if no row has a known hazard.
    """
    hazards = [hazard(row.category, row.question) if row.harmful else None for row in rows]
    known = [index for index, found in enumerate(hazards) if found is not None]
    if not known:
        return None
    truth = np.array([CATEGORIES.index(found) for found in hazards if found is not None])
    stacked, twice = np.concatenate([values[known] for values in logits.values()]), np.tile(truth, len(logits))
    likelihoods = [
        np.log(shares(stacked, float(value))[np.arange(len(twice)), twice] + 1e-12).mean() for value in _TEMPERATURES
    ]
    temperature = float(_TEMPERATURES[int(np.argmax(likelihoods))])
    none = [index for index, row in enumerate(rows) if row.harmful and row.category.strip().lower() == "none"]
    with_none = np.concatenate([stacked, *(values[none] for values in logits.values())])
    right = np.concatenate([twice, np.full(len(none) * len(logits), _NONE)])
    floor = float(_FLOORS[-1])
    for value in _FLOORS:
        answers = told(with_none, temperature, float(value))
        if (answers != UNSPECIFIED).any() and (answers == right)[answers != UNSPECIFIED].mean() >= precision:
            floor = float(value)
            break
    sources = np.array([rows[index].source for index in known])
    metrics = {
        mode: {
            str(source): category_metrics(
                truth[sources == source], told(values[known][sources == source], temperature, floor)
            )
            for source in sorted(set(sources.tolist()))
        }
        for mode, values in logits.items()
    }
    return CategoryCalibration(temperature, floor, metrics)


def category_metrics(truth: Numbers, answers: Numbers) -> dict[str, float]:
    """Macro-F1 over the categories that occur at least five times, share told, and share of those that is right."""
    numbers, counts = np.unique(truth, return_counts=True)
    common = [int(number) for number, count in zip(numbers, counts, strict=True) if count >= _RARE]
    specified = answers != UNSPECIFIED
    metrics: dict[str, float] = {
        "rows": len(truth),
        "categories": len(common),
        "told": round(float(specified.mean()), 4),
    }
    if common:
        metrics["macro_f1"] = round(float(f1_score(truth, answers, labels=common, average="macro", zero_division=0)), 4)
    if specified.any():
        metrics["right_when_told"] = round(float((truth == answers)[specified].mean()), 4)
    return metrics
