"""The guard itself: detect, act, judge again, refuse.

This is the only place where it is decided what leaves. The decision is written once,
as a generator that asks for judgements and rewrites and does no waiting of its own;
:meth:`Protector.guard` has its requests answered in threads, :meth:`Protector.aguard` on
the event loop.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Generator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from protector_guardrails.asking import Asker, Detect, Detoxify, Request
from protector_guardrails.detectors import resolve_detector, resolve_policy
from protector_guardrails.detectors.base import HarmDetector
from protector_guardrails.detoxifiers import AnyDetoxifier, resolve_detoxifier
from protector_guardrails.errors import AuditError, DetectorError, HarmfulResponseError, ProtectorError
from protector_guardrails.policy import Policy, PolicyLike
from protector_guardrails.telemetry import guarding
from protector_guardrails.threads import run_in_thread
from protector_guardrails.types import Exchange, Outcome, Verdict

if TYPE_CHECKING:
    from protector_guardrails.audit import AuditLog

_log = logging.getLogger(__name__)

_Flow = Generator[Request, Any, list[Outcome]]


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
        detoxifier: ``"redact"``, ``"refuse"``, a :class:`Detoxifier`, or a chat model of LangChain or LlamaIndex,
            which then rewrites (:class:`~protector_guardrails.ChatModelDetoxifier`).
        policy: Thresholds, actions and limits.
        audit: Where each outcome is recorded: an :class:`~protector_guardrails.AuditLog`, or the path of one.

    Raises:
        ConfigurationError: If a name is not known, of a detector, a detoxifier or a threshold.

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
        detoxifier: AnyDetoxifier = "redact",
        *,
        policy: PolicyLike | None = None,
        audit: AuditLog | str | os.PathLike[str] | None = None,
    ) -> None:
        self.detector = resolve_detector(detector)
        chosen = Policy() if policy is None else Policy.model_validate(policy)
        self.policy = resolve_policy(chosen, self.detector)
        self.detoxifier = resolve_detoxifier(detoxifier).bound_to(self.detector, self.policy)
        self.asker = Asker(self.policy.timeout_s)
        self.audit = _opened(audit)

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
        with guarding(detector=self.detector.name, exchanges=exchanges) as observed:
            outcomes = self.recorded(self.asker.run(self.deciding(exchanges)))
            observed.settle(outcomes)
        return self._delivered(outcomes, return_exceptions=return_exceptions)

    async def aguard(self, exchanges: Sequence[Exchange], *, return_exceptions: bool = False) -> list[Outcome]:
        """Like :meth:`guard`, without blocking the event loop."""
        with guarding(detector=self.detector.name, exchanges=exchanges) as observed:
            outcomes = await self.arecorded(await self.asker.arun(self.deciding(exchanges)))
            observed.settle(outcomes)
        return self._delivered(outcomes, return_exceptions=return_exceptions)

    def treat(self, exchanges: Sequence[Exchange], verdicts: Sequence[Verdict]) -> list[Outcome]:
        """The second half of :meth:`guard`, for exchanges that were judged already.

        Args:
            exchanges: What was judged.
            verdicts: The verdict on each of them; what they decided stands.
        """
        with guarding(detector=self.detector.name, exchanges=exchanges, judged_here=False) as observed:
            outcomes = self.recorded(self.asker.run(self.deciding(exchanges, verdicts)))
            observed.settle(outcomes)
        return outcomes

    async def atreat(self, exchanges: Sequence[Exchange], verdicts: Sequence[Verdict]) -> list[Outcome]:
        """Like :meth:`treat`, without blocking the event loop."""
        with guarding(detector=self.detector.name, exchanges=exchanges, judged_here=False) as observed:
            outcomes = await self.arecorded(await self.asker.arun(self.deciding(exchanges, verdicts)))
            observed.settle(outcomes)
        return outcomes

    def recorded(self, outcomes: list[Outcome]) -> list[Outcome]:
        """The outcomes, once they are in the audit log.

        Where they cannot be written and the log is ``required``, they are refusals instead.
        """
        if self.audit is None:
            return outcomes
        try:
            self.audit.record(outcomes)
        except Exception as error:
            _log.warning("the audit log could not be written: %s", type(error).__name__)
            if self.audit.required:
                failure = AuditError(f"the response could not be recorded: {type(error).__name__}")
                return [self._unrecorded(outcome, failure) for outcome in outcomes]
        return outcomes

    def _unrecorded(self, outcome: Outcome, failure: ProtectorError) -> Outcome:
        return self._refused(outcome.exchange, outcome.verdict, error=failure, raises=outcome.action == "raise")

    async def arecorded(self, outcomes: list[Outcome]) -> list[Outcome]:
        """Like :meth:`recorded`, without blocking the event loop."""
        return outcomes if self.audit is None else await run_in_thread(self.recorded, outcomes)

    # The decision ------------------------------------------------------------------

    def deciding(
        self, exchanges: Sequence[Exchange], verdicts: Sequence[Verdict | ProtectorError] | None = None
    ) -> _Flow:
        """The decision as a flow of requests, for who drives it with an :class:`Asker`; it never raises for harm.

        Args:
            exchanges: What is decided on.
            verdicts: Verdicts, or the errors in their place, if the exchanges were judged already.
        """
        started = time.perf_counter()
        # The caller may change its list while we wait, a detector the one it is given: what leaves was judged.
        exchanges = tuple(exchanges)
        judged: Sequence[Verdict | ProtectorError]
        judged = (yield from self.judging(exchanges)) if verdicts is None else list(verdicts)
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

    def judging(self, exchanges: Sequence[Exchange]) -> Generator[Request, Any, list[Verdict | ProtectorError]]:
        """A flow that ends with one verdict under the policy, or an error, per exchange."""
        results = yield from self.asker.ask(Detect(self.detector, exchanges))
        return [result if isinstance(result, ProtectorError) else self._under_policy(result) for result in results]

    def _under_policy(self, verdict: Verdict) -> Verdict | ProtectorError:
        try:
            return self.policy.apply(verdict)
        except Exception as error:  # a verdict that was changed after it was made
            return DetectorError(f"{self.detector.name} returned a broken Verdict: {type(error).__name__}")

    def _rewrite(self, harmful: dict[int, tuple[Exchange, Verdict]]) -> Generator[Request, Any, dict[int, Outcome]]:
        outcomes: dict[int, Outcome] = {}
        current, rechecks = dict(harmful), dict[int, Verdict]()
        for _ in range(self.policy.max_rewrites):
            exchanges, verdicts = zip(*current.values(), strict=True)
            texts = yield from self.asker.ask(Detoxify(self.detoxifier, exchanges, verdicts))
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
            judged = yield from self.judging(tuple(rewritten.values()))
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


def _opened(audit: AuditLog | str | os.PathLike[str] | None) -> AuditLog | None:
    if audit is None:
        return None
    from protector_guardrails.audit import open_audit

    return open_audit(audit)


def _describe(error: ProtectorError | None) -> str | None:
    return f"{type(error).__name__}: {error}" if error else None
