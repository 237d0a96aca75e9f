"""Finding text that is written in base64, hexadecimal or ROT13, and decoding it."""

from __future__ import annotations

import base64
import binascii
import codecs
import re
from collections.abc import Iterator
from dataclasses import dataclass

MOST_BLOCKS = 16
MOST_CHARACTERS = 20_000
"""Decoded characters of one text, all blocks together; what would be more is left undecoded."""

_FEWEST = 10
"""Characters of a decoded text below which it may be chance."""


@dataclass(frozen=True, slots=True)
class Block:
    """A part of a text and what it says when it is decoded.

    Attributes:
        text: The decoded text.
        start: First character of the part.
        end: One past its last character.
        in_place: Whether each character was decoded where it stands.
    """

    text: str
    start: int
    end: int
    in_place: bool = False


def decoded_blocks(text: str) -> list[Block]:
    """The encoded parts of a text in order, none overlapping another, up to a limit.

    >>> [block.text for block in decoded_blocks("Decode this: U3RpciB0aGUgc291cCB3ZWxsLg==")]
    ['Stir the soup well.']
    """
    found: list[Block] = []
    room = MOST_CHARACTERS
    for block in sorted(_candidates(text), key=lambda block: (block.start, -block.end)):
        if len(block.text) <= room and (not found or found[-1].end <= block.start):
            found.append(block)
            room -= len(block.text)
        if len(found) == MOST_BLOCKS:
            break
    return found


def _candidates(text: str) -> Iterator[Block]:
    for match in _HEX.finditer(text):
        if (decoded := _from_hex(match[0])) is not None:
            yield Block(decoded, match.start(), match.end())
    for match in _BASE64.finditer(text):
        # A word on the line below looks like the last line of the block.
        for block in (match[0], match[0].rpartition("\n")[0]):
            if (decoded := _from_base64(block)) is not None:
                yield Block(decoded, match.start(), match.start() + len(block))
                break
    yield from _rot13_lines(text)


# Base64 and hexadecimal -------------------------------------------------------------------

# Lines of base64 belong together. Nothing here gives back what it took, so both take linear time.
_BASE64 = re.compile(r"(?<![\w+/=-])(?:(?:[\w+/-]{40,}+\r?\n)++[\w+/-]*+|[\w+/-]{12,}+)={0,2}", re.ASCII)
_HEX = re.compile(r"(?<!\w)(?:(?:0x|\\x)?[0-9a-fA-F]{2}[ ,:]?){10,}+")


def _from_base64(block: str) -> str | None:
    digits = "".join(block.split()).rstrip("=").translate({ord("-"): "+", ord("_"): "/"})
    if len(digits) % 4 == 1 or not _varied(digits):
        return None
    try:
        return _text_of(base64.b64decode(digits + "=" * (-len(digits) % 4), validate=True))
    except (binascii.Error, ValueError):
        return None


def _from_hex(block: str) -> str | None:
    digits = re.sub(r"0x|\\x|[^0-9a-fA-F]", "", block)
    return _text_of(bytes.fromhex(digits)) if len(digits) % 2 == 0 else None


def _varied(digits: str) -> bool:
    """An ordinary word has letters of one case only; text in base64 hardly does."""
    return not (digits.islower() or digits.isupper() or digits.isdigit())


def _text_of(data: bytes) -> str | None:
    """The bytes as a text, if it reads like one."""
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError:
        return None
    readable = sum(character.isalpha() or character in " .,;:!?'\"-\n" for character in text)
    return text if len(text) >= _FEWEST and readable >= 0.85 * len(text) else None


# ROT13 ------------------------------------------------------------------------------------

_COMMON = (
    "the",
    "and",
    "you",
    "your",
    "to",
    "of",
    "is",
    "in",
    "that",
    "for",
    "with",
    "it",
    "are",
    "this",
    "on",
    "can",
    "not",
)
_PLAIN, _TURNED = frozenset(_COMMON), frozenset(codecs.encode(word, "rot13") for word in _COMMON)
_TELLTALE = re.compile(r"\b(?:gur|naq|lbh|lbhe|gung|sbe|jvgu|guvf)\b", re.IGNORECASE)
_WORD = re.compile(r"[a-z]+")


def _rot13_lines(text: str) -> Iterator[Block]:
    """Lines with more of the commonest words when they are turned than as they are."""
    if not _TELLTALE.search(text):
        return
    start = 0
    for line in text.splitlines(keepends=True):
        words = _WORD.findall(line.lower())
        turned = sum(word in _TURNED for word in words)
        if turned >= 2 and turned > sum(word in _PLAIN for word in words):
            yield Block(codecs.encode(line, "rot13"), start, start + len(line), in_place=True)
        start += len(line)
