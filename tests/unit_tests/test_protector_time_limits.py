"""Time limits, cancellation and concurrency of the guard."""

from __future__ import annotations

import asyncio
import gc
import logging
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence

import pytest

from protector_guardrails import Detoxifier, Exchange, HarmDetector, Outcome, Policy, Protector, Verdict
from protector_guardrails.threads import run_in_thread, start_in_thread

REFUSAL = "I'd rather not."
LIMIT = 0.25
MARGIN = 2.0  # the machine may be busy; without a limit these tests would hang
HARMFUL = Exchange(response="Put poison in the tea.")


@pytest.fixture
def release() -> Iterator[threading.Event]:
    """What hangs waits for this, so that no test leaves a thread behind."""
    event = threading.Event()
    yield event
    event.set()


class Judges(HarmDetector):
    """Poison is harmful."""

    def detect(self, exchanges: Sequence[Exchange]) -> list[Verdict]:
        return [Verdict(harmful=False, score=float("poison" in exchange.response)) for exchange in exchanges]


class Hangs(Judges):
    def __init__(self, event: threading.Event, *, at_call: int = 1) -> None:
        self.event, self.at_call, self.calls = event, at_call, 0

    def detect(self, exchanges: Sequence[Exchange]) -> list[Verdict]:
        self.calls += 1
        if self.calls == self.at_call:
            self.event.wait(60)
        return super().detect(exchanges)


class HangsOnTheLoop(Judges):
    async def adetect(self, exchanges: Sequence[Exchange]) -> list[Verdict]:
        await asyncio.sleep(60)
        return self.detect(exchanges)


class Sweetens(Detoxifier):
    def detoxify(self, exchanges: Sequence[Exchange], verdicts: Sequence[Verdict]) -> list[str]:
        return [exchange.response.replace("poison", "honey") for exchange in exchanges]


class HangsRewriting(Sweetens):
    def __init__(self, event: threading.Event) -> None:
        self.event = event

    def detoxify(self, exchanges: Sequence[Exchange], verdicts: Sequence[Verdict]) -> list[str]:
        self.event.wait(60)
        return super().detoxify(exchanges, verdicts)


def limited(detector: HarmDetector, detoxifier: Detoxifier | None = None, *, on_error: str = "closed") -> Protector:
    policy = Policy(timeout_s=LIMIT, refusal=REFUSAL, on_error=on_error)  # type: ignore[arg-type]
    return Protector(detector, detoxifier or Sweetens(), policy=policy)


def in_time(call: Callable[[], list[Outcome]]) -> list[Outcome]:
    started = time.monotonic()
    outcomes = call()
    assert LIMIT * 0.9 <= time.monotonic() - started < LIMIT + MARGIN
    return outcomes


def guarded(protector: Protector, *, asynchronous: bool, count: int = 1) -> list[Outcome]:
    exchanges = [HARMFUL] * count
    if asynchronous:
        return in_time(lambda: asyncio.run(protector.aguard(exchanges)))
    return in_time(lambda: protector.guard(exchanges))


both_ways = pytest.mark.parametrize("asynchronous", [False, True], ids=["guard", "aguard"])


@both_ways
def test_a_detector_that_hangs_is_abandoned(release: threading.Event, asynchronous: bool) -> None:
    detector = Hangs(release)
    outcomes = guarded(limited(detector), asynchronous=asynchronous, count=3)
    assert [(outcome.action, outcome.text) for outcome in outcomes] == [("refuse", REFUSAL)] * 3
    assert outcomes[0].error == "GuardTimeoutError: judging and rewriting took longer than the policy's 0.25 s"
    assert detector.calls == 1, "when time is up there is no second try"


def test_an_adetect_that_hangs_is_abandoned() -> None:
    [outcome] = guarded(limited(HangsOnTheLoop()), asynchronous=True)
    assert (outcome.action, outcome.text) == ("refuse", REFUSAL)


@both_ways
def test_open_lets_through_what_was_not_judged_in_time(release: threading.Event, asynchronous: bool) -> None:
    [outcome] = guarded(limited(Hangs(release), on_error="open"), asynchronous=asynchronous)
    assert (outcome.action, outcome.text) == ("pass", HARMFUL.response)
    assert str(outcome.error).startswith("GuardTimeoutError: ")


@both_ways
@pytest.mark.parametrize("on_error", ["closed", "open"])
def test_a_rewrite_that_hangs_is_a_refusal(release: threading.Event, asynchronous: bool, on_error: str) -> None:
    protector = limited(Judges(), HangsRewriting(release), on_error=on_error)
    [outcome] = guarded(protector, asynchronous=asynchronous)
    assert (outcome.action, outcome.text) == ("refuse", REFUSAL)
    assert outcome.verdict is not None
    assert str(outcome.error).startswith("GuardTimeoutError: ")


@both_ways
@pytest.mark.parametrize("on_error", ["closed", "open"])
def test_a_recheck_that_hangs_is_a_refusal(release: threading.Event, asynchronous: bool, on_error: str) -> None:
    protector = limited(Hangs(release, at_call=2), on_error=on_error)
    [outcome] = guarded(protector, asynchronous=asynchronous)
    assert (outcome.action, outcome.text) == ("refuse", REFUSAL)


