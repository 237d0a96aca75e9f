"""Reads a page as a browser would, and complains where it is not well formed."""

from __future__ import annotations

from dataclasses import dataclass, field
from html.parser import HTMLParser

VOID = {"meta", "input", "br", "hr", "img", "link"}


@dataclass
class Page:
    """What was found.

    Attributes:
        tags: Name and attributes of every element.
        text: What a reader sees.
        tables: Cells of every table, by its label, the header first; a label that comes again gets a plus.
        scripts: Contents of the scripts.
        headings: Contents of headings.
    """

    tags: list[tuple[str, dict[str, str]]] = field(default_factory=list)
    text: str = ""
    tables: dict[str, list[list[str]]] = field(default_factory=dict)
    scripts: list[str] = field(default_factory=list)
    headings: list[str] = field(default_factory=list)

    def values(self, *names: str) -> list[str]:
        return [value for _, attributes in self.tags for name, value in attributes.items() if name in names]


class _Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.page, self.open, self.rows = Page(), [], []

    def handle_starttag(self, tag, attrs):
        names = [name for name, _ in attrs]
        assert len(names) == len(set(names)), (tag, attrs)
        self.page.tags.append((tag, {name: value or "" for name, value in attrs}))
        if tag == "table":
            label = dict(attrs)["aria-label"]
            while label in self.page.tables:  # of another detector
                label += "+"
            self.rows = self.page.tables[label] = []
        elif tag == "tr":
            self.rows.append([])
        elif tag in {"th", "td"}:
            self.rows[-1].append("")
        elif tag == "script":
            self.page.scripts.append("")
        elif tag in {"h1", "h2", "h3"}:
            self.page.headings.append("")
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        assert "svg" in self.open, f"<{tag}/> outside of a drawing"
        self.page.tags.append((tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag):
        assert self.open and self.open.pop() == tag, tag

    def handle_data(self, data):
        if "script" in self.open:
            self.page.scripts[-1] += data
        elif "style" not in self.open:
            self.page.text += data
            if {"th", "td"} & set(self.open):
                self.rows[-1][-1] += data
            if {"h1", "h2", "h3"} & set(self.open):
                self.page.headings[-1] += data


def read_page(html: str) -> Page:
    reader = _Reader()
    reader.feed(html)
    reader.close()
    assert not reader.open, reader.open
    return reader.page


def told(text: str) -> str:
    """A cell as one line with plain spaces."""
    return " ".join(text.split())
