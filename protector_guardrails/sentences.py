"""Splitting a response into passages: what is attributed, and what redaction keeps or drops."""

from __future__ import annotations

import re
from itertools import accumulate

_FENCE = re.compile(r"^[ ]{0,3}(`{3,}|~{3,})")
_BLOCK_START = re.compile(r"^\s*([-*+•]|\d{1,3}[.)]|[a-zA-Z][.)]|#{1,6})\s")
# Where a sentence may end: its punctuation, closing quotes and brackets, the space after them. The lookbehind
# and the possessive quantifiers keep the search linear: every character is looked at once.
_STOP = re.compile(r"(?<![.!?。！？…])([.!?。！？…]++)[\"'”’)\]」』）]*+(\s*+)")


def split_passages(text: str) -> list[str]:
    """Split a response into sentences, list items, headings and whole code blocks.

    Joined again the passages are the response, byte for byte. Linear in its length.

    >>> split_passages("First one. The second, 3.5 m long. ")
    ['First one. ', 'The second, 3.5 m long. ']
    """
    passages: list[str] = []
    code: list[str] = []
    fence = ""
    for line in text.splitlines(keepends=True):
        mark = _FENCE.match(line)
        if fence:
            code.append(line)
            if mark and mark[1].startswith(fence) and not line.strip(" \t\r\n" + fence[0]):
                passages.append("".join(code))
                code, fence = [], ""
        elif mark:
            fence, code = mark[1], [line]
        elif _BLOCK_START.match(line):
            passages.append(line)
        else:
            passages.extend(_sentences(line))
    if code:  # a block that was never closed
        passages.append("".join(code))
    return passages


def _sentences(line: str) -> list[str]:
    if not line.strip():
        return [line]
    parts: list[str] = []
    end = 0
    for match in _STOP.finditer(line):
        stop, space = match.groups()
        if space or stop[-1] in "。！？":  # "3.14" goes on; Chinese and Japanese need no space
            parts.append(line[end : match.end()])
            end = match.end()
    if end < len(line):
        parts.append(line[end:])
    return parts


def passage_ranges(text: str) -> list[tuple[int, int]]:
    """Where the passages of :func:`split_passages` stand in the text, without white space at their ends.

    Passages of white space alone are left out.

    >>> passage_ranges("First one.  Second.")
    [(0, 10), (12, 19)]
    """
    passages = split_passages(text)
    starts = accumulate((len(passage) for passage in passages), initial=0)
    return [
        (start + len(passage) - len(passage.lstrip()), start + len(passage.rstrip()))
        for start, passage in zip(starts, passages, strict=False)
        if passage.strip()
    ]
