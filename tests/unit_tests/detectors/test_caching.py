"""Verdicts from the cache: the same as without it, of exactly the same exchange, and no texts."""

from __future__ import annotations

import asyncio
import gc
import pickle
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protector_guardrails import (
    CachingDetector,
    ConfigurationError,
    DetectorError,
    EmbeddedDetector,
    Exchange,
    HarmDetector,
    Image,
    Policy,
    Protector,
    ToolCall,
    Verdict,
)


class Counting(HarmDetector):
    """Scores by length; notes what it was asked."""

    name = "counting@1"
    threshold = 0.4
    thresholds = {"strict": 0.2}  # noqa: RUF012

    def __init__(self) -> None:
        self.asked: list[Exchange] = []
        self.error: Exception | None = None

    def detect(self, exchanges: Sequence[Exchange]) -> list[Verdict]:
        if self.error:
            raise self.error
        self.asked.extend(exchanges)
        return [
            Verdict(
                harmful=len(e.response) >= 40,
                score=min(len(e.response), 100) / 100,
                categories={"hate": 0.3},
                spans=((0, 1),),
                detector=self.name,
                elapsed_ms=5.0,
            )
            for e in exchanges
        ]


TEXT = st.sampled_from(["", "a", "b", "ab", "\ud800", "1:", "-"])
MAYBE = st.none() | TEXT
EXCHANGES = st.builds(
    Exchange,
    response=TEXT,
    question=MAYBE,
    reasoning=MAYBE,
    images=st.lists(
        st.builds(Image, data=st.none() | st.binary(max_size=2), url=MAYBE, description=MAYBE), max_size=2
    ).map(tuple),
    tool_calls=st.lists(st.builds(ToolCall, name=TEXT, arguments=TEXT), max_size=2).map(tuple),
)


@given(st.lists(st.lists(EXCHANGES, max_size=5), max_size=8), st.integers(1, 4))
def test_verdicts_are_those_of_the_detector(batches: list[list[Exchange]], size: int) -> None:
    caching, plain = CachingDetector(Counting(), size=size), Counting()
    for batch in batches:
        got = [replace(verdict, elapsed_ms=0.0) for verdict in caching.detect(batch)]
        assert got == [replace(verdict, elapsed_ms=0.0) for verdict in plain.detect(batch)]
        assert len(caching._kept) <= size


@given(EXCHANGES, EXCHANGES)
def test_only_the_same_exchange_has_the_same_key(one: Exchange, other: Exchange) -> None:
    caching = CachingDetector(Counting())
    assert (caching._key(one) == caching._key(other)) is (one == other)


def test_what_is_only_for_the_record_does_not_matter() -> None:
    caching = CachingDetector(Counting())
    caching.detect([Exchange(response="a", model="m1", run_id="1")])
    caching.detect([Exchange(response="a", model="m2", run_id="2")])
    assert (caching.hits, caching.misses) == (1, 1)


def test_the_one_not_used_for_longest_goes_first() -> None:
    caching = CachingDetector(Counting(), size=2)
    for response in ("a", "b", "a", "c", "a", "b"):
        caching.detect([Exchange(response=response)])
    assert [e.response for e in caching.detector.asked] == ["a", "b", "c", "b"]  # type: ignore[attr-defined]
    caching.clear()
    caching.detect([Exchange(response="b")])
    assert caching.misses == 5


def test_repetitions_in_a_batch_are_judged_once() -> None:
    caching = CachingDetector(Counting())
    verdicts = caching.detect([Exchange(response=text) for text in ("a", "b", "a", "a")])
    assert [verdict.score for verdict in verdicts] == [0.01] * 4
    assert len(caching.detector.asked) == 2  # type: ignore[attr-defined]


def test_failures_are_not_kept() -> None:
    detector = Counting()
    caching = CachingDetector(detector)
    detector.error = RuntimeError("busy")
    with pytest.raises(RuntimeError):
        caching.detect([Exchange(response="a")])
    detector.error = None
    assert caching.detect([Exchange(response="a")])[0].score == 0.01


def test_a_detector_that_miscounts_is_an_error_not_a_shift() -> None:
    class Short(Counting):
        def detect(self, exchanges: Sequence[Exchange]) -> list[Verdict]:
            return super().detect(exchanges)[1:]

    with pytest.raises(DetectorError, match="1 verdicts for 2 exchanges"):
        CachingDetector(Short()).detect([Exchange(response="a"), Exchange(response="b")])


def test_async_asks_in_the_detectors_own_way_and_shares_the_cache() -> None:
    class Async(Counting):
        async def adetect(self, exchanges: Sequence[Exchange]) -> list[Verdict]:
            await asyncio.sleep(0)
            return [replace(verdict, score=0.9) for verdict in self.detect(exchanges)]

    caching = CachingDetector(Async())
    [verdict] = asyncio.run(caching.adetect([Exchange(response="a")]))
    assert verdict.score == 0.9
    assert caching.detect([Exchange(response="a")])[0].score == 0.9
    assert caching.hits == 1


def test_no_text_is_kept() -> None:
    secret = "something that nobody should find in memory, 8461"
    caching = CachingDetector(Counting())
    caching.detect([Exchange(response=secret, question=secret)])
    caching.detector.asked.clear()  # type: ignore[attr-defined]
    seen, todo = set(), [vars(caching)]
    while todo:
        thing: Any = todo.pop()
        if id(thing) in seen or isinstance(thing, type):
            continue
        seen.add(id(thing))
        assert not (isinstance(thing, str) and secret in thing)
        assert not (isinstance(thing, bytes) and secret.encode() in thing)
        if isinstance(thing, dict | list | tuple | bytes | str) or type(thing).__module__ == "collections":
            todo += gc.get_referents(thing)
    assert CachingDetector(Counting())._key(Exchange(response="a")) != caching._key(Exchange(response="a"))


def test_threads_share_it() -> None:
    caching, start = CachingDetector(Counting(), size=16), threading.Barrier(8)

    def work(seed: int) -> bool:
        start.wait()
        batches = [[Exchange(response="a" * ((seed * 7 + n) % 30)) for n in range(k, k + 3)] for k in range(200)]
        return all(
            verdict.score == len(exchange.response) / 100
            for batch in batches
            for exchange, verdict in zip(batch, caching.detect(batch), strict=True)
        )

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(work, range(8)))
    assert caching.hits + caching.misses == 8 * 200 * 3 and len(caching._kept) <= 16


def test_it_is_the_detector_to_a_guard() -> None:
    caching = CachingDetector(Counting())
    assert (caching.name, caching.threshold, caching.thresholds) == ("counting@1", 0.4, {"strict": 0.2})
    protector = Protector(caching, "refuse", policy=Policy(threshold="strict"))
    assert [protector.guard([Exchange(response="a" * 20)])[0].action for _ in range(2)] == ["refuse", "refuse"]
    assert len(caching.detector.asked) == 1  # type: ignore[attr-defined]


def test_it_pickles_without_what_it_keeps() -> None:
    caching = CachingDetector(EmbeddedDetector.shared(), size=7)
    caching.detect([Exchange(response="Stir the soup.")])
    copy = pickle.loads(pickle.dumps(caching))
    assert (copy.size, copy.name, copy.hits + copy.misses, len(copy._kept)) == (7, caching.name, 0, 0)
    assert copy.weights_sha256 == EmbeddedDetector.shared().manifest.sha256


@pytest.mark.parametrize("size", [0, -1])
def test_a_size_that_keeps_nothing_is_refused(size: int) -> None:
    with pytest.raises(ConfigurationError, match="size"):
        CachingDetector(Counting(), size=size)
