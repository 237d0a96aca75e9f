"""Drawings as SVG that takes its colours from the page, so that it is readable on light and on dark.

The same figures give the same bytes.
"""

from __future__ import annotations

import io
import re
import textwrap
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Literal
from xml.etree import ElementTree

from protector_guardrails.evaluation.report.figures import brief
from protector_guardrails.evaluation.results import Decisions, Estimate, ReliabilityBin
from protector_guardrails.masking import plain, shorten

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Colours that stand for those of the page; the style sheet has a light and a dark one of each name.
_COLOURS = {
    "#010101": "--ink",
    "#020202": "--muted",
    "#030303": "--line",
    "#040404": "--page",
    "#050505": "--series-1",
    "#060606": "--series-2",
    "#070707": "--series-3",
    "#080808": "--series-4",
    "#090909": "--series-5",
    "#0a0a0a": "--series-6",
}
_INK, _MUTED, _LINE, _PAGE, *_SERIES = _COLOURS
_DASHES = ("-", (0, (5, 2)), (0, (1.5, 1.5)), (0, (6, 2, 1.5, 2)))  # told apart without colour, too
_MARKERS = "os^D"
_WIDTH = 380.0
_FONT_SIZE = 11.0
_LABEL_WIDTH = 19
_PALE = 0.65
_RC = {
    "svg.fonttype": "none",  # text stays text
    "text.parse_math": False,  # names may hold dollar signs
    "font.size": _FONT_SIZE,
    "axes.labelsize": _FONT_SIZE,
    "xtick.labelsize": _FONT_SIZE - 1,
    "ytick.labelsize": _FONT_SIZE - 1,
    "legend.fontsize": _FONT_SIZE - 1,
    "legend.frameon": False,
    "text.color": _INK,
    "axes.edgecolor": _MUTED,
    "axes.labelcolor": _INK,
    "xtick.color": _MUTED,
    "ytick.color": _MUTED,
    "xtick.labelcolor": _INK,
    "ytick.labelcolor": _INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": _LINE,
    "grid.linewidth": 0.8,
    "lines.linewidth": 2.0,
    "axes.linewidth": 0.8,
}


def roc(
    curves: Sequence[tuple[str, Sequence[tuple[float, float, float | None]], Decisions]], *, description: str
) -> str:
    """ROC curves over each other.

    Args:
        curves: Name, ``[false positive rate, recall, threshold]`` and the decisions to mark, of each detector.
        description: What it shows, in words.
    """
    with _drawing(_WIDTH, _WIDTH) as figure:
        axes = _square(figure, "False positive rate", "Recall (harmful answers found)")
        axes.plot([0, 1], [0, 1], color=_MUTED, linewidth=1, linestyle=(0, (2, 3)))
        for index, (name, points, at) in enumerate(curves):
            _curve(axes, index, name, [(x, y) for x, y, _ in points])
            _mark(axes, index, at.fpr.value, at.recall.value)
        _legend(axes, len(curves), "lower right")
        return _svg(figure, "roc", description)


def precision_recall(
    curves: Sequence[tuple[str, Sequence[tuple[float, float, float]], Decisions]],
    *,
    prevalence: float,
    description: str,
) -> str:
    """Precision over recall.

    Args:
        curves: Name, ``[recall, precision, threshold]`` and the decisions to mark, of each detector.
        prevalence: Share of the answers that are harmful: what chance gives.
        description: What it shows, in words.
    """
    with _drawing(_WIDTH, _WIDTH) as figure:
        axes = _square(figure, "Recall (harmful answers found)", "Precision")
        axes.axhline(prevalence, color=_MUTED, linewidth=1, linestyle=(0, (2, 3)))
        for index, (name, points, at) in enumerate(curves):
            _curve(axes, index, name, [(x, y) for x, y, _ in points])
            _mark(axes, index, at.recall.value, at.precision.value)
        _legend(axes, len(curves), "lower left")
        return _svg(figure, "pr", description)


