"""Finding questions that are the same, or nearly, exactly and without comparing all with all.

Two questions are near duplicates if the Jaccard index of their runs of three words
(shingles, Broder 1997) is high. For a threshold t, two sets of n and m shingles can only
reach it if they share one of their rarest n - ceil(tn) + 1 and m - ceil(tm) + 1: only
these are looked up (prefix filter, Chaudhuri et al. 2006; AllPairs, Bayardo et al. 2007).
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Sequence

from protector_guardrails.training.data import normalise

NEAR = 0.7
"""From this Jaccard index on two questions count as nearly the same."""

_RUN = 3
_ROUNDING = 1e-9


def shingles(text: str) -> frozenset[str]:
    """Runs of three words; a shorter text is one run, and one without words has none.

    Languages written without spaces give one run per sentence, so that only sentences that are the same are found.

    >>> sorted(shingles("Is it safe to eat?"))
    ['is it safe', 'it safe to', 'safe to eat']
    """
    words = normalise(text).split()
    return frozenset(" ".join(words[at : at + _RUN]) for at in range(max(len(words) - _RUN + 1, min(1, len(words)))))


def near_duplicates(texts: Sequence[str], *, threshold: float = NEAR) -> list[int | None]:
    """Of which earlier text each is a near duplicate.

    Args:
        texts: Any texts, in the order in which they should be kept.
        threshold: The Jaccard index from which two are alike, in (0, 1].

    Returns:
        Per text the place of the first *kept* text it is like, or None: it is kept itself.

    Example:
        >>> near_duplicates(["Is it safe to eat raw?", "is it safe to eat RAW", "Who baked it?"])
        [None, 0, None]
    """
    sets = [shingles(text) for text in texts]
    common = Counter(shingle for found in sets for shingle in found)
    kept_with: dict[str, list[int]] = defaultdict(list)
    results: list[int | None] = []
    for place, own in enumerate(sets):
        rarest = sorted(own, key=lambda shingle: (common[shingle], shingle))
        prefix = rarest[: len(own) - math.ceil(threshold * len(own) - _ROUNDING) + 1]
        candidates = sorted({earlier for shingle in prefix for earlier in kept_with[shingle]})
        like = next((earlier for earlier in candidates if _alike(own, sets[earlier], threshold)), None)
        results.append(like)
        if like is None:
            for shingle in prefix:
                kept_with[shingle].append(place)
    return results


def _alike(one: frozenset[str], other: frozenset[str], threshold: float) -> bool:
    shared = len(one & other)
    return shared >= threshold * (len(one) + len(other) - shared) - _ROUNDING
