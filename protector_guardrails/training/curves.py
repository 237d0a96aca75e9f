"""Curves of a training run: as a table for its card, and as a picture beside it."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

MOST_ROWS = 12
"""Rows of the table; of more measurements, as many are shown, the last among them."""

_NAMES = {"loss": "training loss", "eval_loss": "held-out loss", "eval_auroc": "held-out AUROC"}


def curve_table(history: Sequence[Mapping[str, Any]]) -> str:
    """Losses and measurements by step, in Markdown.

    Args:
        history: What the run logged; see :func:`protector_guardrails.training.runs.run`.
    """
    rows: dict[int, dict[str, Any]] = {}
    for entry in history:
        rows.setdefault(int(entry["step"]), {}).update(entry)
    measured = [step for step, row in rows.items() if "eval_loss" in row]
    latest: float | None = None
    for step in sorted(rows):  # training losses are logged at steps of their own
        latest = rows[step].get("loss", latest)
        rows[step]["loss"] = latest
    columns = [name for name in _NAMES if any(row.get(name) is not None for row in rows.values())]
    shown = _thinned(sorted(measured or rows))
    lines = [["step", *(_NAMES[name] for name in columns)], ["---"] * (len(columns) + 1)]
    lines += [[str(step), *(_figure(rows[step].get(name)) for name in columns)] for step in shown]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def draw_curves(history: Sequence[Mapping[str, Any]], path: Path, *, epochs: int) -> Path | None:
    """Draw losses and measurements by epoch as SVG.

    Args:
        history: What the run logged.
        path: Where to.
        epochs: How many the plan of the run held.

    Returns:
        The path; None if matplotlib (extra ``plots``) is not installed, or nothing was logged.
    """
    if importlib.util.find_spec("matplotlib") is None or not history:
        return None
    import matplotlib as mpl
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 3.5), layout="constrained")
    losses = figure.subplots()
    scores = losses.twinx() if any("eval_auroc" in entry for entry in history) else None
    for name, style in (("loss", "-"), ("eval_loss", "o-"), ("eval_auroc", "s--")):
        points = [(float(entry["epoch"]) * epochs, float(entry[name])) for entry in history if name in entry]
        axes = scores if name == "eval_auroc" and scores is not None else losses
        if points:
            axes.plot(*zip(*points, strict=True), style, label=_NAMES[name], color={"loss": "0.6"}.get(name))
    losses.set(xlabel="epoch", ylabel="loss")
    if scores is not None:
        scores.set(ylabel="AUROC", ylim=(None, 1.0))
    figure.legend(loc="outside upper center", ncols=3, frameon=False)
    with mpl.rc_context({"svg.hashsalt": "curves"}):  # the same run gives the same file
        figure.savefig(path, format="svg", metadata={"Date": None})
    return path


def _thinned(steps: Sequence[int]) -> list[int]:
    if len(steps) <= MOST_ROWS:
        return list(steps)
    return sorted({steps[round(index * (len(steps) - 1) / (MOST_ROWS - 1))] for index in range(MOST_ROWS)})


def _figure(value: Any) -> str:
    return "" if value is None else f"{float(value):.3f}"
