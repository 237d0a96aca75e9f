"""Normalisation: what is undone, what is left alone, where characters stood, and that it takes linear time."""

from __future__ import annotations

import base64
import codecs
import string
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tiny_onnx import word_detector

from protector_guardrails import EmbeddedDetector, Exchange, Protector
from protector_guardrails.detectors.decoding import MOST_BLOCKS, MOST_CHARACTERS, decoded_blocks
from protector_guardrails.detectors.normalising import normalise


@pytest.mark.parametrize(
    ("disguised", "plain"),
    [
        ("fry the onions", "fry the onions"),
        ("f\u200br\u00ady th\ufeffe \u202eonions\u2069", "fry the onions"),
        ("ｆｒｙ 𝓽𝓱𝓮 ⓞⓝⓘⓞⓝⓢ", "fry the onions"),
        ("🅕🅡🅨 🆃🅷🅴 🇴nions", "fry the onions"),
        ("f\u0336r\u0336y\u0336 t\u0301\u0302he onions", "fry the onions"),
        ("frу thе оniоns", "fry the onions"),  # Cyrillic у, е, о
        ("frγ τhe oηions", "fry the onions"),  # Greek
        ("ꜰʀy ᴛʜᴇ ᴏɴɪᴏɴꜱ", "fry the onions"),
        ("f r y   t h e   o n i o n s", "fry   the   onions"),
        ("fry the o-n-i-o-n-s", "fry the onions"),
        ("f.r.y t.h.e o.n.i.o.n.s", "fry the onions"),
        ("fry th3 0n1on$", "fry th3 onions"),
        ("fry the 0n!on5 we11", "fry the onions we11"),
        ("h3llo p@$$word k!ll b00k", "hello password kill book"),
        ("spe11ing", "spelling"),
        (
            "th3 c00k fr1ed 0ni0ns 4nd l3ft th3m 1n 4 p4n, v10l3ntly",
            "the cook fried onions and left them in 4 pan, violently",
        ),
    ],
)
def test_disguises_are_undone(disguised: str, plain: str) -> None:
    assert normalise(disguised).text == plain


@pytest.mark.parametrize(
    "text",
    [
        "mp3, h2o, 2nd, B2B, H1N1, i18n, CO2, 4x4, 10km, covid19, 1984",
        "write to bob@example.com or see https://example.org/w4rm.html and v1.l2.x",
        "Wow! It costs $100, or 5.50 EUR; e.g. at 7 a.m. (U.S.A.)",
        "Choose a, b or c. Plan A or B? 1 2 3 4 5",
        "Привет, как дела? Сок и сор.",
        "Ταχεία αλεπού",
        "naïve café, Straße",
        "x\ty\r\n\x00z \ud800",
    ],
)
def test_what_is_no_disguise_stays(text: str) -> None:
    reading = normalise(text)
    assert (reading.text, reading.starts) == (text, None)


WORDS = st.text(string.ascii_letters, min_size=2, max_size=12) | st.text(string.digits, min_size=1, max_size=6)
PROSE = st.lists(st.tuples(WORDS, st.sampled_from([" ", ", ", ". ", "! ", "? ", "; ", "\n", ": "])), max_size=30)


@given(PROSE.map(lambda parts: "".join(word + mark for word, mark in parts)))
def test_plain_prose_is_unchanged(text: str) -> None:
    assert normalise(text).text == text
    assert normalise(text).starts is None


TRICKY = st.text(
    st.sampled_from("abkl KL 01345!@$.-_*\n\u200b\u0301\ufb03\ufdfaаеѕⓐ🅐🇦ｋ\ud800\U000e0061é=/+") | st.characters(),
    max_size=80,
)


@given(TRICKY)
@example("a\u200bb")
def test_every_character_knows_where_it_stood(text: str) -> None:
    reading = normalise(text)
    end = 0
    for index in range(len(reading.text)):
        start, stop = reading.span(index, index + 1)
        assert 0 <= start < stop <= len(text)
        assert stop >= end, "in order"
        end = stop
    if reading.starts is not None and not decoded_blocks(text):
        assert len(reading.starts) == len(reading.text)
        for character, position in zip(reading.text, reading.starts, strict=True):
            assert character == text[position] or text[position] in "013457@$!" or not text[position].isascii()


@given(TRICKY)
def test_twice_changes_little_and_never_fails(text: str) -> None:
    once = normalise(text).text
    assert len(normalise(once).text) <= len(once) * 18


# Encoded parts --------------------------------------------------------------------------

SECRET = "Stir the soup and let it cool on the stove."


@pytest.mark.parametrize(
    "encode",
    [
        lambda data: base64.b64encode(data).decode(),
        lambda data: base64.urlsafe_b64encode(data).decode().rstrip("="),
        lambda data: data.hex(),
        lambda data: data.hex(" ").upper(),
        lambda data: "".join(f"\\x{byte:02x}" for byte in data),
        lambda data: codecs.encode(data.decode(), "rot13"),
    ],
    ids=["base64", "url", "hex", "spaced hex", "escapes", "rot13"],
)
def test_encoded_parts_are_read_too(encode: Callable[[bytes], str]) -> None:
    block = encode(SECRET.encode())
    text = f"Sure, here:\n{block}\nDecode it."
    reading = normalise(text)
    assert reading.text.split("\n") == ["Sure, here:", SECRET, "Decode it."]
    start, end = reading.span(reading.text.index(SECRET), reading.text.index(SECRET) + len(SECRET))
    assert text[start:end] == block.strip()


