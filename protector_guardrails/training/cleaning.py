"""Rows that a detector should not learn from: near-duplicates, and labels that all else speaks against.

Labels that another model gave, or that follow from how a data set was built, are noisy.
Confident learning (arXiv 1911.00068) finds them by cross-validation: a model that never saw a row is
sure of the opposite of its label. What it finds is a list to read and no more: of 218 such rows that
were read, 45 were labelled wrongly or unfit (``readings``); most others were hard and rightly
labelled, and are what a detector should learn.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
from scipy.sparse import hstack  # type: ignore[import-untyped]
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression

from protector_guardrails.training.data import LabelledExchange, normalise

NOISY = ("judge", "dataset")
"""Kinds of labels that are doubted; those given by people or authors stand."""


def without_duplicates(rows: Sequence[LabelledExchange], *, words: int = 40) -> list[LabelledExchange]:
    """Keep one of the rows of a source that say the same to the same question.

    Two responses count as the same if their first ``words`` words are, whatever their
    punctuation and case. Where their labels differ, none is kept.
    """
    first: dict[tuple[str, str, str], LabelledExchange] = {}
    disputed: set[tuple[str, str, str]] = set()
    for row in rows:
        key = (row.source, row.group, " ".join(normalise(row.response).split()[:words]))
        known = first.setdefault(key, row)
        if known.harmful != row.harmful:
            disputed.add(key)
    return [row for key, row in first.items() if key not in disputed]


def contradicted(rows: Sequence[LabelledExchange], *, certainty: float = 0.95, folds: int = 5) -> set[int]:
    """Indices of rows whose noisy label is contradicted by a model that did not see their question.

    The model is a logistic regression on words and pairs of words of the response and, apart from
    them, words of the question: cheap, and of another kind than the network that is
    trained afterwards.

    Args:
        rows: Labelled rows; only those with a label kind of :data:`NOISY` are doubted or learnt from.
        certainty: How probable the opposite label must be.
        folds: Folds of the cross-validation; a question is in one of them.

    Returns:
        Indices into ``rows``; empty if there is too little to learn from.
    """
    doubted = [index for index, row in enumerate(rows) if row.label_kind in NOISY]
    labels = np.array([rows[index].harmful for index in doubted], dtype=bool)
    fold = np.array([_fold(rows[index].group, folds) for index in doubted])
    if any(len(set(labels[fold != number].tolist())) < 2 for number in range(folds)):
        return set()
    responses = TfidfVectorizer(ngram_range=(1, 2), min_df=3, max_features=60_000, sublinear_tf=True)
    questions = TfidfVectorizer(min_df=3, sublinear_tf=True)
    try:
        features = hstack(
            [
                responses.fit_transform([rows[index].response for index in doubted]),
                0.5 * questions.fit_transform([rows[index].question for index in doubted]),
            ]
        ).tocsr()
    except ValueError:  # no word occurs often enough
        return set()
    found: set[int] = set()
    for number in range(folds):
        inside = np.flatnonzero(fold == number)
        if not len(inside):
            continue
        model = LogisticRegression(C=8.0, max_iter=200, class_weight="balanced").fit(
            features[fold != number], labels[fold != number]
        )
        harmful = model.predict_proba(features[inside])[:, 1]
        opposite = np.where(labels[inside], 1 - harmful, harmful)
        found.update(doubted[index] for index in inside[opposite >= certainty])
    return found


def _fold(group: str, folds: int) -> int:
    return int.from_bytes(hashlib.sha256(group.encode("utf-8", "replace")).digest()[:4], "big") % folds
