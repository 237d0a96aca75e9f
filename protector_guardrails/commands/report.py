"""``protector evaluate report``: the reports again, from ``results.json``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def report(
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", file_okay=False, help="Folder of an evaluation, with its results.json.")
    ],
) -> None:
    """Write report.html and report.md of an evaluation once more (extras: evaluate, plots).

    Nothing is measured again; the files beside results.json are replaced.
    """
    from protector_guardrails.evaluation.report import read_results, write_reports

    for path in write_reports(read_results(folder), folder):
        typer.echo(f"written: {path}")
