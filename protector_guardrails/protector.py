"""The guard itself: detect, act, judge again, refuse.

This is the only place where it is decided what leaves. The decision is written once,
as a generator that asks for judgements and rewrites and does no waiting of its own;
:meth:`Protector.guard` answers its requests in threads, :meth:`Protector.aguard` on
the event loop.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import threading
import time
from collections.abc import Generator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from protector_guardrails.detectors import resolve_detector
from protector_guardrails.detectors.base import HarmDetector
from protector_guardrails.detoxifiers import resolve_detoxifier
from protector_guardrails.detoxifiers.base import Detoxifier
from protector_guardrails.errors import (
    ConfigurationError,
    DetectorError,
    DetoxifierError,
    GuardTimeoutError,
    HarmfulResponseError,
    MissingExtraError,
    ProtectorError,
    WeightsError,
)
from protector_guardrails.policy import Policy
from protector_guardrails.threads import start_in_thread
from protector_guardrails.types import Exchange, Outcome, Verdict

_TELLABLE = (ConfigurationError, MissingExtraError, WeightsError)
"""Errors that help if their message is told; any other message may quote the response."""


@dataclass(frozen=True, slots=True)
class _Detect:
    """A request for verdicts."""

    detector: HarmDetector
    exchanges: Sequence[Exchange]
    failure = DetectorError

    def __len__(self) -> int:
        return len(self.exchanges)

    def part(self, index: int) -> _Detect:
        return _Detect(self.detector, self.exchanges[index : index + 1])

    def run(self) -> Any:
        return self.detector.detect(self.exchanges)

    async def arun(self) -> Any:
        return await self.detector.adetect(self.exchanges)

    def checked(self, result: Any) -> Verdict | ProtectorError:
        if isinstance(result, Verdict):
            return result
        return DetectorError(f"{self.detector.name} returned {type(result).__name__} instead of a Verdict")


@dataclass(frozen=True, slots=True)
class _Detoxify:
    """A request for rewrites."""

    detoxifier: Detoxifier
    exchanges: Sequence[Exchange]
    verdicts: Sequence[Verdict]
    failure = DetoxifierError

    def __len__(self) -> int:
        return len(self.exchanges)

    def part(self, index: int) -> _Detoxify:
        here = slice(index, index + 1)
        return _Detoxify(self.detoxifier, self.exchanges[here], self.verdicts[here])

    def run(self) -> Any:
        return self.detoxifier.detoxify(self.exchanges, self.verdicts)

    async def arun(self) -> Any:
        return await self.detoxifier.adetoxify(self.exchanges, self.verdicts)

    def checked(self, result: Any) -> str | ProtectorError:
        if isinstance(result, str):
            return result
        return DetoxifierError(f"detoxify returned {type(result).__name__} instead of a text")


_Request = _Detect | _Detoxify
_Flow = Generator[_Request, Any, list[Outcome]]
_OUT_OF_TIME = object()
"""What a request is answered with when the policy's time limit has passed."""