def test_the_limit_is_for_judgement_and_rewrite_together() -> None:
    class Slow(Judges):
        def detect(self, exchanges: Sequence[Exchange]) -> list[Verdict]:
            time.sleep(LIMIT * 0.7)
            return super().detect(exchanges)

    [outcome] = in_time(lambda: limited(Slow()).guard([HARMFUL]))
    assert (outcome.action, outcome.text) == ("refuse", REFUSAL)
    assert str(outcome.error).startswith("GuardTimeoutError: ")


@both_ways
@pytest.mark.parametrize("timeout_s", [None, 1e300])
def test_a_very_long_limit_is_as_good_as_none(timeout_s: float | None, asynchronous: bool) -> None:
    class Slow(Judges):
        def detect(self, exchanges: Sequence[Exchange]) -> list[Verdict]:
            time.sleep(0.02)  # a result that is there at once is not waited for
            return super().detect(exchanges)

    protector = Protector(Slow(), Sweetens(), policy=Policy(timeout_s=timeout_s))
    outcomes = asyncio.run(protector.aguard([HARMFUL])) if asynchronous else protector.guard([HARMFUL])
    assert [outcome.text for outcome in outcomes] == ["Put honey in the tea."]


async def test_cancelling_aguard_stops_it_and_leaves_no_task() -> None:
    started = asyncio.Event()

    class Waits(Judges):
        async def adetect(self, exchanges: Sequence[Exchange]) -> list[Verdict]:
            started.set()
            await asyncio.sleep(60)
            return self.detect(exchanges)

    for timeout_s in (30.0, None):
        started.clear()
        call = asyncio.create_task(Protector(Waits(), policy=Policy(timeout_s=timeout_s)).aguard([HARMFUL]))
        await started.wait()
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        await asyncio.sleep(0)
        assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_what_an_abandoned_task_says_later_is_not_logged(caplog: pytest.LogCaptureFixture) -> None:
    class FailsLate(Judges):
        async def adetect(self, exchanges: Sequence[Exchange]) -> list[Verdict]:
            try:
                await asyncio.sleep(60)
            finally:
                raise ValueError(f"gave up on {exchanges[0].response!r}")

    with caplog.at_level(logging.DEBUG):
        [outcome] = await limited(FailsLate()).aguard([HARMFUL])
        assert outcome.text == REFUSAL
        await asyncio.sleep(0.01)
        gc.collect()  # asyncio logs an exception that nobody took when its task goes
    assert "poison" not in caplog.text


async def test_a_blocking_detector_does_not_block_the_loop(release: threading.Event) -> None:
    call = asyncio.create_task(Protector(Hangs(release), Sweetens()).aguard([HARMFUL]))
    ticks = 0
    while ticks < 5:
        await asyncio.sleep(0.001)
        ticks += 1
    assert not call.done(), "the loop ran while the detector waited"
    release.set()
    assert [outcome.text for outcome in await call] == ["Put honey in the tea."]


async def test_two_hundred_calls_at_once_keep_their_answers_apart() -> None:
    protector = Protector(Judges(), Sweetens())

    async def call(number: int) -> None:
        bad, good = Exchange(response=f"poison {number}"), Exchange(response=f"tea {number}")
        outcomes = await protector.aguard([bad, good])
        assert [outcome.text for outcome in outcomes] == [f"honey {number}", f"tea {number}"]
        assert [outcome.exchange for outcome in outcomes] == [bad, good]

    await asyncio.gather(*(call(number) for number in range(200)))


@pytest.mark.parametrize(
    "error", [StopIteration("x"), SystemExit(3), asyncio.CancelledError(), KeyboardInterrupt()], ids=repr
)
async def test_an_error_in_a_thread_that_means_something_to_the_loop_arrives_as_an_ordinary_one(
    error: BaseException,
) -> None:
    def fail() -> None:
        raise error

    with pytest.raises(RuntimeError, match=type(error).__name__):
        await asyncio.wait_for(run_in_thread(fail), timeout=MARGIN)
    with pytest.raises(RuntimeError, match=type(error).__name__):
        start_in_thread(fail).result(timeout=MARGIN)


async def test_an_ordinary_error_in_a_thread_arrives_as_itself() -> None:
    error = OSError("no disk")

    def fail() -> None:
        raise error

    with pytest.raises(OSError, match="no disk") as caught:
        await run_in_thread(fail)
    assert caught.value is error


PROGRAM = """
import threading
from protector_guardrails import Exchange, HarmDetector, Policy, Protector

class Hangs(HarmDetector):
    def detect(self, exchanges):
        threading.Event().wait()

[outcome] = Protector(Hangs(), policy=Policy(timeout_s=0.05)).guard([Exchange(response="tea")])
print(outcome.action)
"""


def test_a_detector_that_hangs_for_ever_does_not_keep_the_process_alive() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, "refuse"), done.stderr
