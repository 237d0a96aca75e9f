"""Reading a response as a person would who sees through its disguises.

A judged copy of the text, never what is returned: look-alike letters become the letters that
they look like, invisible characters go, l e t t e r s that stand apart join, digits within words
become letters, and what they say stands in the place of blocks of base64, hexadecimal and ROT13. Where
each character stood is kept, so that spans point into the original.

Sources: Unicode Technical Standard 39 (confusables) for what look-alikes are, Unicode Standard
Annex 15 for NFKC. Every step takes linear time.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from protector_guardrails.detectors.decoding import Block, decoded_blocks

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True, slots=True, eq=False)
class Reading:
    """A text to be judged, and where its characters stood.

    Attributes:
        text: What is judged.
        starts: For each character of ``text``, the first character of the original that it
            stands for, int64; None where ``text`` is the original.
        ends: For each character of ``text``, one past the last character that it stands for.
    """

    text: str
    starts: NDArray[np.int64] | None = None
    ends: NDArray[np.int64] | None = None

    def span(self, start: int, end: int) -> tuple[int, int]:
        """Where ``text[start:end]`` stands in the original."""
        if self.starts is None or self.ends is None or start >= end:
            return start, end
        return int(self.starts[start]), int(self.ends[end - 1])


def normalise(text: str) -> Reading:
    r"""The text without its disguises; plain prose comes back as it is.

    >>> normalise("\u0440l\u0435ase k1ll th\u200be p r o c e s s").text
    'please kill the process'
    """
    reading = _decoded(text)
    if not reading.text.isascii():
        reading = _edited(reading, _unlike_ascii(reading.text))
        reading = _edited(reading, _lookalikes(reading.text))
    reading = _edited(reading, _gaps(reading.text))
    return _edited(reading, _leet(reading.text))


def _decoded(text: str) -> Reading:
    """What encoded blocks say, in their place."""
    blocks = decoded_blocks(text)
    if not blocks:
        return Reading(text)
    parts: list[str] = []
    starts: list[NDArray[np.int64]] = []
    ends: list[NDArray[np.int64]] = []
    done = 0
    for block in [*blocks, Block("", len(text), len(text))]:
        plain = np.arange(done, block.start, dtype=np.int64)
        where = np.arange(block.start, block.end, dtype=np.int64)
        first = where if block.in_place else np.full(len(block.text), block.start, dtype=np.int64)
        last = where + 1 if block.in_place else np.full(len(block.text), block.end, dtype=np.int64)
        parts += (text[done : block.start], block.text)
        starts += (plain, first)
        ends += (plain + 1, last)
        done = block.end
    return Reading("".join(parts), np.concatenate(starts), np.concatenate(ends))


_Edits = Mapping[int, str]
"""Position of a character to what takes its place."""


def _edited(reading: Reading, edits: _Edits) -> Reading:
    if not edits:
        return reading
    text = reading.text
    parts: list[str] = []
    lengths = np.ones(len(text), dtype=np.int64)
    done = 0
    for index in sorted(edits):
        parts += (text[done:index], edits[index])
        lengths[index] = len(edits[index])
        done = index + 1
    starts = np.arange(len(text), dtype=np.int64) if reading.starts is None else reading.starts
    ends = starts + 1 if reading.ends is None else reading.ends
    return Reading("".join([*parts, text[done:]]), np.repeat(starts, lengths), np.repeat(ends, lengths))


# Characters -----------------------------------------------------------------------------


def _unlike_ascii(text: str) -> _Edits:
    return {i: plain for i, c in enumerate(text) if c > "\x7f" and (plain := _plain(c)) != c}


@lru_cache(maxsize=8192)
def _plain(character: str) -> str:
    """The character in NFKC; nothing for one that shows nothing or only marks another."""
    code = ord(character)
    if unicodedata.category(character) == "Cf" or any(first <= code <= last for first, last in _UNSEEN):
        return ""
    for first, last in _ENCLOSED:
        if first <= code <= last:
            return chr(ord("a") + code - first)
    return unicodedata.normalize("NFKC", character)


# Beside format characters (Cf): combining marks over Latin letters, fillers, variation selectors.
_UNSEEN = (
    (0x0300, 0x036F),
    (0x034F, 0x034F),
    (0x0483, 0x0489),
    (0x115F, 0x1160),
    (0x17B4, 0x17B5),
    (0x180B, 0x180F),
    (0x1AB0, 0x1AFF),
    (0x1DC0, 0x1DFF),
    (0x20D0, 0x20FF),
    (0x2800, 0x2800),
    (0x3164, 0x3164),
    (0xFE00, 0xFE0F),
    (0xFE20, 0xFE2F),
    (0xFFA0, 0xFFA0),
    (0xE0100, 0xE01EF),
)
# Letters in circles and squares that NFKC keeps, a to z.
_ENCLOSED = ((0x1F150, 0x1F169), (0x1F170, 0x1F189), (0x1F1E6, 0x1F1FF))


# Look-alikes ----------------------------------------------------------------------------

_PAIRS = (
    # Cyrillic
    "аa еe оo рp сc уy хx ѕs іi јj һh ԁd ԛq ԝw вb кk мm нh тt гr пn ьb ѵv ӏl ԍg ґr ёe ӓa ӧo "
    "АA ВB ЕE КK МM НH ОO РP СC ТT УY ХX ЅS ІI ЈJ ҺH ԌG ԚQ ԜW ӀI Ѵv "
    # Greek
    "αa οo νv ρp ιi τt υu κk χx εe γy ηn ωw σo βb ϲc ϳj "
    "ΑA ΒB ΕE ΖZ ΗH ΙI ΚK ΜM ΝN ΟO ΡP ΤT ΥY ΧX ϹC ͿJ "
    # Armenian
    "օo սu հh ոn աw եt զq ցg յj ԼL ՍU ՏS ՕO "
    # Latin and phonetic letters that NFKC keeps
    "ɑa ɡg ıi ȷj øo đd łl ħh ŧt ɓb ɗd ɩi ɪi ʏy ʀr ɴn ʟl ʜh ɢg ʙb ᴀa ᴄc ᴅd ᴇe ꜰf ᴊj ᴋk ᴍm ᴏo ᴘp ꜱs ᴛt ᴜu ᴠv ᴡw ᴢz "
    "ɐa ǝe ɔc ɯm ɹr ʇt ʌv ʎy ɥh ʞk ØO ĐD ŁL ĦH ƁB ƊD ǀl ɋq ƅb ƽs"
)
_LOOKALIKES = {pair[0]: pair[1].lower() for pair in _PAIRS.split()}
_LOOKALIKE = re.compile(f"[{''.join(_LOOKALIKES)}]")
_WORD = re.compile(r"[^\W\d_]+")
_LATIN = re.compile("[A-Za-z]")
_READS_AS_LATIN = re.compile(f"[A-Za-z{''.join(_LOOKALIKES)}]*")


def _lookalikes(text: str) -> _Edits:
    """Look-alikes in words that have Latin letters too, and, where there are such words, in words of look-alikes."""
    if not _LOOKALIKE.search(text):
        return {}
    words = [m for m in _WORD.finditer(text) if _LOOKALIKE.search(m[0]) and _READS_AS_LATIN.fullmatch(m[0])]
    mixed = [match for match in words if _LATIN.search(match[0])]
    return {
        match.start() + index: _LOOKALIKES[character]
        for match in (words if mixed else ())
        for index, character in enumerate(match[0])
        if character in _LOOKALIKES
    }


# Letters that stand apart ---------------------------------------------------------------

# Each letter is looked at by itself, so that a word behind them does not make the search start anew.
_APART = re.compile(r"(?<![^\W_])[^\W_](?![^\W_])(?:([ ._*|·•~-])[^\W_](?![^\W_]))(?:\1[^\W_](?![^\W_]))*+")
_FEWEST = 4
"""One word has so many letters that stand apart, or half of the text's letters do; then all are joined."""


