"""A report as GitHub Markdown: the same figures in tables, without the drawings."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from protector_guardrails.evaluation.report.document import (
    Alert,
    Block,
    Bullets,
    Cell,
    Document,
    Paragraph,
    Table,
    Threshold,
)

_MARKUP = re.compile(r"[\\`*\[\]|~$]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])")
_OPENING = re.compile(r"^(\d+(?=[.)](?:\s|$))|(?=[#+=-]))")  # behind it stands what would begin a list or a heading
_NO_ADDRESS = re.compile(r"[^A-Za-z0-9:/?#@!&'()+,;=._~%-]")  # would end the link, or the cell
_ENTITIES = {"&": "&amp;", "<": "&lt;", ">": "&gt;"}


def markdown_page(document: Document) -> str:
    """The whole page. Nothing in a text of the results is taken for markup."""
    lines = [f"# {_escaped(document.title)}", ""]
    lines += [line for sentence in document.headline for line in (f"**{_escaped(sentence)}**", "")]
    lines += [_escaped(document.summary), ""]
    if document.key_figures:
        rows = [[Cell(one.label), one.cell, Cell(one.note)] for one in document.key_figures]
        lines += _table(Table(title="", columns=["Figure", "Value", "What"], rows=rows))
    for section in document.sections:
        blocks = [line for block in section.blocks for line in _block(block)]
        if blocks:  # not of drawings only
            lines += [f"## {_escaped(section.title)}", "", *blocks]
    return "\n".join(lines).rstrip() + "\n"


def _block(block: Block) -> Iterator[str]:
    match block:
        case Table():
            yield from _table(block)
        case Threshold():
            yield from _table(block.table)
        case Paragraph(text):
            yield from (_escaped(text), "")
        case Alert(text):
            yield from (f"> {_escaped(text)}", "")
        case Bullets(items):
            yield from (f"- {_escaped(item)}" for item in items)
            yield ""
        case _:  # drawings
            return


def _table(table: Table) -> Iterator[str]:
    if table.title:
        yield from (f"**{_escaped(table.title)}**", "")
    reasons = table.reasons
    right = [bool(table.rows) and table.rows[0][index].number for index in range(len(table.columns))]
    yield _line(_escaped(column) for column in table.columns)
    yield _line("---:" if number else "---" for number in right)
    for row in table.rows:
        yield _line(_cell(cell, reasons) for cell in row)
    yield ""
    if table.note:
        yield from (_escaped(table.note), "")
    for number, reason in enumerate(reasons, start=1):
        yield f"{number}. {_escaped(reason)}"
    if reasons:
        yield ""


def _cell(cell: Cell, reasons: list[str]) -> str:
    told = _escaped(cell.text)
    if cell.link.startswith(("https://", "http://")):
        told = f"[{told}](<{_NO_ADDRESS.sub('', cell.link)}>)"
    if cell.interval:
        told += f" ({cell.interval})"
    if cell.reason:
        told += f" <sup>{reasons.index(cell.reason) + 1}</sup>"
    return told


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _escaped(text: str) -> str:
    inline = _MARKUP.sub(r"\\\g<0>", re.sub("[&<>]", lambda found: _ENTITIES[found[0]], text))
    return _OPENING.sub(r"\1\\", inline)
