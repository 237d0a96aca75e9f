"""Reports of evaluations: ``report.html``, one file with everything in it, and ``report.md``.

>>> from protector_guardrails.evaluation.report import write_reports
>>> write_reports(evaluation, Path("runs/first"))  # doctest: +SKIP
[PosixPath('runs/first/report.html'), PosixPath('runs/first/report.md')]
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Annotated

from pydantic import Field, TypeAdapter, ValidationError

from protector_guardrails.errors import ConfigurationError, MissingExtraError
from protector_guardrails.evaluation.defense.results import DefenseEvaluation
from protector_guardrails.evaluation.report.document import Document
from protector_guardrails.evaluation.results import DetectorEvaluation
from protector_guardrails.evaluation.run import RESULTS, write_whole

__all__ = ["HTML", "MARKDOWN", "read_results", "require_report_extras", "write_reports"]

HTML, MARKDOWN = "report.html", "report.md"
_RESULTS: TypeAdapter[DetectorEvaluation | DefenseEvaluation] = TypeAdapter(
    Annotated[DetectorEvaluation | DefenseEvaluation, Field(discriminator="schema_version")]
)
_NEEDED = (("jinja2", "evaluate"), ("matplotlib", "evaluate"))


def write_reports(evaluation: DetectorEvaluation | DefenseEvaluation, folder: Path) -> list[Path]:
    """Write the reports of an evaluation into a folder; the same results give the same bytes.

    Args:
        evaluation: What was found.
        folder: An existing folder, such as that of ``results.json``.

    Returns:
        The files that were written; each is there as a whole or not at all.

    Raises:
        MissingExtraError: If Jinja (extra ``evaluate``) or matplotlib (extra ``plots``) is not installed.
    """
    require_report_extras()
    from protector_guardrails.evaluation.report.html import html_page
    from protector_guardrails.evaluation.report.markdown import markdown_page

    document = _document(evaluation)
    pages = {folder / HTML: html_page(document), folder / MARKDOWN: markdown_page(document)}
    for path, text in pages.items():
        write_whole(path, text)
    return list(pages)


def require_report_extras() -> None:
    """See that reports can be made, before any work is done.

    Raises:
        MissingExtraError: If they cannot.
    """
    for module, extra in _NEEDED:
        if importlib.util.find_spec(module) is None:
            raise MissingExtraError("a report", extra=extra)


def read_results(folder: Path) -> DetectorEvaluation | DefenseEvaluation:
    """The results in a folder, of whichever kind they are.

    Raises:
        ConfigurationError: If there are none, or they are not of a form that this version knows.
    """
    path = folder / RESULTS
    try:
        found = path.read_bytes()
    except OSError as error:
        raise ConfigurationError(
            f"{path} cannot be read ({type(error).__name__}): name a folder of an evaluation"
        ) from error
    try:
        return _RESULTS.validate_json(found)
    except ValidationError as error:
        raise ConfigurationError(f"{path} is not the result of an evaluation, or of another version") from error


def _document(evaluation: DetectorEvaluation | DefenseEvaluation) -> Document:
    if isinstance(evaluation, DetectorEvaluation):
        from protector_guardrails.evaluation.report.detector_page import detector_document

        return detector_document(evaluation)
    from protector_guardrails.evaluation.report.defense_page import defense_document

    return defense_document(evaluation)