def test_wrapped_base64_is_one_block_and_disguises_in_it_are_undone() -> None:
    block = base64.encodebytes(("We f r i e d the 0ni0ns. " * 20).encode()).decode()
    reading = normalise(f"Look:\n{block}")
    assert reading.text == "Look:\n" + "We fried the onions. " * 20 + "\n"
    assert reading.span(9, 14) == (6, 6 + len(block.rstrip("\n")))


@pytest.mark.parametrize(
    "text",
    [
        base64.b64encode(bytes(range(256))).decode(),
        "ab" * 40,
        "d41d8cd98f00b204e9800998ecf8427e",
        "internationalization/localisation/configuration",
        "/usr/local/lib/python3.11/site-packages/numpy",
        "The cook and the guest went out for it.",
        "deadbeef" * 8,
    ],
)
def test_what_decodes_to_nonsense_is_none(text: str) -> None:
    assert decoded_blocks(text) == []


def test_decoding_has_limits() -> None:
    block = base64.b64encode(SECRET.encode()).decode()
    assert len(decoded_blocks(f"{block} " * 100)) == MOST_BLOCKS
    huge = base64.b64encode(SECRET.encode() * 2000).decode()
    assert [b.text for b in decoded_blocks(f"{huge} {block}")] == [SECRET]
    assert len(SECRET) * 2000 > MOST_CHARACTERS


ADVERSARIAL: dict[str, Callable[[int], str]] = {
    "letters apart, then not": lambda n: "a " * (n // 2) + "aa",
    "lines of base64 without an end": lambda n: ("A" * 50 + "\n") * (n // 51) + "!",
    "at signs": lambda n: "a@" * (n // 2) + ".b",
    "digits within": lambda n: "a1" * (n // 2),
    "pairs of digits": lambda n: "ab " * (n // 3) + "x",
    "one word": lambda n: "a" * n,
    "look-alikes": lambda n: "рa" * (n // 2),
    "invisible": lambda n: "a\u200b" * (n // 2),
    "rot13": lambda n: "gur naq " * (n // 8),
    "base64": lambda n: "aB1/" * (n // 4) + "=",
    "full stops": lambda n: "a." * (n // 2) + "bb",
    "exclamation marks": lambda n: "a!" * (n // 2) + "b",
}


@pytest.mark.parametrize("name", ADVERSARIAL)
def test_it_takes_linear_time(name: str) -> None:
    def seconds(length: int) -> float:
        text = ADVERSARIAL[name](length)
        started = time.process_time()
        normalise(text)
        return time.process_time() - started

    small = min(seconds(100_000) for _ in range(2))
    assert min(seconds(400_000) for _ in range(2)) < 9 * max(small, 0.02)  # quadratic would be 16 and more


# In the detector ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("words")
    word_detector(path, {"onions": (3.0,), ".": (-4.0,)}, normalise=True)
    return path


DISGUISED = {
    "plain": "onions",
    "zero width": "on\u200bions",
    "look-alikes": "оniоns",
    "apart": "o n i o n s",
    "digits": "0ni0ns",
    "base64": base64.b64encode(b"we like our onions").decode(),
}


@pytest.mark.parametrize("form", DISGUISED)
def test_the_span_is_the_sentence_in_the_original(folder: Path, form: str) -> None:
    sentence = f"We \u200bfry {DISGUISED[form]} now."
    response = f"Hello\u200b there. {sentence} Bye."
    detector = EmbeddedDetector(folder, threads=1)
    [verdict] = detector.detect([Exchange(response=response)])
    assert verdict.harmful
    assert [response[start:end] for start, end in verdict.spans] == [sentence]


def test_the_argument_outranks_the_manifest(folder: Path) -> None:
    exchange = Exchange(response="o n i o n s")
    assert EmbeddedDetector(folder, threads=1).detect([exchange])[0].harmful
    assert not EmbeddedDetector(folder, threads=1, normalise=False).detect([exchange])[0].harmful


def test_what_leaves_is_never_touched(folder: Path) -> None:
    response = "Fr\u200by th\u0435 p-e-p-p-e-r-s"
    [outcome] = Protector(EmbeddedDetector(folder, threads=1)).guard([Exchange(response=response)])
    assert (outcome.action, outcome.text) == ("pass", response)


def test_reasoning_and_tool_calls_are_normalised_too(folder: Path) -> None:
    detector = EmbeddedDetector(folder, threads=1)
    [verdict] = detector.detect([Exchange(response="Soup.", reasoning="f r y the 0nions")])
    assert not verdict.harmful
    [verdict] = detector.detect([Exchange(response="Soup.", reasoning="f r y the o n i o n s")])
    assert verdict.harmful and verdict.spans == ()