def reliability(bins: Sequence[ReliabilityBin], *, name: str, index: int, description: str) -> str:
    """What a detector says against what is true, and how often it says so.

    Args:
        bins: Those that are not empty.
        name: Of the drawing; no two on a page have the same.
        index: Number of the detector, for its colour.
        description: What it shows, in words.
    """
    with _drawing(_WIDTH, _WIDTH * 1.25) as figure:
        above, below = figure.subplots(2, 1, sharex=True, height_ratios=[4, 1])
        colour = _SERIES[index % len(_SERIES)]
        above.plot([0, 1], [0, 1], color=_MUTED, linewidth=1, linestyle=(0, (2, 3)))
        above.set(xlim=(0, 1), ylim=(0, 1), ylabel="Share that is harmful")
        for one in bins:
            if one.harmful.value is not None:
                _whisker(above, one.mean_score, one.harmful, colour, vertical=True)
        told = [(one.mean_score, one.harmful.value) for one in bins if one.harmful.value is not None]
        above.plot([x for x, _ in told], [y for _, y in told], color=colour, marker="o", markersize=4, linewidth=1.5)
        widths = [one.high - one.low for one in bins]
        below.bar([one.low for one in bins], [one.answers for one in bins], widths, align="edge", color=colour)
        below.set(xlim=(0, 1), xlabel="Score of the detector", ylabel="Answers")
        below.yaxis.set_major_locator(_few_whole_numbers())
        below.yaxis.set_major_formatter("{x:,.0f}")
        return _svg(figure, name, description)


def rates(
    groups: Sequence[tuple[str, Sequence[Estimate | None]]],
    series: Sequence[str],
    *,
    name: str,
    label: str,
    description: str,
) -> str:
    """Shares as bars with whiskers, a few side by side for each group.

    Args:
        groups: Name, and a share or None for each of the series.
        series: What the bars of a group stand for.
        name: Of the drawing; no two on a page have the same.
        label: What the shares are.
        description: What it shows, in words.
    """
    thick, gap = 11.0, 14.0
    height = len(groups) * (thick * len(series) + gap)
    end = _end_of_axis(one for _, estimates in groups for one in estimates)
    with _drawing(_WIDTH, height + 75) as figure:
        axes = figure.subplots()
        for number, (_, estimates) in enumerate(groups):
            top = number * (thick * len(series) + gap) + gap / 2
            for index, estimate in enumerate(estimates):
                middle = top + (index + 0.5) * thick
                _bar(axes, middle, thick * 0.86, estimate, _SERIES[index % len(_SERIES)], end=end)
        middles = [(number + 0.5) * (thick * len(series) + gap) for number in range(len(groups))]
        axes.set_yticks(middles, [_wrapped(group) for group, _ in groups])
        axes.tick_params(axis="y", length=0)
        axes.set(xlim=(0, 114 * end), xticks=[20 * end * step for step in range(6)], ylim=(height, 0), xlabel=label)
        axes.xaxis.set_major_formatter("{x:g}\u00a0%")
        axes.grid(visible=False, axis="y")
        handles = [
            axes.barh(-100, 1, color=_SERIES[index % len(_SERIES)], alpha=_PALE, label=one)
            for index, one in enumerate(series)
        ]
        figure.legend(handles=handles, loc="outside upper left", ncols=1, handlelength=1.2)
        return _svg(figure, name, description)


@contextmanager
def _drawing(width: float, height: float) -> Iterator[Figure]:
    """An empty figure, in pixels of the page; settings of the user's matplotlib do not touch it."""
    import matplotlib.style
    from matplotlib.figure import Figure

    with matplotlib.style.context(["default", _RC]):
        yield Figure(figsize=(width / 72, height / 72), layout="constrained")  # a pixel of SVG is 1/72 inch there


def _square(figure: Figure, x: str, y: str) -> Axes:
    axes = figure.subplots()
    axes.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.01), xlabel=x, ylabel=y, aspect="equal")
    return axes


def _curve(axes: Axes, index: int, name: str, points: Sequence[tuple[float, float]]) -> None:
    axes.plot(
        [x for x, _ in points],
        [y for _, y in points],
        color=_SERIES[index % len(_SERIES)],
        linestyle=_DASHES[index % len(_DASHES)],
        label=shorten(name, 36),
    )


