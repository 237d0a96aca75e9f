"""Many at once: each gets its own answer, and the event loop stays free."""

from __future__ import annotations

import asyncio
import time

from langchain_fakes import HARMFUL, EchoModel, FixedDetoxifier, PoisonDetector, verdict_of

from protector_guardrails import DetoxifierRunnable, HarmDetectorRunnable


async def test_two_hundred_at_once_with_a_blocking_detector() -> None:
    detector = PoisonDetector(delay=0.005)
    chain = EchoModel() | HarmDetectorRunnable(detector) | DetoxifierRunnable(FixedDetoxifier("Salt."))
    asked = [HARMFUL + f" {i}" if i % 3 == 0 else f"soup {i}" for i in range(200)]
    gaps: list[float] = []

    async def tick() -> None:
        before = time.perf_counter()
        while True:
            await asyncio.sleep(0.005)
            now = time.perf_counter()
            gaps.append(now - before)
            before = now

    ticker = asyncio.create_task(tick())
    answers = await asyncio.gather(*(chain.ainvoke(question) for question in asked))
    ticker.cancel()
    for question, answer in zip(asked, answers, strict=True):
        assert answer.content == ("Salt." if "poison" in question else f"about {question}")
        assert verdict_of(answer)["harmful"] is ("poison" in question)
    assert all(
        response == f"about {question}"
        for response, question in detector.questions.items()
        if question in asked and response != "Salt."
    )
    # Detectors that slept on the loop would take 200 x 5 ms in one go or in as many gaps.
    assert len(gaps) > 5
    assert sorted(gaps)[len(gaps) // 2] < 0.2


async def test_no_step_blocks_the_loop() -> None:
    from blockbuster import blockbuster_ctx

    detector = PoisonDetector(delay=0.005)
    chain = EchoModel() | HarmDetectorRunnable(detector) | DetoxifierRunnable("redact")
    await chain.ainvoke("warm up")
    with blockbuster_ctx():
        assert (await chain.ainvoke("soup")).content == "about soup"
        assert len(await chain.abatch(["soup", HARMFUL])) == 2
        assert len([chunk async for chunk in chain.astream(HARMFUL)]) == 1
