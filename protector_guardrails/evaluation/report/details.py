"""What both reports say of how they were made."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping

from protector_guardrails.evaluation.defense.results import DefenseRun
from protector_guardrails.evaluation.report.document import Block, Cell, Table
from protector_guardrails.evaluation.report.figures import code, count, moment, words
from protector_guardrails.evaluation.results import Run
from protector_guardrails.masking import plain


def facts(run: Run | DefenseRun, more: Mapping[str, str]) -> Table:
    """A table of the run, with what only one kind of report has."""
    rows = [
        [Cell("Made"), Cell(moment(run.created))],
        [Cell("Command"), code(shlex.join(run.command))],
        *([Cell(name), words(value)] for name, value in more.items()),
        [Cell("Seed"), Cell(str(run.seed))],
        [Cell("Texts of examples"), Cell("masked" if run.masked else "not masked")],
        [Cell("protector-guardrails"), words(run.package)],
        [Cell("Python"), words(run.python)],
        [Cell("Platform"), words(run.platform)],
        *([words(name), words(version)] for name, version in run.versions.items()),
    ]
    return Table(title="Run", columns=["What", "Value"], rows=rows)


def data_problems(left_out: Mapping[str, Mapping[str, int]]) -> Iterator[Block]:
    """Records that were left out, and why, if there are any."""
    rows = [
        [words(name), words(plain(reason)), count(records)]
        for name, reasons in left_out.items()
        for reason, records in reasons.items()
    ]
    if rows:
        yield Table(title="Records left out", columns=["Data set", "Reason", "Records"], rows=rows)
