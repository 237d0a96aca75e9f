"""What a report is made of, before it is HTML or Markdown: both show the same figures."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

LONG = 15
"""Tables of parts with more rows are folded."""


@dataclass(frozen=True, slots=True)
class Cell:
    """A figure or a text in a table.

    Attributes:
        text: What stands there; plain text, never markup.
        interval: Its 95 % interval, in the figure's own unit.
        reason: Why there is no figure, or no interval.
        share: The figure itself where it is a share, for a bar behind it.
        link: Address of a page about it.
        code: Whether it is a hash, a command or a path.
        number: Whether it is one, and stands to the right.
    """

    text: str
    interval: str = ""
    reason: str = ""
    share: float | None = None
    link: str = ""
    code: bool = False
    number: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """Rows under a header; the first cell of a row names it.

    Attributes:
        title: What it shows.
        columns: The header.
        rows: As many cells each.
        note: What to know when reading it.
        folded: Whether a page shows it on request only.
    """

    kind: ClassVar[str] = "table"
    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    note: str = ""
    folded: bool = False

    @property
    def reasons(self) -> list[str]:
        """Why figures are missing, each once; a cell refers to one by its number, from 1."""
        return list(dict.fromkeys(cell.reason for row in self.rows for cell in row if cell.reason))


@dataclass(frozen=True, slots=True, kw_only=True)
class Chart:
    """A drawing; Markdown leaves it out, since every figure of it stands in a table too.

    Attributes:
        title: What it shows.
        svg: The drawing.
        note: What to know when reading it.
    """

    kind: ClassVar[str] = "chart"
    title: str
    svg: str
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Charts:
    """Drawings side by side."""

    kind: ClassVar[str] = "charts"
    charts: Sequence[Chart]


@dataclass(frozen=True, slots=True)
class Paragraph:
    """A sentence or a few."""

    kind: ClassVar[str] = "paragraph"
    text: str


@dataclass(frozen=True, slots=True)
class Alert:
    """A sentence that must not be missed."""

    kind: ClassVar[str] = "alert"
    text: str


@dataclass(frozen=True, slots=True)
class Bullets:
    """Sentences that have nothing to do with each other."""

    kind: ClassVar[str] = "bullets"
    items: Sequence[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Decided:
    """What one detector decides at the threshold of the evaluation, and at others.

    Attributes:
        name: Of the detector.
        counts: True positives, false positives, false negatives, true negatives.
        recall: At the threshold.
        precision: At the threshold.
        fpr: At the threshold.
        sweep: ``[threshold, true positives, false positives, false negatives, true negatives]`` at others.
    """

    name: str
    counts: tuple[int, int, int, int]
    recall: Cell
    precision: Cell
    fpr: Cell
    sweep: Sequence[tuple[float, int, int, int, int]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Threshold:
    """Decisions that a reader can try out; without JavaScript, those at one threshold.

    Attributes:
        title: What it shows.
        threshold: Of the evaluation.
        detectors: What each of them decides.
        table: The same at that threshold.
    """

    kind: ClassVar[str] = "threshold"
    title: str
    threshold: float
    detectors: Sequence[Decided]
    table: Table


Block = Table | Chart | Charts | Paragraph | Alert | Bullets | Threshold


@dataclass(frozen=True, slots=True)
class Section:
    """A part of a report."""

    title: str
    blocks: Sequence[Block]


@dataclass(frozen=True, slots=True)
class KeyFigure:
    """A figure that is shown large.

    Attributes:
        label: What it is.
        cell: The figure.
        note: What it says, in a few words.
    """

    label: str
    cell: Cell
    note: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Document:
    """A report.

    Attributes:
        title: What was evaluated.
        headline: The result in a sentence, or one for each detector.
        summary: On what, and under which conditions.
        key_figures: The few that matter most.
        sections: Everything else.
    """

    title: str
    headline: Sequence[str]
    summary: str
    key_figures: Sequence[KeyFigure] = field(default_factory=tuple)
    sections: Sequence[Section] = field(default_factory=tuple)

    def blocks(self) -> Iterator[Block]:
        """Every block, in order."""
        for section in self.sections:
            yield from section.blocks
