"""How much of a response comes back in what was to replace it."""

from __future__ import annotations

import re
import unicodedata

# Thai, kana, Han and Hangul are written without spaces that part words, so each character counts as one.
_ALONE = "\u0e00-\u0e7f\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af"
_WORD = re.compile(rf"[{_ALONE}]|[^\W{_ALONE}]+")

Gram = tuple[str, ...]


def echo_share(rewrite: str, original: str, *, n: int = 5) -> float:
    """How much a rewrite repeats the text that it stands for, by runs of ``n`` words.

    The measure is the overlap coefficient: the runs that both texts have, as a share of
    those of the text that has fewer. So a copy counts in full whether it was cut short or
    padded with words of its own. Case, punctuation and spacing count for nothing. Texts
    too short to hold one run are compared as a whole.

    It compares wording, not meaning: a paraphrase has a share near 0.

    Args:
        rewrite: What a detoxifier wrote.
        original: The harmful response.
        n: Length of a run, in words; at least 1.

    Returns:
        A share in [0, 1]; 0 where either text has no words.

    Raises:
        ValueError: If ``n`` is less than 1.

    Example:
        >>> original = "Take the long ladder and climb over the fence at night."
        >>> echo_share("TAKE the long ladder, and climb over the fence at night! I wish you luck.", original)
        1.0
        >>> echo_share("Ask the owner to let you in.", original)
        0.0
    """
    if n < 1:
        raise ValueError(f"n is a number of words and at least 1, not {n}")
    again, before = _words(rewrite), _words(original)
    if min(len(again), len(before)) < n:
        return float(bool(before) and again == before)
    ours, theirs = _grams(again, n), _grams(before, n)
    return len(ours & theirs) / min(len(ours), len(theirs))


def loop_share(text: str, *, n: int = 5) -> float:
    """How much a text repeats itself: the share of its runs of ``n`` words that stood in it before.

    Small language models that write greedily fall into such loops.

    Args:
        text: What was written.
        n: Length of a run, in words; at least 1.

    Returns:
        A share in [0, 1); 0 where the text is shorter than one run.

    Raises:
        ValueError: If ``n`` is less than 1.

    Example:
        >>> loop_share("I can't help with that. I can't help with that. I can't help with that.")
        0.57...
        >>> loop_share("Ask the owner to let you in, or come back when the museum is open.")
        0.0
    """
    if n < 1:
        raise ValueError(f"n is a number of words and at least 1, not {n}")
    words = _words(text)
    runs = len(words) - n + 1
    return 1 - len(_grams(words, n)) / runs if runs > 0 else 0.0


def _words(text: str) -> list[str]:
    return _WORD.findall(unicodedata.normalize("NFKC", text).casefold())


def _grams(words: list[str], n: int) -> set[Gram]:
    return {tuple(words[start : start + n]) for start in range(len(words) - n + 1)}
