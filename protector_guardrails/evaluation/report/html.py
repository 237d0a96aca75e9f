"""A report as one HTML file that needs nothing else: no network, no other file, no JavaScript to be read."""

from __future__ import annotations

import base64
import hashlib
from pathlib import Path

from protector_guardrails.errors import MissingExtraError
from protector_guardrails.evaluation.report.document import Cell, Document

_HERE = Path(__file__).parent


def html_page(document: Document) -> str:
    """The whole page. Every text is escaped; only the drawings and the package's own style and script are not.

    Raises:
        MissingExtraError: If Jinja is not installed.
    """
    try:
        from jinja2 import Environment, FileSystemLoader, StrictUndefined
        from markupsafe import Markup
    except ImportError as error:
        raise MissingExtraError("an HTML report", extra="evaluate") from error
    environment = Environment(
        loader=FileSystemLoader(_HERE),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["drawing"] = Markup
    environment.tests["web_address"] = _is_web_address
    style, script = (_HERE.joinpath(name).read_text(encoding="utf-8") for name in ("report.css", "threshold.js"))
    return environment.get_template("report.html.jinja").render(
        document=document,
        style=Markup(style),  # noqa: S704 - the package's own
        script=Markup(script),  # noqa: S704 - the package's own
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )


def _is_web_address(cell: Cell) -> bool:
    """Other schemes, such as ``javascript:``, become no link."""
    return cell.link.startswith(("https://", "http://"))
