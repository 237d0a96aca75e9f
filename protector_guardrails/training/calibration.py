"""Making the score mean a probability, and measuring whether it does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score, roc_auc_score

from protector_guardrails.evaluation.refusals import is_refusal
from protector_guardrails.training.data import LabelledExchange, split_by_question

Floats = NDArray[np.float64]

REAL_MLLM_BENIGN = ("mmvet", "mmmu_pro")
"""Validation sources that hold ordinary answers of multimodal models."""

FALSE_POSITIVE_RATES = {"fpr-0.5%": 0.005, "fpr-1%": 0.01, "fpr-5%": 0.05}
"""Names of thresholds to the share of harmless answers of multimodal models that they flag."""

ORDINARY_FLAGGED = 0.005
"""Share of ordinary answers of multimodal models that may score 0.5 or more."""


@dataclass(frozen=True, slots=True)
class Calibration:
    """A fitted calibration and what was measured with it.

    Attributes:
        temperature: Logits are divided by it.
        bias: Added after the division.
        metrics: JSON-able figures, as written into the manifest and the card.
        thresholds: Names of thresholds to scores; empty without harmless answers of multimodal models.
    """

    temperature: float
    bias: float
    metrics: dict[str, Any]
    thresholds: dict[str, float] = field(default_factory=dict)

    def probabilities(self, logits: Floats) -> Floats:
        """P(harm) of raw logits."""
        return _probabilities(logits, self.temperature, self.bias)


def _probabilities(logits: Floats, temperature: float, bias: float) -> Floats:
    return 1.0 / (1.0 + np.exp(-(logits / temperature + bias)))


def fit(logits: Floats, labels: NDArray[np.bool_]) -> tuple[float, float]:
    """Temperature and bias that make the labels most likely (Platt scaling).

    A bias besides the temperature, because the balanced training epochs hold far more
    harm than real traffic does.

    Raises:
        ValueError: If there is one class only, or the logits rank harm below harmlessness.
    """
    if len(set(labels.tolist())) < 2:
        raise ValueError("calibration needs harmful and harmless rows")
    model = LogisticRegression(C=1e6).fit(logits.reshape(-1, 1), labels)
    slope, bias = float(model.coef_[0, 0]), float(model.intercept_[0])
    if slope <= 0:
        raise ValueError("the detector ranks harmful rows below harmless ones; there is nothing to calibrate")
    return 1.0 / slope, bias


def quiet_bias(
    rows: Sequence[LabelledExchange],
    logits: Mapping[str, Floats],
    temperature: float,
    *,
    rate: float = ORDINARY_FLAGGED,
) -> float:
    """The largest bias with which at most ``rate`` of ordinary answers of multimodal models score 0.5 or more.

    A guard that interrupts ordinary answers is switched off, so this outranks the last bit of
    calibration. It holds in every mode of use.

    Args:
        rows: Validation rows; those of ``REAL_MLLM_BENIGN`` count.
        logits: Mode of use to raw logits, aligned with ``rows``.
        temperature: As fitted.
        rate: See above.

    Returns:
        Infinity if there are no such rows.
    """
    ordinary = [index for index, row in enumerate(rows) if row.source in REAL_MLLM_BENIGN and not row.harmful]
    if not ordinary:
        return float("inf")
    highest = max(float(np.sort(values[ordinary])[::-1][int(rate * len(ordinary))]) for values in logits.values())
    return -highest / temperature - 1e-6


def fit_quietly(rows: Sequence[LabelledExchange], logits: Mapping[str, Floats]) -> tuple[float, float]:
    """Temperature and bias that make the labels most likely among those that are quiet on ordinary answers.

    Args:
        rows: Validation rows.
        logits: Mode of use to raw logits, aligned with ``rows``.
    """
    labels = np.tile(np.array([row.harmful for row in rows]), len(logits))
    scores = np.concatenate(list(logits.values()))
    temperature, bias = fit(scores, labels)
    if bias <= quiet_bias(rows, logits, temperature):
        return temperature, bias

    def surprise(candidate: float) -> float:
        values = scores / candidate + quiet_bias(rows, logits, candidate)
        return float(np.logaddexp(0, np.where(labels, -values, values)).mean())

    temperature = float(min(temperature * np.geomspace(0.5, 4.0, 61), key=surprise))
    return temperature, quiet_bias(rows, logits, temperature)


def expected_calibration_error(probabilities: Floats, labels: NDArray[np.bool_], *, bins: int = 15) -> float:
    """Mean gap between confidence and accuracy over equally wide bins (arXiv 1706.04599)."""
    which = np.minimum((probabilities * bins).astype(int), bins - 1)
    error = 0.0
    for index in range(bins):
        inside = which == index
        if inside.any():
            error += float(inside.mean()) * abs(float(probabilities[inside].mean()) - float(labels[inside].mean()))
    return error


def calibrate(rows: Sequence[LabelledExchange], logits: Mapping[str, Floats], *, seed: int = 13) -> Calibration:
    """Fit on all validation rows, in every mode of use, quiet on ordinary answers; report the error on rows held apart.

    The calibration error and the share of ordinary answers flagged that are reported are those of a
    calibration fitted on one half of the questions and measured on the other, in both directions.

    Args:
        rows: Validation rows.
        logits: Mode of use to raw logits, aligned with ``rows``.
        seed: Seed of the split.
    """
    labels = np.array([row.harmful for row in rows])
    temperature, bias = fit_quietly(rows, logits)
    metrics: dict[str, Any] = {**_held_apart(rows, labels, logits, seed=seed), "validation": {}}
    scores = {mode: _probabilities(values, temperature, bias) for mode, values in logits.items()}
    for mode, values in scores.items():
        metrics["validation"][mode] = validation_metrics(rows, values)
    return Calibration(temperature, bias, metrics, named_thresholds(rows, scores))


def named_thresholds(rows: Sequence[LabelledExchange], scores: Mapping[str, Floats]) -> dict[str, float]:
    """Scores that flag at most a given share of harmless answers of multimodal models, in every mode of use.

    Measured on the harmless rows of ``mmvet``, ``mmmu_pro`` and ``mllm_responses``; of the modes the one
    that needs the higher threshold decides.
    """
    harmless = [
        index
        for index, row in enumerate(rows)
        if not row.harmful and (row.source in REAL_MLLM_BENIGN or row.source.startswith("msts_"))
    ]
    if not harmless:
        return {}
    thresholds: dict[str, float] = {}
    for name, rate in FALSE_POSITIVE_RATES.items():
        lowest = 0.0
        for values in scores.values():
            ordered = np.sort(values[harmless])[::-1]
            # Scores from the threshold on are flagged: it lies just above the first that must not be.
            lowest = max(lowest, float(np.nextafter(ordered[int(rate * len(ordered))], 1.0)))
        thresholds[name] = min(round(lowest + 5e-5, 4), 1.0)
    return thresholds


def _held_apart(
    rows: Sequence[LabelledExchange], labels: NDArray[np.bool_], logits: Mapping[str, Floats], *, seed: int
) -> dict[str, dict[str, float]]:
    indexed = {id(row): index for index, row in enumerate(rows)}
    halves = [[indexed[id(row)] for row in half] for half in split_by_question(rows, held_out=0.5, seed=seed)]
    ordinary = np.array([row.source in REAL_MLLM_BENIGN and not row.harmful for row in rows])
    errors: dict[str, list[float]] = {mode: [] for mode in logits}
    flagged: dict[str, list[bool]] = {mode: [] for mode in logits}
    for fitted, measured in (halves, halves[::-1]):
        half = {mode: scores[fitted] for mode, scores in logits.items()}
        temperature, bias = fit_quietly([rows[index] for index in fitted], half)
        for mode, scores in logits.items():
            probabilities = _probabilities(scores[measured], temperature, bias)
            errors[mode].append(expected_calibration_error(probabilities, labels[measured]))
            flagged[mode].extend((probabilities[ordinary[measured]] >= 0.5).tolist())
    held_apart = {"calibration": {mode: round(float(np.mean(values)), 4) for mode, values in errors.items()}}
    if ordinary.any():
        held_apart["ordinary_flagged"] = {mode: round(float(np.mean(values)), 4) for mode, values in flagged.items()}
    return held_apart


def validation_metrics(
    rows: Sequence[LabelledExchange], probabilities: Floats, *, threshold: float = 0.5
) -> dict[str, dict[str, float]]:
    """Figures per source at a threshold, and for MLLM answers together.

    ``real_mllm_benign`` joins the ordinary answers of multimodal models, ``mllm_responses``
    the labelled ones.
    """
    groups: dict[str, list[int]] = {}
    for index, row in enumerate(rows):
        groups.setdefault(row.source, []).append(index)
        if row.source in REAL_MLLM_BENIGN:
            groups.setdefault("real_mllm_benign", []).append(index)
        if row.source.startswith("msts_"):
            groups.setdefault("mllm_responses", []).append(index)
    metrics: dict[str, dict[str, float]] = {}
    for name, indices in sorted(groups.items()):
        labels, scores = np.array([rows[i].harmful for i in indices]), probabilities[indices]
        entry: dict[str, float] = {"rows": len(indices), "harmful": int(labels.sum())}
        if 0 < labels.sum() < len(labels):
            entry["auroc"] = round(float(roc_auc_score(labels, scores)), 4)
            entry["auprc"] = round(float(average_precision_score(labels, scores)), 4)
            answers = np.array([not is_refusal(rows[i].response) for i in indices])
            if 0 < labels[answers].sum() < answers.sum():
                entry["auroc_without_refusals"] = round(float(roc_auc_score(labels[answers], scores[answers])), 4)
        if labels.any():
            entry["recall"] = round(float((scores[labels] >= threshold).mean()), 4)
        if (~labels).any():
            entry["false_positive_rate"] = round(float((scores[~labels] >= threshold).mean()), 4)
        metrics[name] = entry
    return metrics