def _mark(axes: Axes, index: int, x: float | None, y: float | None) -> None:
    if x is not None and y is not None:
        colour, marker = _SERIES[index % len(_SERIES)], _MARKERS[index % len(_MARKERS)]
        axes.plot([x], [y], color=colour, marker=marker, markersize=9, markeredgecolor=_PAGE, clip_on=False, zorder=5)


def _legend(axes: Axes, curves: int, where: Literal["lower right", "lower left"]) -> None:
    if curves > 1:
        axes.legend(loc=where)


def _whisker(axes: Axes, at: float, estimate: Estimate, colour: str, *, vertical: bool, scale: float = 1.0) -> None:
    if estimate.low is None or estimate.high is None:
        return
    ends = [scale * estimate.low, scale * estimate.high]
    across = [at, at]
    line = (across, ends) if vertical else (ends, across)
    axes.plot(*line, color=colour, linewidth=1.2, solid_capstyle="butt")


def _end_of_axis(estimates: Iterable[Estimate | None]) -> float:
    """Where the axis of shares ends, so that small ones can be told apart."""
    most = max((one.high or one.value or 0.0 for one in estimates if one is not None), default=0.0)
    return next(end for end in (0.1, 0.25, 0.5, 1.0) if most <= end or end == 1.0)


def _bar(axes: Axes, middle: float, thick: float, estimate: Estimate | None, colour: str, *, end: float) -> None:
    if estimate is None or estimate.value is None:
        axes.text(end, middle, "no figure", color=_MUTED, fontsize=_FONT_SIZE - 3, va="center")
        return
    # A bar of no length would look like a missing one; a pale one lets its whisker be seen.
    axes.barh(middle, max(100 * estimate.value, 0.4 * end), thick, color=colour, alpha=_PALE)
    _whisker(axes, middle, estimate, _INK, vertical=False, scale=100)
    right = 100 * max(estimate.value, estimate.high or 0)
    axes.text(right + 1.5 * end, middle, brief(estimate.value), fontsize=_FONT_SIZE - 2, va="center_baseline")


def _wrapped(label: str) -> str:
    lines = textwrap.wrap(plain(label).replace("_", " "), _LABEL_WIDTH) or ["–"]
    return "\n".join(lines if len(lines) <= 2 else [lines[0], shorten(" ".join(lines[1:]), _LABEL_WIDTH)])


def _few_whole_numbers() -> object:
    from matplotlib.ticker import MaxNLocator

    return MaxNLocator(nbins=3, integer=True)


def _svg(figure: Figure, name: str, description: str) -> str:
    """The figure as an element of a page: colours by name, ids of its own, and a description in words."""
    import matplotlib

    file = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": name}), warnings.catch_warnings():
        # Its font lacks the letters of some languages; the page's fonts draw them.
        warnings.filterwarnings("ignore", "Glyph .* missing from font", UserWarning)
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
    root = ElementTree.fromstring(file.getvalue())  # noqa: S314 - drawn a moment ago
    for parent in root.iter():
        for child in list(parent):
            if _local(child.tag) == "metadata":
                parent.remove(child)
    for element in root.iter():
        element.tag = _local(element.tag)
        for key in list(element.attrib):
            value = element.attrib.pop(key)
            element.set(_local(key), _of_the_page(_local(key), value, name))
    for key in ("width", "height", "version"):
        root.attrib.pop(key, None)
    root.attrib |= {"class": "chart", "role": "img", "aria-label": plain(description)}
    return ElementTree.tostring(root, encoding="unicode")


def _of_the_page(key: str, value: str, name: str) -> str:
    if key == "id":
        return f"{name}-{value}"
    if key == "href" and value.startswith("#"):
        return f"#{name}-{value[1:]}"
    value = re.sub(r"url\(#([^)]*)\)", rf"url(#{name}-\1)", value)
    if key == "style":
        value = re.sub(r"font: (?:[a-z0-9]+ )*?([0-9.]+px) [^;]*", r"font-size: \1", value)
    return re.sub("#[0-9a-f]{6}", lambda found: _named(found[0]), value)


def _named(colour: str) -> str:
    return f"var({_COLOURS[colour]})" if colour in _COLOURS else colour


def _local(tag: str) -> str:
    return tag.rpartition("}")[2]
