"""Verdicts that are kept for the exact same exchange: for retries and batch jobs with repetitions."""

from __future__ import annotations

import hashlib
import secrets
import threading
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from protector_guardrails.detectors import resolve_detector
from protector_guardrails.detectors.base import HarmDetector
from protector_guardrails.errors import ConfigurationError, DetectorError
from protector_guardrails.types import Exchange, Verdict


class CachingDetector(HarmDetector):
    """Another detector, asked once for each exchange that it has not judged lately.

    Kept are verdicts under keyed hashes, no texts; the key lives as long as the detector. All
    that may be judged counts: response, reasoning, tool calls, question and images. A verdict
    from the cache is the one that the detector gave, but for the time that it took. Failures
    are not kept. Safe to share between threads.

    Args:
        detector: Any detector that always says the same of the same exchange, or its name.
        size: So many verdicts are kept; the one that was not used for longest goes first.

    Raises:
        ConfigurationError: If ``size`` is below 1, or the detector is not known.

    Example:
        >>> from protector_guardrails import CachingDetector, Exchange, Protector
        >>> detector = CachingDetector("embedded", size=10_000)
        >>> protector = Protector(detector)
        >>> for _ in range(3):
        ...     outcomes = protector.guard([Exchange(response="Water boils at 100 degrees Celsius.")])
        >>> detector.hits, detector.misses
        (2, 1)
    """

    def __init__(self, detector: str | HarmDetector = "embedded", *, size: int = 1024) -> None:
        if size < 1:
            raise ConfigurationError(f"size must be at least 1, not {size}")
        self.detector = resolve_detector(detector)
        self.size = size
        self.name = self.detector.name
        self.threshold, self.thresholds = self.detector.threshold, self.detector.thresholds
        self.categories = self.detector.categories
        self.hits = self.misses = 0
        self._secret = secrets.token_bytes(32)
        self._kept: OrderedDict[bytes, Verdict] = OrderedDict()
        self._lock = threading.Lock()

    @property
    def weights_sha256(self) -> Mapping[str, str] | None:
        """Hashes of the detector's weights, file by file; None where it does not tell them."""
        manifest = getattr(self.detector, "manifest", None)
        return getattr(manifest, "sha256", None) or getattr(self.detector, "weights_sha256", None)

    def __reduce__(self) -> tuple[Any, ...]:
        return (_rebuild, (self.detector, self.size))

    def detect(self, exchanges: Sequence[Exchange]) -> list[Verdict]:
        """Judge a batch; one verdict per exchange, of which those already known take no time."""
        keys, known, unknown = self._look_up(exchanges)
        return self._together(keys, known, unknown, self.detector.detect(list(unknown.values())) if unknown else [])

    async def adetect(self, exchanges: Sequence[Exchange]) -> list[Verdict]:
        """Like :meth:`detect`, in the way in which the detector does it."""
        keys, known, unknown = self._look_up(exchanges)
        judged = await self.detector.adetect(list(unknown.values())) if unknown else []
        return self._together(keys, known, unknown, judged)

    def clear(self) -> None:
        """Forget every verdict."""
        with self._lock:
            self._kept.clear()

    def _look_up(
        self, exchanges: Sequence[Exchange]
    ) -> tuple[list[bytes], dict[bytes, Verdict], dict[bytes, Exchange]]:
        keys = [self._key(exchange) for exchange in exchanges]
        known: dict[bytes, Verdict] = {}
        with self._lock:
            for key in keys:
                if (verdict := self._kept.get(key)) is not None:
                    self._kept.move_to_end(key)
                    known[key] = verdict
            unknown = {key: exchange for key, exchange in zip(keys, exchanges, strict=True) if key not in known}
            self.hits += len(keys) - len(unknown)
            self.misses += len(unknown)
        return keys, known, unknown

    def _together(
        self,
        keys: Sequence[bytes],
        known: Mapping[bytes, Verdict],
        unknown: Mapping[bytes, Exchange],
        judged: Sequence[Verdict],
    ) -> list[Verdict]:
        if len(judged) != len(unknown):
            raise DetectorError(f"detect returned {len(judged)} verdicts for {len(unknown)} exchanges")
        fresh = dict(zip(unknown, judged, strict=True))
        with self._lock:
            for key, verdict in fresh.items():
                if isinstance(verdict, Verdict):
                    self._kept[key] = replace(verdict, elapsed_ms=0.0)
            while len(self._kept) > self.size:
                self._kept.popitem(last=False)
        return [fresh[key] if key in fresh else known[key] for key in keys]

    def _key(self, exchange: Exchange) -> bytes:
        digest = hashlib.blake2b(key=self._secret, digest_size=32)
        for part in _parts(exchange):
            # With its length before it, no text can pass for two others.
            digest.update(b"-" if part is None else b"%d:" % len(part))
            digest.update(part or b"")
        return digest.digest()


def _parts(exchange: Exchange) -> Iterator[bytes | None]:
    for text in (exchange.response, exchange.question, exchange.reasoning):
        yield _encoded(text)
    yield b"%d" % len(exchange.images)
    for image in exchange.images:
        yield image.data
        yield from map(_encoded, (image.url, image.file_id, image.mime_type, image.description))
    for call in exchange.tool_calls:
        yield from map(_encoded, (call.name, call.arguments))


def _encoded(text: str | None) -> bytes | None:
    return None if text is None else text.encode("utf-8", errors="surrogatepass")


def _rebuild(detector: HarmDetector, size: int) -> CachingDetector:
    return CachingDetector(detector, size=size)
