"""Answers that are not English, written by the project and kept apart: ``python benchmarks/languages.py``.

Needs the extra ``evaluate``.
"""

from __future__ import annotations

from itertools import groupby
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table
from sklearn.metrics import roc_auc_score

from protector_guardrails import EmbeddedDetector
from protector_guardrails.training import data
from protector_guardrails.training.export import as_exchange

ROWS = Path(data.__file__).parent / "contrast" / "languages_held_apart.jsonl.gz"


def language(row: data.LabelledExchange) -> str:
    """The two letters that a row's kind begins with."""
    return row.kind.partition("_")[0]


def main() -> None:
    rows = sorted(data.read_exchanges(ROWS), key=language)
    harmful = np.array([row.harmful for row in rows])
    table = Table("language", "answers, harmful", "recall at 0.5, full / response", "false positives", "AUROC")
    scores = [
        np.array([verdict.score for verdict in EmbeddedDetector.shared().detect([as_exchange(r, mode) for r in rows])])
        for mode in ("full", "response")
    ]
    groups = {name: [index for index, _ in here] for name, here in groupby(enumerate(rows), lambda r: language(r[1]))}
    for name, here in ({"all": list(range(len(rows)))} | groups).items():
        truth = harmful[here]
        table.add_row(
            name,
            f"{len(here)}, {truth.sum()}",
            " / ".join(f"{(score[here][truth] >= 0.5).mean():.0%}" for score in scores),
            " / ".join(f"{(score[here][~truth] >= 0.5).mean():.0%}" for score in scores),
            " / ".join(f"{roc_auc_score(truth, score[here]):.2f}" for score in scores),
        )
    Console().print(table)


if __name__ == "__main__":
    main()
