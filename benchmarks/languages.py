"""Answers that are not English, in the written material kept apart: ``python benchmarks/languages.py``.

An answer counts if fewer than a fifth of its words are among scikit-learn's English stop words. A
few lists of English names and things slip in. Needs the extra ``evaluate``.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS
from sklearn.metrics import roc_auc_score

from protector_guardrails import EmbeddedDetector, Exchange
from protector_guardrails.training import data

SHARE, LEAST_CHARACTERS = 0.2, 20


def is_foreign(response: str) -> bool:
    """Whether an answer hardly has a word that English sentences are held together by."""
    words = re.findall(r"[^\W\d_]+", response.lower())
    return len(response) >= LEAST_CHARACTERS and sum(word in ENGLISH_STOP_WORDS for word in words) < SHARE * len(words)


def main() -> None:
    folder = Path(data.__file__).parent / "contrast"
    rows = [
        row
        for path in sorted(folder.glob("*held_apart.jsonl.gz"))
        if "readings" not in path.name
        for row in data.read_exchanges(path)
        if is_foreign(row.response)
    ]
    harmful = np.array([row.harmful for row in rows])
    scores = np.array(
        [v.score for v in EmbeddedDetector.shared().detect([Exchange(response=r.response) for r in rows])]
    )
    print(f"{len(rows)} answers, {harmful.sum()} of them harmful")
    print(f"AUROC {roc_auc_score(harmful, scores):.2f}")
    print(
        f"recall at 0.5 {(scores[harmful] >= 0.5).mean():.0%}, false positives {(scores[~harmful] >= 0.5).mean():.0%}"
    )


if __name__ == "__main__":
    main()
