"""Putting the cases of benchmarks to a model, and keeping every answer."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

from protector_guardrails.errors import ConfigurationError, MissingExtraError
from protector_guardrails.evaluation.defense.answer_log import AnswerLog
from protector_guardrails.evaluation.defense.cases import Answer, Case
from protector_guardrails.evaluation.defense.images import UnreadableImageError
from protector_guardrails.evaluation.defense.mllms import Mllm, UnanswerableError, one_line
from protector_guardrails.evaluation.defense.recorded import RecordedMllm
from protector_guardrails.models.base_weights import sha256_of
from protector_guardrails.threads import run_in_thread

if TYPE_CHECKING:
    from langchain_core.rate_limiters import InMemoryRateLimiter

HOPELESS = 20
"""After so many cases on which the model failed, and none that it answered, no more are tried."""

_LONGEST_PAUSE_S = 60.0


def answer_all(
    cases: Iterable[Case],
    mllm: Mllm,
    *,
    store: Path,
    concurrency: int = 4,
    rate_limit_per_minute: float | None = None,
    timeout_s: float = 120,
    retries: int = 2,
    backoff_s: float = 1.0,
    progress: Callable[[int], None] = lambda _: None,
) -> AnswerLog:
    """Get an answer to every case, from the store or from the model.

    Each answer is written as soon as it is there, so an interrupted run (Ctrl-C, a crash)
    goes on where it was: answers of the same model to the same question and image are taken
    over, failures are tried again.

    Args:
        cases: What is asked, taken one by one. Ids must differ.
        mllm: The model.
        store: File of the answers, ``answers.jsonl``; made if there is none.
        concurrency: How many cases are asked at a time; a model may allow fewer.
        rate_limit_per_minute: How many are asked in a minute at most, repetitions included; None for no limit.
        timeout_s: How long one attempt may take.
        retries: How often a failed attempt is repeated.
        backoff_s: Pause before the first repetition; each further pause is twice as long.
        progress: Is told how many more cases are done.

    Raises:
        ConfigurationError: If an option is out of range, an id occurs twice, the store was not written by this
            function, or the model cannot be used: it says so, or it fails on the first :data:`HOPELESS` cases.
            Also if an event loop is running in this thread. What was answered until then stays in the store.

    Example:
        >>> log = answer_all(benchmark, load_mllm("openai:gpt-4o-mini"), store=Path("answers.jsonl"))  # doctest: +SKIP
        >>> log.failures  # doctest: +SKIP
        Counter({'TimeoutError': 2})
    """
    _check(concurrency, rate_limit_per_minute, timeout_s, retries)
    limiter = None if rate_limit_per_minute is None else _limiter(rate_limit_per_minute)
    with closing(AnswerLog(store)) as log:
        asking = _Asking(mllm, log, limiter, timeout_s=timeout_s, retries=retries, backoff_s=backoff_s)
        workers = min(concurrency, mllm.concurrency or concurrency)
        asyncio.run(asking.run(cases, workers=workers, progress=progress))
    return log


class _Asking:
    """One run over the cases."""

    def __init__(
        self,
        mllm: Mllm,
        log: AnswerLog,
        limiter: InMemoryRateLimiter | None,
        *,
        timeout_s: float,
        retries: int,
        backoff_s: float,
    ) -> None:
        self._mllm, self._log, self._limiter = mllm, log, limiter
        self._timeout_s, self._retries, self._backoff_s = timeout_s, retries, backoff_s
        self._answered = self._failed = 0

    async def run(self, cases: Iterable[Case], *, workers: int, progress: Callable[[int], None]) -> None:
        """Have workers take case after case, so that no more cases are in memory than there are workers."""
        source = iter(cases)
        await asyncio.gather(*(self._work(source, progress) for _ in range(workers)))

    async def _work(self, source: Iterator[Case], progress: Callable[[int], None]) -> None:
        for case in source:
            self._log.expect(case.id)
            await self._settle(case)
            progress(1)

    async def _settle(self, case: Case) -> None:
        """See that the log holds an answer to a case, or why there is none."""
        asked: str | None = None
        try:
            asked = await _hash_of(case)
            if self._log.holds(case.id, asked=asked, by=self._mllm.fingerprint):
                self._log.taken_over += 1
                self._answered += 1
                return
            answer = await self._answer(case, asked)
        except UnanswerableError as error:  # the case's fault, not the model's
            answer = self._failure(case, error)
        self._log.write(answer, asked=asked, by=self._mllm.fingerprint)

    async def _answer(self, case: Case, asked: str) -> Answer:
        if isinstance(self._mllm, RecordedMllm):
            answer = self._mllm.recall(case, asked=asked)
            self._log.taken_over += 1
            return answer
        answer = await self._asked(case)
        if answer.error is None:
            self._answered += 1
        else:
            self._failed += 1
            if not self._answered and self._failed >= HOPELESS:
                raise ConfigurationError(
                    f"{self._mllm.name} failed on each of the first {self._failed} cases, the last time with "
                    f"{answer.error}"
                )
        return answer

    async def _asked(self, case: Case) -> Answer:
        """The model's answer, or how its last attempt failed."""
        failure: Exception | None = None
        for attempt in range(self._retries + 1):
            if attempt:
                await asyncio.sleep(min(self._backoff_s * 2 ** (attempt - 1), _LONGEST_PAUSE_S))
            if self._limiter is not None:
                await self._limiter.aacquire()
            began = time.perf_counter()
            try:
                async with asyncio.timeout(self._timeout_s):
                    response = await self._mllm.answer(case)
            except (ConfigurationError, MissingExtraError, UnanswerableError):
                raise
            except Exception as error:  # whatever a provider raises; asked again
                failure = error
            else:
                elapsed_ms = round((time.perf_counter() - began) * 1000, 3)
                return Answer(case=case.id, model=self._mllm.name, response=response, elapsed_ms=elapsed_ms)
        return self._failure(case, failure or RuntimeError("no attempt was made"))

    def _failure(self, case: Case, error: Exception) -> Answer:
        return Answer(case=case.id, model=self._mllm.name, response=None, error=one_line(error))