class Protector:
    """Judges responses and makes sure that what leaves is safe.

    Every response is judged. A safe one leaves as it came. What happens to a harmful
    one is the policy's choice; a rewrite is judged like the response was, and if it is
    still harmful, empty or missing, the refusal leaves. A detector that raises, hangs
    or answers nonsense counts as a failure, and the policy refuses by default.

    The time limit covers a whole call. Work that outlives it is abandoned, not stopped:
    Python cannot end a thread, so a detector that hangs for ever keeps one.

    Args:
        detector: ``"embedded"`` or a :class:`HarmDetector`.
        detoxifier: ``"redact"``, ``"refuse"`` or a :class:`Detoxifier`.
        policy: Thresholds, actions and limits.

    Raises:
        ConfigurationError: If a name is not known.

    Example:
        >>> from protector_guardrails import Exchange, Protector
        >>> protector = Protector(detoxifier="redact")
        >>> [outcome] = protector.guard([Exchange(question="How do I boil an egg?", response="For eight minutes.")])
        >>> outcome.action, outcome.text
        ('pass', 'For eight minutes.')
    """

    def __init__(
        self,
        detector: str | HarmDetector = "embedded",
        detoxifier: str | Detoxifier = "redact",
        *,
        policy: Policy | None = None,
    ) -> None:
        self.policy = policy or Policy()
        self.detector = resolve_detector(detector)
        self.detoxifier = resolve_detoxifier(detoxifier).bound_to(self.detector, self.policy)

    def guard(self, exchanges: Sequence[Exchange], *, return_exceptions: bool = False) -> list[Outcome]:
        """Guard a batch; one outcome per exchange, in order.

        Args:
            exchanges: What to guard. One that cannot be judged fails alone.
            return_exceptions: Under ``Policy(on_harm="raise")``, return outcomes with
                action ``"raise"`` (their text is the refusal) instead of raising.

        Raises:
            HarmfulResponseError: For the first harmful response, once all were judged,
                under ``Policy(on_harm="raise")``.
        """
        return self._delivered(self._run(self._decide(exchanges)), return_exceptions=return_exceptions)

    async def aguard(self, exchanges: Sequence[Exchange], *, return_exceptions: bool = False) -> list[Outcome]:
        """Like :meth:`guard`, without blocking the event loop."""
        return self._delivered(await self._arun(self._decide(exchanges)), return_exceptions=return_exceptions)

    def treat(self, exchanges: Sequence[Exchange], verdicts: Sequence[Verdict]) -> list[Outcome]:
        """The second half of :meth:`guard`, for exchanges that were judged already.

        Args:
            exchanges: What was judged.
            verdicts: The verdict on each of them; what they decided stands.
        """
        return self._run(self._decide(exchanges, verdicts))

    async def atreat(self, exchanges: Sequence[Exchange], verdicts: Sequence[Verdict]) -> list[Outcome]:
        """Like :meth:`treat`, without blocking the event loop."""
        return await self._arun(self._decide(exchanges, verdicts))

    # The decision ------------------------------------------------------------------

    def _decide(self, exchanges: Sequence[Exchange], verdicts: Sequence[Verdict] | None = None) -> _Flow:
        started = time.perf_counter()
        # The caller may change its list while we wait, a detector the one it is given: what leaves was judged.
        exchanges = tuple(exchanges)
        judged: Sequence[Verdict | ProtectorError]
        judged = (yield from self._judge(exchanges)) if verdicts is None else list(verdicts)
        outcomes: dict[int, Outcome] = {}
        to_rewrite: dict[int, tuple[Exchange, Verdict]] = {}
        for index, (exchange, verdict) in enumerate(zip(exchanges, judged, strict=True)):
            if isinstance(verdict, ProtectorError):
                outcomes[index] = self._unjudged(exchange, verdict)
            elif not verdict.harmful:
                outcomes[index] = Outcome(exchange=exchange, text=exchange.response, action="pass", verdict=verdict)
            elif self.policy.on_harm == "flag":
                outcomes[index] = Outcome(exchange=exchange, text=exchange.response, action="flag", verdict=verdict)
            elif self.policy.on_harm == "detoxify":
                to_rewrite[index] = (exchange, verdict)
            else:
                outcomes[index] = self._refused(exchange, verdict, raises=self.policy.on_harm == "raise")
        if to_rewrite:
            outcomes |= yield from self._rewrite(to_rewrite)
        elapsed_ms = (time.perf_counter() - started) * 1000
        return [replace(outcomes[index], elapsed_ms=elapsed_ms) for index in range(len(exchanges))]

    def _judge(self, exchanges: Sequence[Exchange]) -> Generator[_Request, Any, list[Verdict | ProtectorError]]:
        results = yield from self._ask(_Detect(self.detector, exchanges))
        return [result if isinstance(result, ProtectorError) else self.policy.apply(result) for result in results]

    def _rewrite(self, harmful: dict[int, tuple[Exchange, Verdict]]) -> Generator[_Request, Any, dict[int, Outcome]]:
        outcomes: dict[int, Outcome] = {}
        current, rechecks = dict(harmful), dict[int, Verdict]()
        for _ in range(self.policy.max_rewrites):
            exchanges, verdicts = zip(*current.values(), strict=True)
            texts = yield from self._ask(_Detoxify(self.detoxifier, exchanges, verdicts))
            rewritten: dict[int, Exchange] = {}
            for index, text in zip(current, texts, strict=True):
                exchange, (original, verdict) = current[index][0], harmful[index]
                rewrite = replace(exchange, response=str(text), reasoning=None, tool_calls=())
                if isinstance(text, ProtectorError) or not text.strip():
                    error = text if isinstance(text, ProtectorError) else None
                    outcomes[index] = self._refused(original, verdict, recheck=rechecks.get(index), error=error)
                elif self.detoxifier.refuses:
                    outcomes[index] = Outcome(exchange=original, text=text, action="refuse", verdict=verdict)
                elif rewrite != exchange:  # what comes back unchanged was judged harmful already
                    rewritten[index] = rewrite
            current = {i: pair for i, pair in current.items() if i not in outcomes and i not in rewritten}
            judged = yield from self._judge(tuple(rewritten.values()))
            for (index, exchange), recheck in zip(rewritten.items(), judged, strict=True):
                original, verdict = harmful[index]
                if isinstance(recheck, ProtectorError):
                    outcomes[index] = self._refused(original, verdict, error=recheck)
                elif recheck.harmful:
                    rechecks[index] = recheck
                    current[index] = (exchange, recheck)
                else:
                    outcomes[index] = Outcome(
                        exchange=original, text=exchange.response, action="rewrite", verdict=verdict, recheck=recheck
                    )
            if not current:
                break
        for index in current:
            original, verdict = harmful[index]
            outcomes[index] = self._refused(original, verdict, recheck=rechecks.get(index))
        return outcomes

    def _refused(
        self,
        exchange: Exchange,
        verdict: Verdict | None,
        *,
        recheck: Verdict | None = None,
        error: ProtectorError | None = None,
        raises: bool = False,
    ) -> Outcome:
        return Outcome(
            exchange=exchange,
            text=self.policy.refusal_for(verdict),
            action="raise" if raises else "refuse",
            verdict=verdict,
            recheck=recheck,
            error=_describe(error),
        )

    def _unjudged(self, exchange: Exchange, error: ProtectorError) -> Outcome:
        if self.policy.on_error == "closed":
            return self._refused(exchange, None, error=error)
        return Outcome(exchange=exchange, text=exchange.response, action="pass", error=_describe(error))

    def _delivered(self, outcomes: list[Outcome], *, return_exceptions: bool) -> list[Outcome]:
        if not return_exceptions:
            for outcome in outcomes:
                if outcome.action == "raise":
                    raise HarmfulResponseError(outcome)
        return outcomes

    # Asking, with failures as values -----------------------------------------------

    def _ask(self, request: _Request) -> Generator[_Request, Any, list[Any]]:
        """One result per item of the request: a value, or the error that befell it.

        If a batch fails as a whole, its items are tried one by one, so that a bad item
        fails alone. When time is up there is no second try.
        """
        if not len(request):
            return []
        failure: ProtectorError
        try:
            results = yield request
            if results is _OUT_OF_TIME:
                return [self._out_of_time()] * len(request)
            listed = isinstance(results, Sequence) and not isinstance(results, str | bytes)
            if listed and len(results) == len(request):
                return [request.checked(result) for result in results]
            returned = f"{len(results)} results" if listed else type(results).__name__
            asked = type(request).__name__[1:].lower()
            failure = request.failure(f"{asked} returned {returned} for {len(request)} exchanges")
        except _TELLABLE as error:
            failure = error
        except Exception as error:
            failure = request.failure(f"{type(error).__name__} was raised")
        if len(request) == 1:
            return [failure]
        singles: list[Any] = []
        for index in range(len(request)):
            singles.extend((yield from self._ask(request.part(index))))
        return singles

    def _run(self, flow: _Flow) -> list[Outcome]:
        deadline = self._deadline()
        try:
            request = next(flow)
            while True:
                try:
                    result = self._wait(request, deadline)
                except Exception as error:
                    request = flow.throw(error)
                else:
                    request = flow.send(result)
        except StopIteration as done:
            outcomes: list[Outcome] = done.value
            return outcomes

    async def _arun(self, flow: _Flow) -> list[Outcome]:
        deadline = self._deadline()
        try:
            request = next(flow)
            while True:
                try:
                    result = await self._await(request, deadline)
                except Exception as error:
                    request = flow.throw(error)
                else:
                    request = flow.send(result)
        except StopIteration as done:
            outcomes: list[Outcome] = done.value
            return outcomes

    def _deadline(self) -> float | None:
        return None if self.policy.timeout_s is None else time.monotonic() + self.policy.timeout_s

    def _wait(self, request: _Request, deadline: float | None) -> Any:
        if deadline is None:
            return request.run()
        if (remaining := deadline - time.monotonic()) > 0:
            future = start_in_thread(request.run)
            if concurrent.futures.wait([future], timeout=min(remaining, threading.TIMEOUT_MAX)).done:
                return future.result()
        return _OUT_OF_TIME

    async def _await(self, request: _Request, deadline: float | None) -> Any:
        remaining = None if deadline is None else deadline - time.monotonic()
        if remaining is None or remaining > 0:
            task = asyncio.create_task(request.arun())
            task.add_done_callback(_retrieve)
            try:
                done, _ = await asyncio.wait([task], timeout=remaining)
            finally:
                task.cancel()  # where it is not done: nobody waits for it any more
            if done:
                if task.cancelled():  # by itself: a cancellation of the caller would have surfaced above
                    raise concurrent.futures.CancelledError
                return task.result()
        return _OUT_OF_TIME

    def _out_of_time(self) -> GuardTimeoutError:
        return GuardTimeoutError(f"judging and rewriting took longer than the policy's {self.policy.timeout_s:g} s")


def _retrieve(task: asyncio.Task[Any]) -> None:
    """Take an abandoned task's error, else asyncio logs it with its message, which may quote the response."""
    if not task.cancelled():
        task.exception()


def _describe(error: ProtectorError | None) -> str | None:
    return f"{type(error).__name__}: {error}" if error else None
