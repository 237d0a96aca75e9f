"""The pages that ``protector evaluate`` writes beside ``results.json``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import typer

from protector_guardrails.errors import MissingExtraError

if TYPE_CHECKING:
    from protector_guardrails.evaluation.defense.results import DefenseEvaluation
    from protector_guardrails.evaluation.results import DetectorEvaluation


def write_pages(evaluation: DetectorEvaluation | DefenseEvaluation, folder: Path) -> str:
    """Write the reports of an evaluation; where an extra for them is missing, say so and go without.

    Returns:
        The names of what was written, each after a comma.
    """
    from protector_guardrails.evaluation.report import write_reports

    try:
        return "".join(f", {path.name}" for path in write_reports(evaluation, folder))
    except MissingExtraError as error:
        typer.echo(f"no pages beside results.json: {error}", err=True)
        return ""