async def _hash_of(case: Case) -> str:
    """Changes when what is asked does: the question, what is said of the image, and the image's bytes."""
    image = ""
    if case.image is not None:
        try:
            image = await run_in_thread(sha256_of, case.image)
        except OSError as error:
            raise UnreadableImageError(f"{case.image.name} cannot be read ({type(error).__name__})") from error
    digest = hashlib.sha256()
    for part in (case.question, case.description or "", image):
        data = part.encode("utf-8", "surrogatepass")
        digest.update(f"{len(data)}:".encode() + data)
    return digest.hexdigest()


def _limiter(per_minute: float) -> InMemoryRateLimiter:
    from langchain_core.rate_limiters import InMemoryRateLimiter

    spacing_s = 60 / per_minute
    return InMemoryRateLimiter(requests_per_second=1 / spacing_s, check_every_n_seconds=min(0.1, spacing_s / 10))


def _check(concurrency: int, rate_limit_per_minute: float | None, timeout_s: float, retries: int) -> None:
    if concurrency < 1:
        raise ConfigurationError(f"concurrency is {concurrency}: it must be 1 or more")
    if retries < 0:
        raise ConfigurationError(f"retries is {retries}: it must be 0 or more")
    if not timeout_s > 0:
        raise ConfigurationError(f"timeout_s is {timeout_s}: it must be more than 0")
    if rate_limit_per_minute is not None and not rate_limit_per_minute > 0:
        raise ConfigurationError(f"rate_limit_per_minute is {rate_limit_per_minute}: it must be more than 0")
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return
    raise ConfigurationError(
        "answer_all runs an event loop of its own, and one is running here (as in a notebook): "
        "call it with await asyncio.to_thread(answer_all, ...)"
    )