def _gaps(text: str) -> _Edits:
    runs = [(m.start(), m.end()) for m in _APART.finditer(text)]
    spelt = [_letters(text[start:end:2]) for start, end in runs]
    letters = sum(map(len, spelt))
    if not any(len(word) >= _FEWEST and len(set(word)) > 1 for word in spelt) and (
        letters < _FEWEST or 2 * letters < sum(map(str.isalpha, text))
    ):
        return {}
    return {index: "" for start, end in runs for index in range(start + 1, end, 2)}


def _letters(word: str) -> str:
    """The word if most of it is letters, else nothing: "1 2 3 4" is no word."""
    return word if sum(map(str.isalpha, word)) * 3 >= len(word) * 2 else ""


# Digits that stand for letters ----------------------------------------------------------

_LEET = {"0": "o", "1": "i", "3": "e", "4": "a", "5": "s", "7": "t", "@": "a", "$": "s", "!": "i"}
_SUSPECT = re.compile(r"[A-Za-z][013457@$!]{1,3}+[A-Za-z]")
_TOKEN = re.compile(r"[A-Za-z0-9@$]++(?:!{1,2}+(?=[a-z])[A-Za-z0-9@$]++)*+")
_DIGITS = re.compile(r"[^A-Za-z]+")
_NUMBER = re.compile(r"(\d)(?!\1)\d|\d{3}")
_ADDRESS = re.compile(r"^[./]|\.\w")
"""What stands before or behind a token that is part of an address."""
_SEVERAL = 3
"""So many disguised words, and one in twenty at least, make a disguised text."""


def _leet(text: str) -> _Edits:
    if not _SUSPECT.search(text):
        return {}
    tokens = [
        match
        for match in _TOKEN.finditer(text)
        if not _ADDRESS.search(text[match.start() - 1 : match.start()] + text[match.end() : match.end() + 2])
    ]
    disguised = [match for match in tokens if _is_disguised(match[0])]
    if len(disguised) >= _SEVERAL and len(disguised) * 20 >= len(tokens):
        disguised = [match for match in tokens if _may_be_disguised(match[0])]
    edits: dict[int, str] = {}
    for match in disguised:
        plain = match[0].replace("11", "ll")  # one is an i more often, two are not
        letters = enumerate((_LEET.get(character, character) for character in plain), start=match.start())
        edits |= {index: letter for index, letter in letters if letter != text[index]}
    return edits


def _may_be_disguised(token: str) -> bool:
    """What counts where other words of the text are disguised: any letters with no digit that stands for none."""
    others = {character for character in token if not character.isalpha()}
    return bool(others) and others <= _LEET.keys() and any(map(str.isalpha, token))


def _is_disguised(token: str) -> bool:
    """A word that is mostly letters, with other characters for letters within it: not "mp3", "2nd" or "i18n"."""
    runs = _DIGITS.findall(token)
    letters = sum(map(str.isalpha, token))
    return (
        len(token) >= 4
        and (letters > len(runs) or letters == len(runs) > 2)
        and _SUSPECT.search(token) is not None
        and all(len(run) <= 3 and set(run) <= _LEET.keys() and not _NUMBER.search(run) for run in runs)
    )
